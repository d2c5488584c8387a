"""The records of a user's data files, and the labels in their cells."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.characters import appearance
from data.errors import UserError, nearest
from data.files.documents import parse_line
from data.readers.tables import ENDINGS, Record, open_table
from data.readers.tags import types_among

log = logging.getLogger("data")


def records(file: Path, tsv_quoting: bool) -> Iterator[Record]:
    """Yield the records of a CSV, TSV or JSON-lines file. The first that cannot be read is the user's mistake."""
    with open_table(file, ENDINGS[file.suffix.lower()], tsv_quoting=tsv_quoting) as table:
        for record in table.records:
            if record.error:
                raise UserError(record.error)
            yield record


def value_of(row: Record, column: str, advice: str = "") -> Any:
    """The value of a column; a UserError if the record has no such column."""
    if column not in row.values:
        raise UserError(f"{row.where}: no column {column!r}.{nearest(column, row.values)}{advice}")
    return row.values[column]


def class_label(value: Any, row: Record, column: str) -> str:
    """The label of a document; a UserError if the value is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: {column!r} must be a label, found {json.dumps(value)}.")
    return value.strip()


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
    file: Path, rows: Iterator[Record], column: str, kind: str, other: str, tags: str | None
) -> list[str]:
    """The label set of a field, from all records of a file. Arguments as the attributes of `custom.CustomField`."""
    found: set[str] = set()
    for row in rows:
        value = value_of(row, column)
        found |= {class_label(value, row, column)} if kind == "class" else set(token_labels(value, row, column))
    if kind == "token":
        try:
            found, note = types_among(found, other, tags)
        except UserError as error:
            raise UserError(f"{file}: {column!r} {error}") from error
        if note:
            log.warning("%s, %r: %s", file, column, note)
    return sorted(one_of_each(found, file, column))


def one_of_each(labels: set[str], file: Path, column: str) -> list[str]:
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
