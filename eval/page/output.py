"""The file of a page: checked before any work, and written as a whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from data.errors import UserError
from data.files.durable import write_text
from eval.kept_lines import writable
from eval.page.html import start

_ADVICE = " Give another --output."


def check_output(path: Path, program: str) -> None:
    """Check that a page can be written, and overwrites nothing but another page of the same program.

    Raises:
        UserError: it is a folder or another program's file, or cannot be written.
    """
    name, ours = f"--output {path}", start(program).encode()
    if os.path.lexists(path) and not path.is_file():
        raise UserError(f"{name}: this is no file. Give the name of a file, such as report.html.")
    with writable(name, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        found = b""
        if path.exists():
            with path.open("rb") as file:
                found = file.read(len(ours))
    if found not in (b"", ours):
        raise UserError(
            f"{name} is a file that {program} did not make, and it would be overwritten. Give another --output, or "
            "move the file."
        )


def write_page(path: Path, text: str) -> None:
    """Write a page; an existing one is replaced when the new one is complete.

    Raises:
        UserError: it cannot be written.
    """
    with writable(f"--output {path}", _ADVICE):
        write_text(path, text)
