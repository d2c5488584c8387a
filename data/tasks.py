"""Tasks: the labels of a document, and how they are written as the answer that a model is trained to give.

A task is a tuple of fields. A `ClassField` has one label for the document, a `TokenField` one for every word. The
answer to one field is the bare label or list. The answer to several is one JSON object, which is the paper's model
consolidation (§5.6):

    20ng_20          rec.autos
    20ng_joint       {"task1": "rec", "task2": "rec.autos"}
    massive_slots    ["Other", "Other", "time"]
    massive_joint    {"task1": "alarm_set", "task2": ["Other", "Other", "time"]}

The prompt around the answer is in `data.decoder.prompts`. `eval.decoder.parse` reads an answer back, as the exact
inverse of `Task.write`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, nearest
from data.example import Example
from data.readers.massive import INTENTS, SLOT_TYPES
from data.readers.newsgroups import GROUPS, ROOTS

if TYPE_CHECKING:
    from data.readers.custom import CustomSpec

JOINT_ORDERS = ("listing", "section")


@dataclass(frozen=True)
class ClassField:
    """One label for the document, from ``labels``."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class TokenField:
    """One label for every word: a type from ``labels``, or ``other`` for a word that has none."""

    name: str
    labels: tuple[str, ...]
    other: str = "Other"


Field = ClassField | TokenField


@dataclass(frozen=True)
class Task:
    """What a model has to answer about one document.

    Attributes:
        name: key into `TASKS`, or the name in a user's TOML file.
        dataset: "20ng", "massive" or "custom".
        fields: in the order of the answer.
        document_name: what the prompt's delimiters call a document: ``<<News>>``.
        document_noun: what the prompt's sentences call a document: "news text".
        instruction: a user's own sentences, placed after the prompt's first sentence.
        opening_is_system: the first sentences are the system text (listings 11 and 12).
        custom: a user's own task: where its examples are and how to read them.
    """

    name: str
    dataset: str
    fields: tuple[Field, ...]
    document_name: str = "Text"
    document_noun: str = "text"
    instruction: str = ""
    opening_is_system: bool = False
    custom: CustomSpec | None = None

    @property
    def is_joint(self) -> bool:
        return len(self.fields) > 1

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields' keys in a joint answer: task1, task2, ..."""
        return tuple(f"task{i}" for i in range(1, len(self.fields) + 1))

    def write(self, labels: Mapping[str, str | tuple[str, ...]]) -> str:
        """The answer a model should give for these labels, without the end-of-turn token."""
        values = [_value(field, labels[field.name]) for field in self.fields]
        if self.is_joint:
            return json.dumps(dict(zip(self.keys, values, strict=True)), ensure_ascii=False)
        return values[0] if isinstance(values[0], str) else json.dumps(values[0], ensure_ascii=False)

    def check(self, example: Example) -> None:
        """Raise UserError unless every field (token fields: every word) of the example has a label from the set."""
        for field in self.fields:
            where = f"Example {example.id}, field '{field.name}' of task {self.name}"
            if field.name not in example.labels:
                raise UserError(f"{where}: no label. The example has: {', '.join(example.labels) or 'none'}.")
            value = example.labels[field.name]
            if isinstance(field, ClassField):
                _check_label(where, value, field.labels)
                continue
            if isinstance(value, str) or len(value) != len(example.words):
                found = repr(value) if isinstance(value, str) else f"{len(value)} labels"
                raise UserError(f"{where}: {len(example.words)} words need one label each, found {found}.")
            for label in value:
                _check_label(where, label, (*field.labels, field.other))


def _value(field: Field, value: str | tuple[str, ...]) -> str | list[str]:
    assert isinstance(value, str) == isinstance(field, ClassField), (field.name, value)
    return value if isinstance(value, str) else list(value)


def _check_label(where: str, label: object, known: tuple[str, ...]) -> None:
    if label not in known:
        raise UserError(f"{where}: label {label!r} is not in the label set.{nearest(str(label), known)}")


GROUP = ClassField("group", GROUPS)
ROOT = ClassField("root", ROOTS)
INTENT = ClassField("intent", INTENTS)
SLOTS = TokenField("slots", SLOT_TYPES)


def _newsgroups(name: str, *fields: Field) -> Task:
    return Task(name, "20ng", fields, document_name="News", document_noun="news text")


def _massive(name: str, *fields: Field) -> Task:
    joint = len(fields) > 1
    return Task(name, "massive", fields, document_name="Utter", document_noun="utterance text", opening_is_system=joint)


TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        _newsgroups("20ng_20", GROUP),
        _newsgroups("20ng_7", ROOT),
        _newsgroups("20ng_joint", ROOT, GROUP),
        _massive("massive_intent", INTENT),
        _massive("massive_slots", SLOTS),
        _massive("massive_joint", INTENT, SLOTS),
    ]
}


def get_task(name: str | Path, joint_order: str = "listing") -> Task:
    """A task by name, or a user's own from a TOML file.

    Args:
        name: a key of `TASKS`, or the path of a ``.toml`` file (see `data.readers.custom`).
        joint_order: which field of ``20ng_joint`` is task1: the seven-class field, as in the paper's listings 5 and 6
            ("listing"), or the twenty-class field, as in its §5.6 ("section"). Other tasks have one order.

    Raises:
        UserError: unknown name or order, or an order for a task that has only one.
    """
    if joint_order not in JOINT_ORDERS:
        raise UserError(f"Unknown joint_order '{joint_order}'.{nearest(joint_order, JOINT_ORDERS)}")
    if str(name).endswith(".toml"):
        task = _custom_task(Path(name))
    elif name in TASKS:
        task = TASKS[str(name)]
    else:
        raise UserError(
            f"Unknown task '{name}'.{nearest(str(name), TASKS)} For your own task, give the path of its .toml file."
        )
    if joint_order == "section":
        if task.name != "20ng_joint" or task.dataset != "20ng":
            raise UserError(f"joint_order 'section' is for 20ng_joint only; task {task.name} has one order.")
        task = dataclasses.replace(task, fields=task.fields[::-1])
    return task


def _custom_task(path: Path) -> Task:
    from data.readers.custom import read_custom_spec

    spec = read_custom_spec(path)
    if spec.name in TASKS:
        raise UserError(f"{path}: name {spec.name!r} is the name of a built-in task; choose another.")
    fields = tuple(
        ClassField(field.name, field.labels)
        if field.type == "class"
        else TokenField(field.name, field.labels, field.other)
        for field in spec.fields
    )
    name = spec.document_name
    return Task(
        spec.name,
        "custom",
        fields,
        document_name=name,
        document_noun=name.lower(),
        instruction=spec.instruction or "",
        custom=spec,
    )
