"""Read the examples of a user's own task from its CSV, TSV or JSON-lines files; ``custom.py`` reads the task itself."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

from data.characters import NO_TEXT, by_appearance, find, is_text
from data.errors import UserError, as_json
from data.example import Example
from data.readers.cells import (
    SPANS,
    class_label,
    list_in,
    missing_column,
    no_column,
    parsed_list,
    records,
    token_labels,
)
from data.readers.custom import CustomSpec
from data.readers.custom_fields import CustomField
from data.readers.cut import TRAIN, divide
from data.readers.groups import check_groups, group_of
from data.readers.label_sets import label_of
from data.readers.multi import MultiReader
from data.readers.prodigy import note
from data.readers.records import Record
from data.readers.row_errors import RowError, RowErrors, placed, unknown
from data.readers.sources import name_of
from data.readers.spans import SpanReader
from data.readers.split_files import id_prefixes
from data.readers.tags import TagReader
from data.readers.words import joined
from data.template import scalar_text

MANY_SKIPPED = 0.1  # of a table's records, above which the warning has the share
SHOWN = 5  # records or labels that a message names
UNUSED_LABELS = "data.unused_labels"  # the logger of what `data.check` finds by itself
NOTES = "data.notes"  # the logger of what `data.check` says besides warnings
WITHOUT_LABELS = " Texts without labels are for predict.py."

log = logging.getLogger("data")


def load_custom(spec: CustomSpec, split: str) -> list[Example]:
    """Read one split and log what was found; see :func:`read_custom`."""
    examples = read_custom(spec, split)
    log.info("%s %s: %d examples", spec.name, split, len(examples))
    return examples


def read_custom(spec: CustomSpec, split: str) -> list[Example]:
    """Read one split of a user's own task, in the order of its files; warnings count what is skipped or left out.

    Raises:
        UserError: there is no file for the split, or it cannot be cut from the train files (`data.readers.cut`). Or,
            with file and line number: a line that is not of its encoding, CSV or JSON, a missing column, missing values
            (unless they are skipped), labels outside their set, wrong spans, unequal numbers of labels and words (of
            these the first rows and how many there are), a repeated id, a group in two splits. Training examples that
            all have the same label, or whose words have.
    """
    source, is_cut = source_of(spec, split)
    files = spec.files[source]
    others = () if spec.id_column is None else (spec.id_column,)
    group_column = None if spec.cut is None else spec.cut.group
    if group_column is not None:
        others = (*others, group_column)
        check_groups(spec.files, group_column, spec.dialect)
    text_columns = (spec.text_column,) if spec.template is None else spec.template.columns
    of_labels = (column for field in spec.fields for column in (field.columns.values() or [field.column]))
    needed = (*text_columns, *others, *of_labels)
    may_be_empty = {field.column for field in spec.fields if field.type == "multi" and not field.columns}
    filled = tuple(column for column in needed if column not in may_be_empty)
    readers = [_reader(field, source) for field in spec.fields]
    gaps, wrong = _Gaps(spec, source), RowErrors(source)
    examples: list[Example] = []
    keys: list[str] = []
    groups: list[str] = []
    seen: dict[str, str] = {}
    left_out = Counter[str]()
    for file, prefix in zip(files, id_prefixes(files), strict=True):
        for row in records(file, spec.dialect, needed, WITHOUT_LABELS, left_out):
            column = missing_column(row, filled)
            if column is None:  # null says that nobody has looked, an empty cell that there is no label
                column = next((name for name in may_be_empty if row.values.get(name) is None), None)
            if row.error or column is not None:
                gaps.add(row, None if row.error else column)
                continue
            text = _text(spec, row)
            if not text:  # a list without words
                gaps.add(row, spec.text_column)
                continue
            key = f"{prefix}{row.line}"
            if spec.id_column is not None:
                key = _id(row.values[spec.id_column], row, spec.id_column)
                if (first := seen.setdefault(key, row.where)) is not row.where:
                    raise UserError(f"{row.where}: id {key!r} was already used in {first}; ids must differ.")
            labels: dict[str, str | tuple[str, ...]] = {}
            bio: dict[str, tuple[str, ...]] = {}
            try:
                for reader in readers:
                    reader.read(row, text, labels, bio)
            except RowError as error:
                wrong.add(error)
                continue
            examples.append(Example(id=f"{spec.name}/{split}/{key}", text=text, labels=labels, bio=bio))
            if is_cut:
                keys.append(key)
                if group_column is not None:
                    groups.append(group_of(row, group_column))
    if problem := "\n".join(filter(None, [gaps.problem(len(examples) + wrong.n), wrong.problem()])):
        raise UserError(problem)
    if not examples:
        raise UserError(f"{name_of(files)}: no examples in it.{gaps.all_skipped()} {note(left_out)}".rstrip())
    where = f"{spec.name}, the table that is cut" if is_cut else f"{spec.name} {split}"
    gaps.warn(len(examples), where)
    if left_out:
        log.warning("%s: %s", where, note(left_out))
    if is_cut:
        examples = _only(split, examples, keys, groups, spec)
    for reader in readers:
        reader.finish(spec, split, examples)
    return examples


def source_of(spec: CustomSpec, split: str) -> tuple[str, bool]:
    """The split whose files have the examples of a split, and whether only a part of them is meant.

    Raises:
        UserError: there are none.
    """
    cut = {} if spec.cut is None else spec.cut.fractions
    if split in cut or (cut and split == TRAIN):
        return TRAIN, True
    if split in spec.files:
        return split, False
    hint = " Hold out a part of the training data instead: --holdout 0.1" if split == "dev" else ""
    if split != TRAIN and TRAIN in spec.files:
        hint = f"{hint}, or cut" if hint else " Cut"
        hint += f" it from the train files: write {split} = 0.1 below [split]."
    where = "splits" if spec.dataset else "[files]"
    raise UserError(f"{spec.path}: no {split} file; {where} has only {', '.join(spec.files)}.{hint}")


def _only(split: str, examples: list[Example], keys: list[str], groups: list[str], spec: CustomSpec) -> list[Example]:
    """The examples of the train files that are of this split; logs how they are cut."""
    assert spec.cut is not None
    field = spec.cut.stratify
    labels = [] if field is None else [example.class_label(field) for example in examples]
    found, how, absent = divide(keys, labels, groups, spec.cut, spec.path)
    log.info("%s: %s", spec.name, how)
    if absent:
        log.warning("%s: %s", spec.name, absent)
    return [example for example, its_split in zip(examples, found, strict=True) if its_split == split]


def _text(spec: CustomSpec, row: Record) -> str:
    if spec.template is None:
        text, what = row.values[spec.text_column], repr(spec.text_column)
        if spec.has_words:
            words = parsed_list(text, row, spec.text_column)
            try:
                text = joined(words)
            except UserError as error:
                raise UserError(f"{row.where}: {what} {error}") from error
        is_list = isinstance(text, list) or (not spec.has_words and spec.has_token_field and _is_list_of_words(text))
        if is_list or not isinstance(text, str):
            advice = " If it has a list of words, write tokens_column in its place." if is_list else ""
            raise UserError(f"{row.where}: {what} must be a string, found {as_json(text)}.{advice}")
    else:
        what = "the text"
        try:
            text = spec.template.fill(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from error
    if not is_text(text):
        raise UserError(f"{row.where}: {what} holds {NO_TEXT}.")
    return text


def _is_list_of_words(cell: Any) -> bool:
    """Whether a cell of a table has a list of words as JSON or Python writes it, which nobody labels word by word."""
    if not isinstance(cell, str) or not cell.startswith("["):
        return False
    try:
        found = list_in(cell, "the text")
    except UserError:
        return False
    return isinstance(found, list) and bool(found) and all(isinstance(word, str) for word in found)


def _id(value: Any, row: Record, column: str) -> str:
    found = scalar_text(value)
    if found is None or not is_text(found):
        raise UserError(f"{row.where}: {column!r} must be an id, a text or a number; found {as_json(value)}.")
    return found.strip()


class _Gaps:
    """The records of a split that have no value in a column that is needed."""

    def __init__(self, spec: CustomSpec, split: str) -> None:
        self.spec, self.split = spec, split
        self.columns: Counter[str] = Counter()
        self.first: list[str] = []

    def add(self, row: Record, column: str | None) -> None:
        """Count one; a UserError if all its file may have another name for the column.

        Args:
            column: without a value; None if the line is too short.
        """
        if column is not None and column not in row.values and self.spec.missing != "skip":
            raise no_column(row, column, f'{WITHOUT_LABELS} To leave such records out, write missing = "skip".')
        self.columns["a line with too few cells" if column is None else repr(column)] += 1
        if len(self.first) < SHOWN:
            if column is None:
                self.first.append(row.error.rstrip("."))
            elif column in row.values:
                self.first.append(f"{row.where}: {column!r} is {'null' if row.values[column] is None else 'empty'}")
            else:
                self.first.append(str(no_column(row, column)).rstrip("."))

    def problem(self, n_examples: int) -> str:
        """What is to be said if there are any and they are not to be skipped; else empty.

        Args:
            n_examples: that have no gap. Without any, nothing is left if the others are skipped.
        """
        if not self.first or self.spec.missing == "skip":
            return ""
        advice = self._remove() if not n_examples else ""
        skip = "" if not n_examples else f', or write missing = "skip" in {self.spec.path.name} to leave them out'
        return f"{self._shown()}. Fill them in{skip}.{advice}"

    def warn(self, n_examples: int, where: str) -> None:
        """Say what is skipped, if anything is.

        Args:
            n_examples: that have no gap. Of all records: of a table that is cut, not of one split.
        """
        if not self.columns:
            return
        n_all = n_examples + (n := self.columns.total())
        many = f" These are {n / n_all:.0%} of all: are these the right columns?" if n / n_all > MANY_SKIPPED else ""
        counts = ", ".join(f"{n} in {column}" for column, n in self.columns.most_common())
        log.warning("%s: %d of %d records have no value in a column and are skipped: %s.%s", where, n, n_all, counts,
                    many)  # fmt: skip

    def all_skipped(self) -> str:
        return f" All were skipped: {self._shown()}.{self._remove()}" if self.first else ""

    def _remove(self) -> str:
        """What to do about a split without any example; empty if there is no training without it."""
        if self.split == TRAIN:
            return ""
        where = "splits" if self.spec.dataset else "[files]"
        return f" No example of it has all values. To do without it, remove {self.split} from {where}.{WITHOUT_LABELS}"

    def _shown(self) -> str:
        n = self.columns.total()
        more = f"; ... ({n:,} examples of the {self.split} split have no value in a column)" if n > SHOWN else ""
        return "; ".join(self.first) + more


def _reader(field: CustomField, split: str) -> _ClassReader | _MultiReader | _TokenReader:
    if field.type == "class":
        return _ClassReader(field, split)
    return _MultiReader(field) if field.type == "multi" else _TokenReader(field)


class _ClassReader:
    """Reads a class field's column, and remembers which labels occurred."""

    def __init__(self, field: CustomField, split: str) -> None:
        self.field, self.column = field, field.column
        self.codes = None if field.names is None else by_appearance(field.names)
        self.known = by_appearance(field.labels)
        self.found: dict[str, str] = {}  # by what is written
        self.elsewhere = field.labels_from if field.labels_from != split else None

    def read(self, row: Record, text: str, labels: dict[str, Any], bio: dict[str, Any]) -> None:
        value = row.values[self.column]
        label = self.found.get(value) if value.__class__ is str else None
        if label is None:
            written = class_label(value, row, self.column)
            label = self.found[written] = self._label(written, row)
            if value.__class__ is str:
                self.found[value] = label
        labels[self.field.name] = label

    def _label(self, written: str, row: Record) -> str:
        what = f"{row.where}: {self.column!r} is {written!r}, which is not one of its"
        if self.codes is not None:
            assert self.field.names is not None
            code = find(written, self.codes)
            if code is None:
                raise unknown(f"{what} codes: names has no name for it.", written, self.field.names)
            return self.field.names[code]
        label = find(written, self.known)
        if label is None:
            advice = ""
            if self.elsewhere is not None:
                advice = (
                    f' The labels are those of the {self.elsewhere} files (labels_from = "{self.elsewhere}"), which do '
                    "not have it. A model cannot learn it from them: correct the label, add examples of it there, or "
                    "leave this example out."
                )
            raise unknown(f"{what} labels.", written, self.field.labels, advice)
        return label

    def finish(self, spec: CustomSpec, split: str, examples: Sequence[Example]) -> None:
        used = {example.class_label(self.field.name) for example in examples}
        if split == TRAIN and len(used) == 1:
            raise UserError(
                f"{name_of(spec.files[TRAIN])}: every example has the label {used.pop()!r} in {self.column!r}, so "
                "there is nothing to learn. Training needs examples of at least two labels."
            )
        _note_unused(spec, split, self.field, used)


class _MultiReader:
    """Reads a multi field's columns."""

    def __init__(self, field: CustomField) -> None:
        self.field, self.reader = field, MultiReader(field.labels, field.cells, field.names)

    def read(self, row: Record, text: str, labels: dict[str, Any], bio: dict[str, Any]) -> None:
        labels[self.field.name] = self.reader.read(row)

    def finish(self, spec: CustomSpec, split: str, examples: Sequence[Example]) -> None:
        found = {example.labels[self.field.name] for example in examples}
        if split == TRAIN and len(found) == 1:
            every = ", ".join(map(repr, *found)) or "none"
            raise UserError(
                f"{name_of(spec.files[TRAIN])}: every example has the same labels of {self.field.name!r} ({every}), so "
                "there is nothing to learn. Training needs examples that differ."
            )
        _note_unused(spec, split, self.field, {label for own in found for label in own})


class _TokenReader:
    """Reads a token field's column, and remembers which types occurred."""

    def __init__(self, field: CustomField) -> None:
        self.field, self.column = field, field.column
        self.spans = SpanReader() if field.tags == SPANS else None
        self.tags = TagReader(field.labels, field.other, field.tags if self.spans is None else "iob2")

    def read(self, row: Record, text: str, labels: dict[str, Any], bio: dict[str, Any]) -> None:
        value, n_words = row.values[self.column], len(text.split())
        if self.spans is None:
            tags = token_labels(value, row, self.column, self.field.names)
        else:
            value = parsed_list(value, row, self.column)
        try:
            if self.spans is not None:
                tags = self.spans.read(text, value)
            if len(tags) != n_words:
                advice = " Words are separated by spaces (text.split()), and each needs one label."
                raise RowError(f"has {len(tags)} labels for {n_words} words.", advice)
            labels[self.field.name], bio[self.field.name] = self.tags.read(tags)
        except UserError as error:
            raise placed(error, f"{row.where}: {self.column!r}") from error

    def finish(self, spec: CustomSpec, split: str, examples: Sequence[Example]) -> None:
        if self.spans is not None and (note := self.spans.note()):
            logging.getLogger(NOTES).info("%s %s, %r: %s", spec.name, split, self.column, note)
        if problem := self.tags.mixed():
            files = spec.files[source_of(spec, split)[0]]
            log.warning("%s, %r: %s Set tags if that is wrong.", name_of(files), self.field.name, problem)
        used = set(chain.from_iterable(example.word_labels(self.field.name) for example in examples))
        own = (example.bio[self.field.name] for example in examples)
        # With two tags after the first word, it can be learned where entities begin.
        if split == TRAIN and len(used) == 1 and len(set(chain.from_iterable(tags[1:] for tags in own))) < 2:
            names = "" if self.field.names is None else ", and do its names give each tag the right label"
            raise UserError(
                f"{name_of(spec.files[TRAIN])}: every word has the label {used.pop()!r} in {self.column!r}, so there "
                f"is nothing to learn. Training needs words of at least two labels. Is this the right column{names}?"
            )
        _note_unused(spec, split, self.field, used)


def _note_unused(spec: CustomSpec, split: str, field: CustomField, used: set[str]) -> None:
    unused: Sequence[str] = [label for label in field.labels if label not in used]
    if unused:
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        level = logging.WARNING if split == "train" else logging.INFO
        shown = ", ".join(map(repr, unused[:SHOWN]))
        logging.getLogger(UNUSED_LABELS).log(level, "%s %s: no example has the %s %s%s.", spec.name, split,
                                             label_of(field.name), shown, more)  # fmt: skip
