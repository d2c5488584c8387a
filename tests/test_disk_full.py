"""Programs say by their exit status that a disk is full."""

from __future__ import annotations

import errno
import importlib

import pytest

from data.errors import DISK_FULL, UserError


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        ("checkpoints_tools.convert", "convert", ["a", "b"]),
        ("checkpoints_tools.inspect", "inspect", ["a"]),
        ("data.check", "check", ["a"]),
        ("data.download", "download", ["massive"]),
        ("data.new", "new_task", ["a.csv"]),
        ("eval.page.__main__", "write_report", ["a"]),
    ],
)
def test_every_program_says_by_its_status_that_the_disk_is_full(
    module: str, function: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study tells by it that the next cell would meet the full disk too."""
    program = importlib.import_module(module)
    for cause, status in ((OSError(errno.ENOSPC, "full"), DISK_FULL), (None, 2)):

        def fails(*_: object, cause: OSError | None = cause, **__: object) -> None:
            raise UserError("it could not be written") from cause

        monkeypatch.setattr(program, function, fails)
        assert program.main(arguments) == status
