"""Read and write the JSON files of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.json_text import to_json


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; UserError if it holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): it is damaged, or the download is incomplete") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found


def write_json(path: Path, contents: dict[str, Any]) -> None:
    """Write a JSON object to a file in Hugging Face's layout."""
    path.write_text(to_json(contents, indent=2) + "\n", encoding="utf-8")
