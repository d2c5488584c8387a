"""A file that is written over more than one run: ``OUTPUT.partial``, which becomes OUTPUT when it is complete.

``OUTPUT.partial.json`` beside it has the run's identity: what the records are made from. A run with the same identity
goes on after the last complete record. Encoding the records is left to ``outputs.py``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data.errors import UserError
from data.files.documents import read_json
from data.json_text import to_json
from eval.kept_lines import check_same, difference, lock, writable

ADVICE = "Remove that file to start over, or give another --output."
CALIBRATION = "calibration"  # a name in an identity: the temperatures of the probabilities


def partial_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def identity_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial.json")


def complete_lines(file: BinaryIO) -> Iterator[int]:
    """Yield the offset at which each complete line ends."""
    end = 0
    for line in file:
        end += len(line)
        if line.endswith(b"\n"):
            yield end


def complete_csv(file: BinaryIO) -> Iterator[int]:
    """Yield the offset at which each complete record of a CSV file ends; its cells may have line breaks."""
    end, ended = 0, True

    def lines() -> Iterator[str]:
        nonlocal end, ended
        for line in file:
            end, ended = end + len(line), line.endswith(b"\n")
            yield line.decode("utf-8", errors="replace")  # the last line may end inside a character

    limit = csv.field_size_limit(2**31 - 1)  # of the process; a cell that was written must be read
    try:
        for _ in csv.reader(lines(), strict=True):  # takes no line beyond the record's own
            if ended:
                yield end
    except csv.Error:
        return  # a quote is open at the end of the file
    finally:
        csv.field_size_limit(limit)


def kept_rows(output: Path, continuable: bool) -> str:
    """What an interrupted run says of the rows that are done."""
    how = "the same command continues" if continuable else "they cannot be continued, the input is read only once"
    return f"The rows that are done are in {partial_path(output)}; {how}."


@dataclass(frozen=True)
class Partial:
    """A partial file, open and locked.

    Attributes:
        file: is at the end of its last complete record.
        output: its final name.
        continuable: a later run can go on with it.
        n_records: how many complete records it has, the header included.
    """

    file: BinaryIO
    output: Path
    continuable: bool
    n_records: int

    def finish(self) -> None:
        """Give the file its final name.

        Raises:
            UserError: the disk is full, the file was removed meanwhile, or another file has its final name.
        """
        partial = partial_path(self.output)
        with writable(partial):
            self.file.flush()
            os.fsync(self.file.fileno())
            check_same(self.file, partial)
            refuse_existing(self.output)
            partial.rename(self.output)
            identity_path(self.output).unlink(missing_ok=True)


def refuse_existing(output: Path) -> None:
    """Raise a UserError if there is a file or folder with the output's name."""
    if os.path.lexists(output):
        what = "a folder" if output.is_dir() else "an existing file"
        raise UserError(f"--output {output}: this is {what}. Remove it, or give another name.")


@contextmanager
def open_partial(
    output: Path,
    identity: Mapping[str, str] | None,
    complete: Callable[[BinaryIO], Iterator[int]],
    start: bytes,
    n_header: int = 0,
) -> Iterator[Partial]:
    """Open and lock the partial file of an output, and cut off what follows its last complete record.

    A partial file without records (but for the header) is started again, whatever made it.

    Args:
        identity: what the records are made from. None: it cannot be told, so the file cannot be continued.
        complete: yields the offset at which each complete record of an open file ends.
        start: the bytes that a file of this format begins with.
        n_header: number of records, 0 or 1, that are the header.

    Raises:
        UserError: the output exists, its folder does not or cannot be written; another process writes the file; it
            was made by a run with another identity, or the file beside it, which says so, is missing.
    """
    path = partial_path(output)
    folder = output.parent
    with writable(path):
        refuse_existing(output)
        if not folder.is_dir():
            problem = "is not a folder" if os.path.lexists(folder) else f"does not exist. Make it: mkdir -p {folder}"
            raise UserError(f"--output {output}: {folder} {problem}")
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        lock(file, path)
        refuse_existing(output)  # another process may have finished since the line above
        with writable(path):
            check_same(file, path)
            n_records = end = 0
            for end in complete(file):  # noqa: B007
                n_records += 1
            file.seek(0)
            if head := file.read(len(start)):
                stored = _read_identity(output)
                if n_records > n_header:  # first: an option that differs may be why there are other columns
                    _compare(path, stored, identity)
                if not start.startswith(head):
                    raise UserError(f"{path} has another format or other columns. {ADVICE}")
                if n_records <= n_header:
                    n_records = end = 0
            file.truncate(end)
            file.seek(end)
            if not n_records:
                identity_path(output).write_text(to_json(dict(identity or {}), indent=1), encoding="utf-8")
        yield Partial(file, output, identity is not None, n_records)
    finally:
        with suppress(OSError):  # a full disk was reported before; `finish` reports all that matters
            file.close()


def _read_identity(output: Path) -> dict[str, str]:
    try:
        return read_json(identity_path(output), dict[str, str])
    except UserError:
        raise UserError(
            f"{partial_path(output)} cannot be continued: {identity_path(output)}, which says what it was made from, "
            "is missing or damaged. Remove the first file to start over, or give another --output."
        ) from None


def _compare(path: Path, stored: dict[str, str], identity: Mapping[str, str] | None) -> None:
    if identity is None:
        raise UserError(
            f"{path} is of an interrupted run. It cannot be continued with an input that is read only once. {ADVICE}"
        )
    if different := difference(stored, identity):
        name, how = different
        advice = f"Start it with the same to continue it. {ADVICE}"
        if name == CALIBRATION:  # no option gives it
            advice = (
                f"One file cannot have the probabilities of both. {ADVICE} To continue it at the calibration of then, "
                "see docs/predicting.md."
            )
        raise UserError(f"{path} was made by an interrupted run with another {name}: {how}. {advice}")
