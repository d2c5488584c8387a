"""Character spans of a text as labels of its words: ``[{"start": 3, "end": 11, "label": "city"}]``.

Tools for annotation write such lists, each in its own way. Understood are objects with ``start`` and ``end`` or
``start_offset`` and ``end_offset``, a ``label`` (or ``labels``, a list of one) and possibly ``text``; lists of three,
``[3, 11, "city"]``; and an object of three lists, ``{"start": [3], "end": [11], "label": ["city"]}``. Offsets count
characters (Unicode code points) from 0; ``end`` is behind the last one.

Models label words, which are parted by spaces. A span that ends within a word is extended to all of it if the rest is
punctuation, as in ``Paris,``; else it is an error, because ``Paris-based`` is not a city.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data.errors import UserError, as_json, shortened
from data.readers.row_errors import RowError

STARTS, ENDS, LABELS = ("start", "start_offset"), ("end", "end_offset"), ("label", "labels")
WORD = re.compile(r"\S+")

Span = tuple[int, int, str]


class SpanReader:
    """Reads the spans of texts.

    Attributes:
        n_spans, n_extended: spans that were read, and those that were extended over punctuation.
    """

    def __init__(self) -> None:
        self.n_spans = self.n_extended = 0

    def read(self, text: str, value: Any) -> list[str]:
        """An IOB2 tag for each word of a text (``text.split()``), of the labels as they are written.

        Raises:
            UserError: no list of spans; one out of range, empty, or of other characters than it says; two that overlap
                or are in one word; one that cuts a word. Without its place.
        """
        spans = sorted(_checked(item, text) for item in _items(value))
        words = [match.span() for match in WORD.finditer(text)]
        tags = ["O"] * len(words)
        owner: dict[int, Span] = {}  # by word
        before: Span | None = None
        for span in spans:
            start, end, label = span
            if before is not None and start < before[1]:
                raise UserError(f"has spans that overlap: {_shown(before, text)} and {_shown(span, text)}.")
            before = span
            inside = [i for i, (first, last) in enumerate(words) if first < end and start < last]
            outside = text[words[inside[0]][0] : start] + text[end : words[inside[-1]][1]]
            for i in inside:
                if i in owner:
                    raise RowError(
                        f"has two spans in the word {_short(text[slice(*words[i])])}: {_shown(owner[i], text)} and "
                        f"{_shown(span, text)}.",
                        " A word has one label.",
                    )
                owner[i] = span
            if any(character.isalnum() for character in outside):
                whole = text[words[inside[0]][0] : words[inside[-1]][1]]
                raise RowError(
                    f"has {_shown(span, text)}, which cuts {_short(whole)}.",
                    " Words are parted by spaces and have one label each: let the span begin and end with a word, or "
                    "part the word in the text.",
                )
            self.n_spans += 1
            self.n_extended += bool(outside)
            for i in inside:
                tags[i] = f"{'B' if i == inside[0] else 'I'}-{label}"
        return tags

    def note(self) -> str:
        """What is to be said about the spans that were extended; empty if there were none."""
        if not self.n_extended:
            return ""
        return (
            f"{self.n_extended:,} of {self.n_spans:,} spans end beside punctuation within a word, as in 'Paris,'; "
            "a model labels the whole word."
        )


def labels_of(value: Any) -> set[str]:
    """The labels in a list of spans; a UserError as of `SpanReader.read`, but without looking at a text."""
    return {label for _, _, label in map(_span, _items(value))}


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise UserError(f"must be a list of spans, found {as_json(value)}.")
    return value


def _span(item: Any) -> Span:
    """A span as it is written."""
    if isinstance(item, dict):
        start, end = _first(item, STARTS), _first(item, ENDS)
    elif isinstance(item, list) and len(item) == 3:
        start, end = item[:2]
    else:
        start = end = None
    if not _is_number(start) or not _is_number(end):
        raise UserError(f'has a span without start and end: {as_json(item)}. Expected is {{"start": 0, "end": 5, '
                        '"label": "..."} or [0, 5, "..."].')  # fmt: skip
    return start, end, _label(item)


def _checked(item: Any, text: str) -> Span:
    """A span of a text, without spaces around it."""
    start, end, label = _span(item)
    if not 0 <= start < end <= len(text):
        kind = "is empty" if start == end else "is out of range" if start < end else "ends before it starts"
        raise RowError(
            f"has the span {start} to {end} ({label!r}), which {kind}: the text has {len(text)} characters, "
            f"{_short(text)}.",
            " Offsets count characters from 0, and the end is behind the last one.",
        )
    told = item.get("text") if isinstance(item, dict) else None
    if isinstance(told, str) and told.strip() != text[start:end].strip():
        raise RowError(
            f"has the span {start} to {end} ({label!r}) with the text {_short(told)}, but there the text has "
            f"{_short(text[start:end])}.",
            " Do the offsets count characters (not bytes or UTF-16 units)?",
        )
    start += len(text[start:end]) - len(text[start:end].lstrip())
    end -= len(text[start:end]) - len(text[start:end].rstrip())
    if start >= end:
        raise UserError(f"has a span of label {label!r} that holds spaces only, in {_short(text)}.")
    return start, end, label


def _first(item: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _label(item: Any) -> str:
    label = (
        _first(item, LABELS)
        if isinstance(item, dict)
        else item[2]
        if isinstance(item, list) and len(item) == 3
        else None
    )
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not isinstance(label, str) or not label.strip():
        raise UserError(f"has a span without a label: {as_json(item)}.")
    return label.strip()


def _shown(span: Span, text: str) -> str:
    start, end, label = span
    return f"{_short(text[start:end])} ({start} to {end}, {label!r})"


def _short(text: str) -> str:
    return repr(shortened(text))
