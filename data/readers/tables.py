"""Read tables record by record, from a file or from standard input: CSV, TSV, JSON, plain lines, CoNLL, Parquet, Arrow.

This file reads the formats that have a record or a row on each line, and opens the others. At most one record is in
memory (Parquet and Arrow: one batch of rows). A record that cannot be read is returned with an
``error``, and the next one is read: the caller decides whether to stop. Which column holds a text or a label is left to
the callers, ``custom.py`` and ``eval/predict/inputs.py``.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from data.errors import UserError
from data.files import limits
from data.files.documents import parse_line, readable
from data.readers import conll
from data.readers.columnar import open_arrow, open_parquet
from data.readers.encoding import START, not_text, not_utf8, wrongly_converted
from data.readers.json_array import array_records
from data.readers.records import Record, Table, check_columns

ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "lines",
    **conll.ENDINGS,
}
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
COLUMNAR = {"parquet": open_parquet, "arrow": open_arrow}
LINE_COLUMN = "text"  # the one column of plain lines

ASK_FOR_QUOTING = (
    "To read them as in CSV, set tsv_quoting = true in the task's file, or give --tsv_quoting to predict.py."
)
CUT_OFF = " The input ends in this line without a line break; it may be cut off."

log = logging.getLogger("data")


@contextmanager
def open_table(source: Path | BinaryIO, format: str, name: str = "", tsv_quoting: bool = False) -> Iterator[Table]:
    """Open a table, and close it when the ``with`` block ends (a stream is left open).

    Text is UTF-8. A byte-order mark is dropped. Lines end in LF or CRLF, in CSV and TSV also in CR alone. Blank lines
    are skipped, except in plain lines, where every line is a record. A quotation mark in TSV is a character like any
    other: a line is a record, and its tabs separate the cells.

    Args:
        source: a file, or a binary stream, which needs no seeking. Parquet and Arrow can only be read from a file; a
            folder that ``datasets`` saved is Arrow.
        format: one of `FORMATS`.
        name: what messages call the source; default: its path.
        tsv_quoting: quotation marks in TSV mean what they mean in CSV.

    Raises:
        UserError: here or while iterating, with file and line, for what cannot be skipped: a file that cannot be read,
            UTF-16, a compressed file, CSV that is not UTF-8 or with wrong quotes, a repeated column, Parquet that is
            damaged or incomplete.
    """
    assert format in FORMATS, format
    name = name or str(source)
    if format in COLUMNAR:
        if not isinstance(source, Path):
            raise UserError(f"{name}: {format.capitalize()} cannot be read from a stream. Save it as a file first.")
        with COLUMNAR[format](source, name) as table:
            yield table
        return

    with readable(name):
        file = source.open("rb") if isinstance(source, Path) else source
        size = source.stat().st_size if isinstance(source, Path) else 0  # also 0 for a pipe with a name

    def progress() -> float | None:
        return min(file.tell() / size, 1.0) if size else None

    # Bytes that are not UTF-8 become lone surrogates, which UTF-8 cannot contain: so the line that has them is known.
    newline = "" if format in ("csv", "tsv") else "\n"
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    lines = _Lines(text, name, source.name if isinstance(source, Path) else "-")
    try:
        if format == "jsonl":
            yield Table(None, _json_records(lines), progress)
        elif format == "json":
            yield Table(None, array_records(text, name, lines.file), progress)
        elif format in ("conll", "conllu"):
            columns, records = conll.sentences(lines, name, format == "conllu")
            yield Table(columns, records, progress)
        elif format == "lines":
            yield Table((LINE_COLUMN,), _line_records(lines), progress)
        else:
            plain = format == "tsv" and not tsv_quoting
            rows = _cells(lines, "\t" if format == "tsv" else ",", plain)
            columns = _header(rows, name)
            if plain and columns and all(map(_is_quoted, columns)):
                raise UserError(f"{name}: the header's columns are in quotation marks, as in CSV. {ASK_FOR_QUOTING}")
            yield Table(columns, _csv_records(rows, columns, name, plain), progress)
    finally:
        text.detach()
        if isinstance(source, Path):
            file.close()


@dataclass(frozen=True)
class _Lines:
    """The lines of a text, with their line breaks.

    Attributes:
        name: of the source, for messages.
        file: its last part, for a command.
    """

    text: TextIO
    name: str
    file: str

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        """Yield each line's number, the line, and an error (empty unless it has bytes that are not UTF-8).

        Raises:
            UserError: the first line shows that the input is no text, or text with two or four bytes per character.
        """
        utf8_before = warned = False
        with readable(self.name):
            lines = iter(lambda: self.text.readline(limits.RECORD_CHARACTERS + 1), "")
            for number, line in enumerate(lines, start=1):
                if number == 1 and (problem := not_text(_as_bytes(line[:START]), self.file)):
                    raise UserError(f"{self.name}: {problem}")
                _check_length(len(line), self.name, number, number)
                if line.isascii():
                    yield number, line, ""
                    continue
                error = not_utf8(_as_bytes(line), self.file, utf8_before)
                utf8_before |= not error
                if not (warned or error) and (problem := wrongly_converted(line)):
                    log.warning("%s, line %d: %s", self.name, number, problem)
                    warned = True
                yield number, line, f"{self.name}, line {number}: {error}" if error else ""


def _check_length(n_characters: int, name: str, first: int, last: int) -> None:
    if n_characters > limits.RECORD_CHARACTERS:
        begins = f" It begins in line {first}." if first < last else ""
        raise UserError(
            f"{name}, line {last}: a record with more than {limits.RECORD_CHARACTERS:,} characters, the limit.{begins} "
            "Is a line break or a quotation mark missing?"
        )


def _as_bytes(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


# ------------------------------------------------------------------------------------- plain lines and JSON lines


def _line_records(lines: _Lines) -> Iterator[Record]:
    for number, line, error in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        if error and not line.endswith("\n"):
            error += CUT_OFF
        yield Record(f"{lines.name}, line {number}", number, {} if error else {LINE_COLUMN: text}, error)


def _json_records(lines: _Lines) -> Iterator[Record]:
    for number, line, error in lines:
        if not line.strip():
            continue
        where = f"{lines.name}, line {number}"
        values: Any = {}
        if not error:
            try:
                values = parse_line(line.removesuffix("\n"), where, dict[str, Any], as_python=True)
            except UserError as caught:
                error = str(caught)
        if error and not line.endswith("\n"):
            error += CUT_OFF
        yield Record(where, number, {} if error else values, error)


# ---------------------------------------------------------------------------------------------------- CSV and TSV


def _cells(lines: _Lines, delimiter: str, plain: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of a record's last line, and its cells. Blank lines are skipped.

    Args:
        plain: quotation marks are characters like any other.
    """

    first, size = 1, 0  # a record's first line, and its characters until now

    def checked() -> Iterator[str]:
        nonlocal size
        for number, line, error in lines:
            if error:
                raise UserError(error)
            size += len(line)
            _check_length(size, lines.name, first, number)
            yield line

    csv.field_size_limit(limits.RECORD_CHARACTERS)  # the default is 131,072; this limit is global
    quoting: Literal[0, 3] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    reader = csv.reader(checked(), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
            first, size = reader.line_num + 1, 0
    except csv.Error as error:
        begins = f" The record begins in line {first}." if first < reader.line_num else ""
        raise UserError(f"{lines.name}, line {reader.line_num}: not CSV ({error}).{begins}") from error


def _header(rows: Iterator[tuple[int, list[str]]], name: str) -> tuple[str, ...]:
    line, columns = next(rows, (0, []))
    check_columns(columns, f"{name}, line {line}")
    return tuple(columns)


def _csv_records(
    rows: Iterator[tuple[int, list[str]]], columns: tuple[str, ...], name: str, plain: bool
) -> Iterator[Record]:
    warned = False
    for line, cells in rows:
        where = f"{name}, line {line}"
        if plain and not warned and (what := _looks_quoted(cells)):
            log.warning("%s: %s, as in CSV. %s", where, what, ASK_FOR_QUOTING)
            warned = True
        if len(cells) == len(columns):
            yield Record(where, line, dict(zip(columns, cells, strict=True)))
        else:
            error = f"{where}: {len(cells)} cells, but the header names {len(columns)} columns."
            begins, ends = (any(cell[at] == '"' for cell in cells if cell) for at in (0, -1))
            if plain and (begins or ends):
                error += f" A cell {'begins' if begins else 'ends'} with a quotation mark. {ASK_FOR_QUOTING}"
            yield Record(where, line, {}, error)


def _looks_quoted(cells: list[str]) -> str:
    """What of a line of TSV without quoting looks as if it were written with it; empty if nothing does."""
    if any('""' in cell[1:-1] and _is_quoted(cell) for cell in cells):
        return "a cell with doubled quotation marks"
    # A line break within a cell: CSV goes on in the next line, where the quotation marks end.
    last = cells[-1]
    return "a quotation mark begins the last cell and is not closed" if last[:1] == '"' and last.count('"') % 2 else ""


def _is_quoted(cell: str) -> bool:
    """Whether a cell is written as CSV writes one in quotation marks."""
    return len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
