"""Check that every label of a task can come back: written, tokenized, decoded and read, it is the same label.

A tokenizer may normalize letters, drop or join spaces, or lack a character. Then the label is never answered, however
well a model is trained, and every example with it is scored as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from data.answers import Labels
from data.decoder.templates import Prompt, encode_pieces, stop_tokens
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.tasks import ClassField, Field, MultiField, Task

WORDS = ("word",)  # of the document that is answered


def check_labels(task: Task, prompt: Prompt, tokenizer: Tokenizer) -> None:
    """Raise a UserError that names the first label that does not come back."""
    stops = stop_tokens(prompt, tokenizer)
    rest = {field.name: next(_labels(field)) for field in task.fields}
    for field in task.fields:
        for labels in _labels(field):
            answer = task.write(rest | {field.name: labels}, WORDS)
            ids = encode_pieces(prompt.answer(answer), tokenizer)
            decoded = tokenizer.decode(takewhile(lambda i: i not in stops, ids))
            if task.read(decoded, WORDS).labels[field.name] != labels:
                label = labels if isinstance(labels, str) else labels[0]
                raise UserError(
                    f"label {label!r} of field {field.name!r} does not come back from the model's tokenizer: "
                    f"the answer {ascii(answer)} becomes {ascii(decoded.removeprefix(prompt.lead))}. Rename the label."
                )


def _labels(field: Field) -> Iterator[Labels]:
    """Every label of a field, as the labels of a document with `WORDS`."""
    if isinstance(field, ClassField):
        yield from field.labels
    elif isinstance(field, MultiField):
        yield from ((label,) for label in field.labels)
    else:
        yield from ((label,) for label in (field.other, *field.labels))
