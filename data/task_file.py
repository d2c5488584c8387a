"""``task.json``: the definition of a task, stored with every checkpoint and export.

Whoever has the folder can score and label new text with it: fields, label sets, format of the answer, and the names
that the prompt uses. For a user's own task the file also has the text of its TOML file. It has no paths; where labelled
examples are is not part of a task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from data.errors import UserError
from data.files.documents import read_json, shaped
from data.json_text import to_json
from data.tasks import ClassField, Field, Task, TokenField

TASK_FILE = "task.json"
FORMAT = 1
_TEXTS = ("name", "dataset", "document_name", "document_noun", "instruction", "text_column")


_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Labels = Annotated[list[str], msgspec.Meta(min_length=1)]


class _ClassRecord(msgspec.Struct, tag="class", tag_field="type"):
    name: str
    labels: _Labels


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
    fields: Annotated[list[_ClassRecord | _TokenRecord], msgspec.Meta(min_length=1)]


def save_task(task: Task, folder: Path) -> None:
    """Write ``task.json`` into a folder."""
    text = to_json(task_record(task), indent=2)
    (folder / TASK_FILE).write_text(text + "\n", encoding="utf-8")


def task_record(task: Task) -> dict[str, Any]:
    """The content of ``task.json``."""
    record: dict[str, Any] = {"format": FORMAT} | {name: getattr(task, name) for name in _TEXTS}
    record["opening_is_system"] = task.opening_is_system
    record["fields"] = [_field_record(field) for field in task.fields]
    if task.custom is not None:
        record["toml"] = task.custom.toml
    return record


def _field_record(field: Field) -> dict[str, Any]:
    record: dict[str, Any] = {"name": field.name, "type": "class", "labels": list(field.labels)}
    if isinstance(field, TokenField):
        record |= {"type": "token", "other": field.other, "answer": field.answer}
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
        else:
            fields.append(ClassField(field.name, labels))
    texts = {name: getattr(record, name) for name in _TEXTS}
    return Task(fields=tuple(fields), opening_is_system=record.opening_is_system, **texts)
