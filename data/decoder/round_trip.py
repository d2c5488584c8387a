"""Check that every label of a task can come back: written, tokenized, decoded and read, it is the same label.

A tokenizer may normalize letters, drop or join spaces, or lack a character. Then the label is never answered, however
well a model is trained, and every example with it is scored as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from data.answers import Labels
from data.decoder.templates import Prompt, encode_pieces, stop_tokens
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.tasks import ClassField, Field, MultiField, Task

WORDS = ("word",)  # of the document that is answered


@dataclass(frozen=True)
class LostLabel:
    """A label that does not come back.

    Attributes:
        field: its field's name.
        answer: what is written for it.
        decoded: what it becomes.
    """

    field: str
    label: str
    answer: str
    decoded: str


def check_labels(task: Task, prompt: Prompt, tokenizer: Tokenizer) -> None:
    """Raise a UserError that names the first label that does not come back."""
    for lost in lost_labels(task, prompt, tokenizer):
        raise UserError(
            f"label {lost.label!r} of field {lost.field!r} does not come back from the model's tokenizer: "
            f"the answer {ascii(lost.answer)} becomes {ascii(lost.decoded)}. Rename the label."
        )


def lost_labels(task: Task, prompt: Prompt, tokenizer: Tokenizer) -> Iterator[LostLabel]:
    """Yield the labels that do not come back."""
    stops = stop_tokens(prompt, tokenizer)
    rest = {field.name: next(_labels(field)) for field in task.fields}
    for field in task.fields:
        for labels in _labels(field):
            answer = task.write(rest | {field.name: labels}, WORDS)
            ids = encode_pieces(prompt.answer(answer), tokenizer)
            decoded = tokenizer.decode(takewhile(lambda i: i not in stops, ids))
            if task.read(decoded, WORDS).labels[field.name] != labels:
                label = labels if isinstance(labels, str) else labels[0]
                yield LostLabel(field.name, label, answer, decoded.removeprefix(prompt.lead))


def _labels(field: Field) -> Iterator[Labels]:
    """Every label of a field, as the labels of a document with `WORDS`."""
    if isinstance(field, ClassField):
        yield from field.labels
    elif isinstance(field, MultiField):
        yield from ((label,) for label in field.labels)
    else:
        yield from ((label,) for label in (field.other, *field.labels))
