"""``task.json``: the definition of a task, stored with every checkpoint and export.

Whoever has the folder can score and label new text with it: fields, label sets, format of the answer, and the names
that the prompt uses. For a user's own task the file also has the text of its TOML file. It has no paths; where labelled
examples are is not part of a task.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.json_text import to_json
from data.tasks import SLOT_ANSWERS, ClassField, Field, Task, TokenField

TASK_FILE = "task.json"
FORMAT = 1
_TEXTS = ("name", "dataset", "document_name", "document_noun", "instruction", "text_column")


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
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        found = record["format"]
        if found <= FORMAT:
            texts = {name: record[name] for name in _TEXTS}
            if not all(isinstance(text, str) for text in texts.values()):
                raise TypeError("a name is not a string")
            fields = tuple(_read_field(field) for field in record["fields"])
            if not fields:
                raise ValueError("no fields")
            return Task(fields=fields, opening_is_system=bool(record["opening_is_system"]), **texts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not the definition of a task ({error!r}). Restore it from the run.") from error
    raise UserError(f"{file} has format {found}, and this version knows formats up to {FORMAT}. Use a newer version.")


def _read_field(record: dict[str, Any]) -> Field:
    labels = tuple(record["labels"])
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ValueError(f"the labels of {record['name']} must be different strings")
    if record["type"] == "class":
        return ClassField(record["name"], labels)
    if record["type"] != "token" or record["answer"] not in SLOT_ANSWERS:
        raise ValueError(f"{record['name']} has type {record['type']!r} and answer {record.get('answer')!r}")
    return TokenField(record["name"], labels, record["other"], record["answer"])
