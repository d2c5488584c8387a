"""Read CSV, TSV, JSON lines, Parquet and plain lines record by record, from a file or from standard input.

``lines.py`` opens files of text and reads their lines.
At most one record is in memory (Parquet: one batch of rows). A record that cannot be read is returned with an
``error``, and the next one is read: the caller decides whether to stop. Which column holds a text or a label is left to
the callers, ``custom.py`` and ``eval/predict/inputs.py``.
"""

from __future__ import annotations

import csv
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO, Literal

from data.errors import UserError
from data.files import limits
from data.files.documents import parse_line, readable
from data.readers.encoding import UTF8
from data.readers.lines import GZIP, Lines, check_length, open_lines

_TEXT_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".txt": "lines"}
ENDINGS = _TEXT_ENDINGS | {".parquet": "parquet"} | {f"{end}{GZIP}": format for end, format in _TEXT_ENDINGS.items()}
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
DELIMITERS = (",", ";", "\t", "|")  # that messages suggest
LINE_COLUMN = "text"  # the one column of plain lines

PARQUET_ROWS = 256  # in a batch
PARQUET_BUFFER = 1 << 20  # bytes
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
        encoding: of all formats but Parquet, see `data.readers.encoding.check_encoding`.
        tsv_quoting: quotation marks in TSV mean what they mean in CSV.
    """

    delimiter: str = ","
    encoding: str = UTF8
    tsv_quoting: bool = False


PLAIN = Dialect()


@dataclass(frozen=True)
class Record:
    """One record of a table.

    Attributes:
        where: its location, for messages: ``"FILE, line 12"``, in Parquet ``"FILE, row 12"``.
        line: the number of its last line, in Parquet of its row; from 1.
        values: by column; empty if it could not be read.
        error: why it could not be read, with its location; empty otherwise.
        is_short: it could not be read because its last cells are missing.
    """

    where: str
    line: int
    values: dict[str, Any]
    error: str = ""
    is_short: bool = False


@dataclass(frozen=True)
class Table:
    """An open table.

    Attributes:
        columns: the names of its columns; None in JSON lines, where each record has its own.
        records: in the order of the input; can be iterated once.
        progress: returns the part of the input that has been read, from 0 to 1; None if the size is not known.
    """

    columns: tuple[str, ...] | None
    records: Iterator[Record]
    progress: Callable[[], float | None]


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
def open_table(source: Path | BinaryIO, format: str, name: str = "", dialect: Dialect = PLAIN) -> Iterator[Table]:
    """Open a table, and close it when the ``with`` block ends (a stream is left open).

    A file whose name ends in .gz is unpacked while it is read. A byte-order mark is dropped. Lines end in LF, CRLF or
    CR alone; plain lines in LF or CRLF. Blank lines are skipped, except in plain lines, where every line is a record. A
    quotation mark in TSV is a character like any other: a line is a record, and its tabs separate the cells.

    Args:
        source: a file, or a binary stream, which needs no seeking. Parquet can only be read from a file.
        format: one of `FORMATS`.
        name: what messages call the source; default: its path.

    Raises:
        UserError: here or while iterating, with file and line, for what cannot be skipped: a file that cannot be read,
            an encoding that does not fit, a damaged compressed file, CSV with bytes that are not of its encoding or
            with wrong quotes, a repeated column, Parquet that is damaged or incomplete.
    """
    assert format in FORMATS, format
    name = name or str(source)
    if format == "parquet":
        if not isinstance(source, Path):
            raise UserError(f"{name}: Parquet cannot be read from a stream, because its index is at the end. Save it "
                            "as a file first.")  # fmt: skip
        with _open_parquet(source, name) as table:
            yield table
        return

    with open_lines(source, name, "\n" if format == "lines" else "", dialect.encoding) as lines:
        if format == "jsonl":
            yield Table(None, _json_records(lines), lines.progress)
        elif format == "lines":
            yield Table((LINE_COLUMN,), _line_records(lines), lines.progress)
        else:
            plain = format == "tsv" and not dialect.tsv_quoting
            rows = _cells(lines, format, dialect, plain)
            columns = _header(rows, name)
            if plain and columns and all(map(_is_quoted, columns)):
                raise UserError(f"{name}: the header's columns are in quotation marks, as in CSV. {ASK_FOR_QUOTING}")
            yield Table(columns, _csv_records(rows, columns, name, plain), lines.progress)


# ------------------------------------------------------------------------------------- plain lines and JSON lines


def _line_records(lines: Lines) -> Iterator[Record]:
    for number, line, error in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        if error and not line.endswith("\n"):
            error += CUT_OFF
        yield Record(f"{lines.name}, line {number}", number, {} if error else {LINE_COLUMN: text}, error)


def _json_records(lines: Lines) -> Iterator[Record]:
    for number, line, error in lines:
        if not line.strip():
            continue
        where = f"{lines.name}, line {number}"
        values: Any = {}
        if not error:
            try:
                values = parse_line(line.rstrip("\r\n"), where, dict[str, Any], as_python=True)
            except UserError as caught:
                error = str(caught)
        if error and not line.endswith(("\n", "\r")):
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
    written = "\\t" if delimiter == "\t" else delimiter
    what = f" Its cells are separated by {delimiter!r}:"
    if delimiter == ",":
        return f"{what} {'give the file the ending .csv' if format == 'tsv' else 'omit delimiter'}."
    ending = " give the file the ending .csv, and" if format == "tsv" else ""
    return (
        f"{what}{ending} write delimiter = \"{written}\" in the task's file, or give --delimiter '{written}' to "
        "predict.py."
    )


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


def _header(rows: Iterator[tuple[int, list[str]]], name: str) -> tuple[str, ...]:
    line, columns = next(rows, (0, []))
    _check_columns(columns, f"{name}, line {line}")
    return tuple(columns)


def _check_columns(columns: list[str], where: str) -> None:
    if len(columns) > limits.COLUMNS:
        raise UserError(f"{where}: {len(columns):,} columns; the limit is {limits.COLUMNS:,}. Is it the right format?")
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: column {repeated[0]!r} is in the header twice.")


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
            yield Record(where, line, {}, error, is_short=len(cells) < len(columns))


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


# -------------------------------------------------------------------------------------------------------- Parquet


@contextmanager
def _open_parquet(path: Path, name: str) -> Iterator[Table]:
    import pyarrow as pa  # here: it is slow to import, and most runs read no Parquet
    import pyarrow.parquet as pq

    broken = (pa.ArrowException, OSError, UnicodeDecodeError)
    with readable(path):
        path.open("rb").close()  # pyarrow's messages about files that cannot be opened are long
    try:
        file = pq.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False)  # else it reads whole row groups
    except broken as error:
        raise UserError(f"{name}: not Parquet, damaged or incomplete ({_first_line(error)}).") from error
    with file:
        columns = list(file.schema_arrow.names)
        _check_columns(columns, name)
        n_rows, done = file.metadata.num_rows, 0

        def records() -> Iterator[Record]:
            nonlocal done
            batches = file.iter_batches(batch_size=PARQUET_ROWS)
            while True:
                try:
                    batch = next(batches, None)
                except broken as error:
                    raise UserError(f"{name}, after row {done}: damaged ({_first_line(error)}).") from error
                if batch is None:
                    return
                for i in range(batch.num_rows):
                    done += 1
                    yield _parquet_record(batch.slice(i, 1), f"{name}, row {done}", done)

        yield Table(tuple(columns), records(), lambda: done / n_rows if n_rows else None)


def _parquet_record(row: Any, where: str, number: int) -> Record:
    """The record of a ``pyarrow.RecordBatch`` of one row."""
    try:
        (values,) = row.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8; a date after the year 9999
        return Record(where, number, {}, f"{where}: cannot be read ({_first_line(error)}).")
    return Record(where, number, {column: plain(value) for column, value in values.items()})


def plain(value: Any) -> Any:
    """A value from Parquet as JSON can have it.

    Times are written in ISO 8601. Bytes are decoded as UTF-8; those that are not UTF-8 become lone surrogates. NaN
    becomes None. Other types (decimals, durations, infinity) are written as text.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None if math.isnan(value) else str(value)
        case bytes():
            return value.decode("utf-8", errors="surrogateescape")
        case date() | datetime() | time():
            return value.isoformat()
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return str(value)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return "".join(character if character.isprintable() else "?" for character in line)
