"""Files to which a program appends lines as its results come, so that what is complete is kept if the program is ended.

    {"answers_of": {"task": ..., "model": ...}}
    {"id": "massive/test/1", ...}

The first line is the file's identity: what all lines after it are of. A later run with the same identity goes on after
them. One process at a time writes a file. A last line that was cut off is removed.

`eval/partial.py` and `eval/api/answers.py` keep answers so. `eval/predict/partial.py` keeps tables, which cannot have
such a first line, with the same functions.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import UserError
from data.files.documents import parse_line, readable
from data.json_text import to_json

HEADER = "answers_of"
NONE = "none"  # what a missing name of an identity has

log = logging.getLogger("eval")

Line = tuple[str, bytes]  # its place for messages, and its content


@dataclass(frozen=True)
class Kind:
    """What messages say about a kind of file.

    Attributes:
        advice: what to do about a file that cannot be continued, after "To start anew, ".
        foreign: what else to do about a file that is none of ours.
        full: what is kept if a line cannot be written.
    """

    advice: str
    foreign: str = ""
    full: str = ""


@dataclass(frozen=True)
class KeptLines:
    """An open and locked file.

    Attributes:
        lines: those that it had when it was opened, without the first.
    """

    file: BinaryIO
    path: Path
    kind: Kind
    lines: list[Line]

    def append(self, records: Iterable[Mapping[str, Any]], sync: bool = False) -> None:
        """Append a line for each record; the system keeps them even if the process is killed right after.

        Args:
            sync: they are also on the disk.

        Raises:
            UserError: the disk is full.
        """
        with writable(self.path, self.kind.full):
            self.file.write(b"".join(to_json(record).encode() + b"\n" for record in records))
            self.file.flush()
            if sync:
                os.fsync(self.file.fileno())


@contextmanager
def open_lines(path: Path, identity: Mapping[str, str], kind: Kind) -> Iterator[KeptLines]:
    """Open and lock a file, whose folder is made if it does not exist. One without a line in the end is removed.

    Raises:
        UserError: it cannot be written, another process writes it, or it has lines of something else.
    """
    folder, is_new = path.parent, not path.parent.exists()
    with writable(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        lock(file, path)
        check_same(file, path)  # a run without a result may have removed it since
        lines, end = _read(file, path, identity, kind)
        with writable(path):
            if end < path.stat().st_size:
                log.info("%s: the last line was cut off; its example is asked again", path)
            file.truncate(end if lines else 0)
            file.seek(0, os.SEEK_END)
        kept = KeptLines(file, path, kind, lines)
        if not lines:  # whatever the file was begun for
            kept.append([{HEADER: dict(identity)}], sync=True)
        empty = 0 if lines else file.tell()
        try:
            yield kept
        finally:
            if empty and path.exists() and path.stat().st_size == empty:  # as if nothing had been begun
                path.unlink()
                with suppress(OSError):  # not empty
                    if is_new:
                        folder.rmdir()
    finally:
        with suppress(OSError):  # a full disk was reported before
            file.close()


def read_kept(path: Path, identity: Mapping[str, str], kind: Kind) -> list[Line]:
    """The complete lines of a file that another process may be writing, without the first.

    Raises:
        UserError: it cannot be read, or has lines of something else.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path, identity, kind)[0]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}. To start anew, {kind.advice}") from error


def _read(file: BinaryIO, path: Path, identity: Mapping[str, str], kind: Kind) -> tuple[list[Line], int]:
    """The complete lines without the first, and the offset at which the last one ends.

    The identity is compared if there are any: the first line alone keeps nothing.
    """
    not_ours = f"{path} does not begin with what its answers are of. {kind.foreign}To start anew, {kind.advice}"
    ours = f'{{"{HEADER}"'.encode()
    if not ours.startswith(file.read(len(ours))):  # before anything is removed from it; ours may be cut off anywhere
        raise UserError(not_ours)
    file.seek(0)
    found, end = list[Line](), 0
    for number, line in enumerate(file, 1):
        if line.endswith(b"\n"):
            found.append((f"{path}, line {number}", line))
            end += len(line)
    if len(found) > 1:
        where, first = found[0]
        stored = parse_line(first, where, dict[str, Any]).get(HEADER)
        if not isinstance(stored, dict):
            raise UserError(not_ours)
        if different := difference(stored, identity):
            name, how = different
            raise UserError(
                f"{path} has answers of another {name}: {how}. To go on with them, start with the same {name}. To "
                f"start anew, {kind.advice}"
            )
    return found[1:], end


def difference(stored: Mapping[str, Any], identity: Mapping[str, str]) -> tuple[str, str] | None:
    """The first name with another value, and both values in words; None: all are the same."""
    for name in {**stored, **identity}:  # some are there only if they are not what is usual
        before, now = (values.get(name, NONE) for values in (stored, identity))
        if before != now:
            was, now_is = (NONE if value in (NONE, str(None)) else repr(value) for value in (before, now))
            return name, f"{was}, and not {now_is}"
    return None


def sha256_of(*paths: Path) -> str:
    """The hexadecimal SHA-256 of a file, or of several one after the other, which are read in blocks.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with readable(path), open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def writable(name: Path | str, advice: str = "") -> Iterator[None]:
    """Turn an OSError about an output (no permission, a full disk) into a UserError, except for a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror or error}.{advice}") from error


def lock(file: BinaryIO, path: Path) -> None:
    """Lock the file until it is closed; the system releases the lock if this process dies.

    Raises:
        UserError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path}: another process is writing it. Wait for that, or give another --output.") from None
    except OSError as error:
        log.warning("No lock for %s (%s): let no second process write the same --output.", path, error)


def check_same(file: BinaryIO, path: Path) -> None:
    """Raise UserError unless an open file is still the one with its name."""
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise UserError(f"{path} was removed, renamed or replaced by another process. Start again.")
