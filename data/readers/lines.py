"""The lines of a text file or stream, as an editor numbers them: compression, encoding, and damage.

``tables.py`` makes records of them.
"""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from data.errors import UserError
from data.files import limits
from data.files.documents import readable
from data.readers import encoding as encodings
from data.readers.encoding import (
    KEEP_BYTES,
    START,
    mostly_utf8,
    not_as_named,
    not_text,
    not_utf8,
    wrongly_converted,
    wrongly_read,
)
from data.readers.utf8_evidence import Utf8Evidence

GZIP = ".gz"  # the ending of a file that is unpacked while it is read

log = logging.getLogger("data")


@dataclass(frozen=True)
class Lines:
    """The lines of a text, with their line breaks; can be iterated once.

    Attributes:
        name: of the source, for messages.
        progress: returns the part of the source that has been read, from 0 to 1; None if the size is not known.
    """

    name: str
    progress: Callable[[], float | None]
    _text: TextIO
    _bytes: Any  # a buffered reader, or a GzipFile: both have `peek`
    _file: str  # what a command calls the source
    _encoding: str
    _path: Path | None  # None if it can be read once

    @cached_property
    def _check(self) -> _Utf8Check | _NamedCheck:
        all_lines = None if self._path is None else partial(byte_lines, self._path)
        if encodings.is_utf8(self._encoding):
            return _Utf8Check(self._file, all_lines)
        return _NamedCheck(self._encoding, all_lines)

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        """Yield each line's number, the line, and an error (empty unless it has bytes that are not of its encoding).

        Raises:
            UserError: the first line shows that the input is no text, or text in another encoding; a line is too long;
                a compressed file is damaged.
        """
        number = 0
        with self._reading(lambda: f"after line {number - 1}" if number > 1 else "at its start"):
            for number in count(1):
                line = self._started(self._text.readline, limits.RECORD_CHARACTERS + 1, number == 1)
                if not line:
                    return
                check_length(len(line), self.name, number, number)
                yield number, line, self.error_in(line, f"{self.name}, line {number}")

    def read(self, n: int, is_first: bool) -> str:
        """Instead of iterating: the next n characters of a text in which line breaks mean nothing.

        Raises:
            UserError: as of iterating.
        """
        with self._reading(lambda: "at its start" if is_first else "after its start"):
            return self._started(self._text.read, n, is_first)

    def error_in(self, text: str, where: str) -> str:
        """What is wrong with the characters of a part of the text that was read, after its place; empty if nothing.

        Logs a warning about the first part whose characters are suspicious.
        """
        if text.isascii():
            return ""
        problem = self._check.problem(text)
        if not problem and (suspicion := self._check.suspicion(text)):
            log.warning("%s: %s", where, suspicion)
        return f"{where}: {problem}" if problem else ""

    def _started(self, read: Callable[[int], str], n: int, is_first: bool) -> str:
        """Read; the beginning of the text is checked, and its byte-order mark dropped."""
        if not is_first:
            return read(n)
        is_utf8 = encodings.is_utf8(self._encoding)
        problem = "" if is_utf8 else not_as_named(self._bytes.peek(START)[:START], self._encoding)
        found = "" if problem else read(n)
        if is_utf8:
            problem = not_text(_as_bytes(found[:START]), self._file, can_be_named=True)
        if problem:
            raise UserError(f"{self.name}: {problem}")
        return found.removeprefix("\ufeff")  # kept by encodings with an order

    @contextmanager
    def _reading(self, place: Callable[[], str]) -> Iterator[None]:
        with readable(self.name), unpacking(self.name, place):
            yield


@contextmanager
def unpacking(name: str, place: Callable[[], str] = str) -> Iterator[None]:
    """Make one UserError of what reading a compressed file raises if it is damaged; ``place`` says where."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        where = f"damaged or cut off {place()}".rstrip()
        raise UserError(f"{name}: the compressed file is {where} ({str(error).rstrip('.')}).") from error


class _Utf8Check:
    """What is wrong with the lines of a text that should be UTF-8, decoded with ``surrogateescape``."""

    def __init__(self, file: str, all_lines: Callable[[], Iterator[bytes]] | None) -> None:
        self.file, self.all_lines, self.suspected = file, all_lines, False
        self.utf8_elsewhere: bool | None = None

    def problem(self, line: str) -> str:
        content = _as_bytes(line)
        problem = not_utf8(content, self.file, self.utf8_elsewhere, can_be_named=True)
        if self.utf8_elsewhere is None and not problem:
            self.utf8_elsewhere = True
        elif self.utf8_elsewhere is None and self.all_lines is not None:
            self.utf8_elsewhere = mostly_utf8(self.all_lines())
            problem = not_utf8(content, self.file, self.utf8_elsewhere, can_be_named=True)
        return problem

    def suspicion(self, line: str) -> str:
        """At most one for a text."""
        if self.suspected or not (suspicion := wrongly_converted(line)):
            return ""
        self.suspected = True
        return suspicion


class _NamedCheck:
    """What is wrong with the lines of a text in an encoding that the user has named, decoded with `KEEP_BYTES`."""

    def __init__(self, encoding: str, all_lines: Callable[[], Iterator[bytes]] | None) -> None:
        self.encoding, self.suspected = encoding, False
        self.evidence = Utf8Evidence(encoding, all_lines)

    def problem(self, line: str) -> str:
        return encodings.undecodable(line, self.encoding) or self.evidence.problem(line)

    def suspicion(self, line: str) -> str:
        """At most one for a text."""
        if self.suspected:
            return ""
        if not (suspicion := self.evidence.suspicion(line) or wrongly_read(line, self.encoding)):
            return ""
        self.suspected = True
        return suspicion


@contextmanager
def open_lines(
    source: Path | BinaryIO, name: str, newline: Literal["", "\n"], encoding: str = encodings.UTF8
) -> Iterator[Lines]:
    """Open a text, and close it when the ``with`` block ends (a stream is left open).

    Args:
        source: a file, unpacked if its name ends in `GZIP`, or a binary stream, which needs no seeking.
        name: what messages call it.
        newline: what ends a line: "" for LF, CRLF and CR alone, ``"\\n"`` for LF.
        encoding: see `data.readers.encoding.check_encoding`.
    """
    with readable(name):
        file = source.open("rb") if isinstance(source, Path) else source
        size = source.stat().st_size if isinstance(source, Path) else 0  # also 0 for a pipe with a name

    def progress() -> float | None:
        return min(file.tell() / size, 1.0) if size else None

    opened: Any = gzip.GzipFile(fileobj=file, mode="rb") if is_packed(source) else file
    buffered = opened if hasattr(opened, "peek") else io.BufferedReader(opened)
    # Bytes that are not of the encoding become lone surrogates, which no text has: so the line that has them is known.
    is_utf8 = encodings.is_utf8(encoding)
    codec, errors = ("utf-8-sig", "surrogateescape") if is_utf8 else (encoding, KEEP_BYTES)
    text = io.TextIOWrapper(buffered, encoding=codec, errors=errors, newline=newline)
    try:
        path = source if isinstance(source, Path) and source.is_file() else None
        yield Lines(name, progress, text, buffered, source.name if isinstance(source, Path) else "-", encoding, path)
    finally:
        text.detach()
        if isinstance(source, Path):
            file.close()
        elif buffered is not opened:
            buffered.detach()  # else it would close the stream


def byte_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, with their line breaks, unpacked; of very long lines parts."""
    with readable(file), unpacking(str(file)), gzip.open(file) if is_packed(file) else file.open("rb") as stream:
        while line := stream.readline(limits.RECORD_CHARACTERS):
            yield line


def is_packed(source: Path | BinaryIO) -> bool:
    """Whether a file is unpacked while it is read: by the end of its name. A stream is not."""
    return isinstance(source, Path) and source.suffix.lower() == GZIP


def check_length(n_characters: int, name: str, first: int, last: int) -> None:
    """A UserError if a record that begins in the first line and ends in the last is longer than the limit."""
    if n_characters > limits.RECORD_CHARACTERS:
        begins = f" It begins in line {first}." if first < last else ""
        raise UserError(
            f"{name}, line {last}: a record with more than {limits.RECORD_CHARACTERS:,} characters, the limit.{begins} "
            "Is a line break or a quotation mark missing?"
        )


def _as_bytes(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")
