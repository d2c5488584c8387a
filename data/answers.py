"""Formats of answers: how the labels of one field are written as text, and read back.

Each format is one object with two directions; `read` is the exact inverse of `write`. `data.tasks.Task` joins the
fields' answers to one text and takes it apart again.

    format   answer to "wake me at nine am on friday"
    label    alarm_set                                      one label for the document
    labels   ["alarm_set", "calendar_set"]                  any number of labels for the document; [] if there are none
    list     ["Other", "Other", "Other", "time", ...]       one type for every word (the paper's, §5.8)
    bio      ["O", "O", "O", "B-time", "I-time", ...]       one tag for every word (§5.1.2)
    spans    ["time: nine am", "date: friday"]              each entity with its words; [] if there are none

A model that writes a list must count words, which takes thousands of training examples. Spans need no counting, but say
words instead of places. They are found from left to right; see `Spans.read` for words that occur more than once.

Only these forms are read:

- exactly what is written;
- the same with white space around it, in a Markdown code fence (```` ``` ```` or ```` ```json ````), or, for a bare
  label, in one pair of quotation marks (' " or `);
- a list or an object in Python's notation instead of JSON's (``['Other', 'time']``), because the prompt lists the
  labels in this notation.

A label must be exactly one of the set: same case, same spelling, nothing before or after it. Nothing here raises.

Of these `forms` gives those that models write often, for the tokens that an answer may have: on one line, and JSON also
indented by two spaces; each alone or in a code fence.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data.errors import UserError
from data.files import limits
from data.files.documents import parse_line
from data.valid import State, labels_of, list_of, spans_of, tags_of

Labels = str | tuple[str, ...]  # of one field: one label; or any number, in the order of the set; or one per word

_FENCE = re.compile(r"```(?:\w*[ \t]*\n)?(.*?)```", re.DOTALL)
_QUOTES = "'\"`"


@dataclass(kw_only=True)
class Counts:
    """Counts of what was corrected in an answer.

    Attributes:
        n_missing: words without an entry in a list of types (set to Other).
        n_extra: entries of a list of types beyond the last word (cut).
        n_unknown: entries that are not, or do not begin with, a known label (Other, or dropped from labels and spans).
        n_not_found: spans dropped because their words are not in the text, or only inside other spans.
    """

    n_missing: int = 0
    n_extra: int = 0
    n_unknown: int = 0
    n_not_found: int = 0


@dataclass
class Parsed(Counts):
    """A parsed answer, and what was corrected in it.

    Attributes:
        labels: by field name; None if the field could not be parsed.
        unparsed: names of the fields that could not be parsed.
        bio: by token-field name the entities' boundaries, as IOB2 tags, if the answer's format has them.
        n_labels: by token-field name the entries of a list that has fewer or more than the text has words.
    """

    labels: dict[str, Labels | None]
    unparsed: tuple[str, ...]
    bio: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    n_labels: dict[str, int] = field(default_factory=dict, compare=False)


Boundaries = tuple[str, ...] | None  # of entities, as one IOB2 tag for each word; None if the format has none


class Format(Protocol):
    """The answer to one field, as text or as a JSON value."""

    def write(self, labels: Labels, words: Sequence[str]) -> str | list[str]:
        """The answer for these labels of a document with these words."""

    def read(self, value: object, words: Sequence[str], counts: Counts) -> tuple[Labels | None, Boundaries]:
        """The labels in an answer, None if it cannot be parsed; and the boundaries of its entities."""

    def longest(self, words: Sequence[str], length: Callable[[str], int]) -> str | list[str]:
        """An answer that is at least as long as any valid one. ``length`` measures a label."""

    @property
    def listed(self) -> tuple[str, ...]:
        """What the prompt lists as labels."""


@dataclass(frozen=True)
class Label:
    """One label for the document."""

    labels: tuple[str, ...]

    def write(self, labels: Labels, words: Sequence[str]) -> str:
        assert isinstance(labels, str), labels
        return labels

    def read(self, value: object, words: Sequence[str], counts: Counts) -> tuple[str | None, None]:
        if not isinstance(value, str):
            return None, None
        bare = unfence(value)
        forms = [value, bare]
        if len(bare) >= 2 and bare[0] == bare[-1] and bare[0] in _QUOTES:
            forms.append(bare[1:-1])
        return next((form for form in forms if form in self.labels), None), None

    def longest(self, words: Sequence[str], length: Callable[[str], int]) -> str:
        return max(self.labels, key=length)

    @property
    def listed(self) -> tuple[str, ...]:
        return self.labels


@dataclass(frozen=True)
class LabelList:
    """Any number of labels for the document, in the order of the set.

    They are read in any order. One that is there twice counts once, one that is not in the set is dropped and counted.
    """

    labels: tuple[str, ...]

    def write(self, labels: Labels, words: Sequence[str]) -> list[str]:
        assert not isinstance(labels, str), labels
        return [label for label in self.labels if label in labels]

    def read(self, value: object, words: Sequence[str], counts: Counts) -> tuple[tuple[str, ...] | None, None]:
        if not isinstance(value, list):
            return None, None
        found = [self.label_of(entry) for entry in value]
        counts.n_unknown += found.count(None)
        known = set(found)
        return tuple(label for label in self.labels if label in known), None

    def label_of(self, entry: object) -> str | None:
        """The label that an entry means; None if it means none."""
        return entry if isinstance(entry, str) and entry in self.labels else None

    def longest(self, words: Sequence[str], length: Callable[[str], int]) -> list[str]:
        return list(self.labels)

    def valid(self, words: Sequence[str]) -> State:
        """The answers as they are written."""
        return labels_of(self.labels)

    @property
    def listed(self) -> tuple[str, ...]:
        return self.labels


@dataclass(frozen=True)
class TypeList:
    """One type for every word, in a list as long as the text.

    A list of another length is fitted to the words: missing types are Other, extra ones are cut.
    """

    labels: tuple[str, ...]
    other: str

    def write(self, labels: Labels, words: Sequence[str]) -> list[str]:
        assert not isinstance(labels, str), labels
        return list(labels)

    def read(self, value: object, words: Sequence[str], counts: Counts) -> tuple[tuple[str, ...] | None, Boundaries]:
        if not isinstance(value, list):
            return None, None
        counts.n_missing += max(0, len(words) - len(value))
        counts.n_extra += max(0, len(value) - len(words))
        found = [self.type_of(entry) for entry in value[: len(words)]]
        counts.n_unknown += found.count(None)
        labels = [self.other if kind is None else kind for kind in found]
        labels += [self.other] * (len(words) - len(labels))
        return tuple(labels), self.boundaries(value, labels)

    def boundaries(self, value: list, labels: Sequence[str]) -> Boundaries:
        """The boundaries in a list; None: one type for every word has none."""
        return None

    def longest(self, words: Sequence[str], length: Callable[[str], int]) -> list[str]:
        return [max((*self.listed, self.outside), key=length)] * len(words)

    def valid(self, words: Sequence[str]) -> State:
        """All answers that are read without a correction."""
        return list_of(self.entries, len(words))

    @property
    def entries(self) -> tuple[str, ...]:
        """The valid entries of a list."""
        return tuple(dict.fromkeys((self.outside, *self.listed)))

    @property
    def listed(self) -> tuple[str, ...]:
        return self.labels

    @property
    def outside(self) -> str:
        """The entry of a word outside entities."""
        return self.other

    def type_of(self, entry: object) -> str | None:
        """The type that an entry means; None if it means none."""
        known = isinstance(entry, str) and (entry == self.other or entry in self.labels)
        return str(entry) if known else None


@dataclass(frozen=True)
class TagList(TypeList):
    """One BIO tag for every word: ``B-type`` begins an entity, ``I-type`` goes on, ``O`` is outside (§5.1.2).

    ``B-time`` and ``I-time`` are the same type. Neighbours of one type are written as one entity. Where an answer
    begins another one, `boundaries` has that for the strict score.
    """

    def write(self, labels: Labels, words: Sequence[str]) -> list[str]:
        assert not isinstance(labels, str), labels
        tags = [self.outside] * len(labels)
        for kind, start, end in entities(labels, self.other):
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
        return tags

    def boundaries(self, value: list, labels: Sequence[str]) -> Boundaries:
        entries = [*value, *[self.outside] * len(labels)]
        return iob2(["O" if kind == self.other else entry for kind, entry in zip(labels, entries, strict=False)])

    def valid(self, words: Sequence[str]) -> State:
        return tags_of(self.entries, len(words))

    @property
    def listed(self) -> tuple[str, ...]:
        return tuple(f"{mark}-{kind}" for kind in self.labels for mark in "BI")

    @property
    def outside(self) -> str:
        return "O"

    def type_of(self, entry: object) -> str | None:
        if entry in (self.outside, self.other):  # the paper's listings ask for "Other"
            return self.other
        known = isinstance(entry, str) and entry[:2] in ("B-", "I-") and entry[2:] in self.labels
        return str(entry)[2:] if known else None


@dataclass(frozen=True)
class Spans:
    """The entities alone, in the order of the text, each as ``"type: words"``. Equal neighbours are one entity."""

    labels: tuple[str, ...]
    other: str
    _by_length: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The longest type first: "time zone: ..." must not be read as "time".
        object.__setattr__(self, "_by_length", tuple(sorted(self.labels, key=len, reverse=True)))

    def write(self, labels: Labels, words: Sequence[str]) -> list[str]:
        assert not isinstance(labels, str) and len(labels) == len(words), (labels, words)
        return [f"{kind}: {' '.join(words[start:end])}" for kind, start, end in entities(labels, self.other)]

    def read(self, value: object, words: Sequence[str], counts: Counts) -> tuple[tuple[str, ...] | None, Boundaries]:
        """One type per word, and where its entities begin.

        A span is the first place after the span before it with these words. If there is none, it is the first place
        before, outside other spans. So this is not the inverse of `write` if a span's words also occur, outside any
        span, between the span before it and itself: "call ann and tell [person : ann]". A span that is nowhere is
        dropped and counted.
        """
        if not isinstance(value, list):
            return None, None
        tags = ["O"] * len(words)
        end = 0
        for entry in value:
            kind = self.type_of(entry)
            if kind is None:
                counts.n_unknown += 1
                continue
            phrase = entry[len(kind) + 1 :].split()
            free = [i for i in self.places(phrase, words) if set(tags[i : i + len(phrase)]) == {"O"}]
            start = next((i for i in free if i >= end), free[0] if free else None)
            if start is None:
                counts.n_not_found += 1
                continue
            end = start + len(phrase)
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (len(phrase) - 1)]
        return tuple(self.other if tag == "O" else tag[2:] for tag in tags), tuple(tags)

    def longest(self, words: Sequence[str], length: Callable[[str], int]) -> list[str]:
        kind = max(self.labels, key=length)
        return [f"{kind}: {word}" for word in words]

    def valid(self, words: Sequence[str]) -> State:
        """The answers that are read without a correction, in the order of the text."""
        return spans_of(self.labels, words)

    @property
    def listed(self) -> tuple[str, ...]:
        return self.labels

    def type_of(self, entry: object) -> str | None:
        """The type that an entry begins with; None if with none."""
        if not isinstance(entry, str):
            return None
        return next((kind for kind in self._by_length if entry.startswith(f"{kind}:")), None)

    def places(self, phrase: Sequence[str], words: Sequence[str]) -> list[int]:
        """Indices of the words at which the phrase begins."""
        n = len(phrase)
        if not n:
            return []
        return [i for i in range(len(words) - n + 1) if list(words[i : i + n]) == phrase]


def entities(labels: Sequence[str], other: str, bio: Sequence[str] | None = None) -> list[tuple[str, int, int]]:
    """Type, first word and end (exclusive) of each entity; without IOB2 tags equal neighbours are one."""
    found: list[tuple[str, int, int]] = []
    for i, kind in enumerate(labels):
        if kind == other:
            continue
        if found and found[-1][0] == kind and found[-1][2] == i and (bio is None or bio[i].startswith("I-")):
            found[-1] = (kind, found[-1][1], i + 1)
        else:
            found.append((kind, i, i + 1))
    return found


def iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags with a ``B-`` at the beginning of every entity, also where ``I-`` follows no word of its type."""
    before = ("O", *tags)
    return tuple(
        f"B-{tag[2:]}" if tag.startswith("I-") and before[i][2:] != tag[2:] else tag for i, tag in enumerate(tags)
    )


Answer = str | Sequence[str] | dict[str, str | Sequence[str]]


def one_line(answer: Answer) -> str:
    """An answer as it is written."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def forms(answer: Answer) -> list[str]:
    """An answer as it is written, first, and in the other forms in which models often write it; all are read."""
    indented = [] if isinstance(answer, str) else [json.dumps(answer, ensure_ascii=False, indent=2)]
    texts = [one_line(answer), *indented]
    return [*texts, *(f"```json\n{text}\n```" for text in texts)]


def unfence(text: str) -> str:
    """The text without white space and a Markdown code fence around it."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    return fenced.group(1).strip() if fenced else text


def literal(text: str) -> object:
    """The value of a JSON or Python literal, with or without a code fence; None for any other text."""
    if len(text) > limits.ANSWER_CHARACTERS:
        return None
    text = unfence(text)
    if text[:1] not in ("{", "["):
        return None
    try:
        return parse_line(text, "the answer", as_python=True)
    except UserError:
        if len(text) > limits.PYTHON_ANSWER_CHARACTERS:
            return None
    try:
        with warnings.catch_warnings():  # ignore those about backslashes in strings
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
