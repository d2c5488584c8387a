"""Write the JSON files of a checkpoint folder. `data.files.documents` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.json_text import to_json


def write_json(path: Path, contents: dict[str, Any]) -> None:
    """Write a JSON object to a file in Hugging Face's layout."""
    path.write_text(to_json(contents, indent=2) + "\n", encoding="utf-8")
