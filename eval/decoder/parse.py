"""Parse a model's answer into labels: the exact inverse of `data.tasks.Task.write`.

Only these forms are parsed:

- exactly what `Task.write` writes;
- the same with white space around it, in a Markdown code fence (```` ``` ```` or ```` ```json ````), or, for a bare
  label, in one pair of quotation marks (' " or `);
- a list or an object in Python's notation instead of JSON's (``['Other', 'time']``), because the prompt lists the
  labels in this notation.

A label must be exactly one of the set: same case, same spelling, nothing before or after it. In a joint answer each
field is parsed separately, so a missing or wrong field does not affect the others; further keys are ignored. A list of
slots is fitted to the words: missing labels are Other, extra ones are cut, unknown types are Other, and each case is
counted. A field that cannot be parsed is None and named in ``unparsed``. Nothing here raises.
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
    """A parsed answer.

    Attributes:
        labels: by field name; None if the field could not be parsed.
        unparsed: names of the fields that could not be parsed.
        n_missing: words without an entry in a list of slots (set to Other).
        n_extra: entries of a list of slots beyond the last word (cut).
        n_unknown: entries that are not a known type (set to Other).
    """

    labels: dict[str, str | tuple[str, ...] | None]
    unparsed: tuple[str, ...]
    n_missing: int = 0
    n_extra: int = 0
    n_unknown: int = 0


def parse_answer(task: Task, text: str, n_words: int) -> Parsed:
    """Parse the labels in an answer.

    Args:
        text: the model's answer, without the end-of-turn token.
        n_words: words of the document; every token field gets this many labels.
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
    """The value of a JSON or Python literal; None for any other text."""
    if text[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():  # ignore those about backslashes in strings
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
