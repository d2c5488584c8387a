"""The labels of a multi field in a table: any number for a text, none included.

    in the field's table        a text with the labels a and c
    -                           a list: ["a", "c"] in JSON lines, the same as JSON in a cell of CSV
    separator = "|"             a|c
    columns = ["a", "b", "c"]   three columns of 0 and 1, which are named like the labels: 1, 0, 1
    columns = {a = "is_a", …}   the same, with other names
    choices = true              {"choices": ["a", "c"]}, as Label Studio exports several; one label is a text: a

An empty list or cell is no label. The order does not matter, and a label that is there twice counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from data.answers import literal
from data.characters import by_appearance, find
from data.errors import UserError, as_json
from data.readers.cells import add_labels, check_commas, choices_in, class_label, labelled, one_of_each, value_of
from data.readers.records import Record
from data.readers.row_errors import RowError, unknown
from data.readers.sources import Source, name_of
from data.readers.tables import Dialect

USUAL_SEPARATORS = "|;,/\t"
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
PAIRS = 3  # of numbers with a separator between them at least, that are taken for several labels
UNLABELLED = " Texts without labels are for predict.py."


@dataclass(frozen=True)
class MultiCells:
    """Where a table has the labels.

    Attributes:
        column: that has all labels; not used with ``columns``.
        separator: between the labels in its cells; None: a cell has a list.
        columns: by label, its column of 0 and 1; empty: there is one column for all.
        choices: a text that is no list is one label. Else it is an error, as there may be a separator in it.
    """

    column: str
    separator: str | None
    columns: dict[str, str]
    choices: bool = False

    def written(self, row: Record) -> list[str]:
        """The labels of a record, as they are written there.

        Raises:
            UserError: a missing column, or a cell without labels.
        """
        if self.columns:
            return [label for label, column in self.columns.items() if _flag(row, column)]
        value = value_of(row, self.column, UNLABELLED)
        if isinstance(value, str) and self.separator is not None:
            return parts_of(value, self.separator)
        return [class_label(entry, row, self.column, True) for entry in self._listed(value, row)]

    def _listed(self, value: Any, row: Record) -> list[Any]:
        listed = ([] if not value.strip() else written_list(value)) if isinstance(value, str) else value
        if (chosen := choices_in(listed)) is not None:
            listed = chosen
        elif self.choices and isinstance(value, str) and not isinstance(listed, list):
            return [value]
        if isinstance(listed, list):
            if isinstance(value, str):
                check_commas(value, f"{row.where}: {self.column!r}")
            return listed
        advice = ""
        if isinstance(value, str):
            usual = next((separator for separator in USUAL_SEPARATORS if separator in value), "|")
            advice = f" If a character separates the labels, name it in the field: {set_to(usual)}."
            advice += ' If other cells are {"choices": [...]}, as Label Studio writes them: set choices = true.'
        raise UserError(f"{row.where}: {self.column!r} must be a list of labels, found {as_json(value)}.{advice}")


class MultiReader:
    """Reads the labels of records.

    Args:
        labels: the label set.
        names: labels by the codes that the table has in their place.
    """

    def __init__(self, labels: Sequence[str], cells: MultiCells, names: dict[str, str] | None = None) -> None:
        self.labels, self.cells, self.names = labels, cells, names
        self._known = by_appearance(labels if names is None else names)

    def read(self, row: Record) -> tuple[str, ...]:
        """The labels of a record, in the order of the set.

        Raises:
            UserError: see `MultiCells.written`; a label that is not in the set.
        """
        chosen = set()
        for written in self.cells.written(row):
            label = find(written, self._known)
            if label is None:
                what = "labels" if self.names is None else "codes"
                problem = f"{row.where}: {self.cells.column!r} has {written!r}, which is not one of its {what}."
                if separator := self._separator(written):
                    its = f" It is labels of the set with {separator!r} between them: set {set_to(separator)}."
                    raise RowError(problem, its)
                raise unknown(problem, written, self.names or self.labels)
            chosen.add(label if self.names is None else self.names[label])
        return tuple(label for label in self.labels if label in chosen)

    def _separator(self, written: str) -> str:
        """One that divides a text into labels of the set; empty if none does."""
        separators = (x for x in USUAL_SEPARATORS if x != self.cells.separator and x in written)
        for separator in separators:
            parts = parts_of(written, separator)
            if parts and all(find(part, self._known) for part in parts):
                return separator
        return ""


def collect_multi(files: Sequence[Source], dialect: Dialect, cells: MultiCells) -> list[str]:
    """The label set of a field, from all records of files that have its column."""
    found: set[str] = set()
    for row in labelled(files, dialect, cells.column):
        add_labels(found, cells.written(row), row, cells.column)
    return sorted(one_of_each(found, name_of(files), cells.column))


def joined_labels(labels: Sequence[str], own: str | None) -> tuple[list[str], str]:
    """Labels that are probably several, with another separator than the field's between them.

    Each of their parts is a label by itself, or a part of another such label. So a label that merely has a comma or a
    slash in it is none of them.

    Args:
        labels: that were found.
        own: the field's separator; None: it has none.

    Returns:
        The labels, empty if there are none, for the separator that divides most; and this one.
    """
    most, divider = list[str](), ""
    for separator in USUAL_SEPARATORS:
        if separator == own:
            continue
        split = {label: set(parts_of(label, separator)) for label in labels if separator in label}
        times = Counter(part for parts in split.values() for part in parts)
        known = {*labels, *(part for part, n in times.items() if n > 1)}
        joined = [label for label, parts in split.items() if len(parts) > 1 and parts <= known]
        if len(joined) > len(most):
            most, divider = joined, separator
    return most, divider


def several_in_one(labels: Sequence[str]) -> tuple[list[str], str]:
    """Labels of a class field that are probably several: as `joined_labels`, if most of their parts are labels as well.

    So ``rec/autos`` and the like are labels, and so are most numbers with a comma or a slash (`_are_numbered`). Between
    spaces are labels only if all labels are of parts that begin with ``#``, or each part is a label by itself as well.
    """
    joined, separator = joined_labels(labels, None)
    parts = {part for label in joined for part in parts_of(label, separator)}
    is_number = separator in (",", "/") and not any(map(str.isalpha, "".join(joined)))
    is_number = is_number and not _are_numbered(joined, separator, labels)
    if joined and not is_number and 2 * len(parts.intersection(labels)) > len(parts):
        return joined, separator
    joined = [label for label in labels if len(label.split()) > 1]
    parts = {part for label in joined for part in label.split()}
    are_tags = all(part.startswith("#") for label in labels for part in label.split())
    return (joined, " ") if joined and (are_tags or parts <= {*labels}) else ([], "")


def _are_numbered(joined: Sequence[str], separator: str, labels: Collection[str]) -> bool:
    """Whether labels such as ``0,2`` are several numbers, not one with a fraction.

    Only a number of thousands (1,000,000) has two separators. Of those with one, sets are written in ascending order
    (0,1 and 1,2 and 0,2), and a number is on the left of one and on the right of another. In half stars (3,5 and 4,5)
    the 5 is only on the right, or the same on both sides (5,5).
    """
    if separator == "," and all(THOUSANDS.fullmatch(label) for label in joined):
        return False
    lists = [parts_of(label, separator) for label in joined]
    if any(len(parts) > 2 for parts in lists):
        return True
    first, last = {parts[0] for parts in lists}, {parts[-1] for parts in lists}
    return (
        len(lists) >= PAIRS
        and all(part.isdecimal() for part in first | last)
        and all(int(parts[0]) < int(parts[-1]) for parts in lists)
        and first | last <= {*labels}
        and bool(first & last)
    )


def written_list(text: str) -> object:
    """As `data.answers.literal`; a set, as Python writes it, is a list."""
    found = [] if text.strip() == "set()" else literal(text)
    return sorted(found, key=str) if isinstance(found, set) else found


def parts_of(written: str, separator: str) -> list[str]:
    """The labels in a text with a separator between them."""
    return [part.strip() for part in written.split(separator) if part.strip()]


def set_to(separator: str) -> str:
    """The separator as a task file sets it."""
    return f"separator = {as_json(separator)}"  # a tab as TOML writes it, too


def _flag(row: Record, column: str) -> bool:
    value = value_of(row, column, UNLABELLED)
    known = FLAGS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None
    if known is None:
        raise UserError(f"{row.where}: {column!r} must be 0 or 1 (or false or true), found {as_json(value)}.")
    return known


def columns_of(columns: list[str] | dict[str, str] | None) -> dict[str, str]:
    """The key ``columns`` of a field: by label, its column."""
    return columns if isinstance(columns, dict) else dict(zip(columns or [], columns or [], strict=True))


def key_problem(
    columns: list[str] | dict[str, str] | None,
    separator: str | None,
    column: str | None,
    labels_given: bool,
    choices: bool = False,
) -> str:
    """What is wrong with the keys of a multi field, in words; empty if nothing is."""
    if choices and (columns is not None or separator is not None):
        return f"choices is for texts and lists; omit it, or {'columns' if separator is None else 'separator'}."
    if columns is None:
        return ""
    if not columns:
        return "columns is empty; it names a column of 0 and 1 for each label."
    if labels_given:
        return "columns says which labels there are; omit labels and labels_from."
    if separator is not None or column is not None:
        return f"columns has a column for each label; omit {'separator' if separator is not None else 'column'}."
    names = list(columns.values() if isinstance(columns, dict) else columns)
    twice = next((name for name in names if names.count(name) > 1), None)
    return f"columns: {twice!r} is there twice; each label needs a column of its own." if twice is not None else ""
