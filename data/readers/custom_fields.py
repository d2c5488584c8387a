"""The fields of a user's own task: a ``[[fields]]`` table of the TOML file that ``custom.py`` reads, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from data.characters import appearance
from data.errors import UserError, nearest
from data.readers.cells import SPANS, collect_labels
from data.readers.label_sets import check_labels
from data.readers.multi import MultiCells, collect_multi, columns_of, key_problem
from data.readers.sources import Source
from data.readers.tables import Dialect
from data.readers.tags import SCHEMES, types_among

TYPES = ("class", "multi", "token")
ANSWERS = ("spans", "list", "bio")
REQUIRED = {  # keys of a field, with what to write
    "name": 'Write what the model answers, such as name = "queue"; it is also the column, unless column names another.',
    "type": 'Write type = "class" (one label for a text), "multi" (any number) or "token" (one label for each word).',
}


class FieldTable(msgspec.Struct):
    """A ``[[fields]]`` table, as it is written."""

    name: str
    type: str
    labels: list[str] | None = None
    labels_from: str | None = None
    names: dict[str, str] | None = None
    column: str | None = None
    other: str | None = None
    tags: str | None = None
    answer: str | None = None
    separator: str | None = None
    columns: list[str] | dict[str, str] | None = None
    choices: bool = False


# What predict.py names the columns that it adds, beside one for each field.
OF_ANSWERS, OF_LABELS = ("truncated", "error"), ("probability", "unsure", "next")


@dataclass(frozen=True)
class CustomField:
    """One field of the answer, as described in the TOML file; ``data.tasks`` turns it into a field of the task.

    Attributes:
        name: its key in the examples' labels.
        type: ``"class"`` (one label per document), ``"multi"`` (any number) or ``"token"`` (one per word).
        labels: the label set, in the order in which the prompt lists it; for token fields without ``other``.
        column: the column or key of the data files that holds it.
        other: the label of a word that has none of ``labels``; unused for class fields.
        answer: how a decoder writes the labels of a token field: "spans", "list" or "bio" (see `data.answers`).
        tags: how the files' labels are written, a key of `data.readers.tags.SCHEMES`, or "spans": spans of characters
            (see `data.readers.spans`); None: as each label shows.
        names: labels by the codes that the files have in their place; None: the files have labels.
        labels_from: the split from which the labels were collected; None: they were listed.
        separator, columns, choices: of a multi field; see `data.readers.multi.MultiCells`.
    """

    name: str
    type: str
    labels: tuple[str, ...]
    column: str
    other: str = "Other"
    answer: str = "spans"
    tags: str | None = None
    names: dict[str, str] | None = None
    labels_from: str | None = None
    separator: str | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    choices: bool = False

    @property
    def cells(self) -> MultiCells:
        """Where a table has the labels of a multi field."""
        return MultiCells(self.column, self.separator, self.columns, self.choices)


def is_taken(name: str, fields: Iterable[str]) -> bool:
    """Whether predict.py may add a column of this name that is not the field's.

    Args:
        fields: the names of those whose labels have probabilities: class and multi fields.
    """
    return name in OF_ANSWERS or name in {f"{field}_{what}" for field in fields for what in OF_LABELS}


def read_field(
    entry: FieldTable,
    where: str,
    files: dict[str, tuple[Source, ...]],
    dialect: Dialect,
    text_key: str,
    text_columns: Sequence[str],
) -> CustomField:
    """Check a field's table.

    Args:
        where: the table, for messages.
        files: by split; read only for ``labels_from``.
        text_key, text_columns: what the model reads, and the key of the file that names it.

    Raises:
        UserError: keys that do not go together, an unknown value, labels that no answer can have, or that are in the
            text; see `collect_labels`.
    """
    name, kind = entry.name, entry.type
    if kind not in TYPES:
        raise UserError(f"{where}: unknown type {kind!r}.{nearest(kind, TYPES)}")
    if kind != "token" and entry.other is not None:
        raise UserError(f"{where}: 'other' is for fields of type \"token\" only; put it among the labels instead.")
    if kind != "token" and entry.answer is not None:
        raise UserError(f"{where}: 'answer' is for fields of type \"token\" only; others have one form of answer.")
    if kind != "token" and entry.tags is not None:
        raise UserError(f"{where}: 'tags' is for fields of type \"token\" only.")
    if entry.names is not None and entry.tags == SPANS:
        raise UserError(f"{where}: 'names' is for codes in the place of labels; spans have labels.")
    for key in ("separator", "columns", "choices"):
        if kind != "multi" and getattr(entry, key) not in (None, False):
            raise UserError(f"{where}: '{key}' is for fields of type \"multi\" only.")
    n_given = sum(given is not None for given in (entry.labels, entry.labels_from, entry.names))
    if problem := key_problem(entry.columns, entry.separator, entry.column, n_given > 0, entry.choices):
        raise UserError(f"{where}: {problem}")
    columns = columns_of(entry.columns)
    if not columns and n_given != 1:
        raise UserError(f"{where}: give either labels (a list) or labels_from (a split) or names (a label for each "
                        "code), and only one of them.")  # fmt: skip
    column, other = entry.column or name, entry.other or "Other"
    if shared := next((own for own in columns.values() or [column] if own in text_columns), None):
        raise UserError(
            f"{where}: the column {shared!r} has its labels and is also in {text_key}, so the model would read its "
            f"answer. Name the column of the labels (column), or another {text_key}."
        )
    answer, tags = entry.answer or ANSWERS[0], entry.tags
    if answer not in ANSWERS:
        raise UserError(f"{where}: unknown answer {answer!r}.{nearest(answer, ANSWERS)}")
    if tags is not None and tags not in (*SCHEMES, SPANS):
        raise UserError(f"{where}: unknown tags {tags!r}.{nearest(tags, (*SCHEMES, SPANS))}")

    if columns:
        labels = list(columns)
    elif entry.names is not None:
        labels = _named(entry.names, where)
        if kind == "token":
            try:
                labels = sorted(types_among(labels, other, tags)[0])
            except UserError as error:
                raise UserError(f"{where}: names {error}") from error
    elif entry.labels is not None:
        labels = entry.labels
    else:
        split = entry.labels_from or ""
        if split not in files:
            raise UserError(f"{where}: labels_from {split!r} is not a split in [files].{nearest(split, files)}")
        if kind == "multi":
            labels = collect_multi(files[split], dialect, MultiCells(column, entry.separator, {}, entry.choices))
        else:
            labels = collect_labels(files[split], dialect, column, kind, other, tags)
    check_labels(labels, kind, other, answer, where)
    for written in (*(entry.names or ()), *labels):  # codes are read, labels are written by predict.py
        if entry.separator is not None and entry.separator in written:
            raise UserError(
                f"{where}: label {written!r} has the separator {entry.separator!r} in it, so it would be read as "
                "several. Choose another separator, or give the labels as JSON lists."
            )
    return CustomField(
        name,
        kind,
        tuple(labels),
        column,
        other,
        answer,
        tags,
        entry.names,
        entry.labels_from,
        entry.separator,
        columns,
        entry.choices,
    )


def _named(names: dict[str, str], where: str) -> list[str]:
    """The labels of a field whose files have codes; several codes may have the same name."""
    codes: dict[str, str] = {}
    for code in names:
        twin = codes.setdefault(appearance(code), code)
        if twin != code or code != code.strip() or not appearance(code):
            raise UserError(f"{where}: names has the code {code!r}, which is empty, has spaces around it, or looks "
                            "like another.")  # fmt: skip
    return list(dict.fromkeys(names.values()))
