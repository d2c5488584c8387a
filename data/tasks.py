"""Tasks: the labels of a document, and how they are written as the answer that a model is trained to give.

A task is a tuple of fields. A `ClassField` has one label for the document, a `MultiField` any number, a `TokenField`
one for every word. The answer to one field is the bare label or list. The answer to several is one JSON object, which
is the paper's model consolidation (§5.6):

    20ng_20          rec.autos
    20ng_joint       {"task1": "rec", "task2": "rec.autos"}
    massive_slots    ["Other", "Other", "time"]
    massive_joint    {"task1": "alarm_set", "task2": ["Other", "Other", "time"]}

`Task.read` is the exact inverse of `Task.write`. How one field is written is its format (`data.answers`). The prompt
around the answer is in `data.decoder.prompts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from data.answers import (
    Answer,
    Counts,
    Format,
    Label,
    LabelList,
    Labels,
    Parsed,
    Spans,
    TagList,
    TypeList,
    forms,
    literal,
    one_line,
)
from data.errors import UserError, nearest
from data.example import Example
from data.readers.massive import INTENTS, SLOT_TYPES
from data.readers.newsgroups import GROUPS, ROOTS

if TYPE_CHECKING:
    from data.readers.custom import CustomSpec
    from data.readers.custom_fields import CustomField

JOINT_ORDERS = ("listing", "section")
SLOT_ANSWERS: dict[str, type[TypeList] | type[Spans]] = {"list": TypeList, "bio": TagList, "spans": Spans}
SLOT_TAGS = ("types", "bio")
FieldKind = Literal["class", "multi", "token"]


@dataclass(frozen=True)
class ClassField:
    """One label for the document, from ``labels``."""

    kind: ClassVar[FieldKind] = "class"
    name: str
    labels: tuple[str, ...]

    @cached_property
    def format(self) -> Format:
        return Label(self.labels)


@dataclass(frozen=True)
class MultiField:
    """Any number of labels for the document, from ``labels``, none included.

    ``separator`` is between the labels in a cell of a table; None: a cell has a JSON list. Models do not use it.
    """

    kind: ClassVar[FieldKind] = "multi"
    name: str
    labels: tuple[str, ...]
    separator: str | None = None

    @cached_property
    def format(self) -> LabelList:
        return LabelList(self.labels)


@dataclass(frozen=True)
class TokenField:
    """One label for every word: a type from ``labels``, or ``other`` for a word that has none.

    ``answer``, a key of `SLOT_ANSWERS`, is how a decoder writes them; encoders do not use it.
    """

    kind: ClassVar[FieldKind] = "token"
    name: str
    labels: tuple[str, ...]
    other: str = "Other"
    answer: str = "list"

    @cached_property
    def format(self) -> TypeList | Spans:
        return SLOT_ANSWERS[self.answer](self.labels, self.other)


Field = ClassField | MultiField | TokenField


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
        text_column: the column of new texts in a table.
        text_template: makes a new text of several columns (`data.template`); empty: they are in ``text_column``.
        split: how splits are cut from its training examples (`data.readers.cut.Cut`), in words; empty: they are given.
        has_words: ``text_column`` has lists of words.
        conll_columns: the names of the columns of CoNLL; empty: the usual ones (`data.readers.conll`).
        custom: a user's own task: where its examples are and how to read them.
    """

    name: str
    dataset: str
    fields: tuple[Field, ...]
    document_name: str = "Text"
    document_noun: str = "text"
    instruction: str = ""
    opening_is_system: bool = False
    text_column: str = "text"
    text_template: str = ""
    split: str = ""
    has_words: bool = False
    conll_columns: tuple[str, ...] = ()
    custom: CustomSpec | None = dataclasses.field(default=None, hash=False)  # it has a dict

    @property
    def is_joint(self) -> bool:
        return len(self.fields) > 1

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields' keys in a joint answer: task1, task2, ..."""
        return tuple(f"task{i}" for i in range(1, len(self.fields) + 1))

    def write(self, labels: Mapping[str, Labels], words: Sequence[str] = ()) -> str:
        """The answer a model should give for these labels, without the end-of-turn token.

        Args:
            labels: by field name.
            words: of the document; a field whose answer is spans needs them.
        """
        return self.join([field.format.write(labels[field.name], words) for field in self.fields])

    def join(self, values: Sequence[str | Sequence[str]]) -> str:
        """The answer whose fields have these values, each as its format writes it."""
        return one_line(self._joined(values))

    def read(self, text: str, words: Sequence[str]) -> Parsed:
        """The labels in an answer; never raises.

        In a joint answer each field is parsed separately, so a missing or wrong field does not affect the others;
        further keys are ignored. A field that cannot be parsed is None and named in ``unparsed``.

        Args:
            text: the model's answer, without the end-of-turn token.
            words: of the document; every token field gets one label for each.
        """
        if self.is_joint:
            value = literal(text)
            answer = value if isinstance(value, dict) else {}
            values = [answer.get(key) for key in self.keys]
        else:
            values = [text if isinstance(self.fields[0], ClassField) else literal(text)]
        counts = Counts()
        labels, bio, n_labels = dict[str, Labels | None](), dict[str, tuple[str, ...]](), dict[str, int]()
        for field, value in zip(self.fields, values, strict=True):
            surplus = counts.n_extra - counts.n_missing  # of the fields before
            labels[field.name], boundaries = field.format.read(value, words, counts)
            if own := counts.n_extra - counts.n_missing - surplus:
                n_labels[field.name] = len(words) + own
            if boundaries is not None:
                bio[field.name] = boundaries
        unparsed = tuple(name for name, value in labels.items() if value is None)
        return Parsed(labels, unparsed, bio, n_labels, **vars(counts))

    def longest(self, words: Sequence[str], length: Callable[[str], int]) -> str:
        """An answer that is at least as long as any to a document with these words, written as `write` does.

        Args:
            length: of a label, in tokens.
        """
        return self.join([field.format.longest(words, length) for field in self.fields])

    def longest_forms(self, words: Sequence[str], length: Callable[[str], int]) -> list[str]:
        """The same answer in all forms in which models often write it (`data.answers.forms`)."""
        return forms(self._joined([field.format.longest(words, length) for field in self.fields]))

    def _joined(self, values: Sequence[str | Sequence[str]]) -> Answer:
        return dict(zip(self.keys, values, strict=True)) if self.is_joint else values[0]

    def with_slot_answer(self, answer: str) -> Task:
        """The same task with all token fields written as ``answer``, a key of `SLOT_ANSWERS`.

        Raises:
            UserError: an unknown answer, or a task without a token field.
        """
        if answer not in SLOT_ANSWERS:
            raise UserError(f"Unknown slot_answer '{answer}'.{nearest(answer, SLOT_ANSWERS)}")
        if not any(isinstance(field, TokenField) for field in self.fields):
            raise UserError(
                f"slot_answer and slot_tags are for tasks with one label per word; task {self.name} has none."
            )
        fields = [
            dataclasses.replace(field, answer=answer) if isinstance(field, TokenField) else field
            for field in self.fields
        ]
        return dataclasses.replace(self, fields=tuple(fields))

    def check(self, example: Example) -> None:
        """Raise UserError unless every field of the example has labels from its set, as many as its kind has."""
        for field in self.fields:
            where = f"Example {example.id}, field '{field.name}' of task {self.name}"
            if field.name not in example.labels:
                raise UserError(f"{where}: no label. The example has: {', '.join(example.labels) or 'none'}.")
            value = example.labels[field.name]
            if isinstance(field, ClassField):
                _check_label(where, value, field.labels)
                continue
            if isinstance(field, MultiField):
                if isinstance(value, str):
                    raise UserError(f"{where}: a list of labels is needed, found {value!r}.")
                for label in value:
                    _check_label(where, label, field.labels)
                continue
            if isinstance(value, str) or len(value) != len(example.words):
                found = repr(value) if isinstance(value, str) else f"{len(value)} labels"
                raise UserError(f"{where}: {len(example.words)} words need one label each, found {found}.")
            for label in value:
                _check_label(where, label, (*field.labels, field.other))


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


def get_task(
    name: str | Path, joint_order: str = "listing", slot_answer: str | None = None, slot_tags: str | None = None
) -> Task:
    """A task by name, or a user's own from a TOML file.

    Args:
        name: a key of `TASKS`, or the path of a ``.toml`` file (see `data.readers.custom`).
        joint_order: which field of ``20ng_joint`` is task1: the seven-class field, as in the paper's listings 5 and 6
            ("listing"), or the twenty-class field, as in its §5.6 ("section"). Other tasks have one order.
        slot_answer: how token fields are answered, a key of `SLOT_ANSWERS`; None: as the task says, which is "list" for
            the paper's tasks.
        slot_tags: what a list of a label for every word consists of, one of `SLOT_TAGS`; "bio" asks for such a list.

    Raises:
        UserError: unknown name or order, or an order for a task that has only one; BIO tags in spans; see
            `Task.with_slot_answer`.
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
    if slot_tags == "bio":
        if slot_answer == "spans":
            raise UserError("slot_tags bio is for slot_answer list: spans have no tags. Give one of the two.")
        slot_answer = "bio"
    return task if slot_answer is None else task.with_slot_answer(slot_answer)


def _custom_task(path: Path) -> Task:
    from data.readers.custom import read_custom_spec

    spec = read_custom_spec(path)
    if spec.name in TASKS:
        raise UserError(f"{path}: name {spec.name!r} is the name of a built-in task; choose another.")
    name = spec.document_name
    return Task(
        spec.name,
        "custom",
        tuple(map(_custom_field, spec.fields)),
        document_name=name,
        document_noun=name.lower(),
        instruction=spec.instruction or "",
        text_column=spec.text_column,
        text_template=spec.template.written if spec.template else "",
        split="" if spec.cut is None else str(spec.cut),
        has_words=spec.has_words,
        conll_columns=spec.dialect.conll_columns or (),
        custom=spec,
    )


def _custom_field(field: CustomField) -> Field:
    if field.type == "class":
        return ClassField(field.name, field.labels)
    if field.type == "multi":
        return MultiField(field.name, field.labels, field.separator)
    return TokenField(field.name, field.labels, field.other, field.answer)
