"""The records of a user's data files, and the labels in their cells."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.characters import appearance
from data.errors import UserError, nearest
from data.files.documents import parse_line
from data.readers.tables import ENDINGS, Dialect, Record, delimiter_advice, ending_of, open_table
from data.readers.tags import types_among
from data.template import is_missing, scalar_text

log = logging.getLogger("data")


def records(file: Path, dialect: Dialect, wanted: Sequence[str], advice: str = "") -> Iterator[Record]:
    """Yield the records of a CSV, TSV or JSON-lines file, those with too few cells with their error.

    Args:
        wanted: the columns that are needed.
        advice: for a header that does not name one of them.

    Raises:
        UserError: the header does not name a column; the first record that cannot be read, or that has too many cells.
    """
    format = ENDINGS[ending_of(file)]
    with open_table(file, format, dialect=dialect) as table:
        if table.columns:
            lacking = next((column for column in wanted if column not in table.columns), None)
            if lacking is not None:
                hint = delimiter_advice(table.columns, wanted, format, dialect) or advice
                raise UserError(f"{file}: no column {lacking!r}.{nearest(lacking, table.columns)}{hint}")
        for record in table.records:
            if record.error and not record.is_short:
                raise UserError(record.error)
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


def class_label(value: Any, row: Record, column: str) -> str:
    """The label of a document as it is written, or a number or truth as JSON writes it; a UserError if it is none."""
    label = scalar_text(value)
    if label is None:
        raise UserError(f"{row.where}: {column!r} must be a label, found {json.dumps(value)}.")
    return label.strip()


def token_labels(value: Any, row: Record, column: str) -> list[str]:
    """The labels of a document's words, given as a list or separated by spaces; a UserError if the value is neither."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return value.split()
        value = parse_line(value, f"{row.where}, column {column!r}")
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise UserError(f"{row.where}: {column!r} must be a list of labels, found {json.dumps(value)}.")
    return value


def collect_labels(
    files: Sequence[Path], dialect: Dialect, column: str, kind: str, other: str, tags: str | None
) -> list[str]:
    """The label set of a field, from all records of files that have a label. Arguments as the attributes of
    `custom.CustomField`."""
    found: set[str] = set()
    name = name_of(files)
    for file in files:
        for row in records(file, dialect, [column]):
            if row.error or is_missing(value := row.values.get(column)):
                continue  # an error, or skipped, when the split is read
            found |= {class_label(value, row, column)} if kind == "class" else set(token_labels(value, row, column))
    if kind == "token":
        try:
            found, note = types_among(found, other, tags)
        except UserError as error:
            raise UserError(f"{name}: {column!r} {error}") from error
        if note:
            log.warning("%s, %r: %s", name, column, note)
    return sorted(_one_of_each(found, name, column))


def name_of(files: Sequence[Path]) -> str:
    """What messages about all files of a split call them."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _one_of_each(labels: set[str], file: str, column: str) -> list[str]:
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
