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
from bisect import bisect_left
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


@dataclass(frozen=True, eq=False)
class Document:
    """What spans are written from: the words of a document, and the types."""

    words: tuple[str, ...]
    kinds: tuple[str, ...]

    @cached_property
    def writable(self) -> frozenset[int]:
        """The words that text can have: none has half a surrogate pair."""
        return frozenset(i for i, word in enumerate(self.words) if is_text(word))

    @cached_property
    def begins(self) -> dict[str, list[int]]:
        """For each type the words that an entity may begin with: not if it might be read as one of a longer type."""
        writable = sorted(self.writable)
        longer = {kind: [f"{x}:" for x in self.kinds if x.startswith(f"{kind}: ")] for kind in self.kinds}
        return {
            kind: [i for i in writable if not _is_like(f"{kind}: {self.words[i]}", longer[kind])] for kind in self.kinds
        }

    @cached_property
    def last_begin(self) -> int:
        """The last word that an entity of any type may begin with; -1: none may."""
        return max((words[-1] for words in self.begins.values() if words), default=-1)


@dataclass(frozen=True)
class NextSpan:
    """The beginning of a span whose words come at word ``start`` or later; or, if it is the first, of none."""

    document: Document
    start: int
    is_first: bool = False

    @cached_property
    def edges(self) -> Sequence[Edge]:
        begins: list[Edge] = [("]", None)] if self.is_first else []
        words: dict[tuple[int, ...], Words] = {}  # most types have the same
        for kind, every in self.document.begins.items():
            if starts := tuple(every[bisect_left(every, self.start) :]):
                begins.append((_quoted(kind)[:-1] + ": ", words.setdefault(starts, Words(self.document, starts))))
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
            if i + self.n in self.document.writable:
                places.setdefault(self.document.words[i + self.n], []).append(i)
        found: list[Edge] = []
        for word, starts in places.items():
            text, end = _quoted(word)[1:-1], starts[0] + self.n + 1  # it is read at the first place
            found.append((text + '"]', None))
            if self.document.last_begin >= end:
                found.append((text + '", ', NextSpan(self.document, end)))
            longer = tuple(i for i in starts if i + self.n + 1 in self.document.writable)
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


def _is_like(begins: str, longer: Sequence[str]) -> bool:
    """Whether an entity that begins so might be read as one of a longer type, which begins with one of ``longer``."""
    return any(x.startswith(f"{begins} ") or begins.startswith(x) for x in longer)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
