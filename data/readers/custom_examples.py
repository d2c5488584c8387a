"""Read the examples of a user's own task from its CSV, TSV or JSON-lines files; ``custom.py`` reads the task itself."""

from __future__ import annotations

import json
import logging
from collections import Counter

from data.characters import by_appearance, find, is_text
from data.errors import UserError, nearest
from data.example import Example
from data.readers.cells import class_label, records, token_labels, value_of
from data.readers.custom import CustomSpec
from data.readers.multi import MultiReader
from data.readers.tags import TagReader

log = logging.getLogger("data")


def load_custom(spec: CustomSpec, split: str) -> list[Example]:
    """Read one split and log what was found; see :func:`read_custom`."""
    examples, counts = read_custom(spec, split)
    log.info("%s %s: %d examples, %d empty", spec.name, split, len(examples), counts["empty"])
    return examples


def read_custom(spec: CustomSpec, split: str) -> tuple[list[Example], Counter[str]]:
    """Read one split of a user's own task, in the file's order, with a count of ``empty`` texts.

    Raises:
        UserError: there is no file for the split. Or, with file and line number: a line that is not UTF-8, CSV or
            JSON, a missing column, a label outside its set, unequal numbers of labels and words, a repeated id.
    """
    if split not in spec.files:
        hint = " Hold out a part of the training data instead: --holdout 0.1" if split == "dev" else ""
        raise UserError(f"{spec.path}: no {split} file; [files] has only {', '.join(spec.files)}.{hint}")
    counts: Counter[str] = Counter()
    examples: list[Example] = []
    seen: dict[str, int] = {}
    classes = {field.name: by_appearance(field.labels) for field in spec.fields if field.type == "class"}
    readers = {f.name: TagReader(f.labels, f.other, f.tags) for f in spec.fields if f.type == "token"}
    multi = {field.name: MultiReader(field.labels, field.cells) for field in spec.fields if field.type == "multi"}
    for row in records(spec.files[split], spec.tsv_quoting):
        text = value_of(row, spec.text_column)
        if not isinstance(text, str):
            raise UserError(f"{row.where}: {spec.text_column!r} must be a string, found {json.dumps(text)}.")
        if not is_text(text):
            raise UserError(f"{row.where}: {spec.text_column!r} holds half a character (an unpaired surrogate).")
        key = str(row.line if spec.id_column is None else value_of(row, spec.id_column))
        if key in seen:
            raise UserError(f"{row.where}: id {key!r} was already used in line {seen[key]}; ids must differ.")
        seen[key] = row.line

        labels: dict[str, str | tuple[str, ...]] = {}
        bio: dict[str, tuple[str, ...]] = {}
        for field in spec.fields:
            if field.type == "multi":
                labels[field.name] = multi[field.name].read(row)
                continue
            value = value_of(row, field.column, " Texts without labels are for predict.py.")
            if field.type == "class":
                written = class_label(value, row, field.column)
                label = find(written, classes[field.name])
                if label is None:
                    raise UserError(
                        f"{row.where}: {field.column!r} is {written!r}, which is not one of its labels."
                        f"{nearest(written, field.labels)}"
                    )
                labels[field.name] = label
            else:
                tags = token_labels(value, row, field.column)
                if len(tags) != len(text.split()):
                    raise UserError(
                        f"{row.where}: {field.column!r} has {len(tags)} labels for {len(text.split())} words; "
                        "words are separated by spaces (text.split()), and each needs one label."
                    )
                try:
                    labels[field.name], bio[field.name] = readers[field.name].read(tags)
                except UserError as error:
                    raise UserError(f"{row.where}: {field.column!r} {error}") from error
        counts["empty"] += not text.strip()
        examples.append(Example(id=f"{spec.name}/{split}/{key}", text=text, labels=labels, bio=bio))
    if not examples:
        raise UserError(f"{spec.files[split]}: no examples in it.")
    for name, reader in readers.items():
        if problem := reader.mixed():
            log.warning("%s, %r: %s Set tags if that is wrong.", spec.files[split], name, problem)
    return examples, counts
