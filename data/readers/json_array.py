"""Read a JSON document with a list of records, record by record: ``[{...}, {...}]`` or ``{"data": [{...}, {...}]}``.

The document may be of any size, on one line or on many: one record is in memory at a time. No type is guessed, and
every message has the record's number and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from data.errors import UserError
from data.files import limits
from data.files.documents import shaped
from data.readers.lines import Lines
from data.readers.records import Record

KEY = "data"  # of the list of records in an object
CHUNK = 1 << 14  # characters that are read at a time
SPACES = " \t\r\n"
NUMBER = re.compile(r"[-+.eE\d]*")  # the rest of one
SHOWN = 20  # keys in a message
CUT = 12  # characters at the end of what was read that may be half of a value which is none by itself: "-Infinit"


def array_records(lines: Lines) -> Iterator[Record]:
    """Yield the records of a JSON document. One that is no object is a record with an error.

    Raises:
        UserError: it is no text of its encoding, no JSON, or has no list of records; with the line.
    """
    found = _Document(lines)
    first = found.peek()
    if not first:
        return
    if first == "[":
        yield from _records(found)
        found.end()
        return
    if first != "{":
        raise found.error("a list of records is expected")
    found.take("{")
    keys: list[str] = []
    has_list = False
    for key in _items(found, "}"):
        if not isinstance(key, str):
            raise found.error("a key in quotation marks is expected")
        keys.append(key)
        found.take(":")
        if key == KEY and found.peek() == "[":
            has_list = True
            yield from _records(found)
        else:
            found.value()
    if found.peek() == "{":
        raise found.error("one object follows the other, as in JSON lines. Give the file the ending .jsonl")
    found.end()
    if not has_list:
        listed = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
        raise UserError(
            f"{lines.name}: an object with the keys {listed or '(none)'}. Records are expected in a list, "
            f'[{{...}}, {{...}}], alone or as the value of the key "{KEY}".'
        )


def _records(found: _Document) -> Iterator[Record]:
    found.take("[")
    for number, value in enumerate(_items(found, "]"), 1):
        where = f"{found.name}, record {number} (line {found.began})"
        error = found.lines.error_in(found.written, where)
        if not error:
            try:
                shaped(value, where, dict[str, Any])
            except UserError as caught:
                error = str(caught)
        yield Record(where, number, {} if error else value, error)


def _items(found: _Document, end: str) -> Iterator[Any]:
    """The values of a list, or the keys of an object, after its opening bracket. The caller takes what a key has."""
    if found.peek() != end:
        yield found.value()
        while found.peek() == ",":
            found.take(",")
            yield found.value()
    found.take(end)


class _Document:
    """A JSON document that is read value by value.

    Attributes:
        buffer: characters that were read; those before ``position`` are done.
        line: the line of ``position``, from 1.
        began, written: of the last value, its first line and its text.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines, self.name = lines, lines.name
        self.buffer, self.position, self.line, self.started = "", 0, 1, False
        self.began, self.written = 1, ""
        self.decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space, empty at the end of the document; it stays."""
        while True:
            begin = self.position
            while self.position < len(self.buffer) and self.buffer[self.position] in SPACES:
                self.position += 1
            self.line += self.buffer.count("\n", begin, self.position)
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self._read_on():
                return ""

    def take(self, expected: str) -> None:
        """Go behind a character, before which there may be spaces."""
        if (found := self.peek()) != expected:
            missing = f"{expected!r} is expected"
            raise self.error(f"{missing}, found {found!r}" if found else f"it ends where {missing}; it is incomplete")
        self.position += 1

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                found, end = self.decode(self.buffer, self.position)
            except RecursionError:
                raise self.error(f"nested more than {limits.DEPTH} levels deep") from None
            except json.JSONDecodeError as error:
                self._check_length()
                is_cut = error.msg.startswith("Unterminated string") or error.pos + CUT > len(self.buffer)
                if not is_cut or not self._read_on():
                    self.line += self.buffer.count("\n", self.position, error.pos)
                    raise self.error(f"not JSON ({error.msg.removesuffix(' at')})") from None
                continue
            except ValueError:  # a number with thousands of digits
                raise self.error(f"a number with more than {limits.DIGITS} digits") from None
            # Of a number more may follow: of "1.5" the buffer may end after the 1, or after the point.
            if isinstance(found, dict | list | str) or not NUMBER.fullmatch(self.buffer, end) or not self._read_on():
                break
        self._check_length(end)
        self.began, self.written = self.line, self.buffer[self.position : end]
        self.line += self.written.count("\n")
        self.position = end
        return found

    def end(self) -> None:
        """Check that nothing follows."""
        if found := self.peek():
            raise self.error(f"its end is expected, found {found!r}")

    def error(self, what: str) -> UserError:
        return UserError(f"{self.name}, line {self.line}: {what}.")

    def _check_length(self, end: int | None = None) -> None:
        if (len(self.buffer) if end is None else end) - self.position > limits.RECORD_CHARACTERS:
            raise self.error(
                f"a value with more than {limits.RECORD_CHARACTERS:,} characters, the limit. Is a bracket or a "
                "quotation mark missing?"
            )

    def _read_on(self) -> bool:
        """Read as much again as is left, so that a long value is tried few times; False at the end of the document."""
        rest = self.buffer[self.position :]
        more = self.lines.read(max(CHUNK, len(rest)), not self.started)
        self.buffer, self.position, self.started = rest + more, 0, True
        return bool(more)
