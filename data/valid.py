"""The valid answers to a field as an automaton over text, for a decoder that can write no other (``--decode labels``).

A state has edges: texts that may come next, each with the state after it. So the answers are never listed, of which
there are as many as labels to the power of words. For spans in "wake me at nine"::

    [  ─►  ]                                   none
       ─►  "time:  "date:  "place: ...  ─►  a word, and after it  ─►  ]   the last span
                                                                  ─►  ,   another span, of words after this one
                                                                  ─►      the next word of the text

Whatever path is taken, `data.answers` reads the answer without correcting anything. From every state there is a way to
the end. Of a state's edges the first is the shortest way there.

`data.answers` says which automaton belongs to a format, `data.decoder.valid_tokens` which tokens follow its edges.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from data.characters import is_text

Edge = tuple[str, "State | None"]  # None: the answer is complete


class State(Hashable, Protocol):
    """Equal states have equal edges."""

    @property
    def edges(self) -> Sequence[Edge]: ...


@dataclass(frozen=True)
class Fixed:
    """Text without a choice."""

    text: str
    after: State | None = None

    @property
    def edges(self) -> Sequence[Edge]:
        return [(self.text, self.after)]


@dataclass(frozen=True)
class Entries:
    """The rest of a list: ``n_left`` entries, at least one, each from ``choices``."""

    choices: tuple[str, ...]
    n_left: int

    @cached_property
    def edges(self) -> Sequence[Edge]:
        end = ", " if self.n_left > 1 else "]"
        return [(_quoted(entry) + end, self.after(entry)) for entry in self.allowed]

    @property
    def allowed(self) -> Sequence[str]:
        return self.choices

    def after(self, entry: str) -> Entries | None:
        return Entries(self.choices, self.n_left - 1) if self.n_left > 1 else None


@dataclass(frozen=True)
class Tags(Entries):
    """The rest of a list of IOB2 tags; ``kind`` is the type of the entity that may go on, if there is one."""

    kind: str | None = None

    @property
    def allowed(self) -> Sequence[str]:
        return [tag for tag in self.choices if not tag.startswith("I-") or tag[2:] == self.kind]

    def after(self, entry: str) -> Entries | None:
        kind = entry[2:] if entry.startswith(("B-", "I-")) else None
        return Tags(self.choices, self.n_left - 1, kind) if self.n_left > 1 else None


@dataclass(frozen=True)
class Subset:
    """The rest of a list of different labels in the order of ``labels``: those from ``start`` on may follow."""

    labels: tuple[str, ...]
    start: int = 0

    @cached_property
    def edges(self) -> Sequence[Edge]:
        comma = ", " if self.start else ""  # there is a label before
        rest = range(self.start, len(self.labels))
        return [("]", None), *((comma + _quoted(self.labels[i]), Subset(self.labels, i + 1)) for i in rest)]


@dataclass(frozen=True)
class Document:
    """What spans are written from: the words of a document, and the types."""

    words: tuple[str, ...]
    kinds: tuple[str, ...]

    def writable(self, i: int) -> bool:
        """Whether there is a word i that text can have: none has half a surrogate pair."""
        return i < len(self.words) and is_text(self.words[i])

    def may_begin(self, kind: str, i: int) -> bool:
        """Whether an entity of this type may begin with word i: not if it might be read as one of a longer type."""
        begins = f"{kind}: {self.words[i]}"
        longer = self.longer_kinds[kind]
        return self.writable(i) and not any(x.startswith(f"{begins} ") or begins.startswith(x) for x in longer)

    @cached_property
    def longer_kinds(self) -> dict[str, list[str]]:
        """For each type the texts with which an entity of a longer type begins that begins like one of this type."""
        return {kind: [f"{x}:" for x in self.kinds if x.startswith(f"{kind}: ")] for kind in self.kinds}

    @cached_property
    def last_begin(self) -> dict[str, int]:
        """For each type the last word that an entity may begin with; -1: none may."""
        every = range(len(self.words))
        return {kind: max((i for i in every if self.may_begin(kind, i)), default=-1) for kind in self.kinds}


@dataclass(frozen=True)
class NextSpan:
    """The beginning of a span whose words come at word ``start`` or later; or, if it is the first, of none."""

    document: Document
    start: int
    is_first: bool = False

    @cached_property
    def edges(self) -> Sequence[Edge]:
        begins: list[Edge] = [("]", None)] if self.is_first else []
        for kind, last in self.document.last_begin.items():
            if last >= self.start:
                starts = tuple(i for i in range(self.start, last + 1) if self.document.may_begin(kind, i))
                begins.append((_quoted(kind)[:-1] + ": ", Words(self.document, starts)))
        return begins


@dataclass(frozen=True)
class Words:
    """The next word of a span that may have begun at any of ``starts``, and has ``n`` words."""

    document: Document
    starts: tuple[int, ...]
    n: int = 0

    @cached_property
    def edges(self) -> Sequence[Edge]:
        places: dict[str, list[int]] = {}
        for i in self.starts:
            if self.document.writable(i + self.n):
                places.setdefault(self.document.words[i + self.n], []).append(i)
        found: list[Edge] = []
        for word, starts in places.items():
            text, end = _quoted(word)[1:-1], starts[0] + self.n + 1  # it is read at the first place
            found.append((text + '"]', None))
            if max(self.document.last_begin.values(), default=-1) >= end:
                found.append((text + '", ', NextSpan(self.document, end)))
            longer = tuple(i for i in starts if self.document.writable(i + self.n + 1))
            if longer:
                found.append((text + " ", Words(self.document, longer, self.n + 1)))
        return found


def list_of(choices: Sequence[str], n: int) -> State:
    """A list of n entries."""
    return Fixed("[", Entries(tuple(choices), n)) if n else Fixed("[]")


def tags_of(choices: Sequence[str], n: int) -> State:
    """A list of n IOB2 tags."""
    return Fixed("[", Tags(tuple(choices), n)) if n else Fixed("[]")


def labels_of(labels: Sequence[str]) -> State:
    """A list of any number of different labels, in their order."""
    return Fixed("[", Subset(tuple(labels)))


def spans_of(kinds: Sequence[str], words: Sequence[str]) -> State:
    """A list of spans in the order of the text."""
    return Fixed("[", NextSpan(Document(tuple(words), tuple(kinds)), 0, is_first=True))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
