"""Reading an answer back: the exact inverse of `data.tasks.Task.write`, for text that a model made up.

What is read, and nothing else:

- exactly what `Task.write` writes;
- the same with white space around it, in a Markdown code fence (```` ``` ```` or ```` ```json ````), or, for a bare
  label, in one pair of quotation marks (' " or `);
- a list or an object in Python's notation instead of JSON's (``['Other', 'time']``): the prompt itself lists the
  labels that way.

A label counts only if it is exactly one of the set: same case, same spelling, nothing before or after it. In a joint
answer each field stands for itself: one that is missing or wrong leaves the other readable; further keys are ignored.
A list of slots is fitted to the words: missing ones are Other, extra ones are cut, an unknown type is Other, and each
is counted. Whatever cannot be read is None and named in ``unparsed``; nothing here raises.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass

from data.tasks import ClassField, Task, TokenField

_FENCE = re.compile(r"```(?:\w*[ \t]*\n)?(.*?)```", re.DOTALL)
_QUOTES = "'\"`"


@dataclass(frozen=True)
class Parsed:
    """What an answer says.

    Attributes:
        labels: by field name; None where the field could not be read.
        unparsed: names of the fields that could not be read.
        n_missing: words that a list of slots was too short for (read as Other).
        n_extra: entries that a list of slots had too many (cut).
        n_unknown: entries that are no known type (read as Other).
    """

    labels: dict[str, str | tuple[str, ...] | None]
    unparsed: tuple[str, ...]
    n_missing: int = 0
    n_extra: int = 0
    n_unknown: int = 0


def parse_answer(task: Task, text: str, n_words: int) -> Parsed:
    """The labels in an answer.

    Args:
        text: what the model wrote, without the end-of-turn token.
        n_words: words of the document; every token field gets that many labels.
    """
    if task.is_joint:
        value = _literal(_unfence(text))
        answer = value if isinstance(value, dict) else {}
        values = [answer.get(key) for key in task.keys]
    elif isinstance(task.fields[0], ClassField):
        values = [text]
    else:
        values = [_literal(_unfence(text))]

    labels: dict[str, str | tuple[str, ...] | None] = {}
    counts = {"n_missing": 0, "n_extra": 0, "n_unknown": 0}
    for field, value in zip(task.fields, values, strict=True):
        if isinstance(field, TokenField):
            labels[field.name] = _slots(field, value, n_words, counts)
        else:
            labels[field.name] = _label(field, value)
    unparsed = tuple(name for name, value in labels.items() if value is None)
    return Parsed(labels, unparsed, **counts)


def _label(field: ClassField, value: object) -> str | None:
    if not isinstance(value, str):
        return None
    bare = _unfence(value)
    forms = [value, bare]
    if len(bare) >= 2 and bare[0] == bare[-1] and bare[0] in _QUOTES:
        forms.append(bare[1:-1])
    return next((form for form in forms if form in field.labels), None)


def _slots(field: TokenField, value: object, n_words: int, counts: dict[str, int]) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    counts["n_missing"] += max(0, n_words - len(value))
    counts["n_extra"] += max(0, len(value) - n_words)
    labels = []
    for entry in value[:n_words]:
        known = isinstance(entry, str) and (entry == field.other or entry in field.labels)
        counts["n_unknown"] += not known
        labels.append(entry if known else field.other)
    return (*labels, *[field.other] * (n_words - len(labels)))


def _unfence(text: str) -> str:
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    return fenced.group(1).strip() if fenced else text


def _literal(text: str) -> object:
    """The value of a JSON or Python literal; None for anything else, however long, deep or odd it is."""
    if text[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():  # about backslashes in the model's strings
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
