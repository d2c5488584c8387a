"""Recognize the formats of checkpoints by content: what begins a file, and which files a folder has."""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError

GGUF_MAGIC = b"GGUF"
GGUF_NAMES = "*.[gG][gG][uU][fF]"  # of GGUF files in a folder, which may hold thousands of others
METADATA = ".metadata"  # of a training checkpoint: which file has which part of a tensor
CALIBRATION_FILE = "calibration.json"  # of an export: the temperatures of its probabilities
# Of an export: what its model learned, and from what. Without one of them it would be scored as another model.
OF_A_RUN = ("task.json", "prompt.json", "labels.json", "training.json", "trained_texts.npy", CALIBRATION_FILE)
HELD_OUT = "held-out"  # the split of a calibration that a training has fitted; others are by eval.py
EXPORTS = ("export", "best")  # folders of a run: its last model, and its best by held-out score


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder is in Meta's format, complete or not; False if it holds Hugging Face's files as well."""
    if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return False
    return (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth"))


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic number."""
    with open(path, "rb") as file:
        return file.read(4) == GGUF_MAGIC


def is_file_name(name: str) -> bool:
    """Whether a text can be the name of a file in a folder, and not a path to elsewhere."""
    return name not in ("", ".", "..") and not {"/", "\0"} & set(name) and len(name.encode()) <= 255


def size_of_weights(path: Path) -> int:
    """Size of a weight file in bytes.

    Raises:
        UserError: the file cannot be read, is empty, or is a git-lfs pointer.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes): the download stopped, or the disk was full")
    if start == b"version ":
        raise UserError(f"{path} is a git-lfs pointer of {size} bytes, not the weights: run `git lfs pull` there")
    return size
