"""Read the files of a tokenizer; shared by decoders and encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.errors import UserError


def read_files(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of the named files that exist in the folder, by name.

    Raises:
        UserError: one of them is a Git LFS pointer.
    """
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    for name, content in files.items():
        if content.startswith(b"version https://git-lfs"):
            raise damaged(folder / name, "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)")
    return files


def files_found(folder: Path) -> str:
    """The names of the folder's files, for an error message."""
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def damaged(path: Path, what: str) -> UserError:
    """The error for an unusable tokenizer file; ``what`` says why."""
    return UserError(f"{path} ({path.stat().st_size:,} bytes) is {what}: download it again.")


def parse_json(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """A JSON file's value; ``{}`` if the file is missing."""
    try:
        return json.loads(files[name]) if name in files else {}
    except ValueError as error:
        raise UserError(f"{name} beside the tokenizer is not JSON ({error}): download it again.") from error


def token_text(token: str | dict[str, Any] | None) -> str:
    """The text of a token as Hugging Face configs write it: a string, or a dict with flags."""
    return token.get("content", "") if isinstance(token, dict) else token or ""
