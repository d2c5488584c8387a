"""The input of predict.py: which format and column the texts are in, and each record's text or what is wrong with it.

A mistake that affects the whole input (wrong column, wrong format, no records) is reported before any work. A record
without a usable text is a row with an error; the rows after it are read. ``data/readers/tables.py`` reads the formats.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from data.characters import NO_TEXT, is_text
from data.errors import UserError, as_json, nearest
from data.files.documents import parse_line, readable
from data.readers import conll
from data.readers.cells import list_in
from data.readers.columnar import SPLITS_FILE, STATE_FILE, saved_files
from data.readers.records import Record
from data.readers.tables import (
    COLUMNAR,
    ENDINGS,
    LINE_COLUMN,
    NEXT_STEPS,
    PLAIN,
    Dialect,
    delimiter_advice,
    ending_of,
    open_table,
)
from data.readers.words import joined
from data.template import TextTemplate, is_missing
from eval.kept_lines import sha256_of

STANDARD_INPUT = "-"
START_OF_LIST = re.compile(r"""\s*\[\s*(["']?)""")
LOOK_AHEAD = 1000  # records, one of which must be readable


@dataclass(frozen=True)
class Row:
    """One record of the input.

    Attributes:
        where: its location, for messages: ``"FILE, line 12"``.
        columns: its values by column, as they were; empty if it is no record of the format.
        unreadable: whether the record, or its text, could not be read; a text that is empty or missing (null) was read.
        text: what to classify; None if there is none.
        error: why there is none, without the location, but with the line in a sentence of CoNLL; empty otherwise.
    """

    where: str
    columns: dict[str, Any]
    text: str | None
    error: str = ""
    unreadable: bool = False


@dataclass(frozen=True)
class Input:
    """An open input.

    Attributes:
        name: what messages call it.
        path: its file, or its folder that ``datasets`` saved; None if it can be read only once.
        format: one of `data.readers.tables.FORMATS`.
        columns: the names of its columns; in JSON lines those of the first record that can be read.
        text_column: the one that has the texts; None: a template makes them.
        rows: in the order of the input; can be iterated once.
        progress: returns the part of the input that has been read, from 0 to 1; None if the size is not known.
    """

    name: str
    path: Path | None
    format: str
    columns: tuple[str, ...]
    text_column: str | None
    rows: Iterator[Row]
    progress: Callable[[], float | None]


@contextmanager
def open_input(
    path: Path | str,
    format: str = "auto",
    text_column: str | None = None,
    default_columns: Sequence[str] = ("text",),
    stdin: BinaryIO | None = None,
    dialect: Dialect = PLAIN,
    template: TextTemplate | None = None,
    words_column: str | None = None,
    conll_columns: Sequence[str] = (),
) -> Iterator[Input]:
    """Open a file or standard input (``-``).

    Args:
        format: one of `data.readers.tables.FORMATS`; auto: by the end of the file's name, for standard input lines.
        text_column: the column that has the texts; None: the first of ``default_columns`` that the input has, unless
            there is a template.
        stdin: read for ``-``; default: the process's standard input.
        dialect: how the table is written. Parts of it that are not for its format are mistakes.
        template: makes the texts, unless ``text_column`` has them.
        words_column: has lists of words, in a text as JSON or as Python writes them. Of any column, what is a list is
            one of words.
        conll_columns: the names of the columns of CoNLL, if the dialect does not name them.

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
            is_folder = _check_file(file)
            if format == "auto":
                found = "arrow" if is_folder else format_of(file, ENDINGS, "input", "format")
            else:
                found = format
            source = file
            if is_read_once(file):
                with readable(file):
                    source, file = stack.enter_context(file.open("rb")), None
        _check_dialect(dialect, found, name)
        if found in conll.FORMATS and conll_columns and not dialect.conll_columns:
            dialect = replace(dialect, conll_columns=tuple(conll_columns))
        table = stack.enter_context(open_table(source, found, name, dialect))

        def choose(columns: Sequence[str], where: str) -> str | TextTemplate:
            if text_column is None and template is not None:
                return _checked(template, columns, where, found, dialect)
            usual = [*default_columns, *((conll.TOKENS, conll.FORM) if found in conll.FORMATS else ())]
            return _choose(columns, usual if text_column is None else [text_column], where, found, dialect)

        if found in ("csv", "tsv") and table.columns:  # with another delimiter no record may be readable
            text_of = choose(table.columns, name)
        ahead: list[Record] = []
        for record in table.records:
            ahead.append(record)
            if table.columns is not None or not record.error or len(ahead) == LOOK_AHEAD:
                break
        if not ahead:
            raise UserError(f"--input {name}: it has no records.")
        columns = table.columns
        if columns is None:
            if ahead[-1].error:
                raise UserError(
                    f"--input {name}: none of the first {len(ahead)} records can be read as {found}; is it another "
                    f"--format? The first: {ahead[0].error}"
                )
            columns = tuple(ahead[-1].values)
        if file is None and format == "auto" and _looks_like_json(ahead[0]):
            raise UserError(
                "standard input looks like JSON lines. Give --format jsonl, or --format lines if each line is a text."
            )
        if found not in ("csv", "tsv"):
            text_of = choose(columns, name if table.columns else ahead[-1].where)
        column = text_of if isinstance(text_of, str) else None
        has_words = column is not None and column == words_column
        rows = (_row(record, name, text_of, has_words) for record in chain(ahead, table.records))
        yield Input(name, file, found, columns, column, rows, table.progress)


def is_read_once(path: Path | str) -> bool:
    """Whether an input is standard input or a pipe with a name, so that no later run can go on with it."""
    return str(path) == STANDARD_INPUT or not (Path(path).is_file() or Path(path).is_dir())


def hash_of(path: Path) -> str:
    """The SHA-256 of what is read of an input: its file, or the files that ``datasets`` saved in its folder."""
    return sha256_of(*(saved_files(path) if path.is_dir() else [path]))


def columns_of_records(opened: Input, dialect: Dialect) -> Iterator[tuple[str, Collection[str]]]:
    """Read an open input once more: yield the location and the columns of each record, where they can differ.

    Nothing if all records have those of the input, or if it can be read only once.
    """
    if opened.path is None:
        return
    with open_table(opened.path, opened.format, opened.name, dialect) as table:
        if table.columns is None:
            for record in table.records:
                yield record.where, record.values


def _check_file(path: Path) -> bool:
    """Whether a path is that of a folder which ``datasets`` saved, not of a file."""
    with readable(path):
        if path.is_dir():
            if not ((path / STATE_FILE).exists() or (path / SPLITS_FILE).exists()):
                raise UserError(f"--input {path}: this is a folder; give one file.")
            return True
        if path.exists():
            return False
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
    ending = ending_of(path)
    if ending not in endings:
        known = NEXT_STEPS if option == "input" else {}
        step = f"{known[ending]} Else name" if ending in known else "Name"
        raise UserError(
            f"--{option} {path}: the ending {ending!r} is not one of {', '.join(endings)}. {step} the format: "
            f"--{format_option} {', '.join(dict.fromkeys(endings.values()))}."
        )
    return endings[ending]


def _check_dialect(dialect: Dialect, format: str, name: str) -> None:
    if dialect.tsv_quoting and format != "tsv":
        raise UserError(f"--tsv_quoting is for TSV; --input {name} is read as {format}.")
    if dialect.delimiter != PLAIN.delimiter and format != "csv":
        raise UserError(f"--delimiter is for CSV; --input {name} is read as {format}.")
    if dialect.conll_columns and format not in conll.FORMATS:
        raise UserError(f"--conll_columns is for CoNLL; --input {name} is read as {format}.")
    if dialect.encoding != PLAIN.encoding and format in COLUMNAR:
        raise UserError(f"--encoding is for text; --input {name} is read as {format}.")


def _choose(columns: Sequence[str], wanted: Sequence[str], where: str, format: str, dialect: Dialect) -> str:
    for column in wanted:
        if column in columns:
            return column
    names = " or ".join(repr(column) for column in dict.fromkeys(wanted))
    advice = delimiter_advice(columns, wanted, format, dialect) or " Name the texts' column: --text_column."
    raise UserError(f"{where}: no column {names}.{nearest(wanted[0], columns)}{advice}")


def _checked(template: TextTemplate, columns: Sequence[str], where: str, format: str, dialect: Dialect) -> TextTemplate:
    lacking = next((column for column in template.columns if column not in columns), None)
    if lacking is None:
        return template
    advice = delimiter_advice(columns, template.columns, format, dialect)
    if not advice:
        advice = " If a column has texts that are made in this way already, name it: --text_column."
    made = f"The task makes its texts of {', '.join(template.columns)}"
    raise UserError(f"{where}: no column {lacking!r}. {made}.{nearest(lacking, columns)}{advice}")


def _looks_like_json(record: Record) -> bool:
    try:
        parse_line(record.values.get(LINE_COLUMN, ""), record.where, dict[str, Any], as_python=True)
    except UserError:
        return False
    return True


def _row(record: Record, name: str, source: str | TextTemplate, has_words: bool) -> Row:
    if record.error:
        error = record.error.removeprefix(f"{record.where}: ").removeprefix(f"{name}, ")  # CoNLL: of one of its lines
        return Row(record.where, record.values, None, error, unreadable=True)
    try:
        return Row(record.where, record.values, *_text_of(record.values, source, has_words))
    except UserError as wrong:
        return Row(record.where, record.values, None, str(wrong), unreadable=True)


def _text_of(values: dict[str, Any], source: str | TextTemplate, has_words: bool) -> tuple[str | None, str]:
    """A record's text and an empty string; or, if the text is empty or missing, None and which of these.

    Raises:
        UserError: the text cannot be read from the record. Without its place.
    """
    columns = (source,) if isinstance(source, str) else source.columns
    lacking = next((column for column in columns if column not in values), None)
    if lacking is not None:
        raise UserError(f"no column {lacking!r}.{nearest(lacking, values) if values else ''}")
    if isinstance(source, TextTemplate):
        empty = next((column for column in columns if is_missing(values[column])), None)
        if empty is not None:
            return None, f"{empty!r} is missing, of which the text is made"
        text: Any = source.fill(values)
    else:
        text = values[source]
        if has_words and isinstance(text, str) and (start := START_OF_LIST.match(text)):
            try:
                text = list_in(text, repr(source))
            except UserError:
                if start[1]:  # a damaged list; other texts may begin with a bracket
                    raise
        if isinstance(text, list):
            try:
                text = joined(text)
            except UserError as error:
                raise UserError(f"{source!r} {error}") from None
    if text is None:
        return None, "the text is missing (null)"
    if not isinstance(text, str):
        raise UserError(f"the text is not a string, but {as_json(text)}")
    problem = problem_of(text)
    if problem and text.strip():
        raise UserError(problem)
    return (None, problem) if problem else (text, "")


def problem_of(text: str) -> str:
    """Why a text is not given to the model; empty if it is."""
    if not text.strip():
        return "the text is empty"
    if not is_text(text):
        return f"the text holds {NO_TEXT}"
    return ""
