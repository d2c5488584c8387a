"""The records of a user's data files, and the labels in their cells."""

from __future__ import annotations

import io
import logging
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

from data.answers import literal
from data.characters import appearance, is_one_line
from data.errors import UserError, as_json, nearest
from data.files.documents import parse_line
from data.readers.prodigy import ANSWER, HASHES, is_export, not_accepted, note
from data.readers.records import Record
from data.readers.sources import Source, format_of, name_of, open_source
from data.readers.spans import labels_of
from data.readers.tables import COLUMNAR, Dialect, delimiter_advice
from data.readers.tags import types_among
from data.template import is_missing, scalar_text

SHOWN = 3  # records that a message names
NAMES = 'names = { 0 = "O", 1 = "B-city" }'  # what a field may have where numbers stand for tags
NEIGHBOURS = re.compile(r"""["']\s*[a-zA-Z]{0,2}["']""")  # quotation marks without a comma between
CHOICES = "choices"  # the key of several labels in Label Studio's exports
SPANS = "spans"  # what `tags` says of a column of spans of characters

log = logging.getLogger("data")


def records(
    file: Source, dialect: Dialect, wanted: Sequence[str], advice: str = "", left_out: Counter[str] | None = None
) -> Iterator[Record]:
    """Yield the records of a file, or of a split of a data set; those with too few cells with their error.

    Those of Prodigy that were not accepted are left out, unless the answers are wanted.

    Args:
        wanted: the columns that are needed.
        advice: for a header that does not name one of them.
        left_out: counts the records that are left out, by answer.

    Raises:
        UserError: the header does not name a column; the first record that cannot be read, or that has too many cells.
    """
    with ExitStack() as stack:
        table = stack.enter_context(open_source(file, dialect, wanted))
        if format_of(file, dialect) in COLUMNAR and ANSWER not in wanted and is_export(table.columns or ()):
            stack.close()  # of these formats only the wanted columns are read
            table = stack.enter_context(open_source(file, dialect, [*wanted, ANSWER, *HASHES]))
        if table.columns:
            lacking = next((column for column in wanted if column not in table.columns), None)
            if lacking is not None:
                hint = delimiter_advice(table.columns, wanted, format_of(file, dialect), dialect) or advice
                raise UserError(f"{file}: no column {lacking!r}.{nearest(lacking, table.columns)}{hint}")
        for record in table.records:
            if record.error and not record.is_short:
                raise UserError(record.error)
            if ANSWER not in wanted and (answer := not_accepted(record.values)):
                if left_out is not None:
                    left_out[answer] += 1
                continue
            yield record


def missing_column(row: Record, columns: Sequence[str]) -> str | None:
    """The first of these columns in which a record has no value; None if it has all of them."""
    values = row.values
    return next((column for column in columns if is_missing(values.get(column))), None)


def value_of(row: Record, column: str, advice: str = "") -> Any:
    """The value of a column; a UserError if the record has no such column."""
    if column not in row.values:
        raise no_column(row, column, advice)
    return row.values[column]


def no_column(row: Record, column: str, advice: str = "") -> UserError:
    """What is wrong with a record that has no such column."""
    return UserError(f"{row.where}: no column {column!r}.{nearest(column, row.values)}{advice}")


def class_label(value: Any, row: Record, column: str, is_one_of_several: bool = False) -> str:
    """The label of a document as it is written, or a number or truth as JSON writes it; a UserError if it is none.

    Args:
        is_one_of_several: it is an item of a multi field's list.
    """
    label = scalar_text(value)
    if label is None:
        advice = ""
        if choices_in(value) is not None:
            advice = ' For several choices of Label Studio write type = "multi" and choices = true.'
        elif _may_be_spans([value] if is_one_of_several else value):
            advice = ' If these are spans of characters, write type = "token" and tags = "spans".'
        elif isinstance(value, list) and not is_one_of_several:
            advice = ' For any number of labels write type = "multi", for one label a word type = "token".'
        raise UserError(f"{row.where}: {column!r} must be a label, found {as_json(value)}.{advice}")
    return label.strip()


def choices_in(value: object) -> list[Any] | None:
    """The labels in what Label Studio exports for several choices, ``{"choices": [...]}``; None if it is not that."""
    found = value.get(CHOICES) if isinstance(value, dict) and len(value) == 1 else None
    return found if isinstance(found, list) else None


def token_labels(value: Any, row: Record, column: str, names: dict[str, str] | None = None) -> list[str]:
    """The labels of a document's words, given as a list or separated by spaces; a UserError if the value is neither.

    Args:
        names: labels by the codes that the list has in their place.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        labels: Any = value.split()
    else:
        labels = parsed_list(value, row, column)
    if names is not None and isinstance(labels, list):
        return [_named(code, names, row, column) for code in labels]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{row.where}: {column!r} must be a list of labels, found {as_json(labels)}.{_advice(labels)}")
    return labels


def parsed_list(value: Any, row: Record, column: str) -> Any:
    """A cell with a list, in CSV as JSON or as Python writes it."""
    return list_in(value, f"{row.where}, column {column!r}") if isinstance(value, str) else value


def list_in(text: str, where: str) -> Any:
    """What a text has as JSON, or a list as Python writes it; a UserError if it is neither.

    Args:
        where: the text, for messages.
    """
    try:
        return parse_line(text, where)
    except UserError:
        if not isinstance(found := literal(text), list):
            raise
    check_commas(text, where)
    return found


def check_commas(cell: str, where: str) -> None:
    """Raise a UserError if a list has two strings side by side, which Python reads as one."""
    if not NEIGHBOURS.search(cell):
        return
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(cell).readline)]
    except (tokenize.TokenError, SyntaxError):  # not as Python writes it
        return
    kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
    if any(a == b == tokenize.STRING for a, b in pairwise(kinds)):
        raise UserError(
            f"{where} has no comma between texts, as NumPy writes lists: {as_json(cell)}. "
            'Write them as JSON: ["a", "b"].'
        )


def _named(code: Any, names: dict[str, str], row: Record, column: str) -> str:
    written = scalar_text(code)
    if written is None or written not in names:
        raise UserError(f"{row.where}: {column!r} has {as_json(code)}, for which names has no name.")
    return names[written]


def _advice(labels: Any) -> str:
    if _may_be_spans(labels):
        return ' If these are spans of characters, write tags = "spans".'
    if isinstance(labels, list) and labels and isinstance(labels[0], int):
        return f" For numbers, names gives them names: {NAMES}."
    return ""


def _may_be_spans(labels: Any) -> bool:
    return isinstance(labels, dict) or (isinstance(labels, list) and isinstance(next(iter(labels), None), dict | list))


def labelled(files: Sequence[Source], dialect: Dialect, column: str) -> Iterator[Record]:
    """Yield the records of files that have a value in a column. The others are an error, or skipped, when the split is
    read.

    Raises:
        UserError: as of `records`; no record has one: says why.
    """
    n_found, n_empty = 0, 0
    error, first, left_out = "", list[Record](), Counter[str]()
    for file in files:
        for row in records(file, dialect, [column], left_out=left_out):
            if row.error:
                error = error or row.error
            elif is_missing(row.values.get(column)):
                n_empty += 1
                first = first if len(first) == SHOWN else [*first, row]
            else:
                n_found += 1
                yield row
    if n_found:
        return
    if error:
        raise UserError(error)
    if not first:
        raise UserError(f"{name_of(files)}: no examples in it. {note(left_out)}".rstrip())
    if not any(column in row.values for row in first):  # in JSON; it has probably another name
        raise no_column(first[0], column)
    what = "the only example" if n_empty == 1 else f"all {n_empty:,} examples"
    places = "; ".join(row.where for row in first) + ("; ..." if n_empty > SHOWN else "")
    raise UserError(f"{name_of(files)}: {column!r} is empty in {what} ({places}).")


def collect_labels(
    files: Sequence[Source], dialect: Dialect, column: str, kind: str, other: str, tags: str | None
) -> list[str]:
    """The label set of a field, from all records of files that have a label. Arguments as the attributes of
    `custom_fields.CustomField`."""
    found: set[str] = set()
    name = name_of(files)
    for row in labelled(files, dialect, column):
        value = row.values[column]
        if kind == "class":
            add_labels(found, [class_label(value, row, column)], row, column)
        elif tags == SPANS:
            spans = parsed_list(value, row, column)
            try:
                labels = labels_of(spans)
            except UserError as error:
                raise UserError(f"{row.where}: {column!r} {error}") from error
            add_labels(found, labels, row, column)
        else:
            add_labels(found, token_labels(value, row, column), row, column)
    if kind == "token" and tags != SPANS:
        try:
            found, note = types_among(found, other, tags)
        except UserError as error:
            raise UserError(f"{name}: {column!r} {error}") from error
        if note:
            log.warning("%s, %r: %s", name, column, note)
    return sorted(one_of_each(found, name, column))


def add_labels(found: set[str], labels: Iterable[str], row: Record, column: str) -> None:
    """Add a record's labels to those that were found; a UserError for one that cannot be written on a line."""
    for label in sorted(set(labels) - found):
        if not appearance(label) or not is_one_line(label):
            raise UserError(f"{row.where}: {column!r} has the label {label!r}, which is empty or has a line break.")
        found.add(label)


def one_of_each(labels: set[str], file: str, column: str) -> list[str]:
    """Of labels that look the same one: composed letters and single spaces, if that one is among them."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        alike[appearance(label)].append(label)
    for look, forms in alike.items():
        if len(forms) > 1:
            forms.sort(key=lambda form: form != look)  # stable
            log.warning("%s, %r: %s look the same and are read as one label, the first.",
                        file, column, ", ".join(map(ascii, forms)))  # fmt: skip
    return [forms[0] for forms in alike.values()]
