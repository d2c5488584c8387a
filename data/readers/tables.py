"""Read tables record by record, from a file or from standard input: CSV, TSV, JSON, plain lines, CoNLL, Parquet, Arrow.

``lines.py`` opens files of text and reads their lines. CSV, TSV, JSON lines and plain lines are read here, the others
in ``json_array.py``, ``conll.py`` and ``columnar.py``. At most one record is in memory (Parquet and Arrow: one batch of
rows). A record that cannot be read is returned with an
``error``, and the next one is read: the caller decides whether to stop. Which column holds a text or a label is left to
the callers, ``custom.py`` and ``eval/predict/inputs.py``.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from data.errors import UserError
from data.files import limits
from data.files.documents import parse_line
from data.readers import conll
from data.readers.columnar import open_arrow, open_parquet
from data.readers.encoding import UTF8
from data.readers.json_array import array_records
from data.readers.lines import GZIP, Lines, check_length, open_lines
from data.readers.records import Record, Table, check_columns

_TEXT_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "json", ".txt": "lines", **conll.ENDINGS}
_BINARY_ENDINGS = {".parquet": "parquet", ".arrow": "arrow"}
ENDINGS = _TEXT_ENDINGS | _BINARY_ENDINGS | {f"{end}{GZIP}": format for end, format in _TEXT_ENDINGS.items()}
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
COLUMNAR = {"parquet": open_parquet, "arrow": open_arrow}
_SHEET, _UNPACK = "Save the sheet as CSV, in UTF-8.", "Unpack it, and give a file that is in it."
NEXT_STEPS = {  # for files that are not read, by the end of their names
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _SHEET),
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".zst"), _UNPACK),
    ".tab": "Name it .tsv; of a file of Orange also delete the lines 2 and 3, which are not rows.",
    ".ndjson": "Name it .jsonl.",
    ".txt": (
        "If it is CoNLL, name it .conll. Else make it CSV with the header label,text: of fastText's lines "
        "__label__x becomes the cell x, and the text is put in quotation marks."
    ),
}
DELIMITERS = (",", ";", "\t", "|")  # that messages suggest
LIST_OF_RECORDS = re.compile(r"\s*\[\s*(\{|$)")  # what begins a JSON document, on one line or on many
EXCELS_FIRST_LINE = re.compile(r'"?sep=([^"])"?')  # of a CSV file, before its header
LINE_COLUMN = "text"  # the one column of plain lines

ASK_FOR_QUOTING = (
    "To read them as in CSV, set tsv_quoting = true in the task's file, or give --tsv_quoting to predict.py."
)
CUT_OFF = " The input ends in this line without a line break; it may be cut off."

log = logging.getLogger("data")


@dataclass(frozen=True)
class Dialect:
    """How a user's tables are written.

    Attributes:
        delimiter: separates the cells of CSV: one character, see `read_delimiter`.
        encoding: of all formats but Parquet and Arrow, see `data.readers.encoding.check_encoding`.
        tsv_quoting: quotation marks in TSV mean what they mean in CSV.
        format: one of `FORMATS`, of files whose ending says something else; None: the ending says it.
        conll_columns: the names of the columns of CoNLL; None: the usual ones, see `data.readers.conll`.
    """

    delimiter: str = ","
    encoding: str = UTF8
    tsv_quoting: bool = False
    format: str | None = None
    conll_columns: tuple[str, ...] | None = None


PLAIN = Dialect()


def ending_of(path: Path) -> str:
    """The end of a file's name that says its format, such as ``.csv`` or ``.csv.gz``."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() + last if last == GZIP else last


def read_delimiter(given: str) -> str:
    """The character that a user gives as delimiter; a backslash and a t are a tab.

    Raises:
        UserError: no single character, or one that cannot separate cells. Without its place.
    """
    delimiter = "\t" if given == r"\t" else given
    if len(delimiter) != 1 or delimiter.isalnum() or delimiter in '"\r\n\0\ufeff':
        raise UserError(f'delimiter must be one character, such as ";", "|" or "\\t"; it is {given!r}.')
    return delimiter


@contextmanager
def open_table(
    source: Path | BinaryIO,
    format: str,
    name: str = "",
    dialect: Dialect = PLAIN,
    wanted: Collection[str] | None = None,
) -> Iterator[Table]:
    """Open a table, and close it when the ``with`` block ends (a stream is left open).

    A file whose name ends in .gz is unpacked while it is read. A byte-order mark is dropped. Lines end in LF, CRLF or
    CR alone; plain lines in LF or CRLF. Blank lines are skipped, except in plain lines, where every line is a record. A
    quotation mark in TSV is a character like any other: a line is a record, and its tabs separate the cells.

    Args:
        source: a file, or a binary stream, which needs no seeking. Parquet and Arrow can only be read from a file; a
            folder that ``datasets`` saved is Arrow.
        format: one of `FORMATS`.
        name: what messages call the source; default: its path.
        wanted: the columns that are needed; None: all. Of Parquet and Arrow no others are read, and in the header of
            CSV several others may have no name.

    Raises:
        UserError: here or while iterating, with file and line, for what cannot be skipped: a file that cannot be read,
            an encoding that does not fit, a damaged compressed file, CSV with bytes that are not of its encoding or
            with wrong quotes, a repeated column, Parquet that is damaged or incomplete.
    """
    assert format in FORMATS, format
    name = name or str(source)
    if format in COLUMNAR:
        if not isinstance(source, Path):
            raise UserError(f"{name}: {format.capitalize()} cannot be read from a stream. Save it as a file first.")
        with COLUMNAR[format](source, name, wanted) as table:
            yield table
        return

    with open_lines(source, name, "\n" if format == "lines" else "", dialect.encoding) as lines:
        if format == "jsonl":
            yield Table(None, _json_records(lines), lines.progress)
        elif format == "json":
            yield Table(None, array_records(lines), lines.progress)
        elif format in conll.FORMATS:
            columns, records = conll.sentences(lines, name, format == "conllu", dialect.conll_columns)
            yield Table(columns, records, lines.progress)
        elif format == "lines":
            yield Table((LINE_COLUMN,), _line_records(lines), lines.progress)
        else:
            plain = format == "tsv" and not dialect.tsv_quoting
            rows = _cells(lines, format, dialect, plain)
            columns = _header(rows, name, wanted)
            if plain and columns and all(map(_is_quoted, columns)):
                raise UserError(f"{name}: the header's columns are in quotation marks, as in CSV. {ASK_FOR_QUOTING}")
            advice = partial(_row_advice, n_columns=len(columns), format=format, dialect=dialect)
            yield Table(columns, _csv_records(rows, columns, name, plain, advice), lines.progress)


# ------------------------------------------------------------------------------------- plain lines and JSON lines


def _line_records(lines: Lines) -> Iterator[Record]:
    for number, line, error in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        if error and not line.endswith("\n"):
            error += CUT_OFF
        yield Record(f"{lines.name}, line {number}", number, {} if error else {LINE_COLUMN: text}, error)


def _json_records(lines: Lines) -> Iterator[Record]:
    is_first = True
    for number, line, error in lines:
        if not line.strip():
            continue
        is_document, is_first = is_first and LIST_OF_RECORDS.match(line) is not None, False
        where = f"{lines.name}, line {number}"
        values: Any = {}
        if not error:
            try:
                values = parse_line(line.rstrip("\r\n"), where, dict[str, Any], as_python=True)
            except UserError as caught:
                error = str(caught)
        if error and is_document:
            error = (
                f"{error.rstrip('.')}. It seems to be one JSON document with a list: read it as JSON, by the ending "
                ".json or --format json."
            )
        elif error and not line.endswith(("\n", "\r")):
            error += CUT_OFF
        yield Record(where, number, {} if error else values, error)


# ---------------------------------------------------------------------------------------------------- CSV and TSV


def delimiter_advice(columns: Sequence[str], wanted: Collection[str], format: str, dialect: Dialect) -> str:
    """What to do about missing columns if a header names more of them with another delimiter; else empty.

    Args:
        columns: of a table in this format.
        wanted: the columns that are needed.
    """
    if format not in ("csv", "tsv"):
        return ""
    header = _delimiter(format, dialect).join(columns)
    named = {other: len(set(wanted).intersection(next(csv.reader([header], delimiter=other)))) for other in DELIMITERS}
    best = max(named, key=lambda other: named[other])
    return _use_instead(best, format) if named[best] > len(set(wanted).intersection(columns)) else ""


def _delimiter(format: str, dialect: Dialect) -> str:
    return "\t" if format == "tsv" else dialect.delimiter


def _use_instead(delimiter: str, format: str) -> str:
    return f" Its cells are separated by {delimiter!r}: {_how_to_use(delimiter, format)}."


def _how_to_use(delimiter: str, format: str) -> str:
    written = "\\t" if delimiter == "\t" else delimiter
    if delimiter == ",":
        return "give the file the ending .csv" if format == "tsv" else "omit delimiter"
    ending = "give the file the ending .csv, and " if format == "tsv" else ""
    return f"{ending}write delimiter = \"{written}\" in the task's file, or give --delimiter '{written}' to predict.py"


def _row_advice(cells: list[str], n_columns: int, format: str, dialect: Dialect) -> str:
    """What to do about a row with too few cells if another delimiter gives as many as the header; else empty."""
    own = _delimiter(format, dialect)
    for other in DELIMITERS:
        try:
            n = len(next(csv.reader([own.join(cells)], delimiter=other), []))
        except csv.Error:  # a line break in a cell
            continue
        if n == n_columns and other != own:
            return (
                f" Separated by {other!r} it has {n}. If all rows are written so, write the header with {other!r} as "
                f"well, and {_how_to_use(other, format)}."
            )
    return ""


def _cells(lines: Lines, format: str, dialect: Dialect, plain: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of a record's last line, and its cells. Blank lines are skipped.

    Args:
        plain: quotation marks are characters like any other.
    """

    first, size = 1, 0  # a record's first line, and its characters until now
    header = ""  # the last line of the header

    def checked() -> Iterator[str]:
        nonlocal size, header
        for number, line, error in lines:
            if error:
                raise UserError(error)
            size += len(line)
            check_length(size, lines.name, first, number)
            if number == 1 and format == "csv" and (said := EXCELS_FIRST_LINE.fullmatch(line.rstrip("\r\n"))):
                if said[1] != delimiter:
                    raise UserError(f"{lines.name}, line 1: {said[0]!r}.{_use_instead(said[1], format)}")
                line = "\n"
            if n_records == 0:
                header = line
            yield line

    csv.field_size_limit(limits.RECORD_CHARACTERS)  # the default is 131,072; this limit is global
    quoting: Literal[0, 3] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    delimiter, n_records = _delimiter(format, dialect), 0
    reader = csv.reader(checked(), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for cells in reader:
            if cells:
                n_records += 1
                yield reader.line_num, cells
            first, size = reader.line_num + 1, 0
    except csv.Error as error:
        advice = f" The record begins in line {first}." if first < reader.line_num else ""
        if n_records == 0:  # such as "text";"label"
            others = (d for d in DELIMITERS if d != delimiter and len(next(csv.reader([header], delimiter=d), [])) > 1)
            advice += next((_use_instead(other, format) for other in others), "")
        raise UserError(f"{lines.name}, line {reader.line_num}: not CSV ({error}).{advice}") from error


def _header(rows: Iterator[tuple[int, list[str]]], name: str, wanted: Collection[str] | None) -> tuple[str, ...]:
    line, columns = next(rows, (0, []))
    check_columns(columns, f"{name}, line {line}", wanted)
    return tuple(columns)


def _csv_records(
    rows: Iterator[tuple[int, list[str]]],
    columns: tuple[str, ...],
    name: str,
    plain: bool,
    row_advice: Callable[[list[str]], str],
) -> Iterator[Record]:
    """Yield the records.

    Args:
        plain: as of `_cells`.
        row_advice: what to do about a row with too few cells. Said once, as a message names several of them.
    """
    warned = advised = False
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
            is_short = len(cells) < len(columns)
            if is_short and not advised and (advice := row_advice(cells)):
                error, advised = error + advice, True
            yield Record(where, line, {}, error, is_short)


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
