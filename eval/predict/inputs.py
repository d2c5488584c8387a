"""The input of predict.py: which format and column the texts are in, and each record's text or what is wrong with it.

A mistake that affects the whole input (wrong column, wrong format, no records) is reported before any work. A record
without a usable text is a row with an error; the rows after it are read. ``data/readers/tables.py`` reads the formats.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from data.characters import is_text
from data.errors import UserError, nearest
from data.files.documents import parse_line, readable
from data.readers.records import Record
from data.readers.tables import ENDINGS, LINE_COLUMN, open_table

STANDARD_INPUT = "-"
LOOK_AHEAD = 1000  # records, one of which must be readable


@dataclass(frozen=True)
class Row:
    """One record of the input.

    Attributes:
        where: its location, for messages: ``"FILE, line 12"``.
        columns: its values by column, as they were; empty if the record could not be read.
        text: what to classify; None if there is none.
        error: why there is none, without the location; empty otherwise.
    """

    where: str
    columns: dict[str, Any]
    text: str | None
    error: str = ""


@dataclass(frozen=True)
class Input:
    """An open input.

    Attributes:
        name: what messages call it.
        path: its file; None if it can be read only once (standard input, a pipe).
        format: one of `data.readers.tables.FORMATS`.
        columns: the names of its columns; in JSON lines those of the first record that can be read.
        text_column: the one that has the texts.
        rows: in the order of the input; can be iterated once.
        progress: returns the part of the input that has been read, from 0 to 1; None if the size is not known.
    """

    name: str
    path: Path | None
    format: str
    columns: tuple[str, ...]
    text_column: str
    rows: Iterator[Row]
    progress: Callable[[], float | None]


@contextmanager
def open_input(
    path: Path | str,
    format: str = "auto",
    text_column: str | None = None,
    default_columns: Sequence[str] = ("text",),
    stdin: BinaryIO | None = None,
    tsv_quoting: bool = False,
) -> Iterator[Input]:
    """Open a file or standard input (``-``).

    Args:
        format: one of `data.readers.tables.FORMATS`; auto: by the end of the file's name, for standard input lines.
        text_column: the column that has the texts; None: the first of ``default_columns`` that the input has.
        stdin: read for ``-``; default: the process's standard input.
        tsv_quoting: see `data.readers.tables.open_table`.

    Raises:
        UserError: no such file, a folder, an unknown ending, a file without records or without the column. Or, while
            iterating over the rows, damage after which no record can be read.
    """
    with ExitStack() as stack:
        source: Path | BinaryIO
        if str(path) == STANDARD_INPUT:
            name, file, source = "standard input", None, stdin or sys.stdin.buffer
            found = "lines" if format == "auto" else format
        else:
            name, file = str(path), Path(path)
            _check_file(file)
            found = format_of(file, ENDINGS, "input", "format") if format == "auto" else format
            source = file
            if not file.is_file():  # a pipe with a name
                with readable(file):
                    source, file = stack.enter_context(file.open("rb")), None
        if tsv_quoting and found != "tsv":
            raise UserError(f"--tsv_quoting is for TSV; --input {name} is read as {found}.")
        table = stack.enter_context(open_table(source, found, name, tsv_quoting))

        ahead: list[Record] = []
        for record in table.records:
            ahead.append(record)
            if table.columns is not None or not record.error or len(ahead) == LOOK_AHEAD:
                break
        if not ahead:
            raise UserError(f"--input {name}: it has no records.")
        columns, where = table.columns, name
        if columns is None:
            if ahead[-1].error:
                raise UserError(
                    f"--input {name}: none of the first {len(ahead)} records can be read as {found}; is it another "
                    f"--format? The first: {ahead[0].error}"
                )
            columns, where = tuple(ahead[-1].values), ahead[-1].where
        if file is None and format == "auto" and _looks_like_json(ahead[0]):
            raise UserError(
                "standard input looks like JSON lines. Give --format jsonl, or --format lines if each line is a text."
            )
        column = _choose(columns, [text_column] if text_column is not None else default_columns, where)
        rows = (_row(record, column) for record in chain(ahead, table.records))
        yield Input(name, file, found, columns, column, rows, table.progress)


def _check_file(path: Path) -> None:
    with readable(path):
        if path.is_dir():
            raise UserError(f"--input {path}: this is a folder; give one file.")
        if path.exists():
            return
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {path.with_name(close[0])}?" if close else ""
    raise UserError(f"--input {path}: no such file.{hint}")


def format_of(path: Path, endings: Mapping[str, str], option: str, format_option: str) -> str:
    """The format that belongs to the end of a file's name.

    Args:
        endings: format by ending.
        option, format_option: the options that named the file and that name a format, for the message.

    Raises:
        UserError: another ending.
    """
    ending = path.suffix.lower()
    if ending not in endings:
        raise UserError(
            f"--{option} {path}: the ending {ending!r} is not one of {', '.join(endings)}. Name the format: "
            f"--{format_option} {', '.join(endings.values())}."
        )
    return endings[ending]


def _choose(columns: Sequence[str], wanted: Sequence[str], where: str) -> str:
    for column in wanted:
        if column in columns:
            return column
    names = " or ".join(repr(column) for column in dict.fromkeys(wanted))
    raise UserError(f"{where}: no column {names}.{nearest(wanted[0], columns)} Name the texts' column: --text_column.")


def _looks_like_json(record: Record) -> bool:
    try:
        parse_line(record.values.get(LINE_COLUMN, ""), record.where, dict[str, Any], as_python=True)
    except UserError:
        return False
    return True


def _row(record: Record, column: str) -> Row:
    error = record.error.removeprefix(f"{record.where}: ") or _text_error(record.values, column)
    return Row(record.where, record.values, None if error else record.values[column], error)


def _text_error(values: dict[str, Any], column: str) -> str:
    """What is wrong with a record's text; empty if nothing."""
    if column not in values:
        return f"no column {column!r}.{nearest(column, values)}"
    text = values[column]
    if text is None:
        return "the text is missing (null)"
    if not isinstance(text, str):
        found = json.dumps(text)
        return f"the text is not a string, but {found if len(found) <= 60 else found[:57] + '...'}"
    return problem_of(text)


def problem_of(text: str) -> str:
    """Why a text is not given to the model; empty if it is."""
    if not text.strip():
        return "the text is empty"
    if not is_text(text):
        return "the text holds half a character (an unpaired surrogate), or bytes that are not UTF-8"
    return ""
