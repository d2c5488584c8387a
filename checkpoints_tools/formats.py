"""Recognize the formats of checkpoints by content, never by name."""

from __future__ import annotations

from pathlib import Path

GGUF_MAGIC = b"GGUF"


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder is in Meta's format, complete or not; False if it holds Hugging Face's files as well."""
    if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return False
    return (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth"))


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic number."""
    with open(path, "rb") as file:
        return file.read(4) == GGUF_MAGIC
