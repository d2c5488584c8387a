"""``task.json``: the definition of a task, stored with every checkpoint and export.

Whoever has the folder can score and label new text with it: fields, label sets, format of the answer, and the names
that the prompt uses. For a user's own task the file also has the text of its TOML file. It has no paths; where labelled
examples are is not part of a task, but how they are cut into splits is. So two tasks are the same if their contents
are, wherever their TOML files are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from data.errors import UserError
from data.files.documents import read_json, shaped
from data.files.durable import write_text
from data.json_text import to_json
from data.tasks import ClassField, Field, MultiField, Task, TokenField
from data.template import TextTemplate

TASK_FILE = "task.json"
FORMAT = 2
"""The newest format. A task is written in the oldest that can say it; new in 2: `_OPTIONAL`, multi fields."""
_TEXTS = ("name", "dataset", "document_name", "document_noun", "instruction", "text_column")
_OPTIONAL = ("text_template", "split", "has_words", "conll_columns")  # written if they are not empty
_SETTINGS = ("type", "separator", "other", "answer")  # of fields
LABELS_SHOWN = 5  # in a sentence about what differs


_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Labels = Annotated[list[str], msgspec.Meta(min_length=1)]


class _ClassRecord(msgspec.Struct, tag="class", tag_field="type"):
    name: str
    labels: _Labels


class _MultiRecord(msgspec.Struct, tag="multi", tag_field="type"):
    name: str
    labels: _Labels
    separator: _Name | None = None


class _TokenRecord(msgspec.Struct, tag="token", tag_field="type"):
    name: str
    labels: _Labels
    other: str
    answer: Literal["list", "bio", "spans"]


class _Format(msgspec.Struct):
    format: int


class _Record(msgspec.Struct):
    """What is read of the file."""

    name: _Name
    dataset: _Name
    document_name: _Name
    document_noun: _Name
    instruction: str
    text_column: _Name
    opening_is_system: bool
    fields: Annotated[list[_ClassRecord | _MultiRecord | _TokenRecord], msgspec.Meta(min_length=1)]
    text_template: str = ""
    split: str = ""
    has_words: bool = False
    conll_columns: tuple[str, ...] = ()


def save_task(task: Task, folder: Path) -> None:
    """Write ``task.json`` into a folder."""
    text = to_json(task_record(task), indent=2)
    write_text(folder / TASK_FILE, text + "\n")


def task_record(task: Task) -> dict[str, Any]:
    """The content of ``task.json``."""
    optional = {name: value for name in _OPTIONAL if (value := getattr(task, name))}
    is_new = optional or any(isinstance(field, MultiField) for field in task.fields)
    record: dict[str, Any] = {"format": FORMAT if is_new else 1}
    record |= {name: getattr(task, name) for name in _TEXTS} | optional
    record["opening_is_system"] = task.opening_is_system
    record["fields"] = [_field_record(field) for field in task.fields]
    if task.custom is not None:
        record["toml"] = task.custom.toml
    return record


def task_hash(task: Task) -> str:
    """A hash of everything that `task_changes` compares."""
    return hashlib.sha256(json.dumps(_content(task)).encode()).hexdigest()


def task_changes(had: Task, has: Task, whose: tuple[str, str]) -> list[str]:
    """What differs between the contents of two tasks: a sentence for each part, empty if they are the same.

    The text of a TOML file is not compared: comments and the places of data files do not matter.

    Args:
        whose: the two tasks in words, such as ("the checkpoint", "this run").
    """
    old, new = _content(had), _content(has)
    pairs = [(f"task {name}", old.get(name, ""), new.get(name, "")) for name in (*_TEXTS, *_OPTIONAL)]
    pairs.append(("task opening_is_system", old["opening_is_system"], new["opening_is_system"]))
    fields, others = ({field["name"]: field for field in record["fields"]} for record in (old, new))
    pairs.append(("task fields", ", ".join(fields), ", ".join(others)))
    kept = [name for name in fields if name in others]
    for name in kept:
        one, other = fields[name], others[name]
        pairs += [(f"task field {name}, {key}", one.get(key), other.get(key)) for key in _SETTINGS]
    found = [f"{part}: {whose[0]} has {x!r}, {whose[1]} has {y!r}" for part, x, y in pairs if x != y]
    for name in kept:
        one, other = fields[name]["labels"], others[name]["labels"]
        only = [
            f"only {who} has {_shortened(labels)}"
            for who, labels in zip(whose, (_without(one, other), _without(other, one)), strict=True)
            if labels
        ]
        if one != other:
            found.append(f"task field {name}, labels: {', '.join(only) or 'their order differs'}")
    return found


def _without(labels: list[str], others: list[str]) -> list[str]:
    known = set(others)
    return [label for label in labels if label not in known]


def _shortened(labels: list[str]) -> str:
    more = f" and {len(labels) - LABELS_SHOWN:,} more" if len(labels) > LABELS_SHOWN else ""
    return ", ".join(map(repr, labels[:LABELS_SHOWN])) + more


def _content(task: Task) -> dict[str, Any]:
    return {name: value for name, value in task_record(task).items() if name != "toml"}


def _field_record(field: Field) -> dict[str, Any]:
    record: dict[str, Any] = {"name": field.name, "type": field.kind, "labels": list(field.labels)}
    if isinstance(field, MultiField):
        record["separator"] = field.separator
    if isinstance(field, TokenField):
        record |= {"other": field.other, "answer": field.answer}
    return record


def read_task(folder: Path) -> Task | None:
    """The task in a folder's ``task.json``; None if there is no such file.

    A user's own task is returned without its data files (``custom`` is None).

    Raises:
        UserError: the file is damaged, or of a newer version of this code.
    """
    file = folder / TASK_FILE
    if not file.is_file():
        return None
    found = read_json(file)
    number: int = shaped(found, str(file), _Format).format
    if number > FORMAT:
        raise UserError(
            f"{file} has format {number}, and this version knows formats up to {FORMAT}. Use a newer version."
        )
    record: _Record = shaped(found, str(file), _Record)
    fields: list[Field] = []
    for field in record.fields:
        labels = tuple(field.labels)
        if len(set(labels)) < len(labels):
            raise UserError(f"{file}: the labels of {field.name} must be different texts.")
        if isinstance(field, _TokenRecord):
            fields.append(TokenField(field.name, labels, field.other, field.answer))
        elif isinstance(field, _MultiRecord):
            fields.append(MultiField(field.name, labels, field.separator))
        else:
            fields.append(ClassField(field.name, labels))
    texts = {name: getattr(record, name) for name in (*_TEXTS, *_OPTIONAL)}
    if record.text_template:
        try:
            TextTemplate(record.text_template)
        except UserError as error:
            raise UserError(f"{file}: text_template: {error}") from error
    return Task(fields=tuple(fields), opening_is_system=record.opening_is_system, **texts)
