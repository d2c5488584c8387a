"""The tokens that may come next in an answer, so that no answer can be written that is not valid.

The valid answers are an automaton over text (`data.valid`). A token may come next if the automaton can read its bytes,
also if it ends within a word, a label or a character, or reaches over several edges (``"],``).

We follow text, and not the tokens that training writes, because the words of a document may have other tokens in an
answer: the end of ``"time: 9 p.m.",`` is ``."`` and ``,`` or one token, and which is known only after it. The tokens
that training writes are always among those that may come next, and a fine-tuned model chooses them. Only what has no
choice is given as training writes it: `Writing.forced`.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from data.answers import Spans
from data.decoder.label_tokens import Value, beginning, recurs
from data.decoder.templates import Prompt
from data.decoder.tokenizer import Tokenizer
from data.files.documents import parse_line
from data.tasks import ClassField, Task
from data.valid import Edge, Fixed, State

Edges = Callable[[State], Sequence[tuple[bytes, State | None]]]  # as `encoded` gives them
Place = tuple[State | None, bytes]  # a state, and what has been written of one of its edges; None: after the value

REMEMBERED = 1 << 14  # sets of tokens that are the same for all texts; what has a text's words is its `Writing`'s own


class ValidTokens:
    """The valid answers to the fields of a task that are lists, for one prompt and tokenizer.

    Raises:
        UserError: see `data.decoder.tokenizer.Tokenizer.pieces`.
    """

    def __init__(self, task: Task, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.task, self.prompt, self.tokenizer = task, prompt, tokenizer
        self.pieces = tokenizer.pieces()
        self.ids: dict[bytes, list[int]] = {}
        for i, piece in self.pieces.items():
            if piece:
                self.ids.setdefault(piece, []).append(i)
        self.sorted = sorted(self.ids)
        self.longest = max(map(len, self.sorted), default=0)
        self.edges = lru_cache(maxsize=REMEMBERED)(encoded)
        self.begin = lru_cache(maxsize=REMEMBERED)(self._begin)
        self.next = lru_cache(maxsize=REMEMBERED)(self._next)
        self.within = lru_cache(maxsize=REMEMBERED)(self._within)

    def start(self, before: Sequence[Value], words: Sequence[str]) -> Writing:
        """Begin the answer to the field after those that are answered, which is a list."""
        field = self.task.fields[len(before)]
        assert not isinstance(field, ClassField)
        head, tail = self.prompt.lead, ""
        if self.task.is_joint:
            n = len(before)
            head += f"{beginning(self.task, before)}, " if before else "{"
            head += f"{json.dumps(self.task.keys[n])}: "
            tail = f", {json.dumps(self.task.keys[n + 1])}: " if n + 1 < len(self.task.keys) else "}"
        kept = {"keep_head": recurs(self.task, before), "keep_states": not isinstance(field.format, Spans)}
        return Writing(self, head, field.format.valid(words), tail.encode(), **kept)

    def _begin(self, firsts: tuple[str, ...], head: str) -> tuple[list[int], bytes]:
        """The tokens with which all of these texts begin, and what the tokenizer makes of their beginning ``head``."""
        forced = list(os.path.commonprefix([self.tokenizer.encode(text) for text in firsts]))
        return forced, self.spelled(self.tokenizer.encode(head))

    def spelled(self, ids: Sequence[int]) -> bytes:
        """What tokens write; nothing for an unknown character."""
        return b"".join(self.pieces.get(i, b"") for i in ids)

    def _next(self, places: tuple[Place, ...], tail: bytes, edges: Edges) -> list[int]:
        """The tokens that may come next, in increasing order."""
        found: set[int] = set()
        for place in places:
            self._collect(place, b"", tail, edges, found)
        return sorted(found)

    def _collect(self, place: Place, token: bytes, tail: bytes, edges: Edges, found: set[int]) -> None:
        """Add the tokens that begin with ``token`` and go on from a place."""
        state, written = place
        for text, after in edges(state) if state is not None else [(tail, None)]:
            if not text.startswith(written):
                continue
            ids, goes_on = self.within(token, text[len(written) : len(written) + self.longest + 1])
            found.update(ids)
            if goes_on and state is not None:
                self._collect((after, b""), token + text[len(written) :], tail, edges, found)

    def _within(self, token: bytes, text: bytes) -> tuple[list[int], bool]:
        """The tokens that are ``token`` and a beginning of ``text``, and whether one begins with the whole of both."""
        found: list[int] = []
        for end in range(len(token) + 1, len(token) + len(text) + 1):
            longer = (token + text)[:end]
            if not self._begins(longer):
                return found, False
            found += self.ids.get(longer, ())
        return found, True

    def _begins(self, piece: bytes) -> bool:
        """Whether a token begins with these bytes."""
        i = bisect_left(self.sorted, piece)
        return i < len(self.sorted) and self.sorted[i].startswith(piece)


class Writing:
    """One answer that is a list while it is written.

    Args:
        keep_head, keep_states: many texts have this ``head`` or ``state``: keep what follows from it for all of them.

    Attributes:
        forced: the tokens with which the answer begins, whatever comes after; the model is not asked for them.
        value: the answer, as its format writes it; None as long as it is not complete.
    """

    def __init__(
        self, valid: ValidTokens, head: str, state: State, tail: bytes, *, keep_head: bool, keep_states: bool
    ) -> None:
        self.valid, self.tail = valid, tail
        self._edges = valid.edges if keep_states else cache(encoded)
        self._next = valid.next if keep_states else valid._next
        self.value: Value | None = None
        self._text = b""
        closed = head.rstrip(" ")  # one token may have this space and what follows
        begin = valid.begin if keep_head else valid._begin
        self.forced, made = begin(_first_texts(head, state, tail.decode()), closed)
        begun = valid.spelled(self.forced)
        # The head may repeat words of the document that the tokenizer changes: go on after what it makes of them.
        n = min(len(made), len(begun))
        rest = made[n:].decode() + head[len(closed) :]
        self._n_head = len(rest.encode())
        self._places: tuple[Place, ...] = ((Fixed(rest, state), b""),)
        self._advance(begun[n:])

    def next_tokens(self) -> list[int]:
        """The tokens that may come next; none if the vocabulary lacks a character that has to come."""
        return self._next(self._places, self.tail, self._edges)

    def add(self, token: int) -> None:
        """Write one of `next_tokens`."""
        self._advance(self.valid.pieces[token])

    def finish(self) -> None:
        """Complete the answer with as little as possible: the rest of a list is outside entities."""
        while self.value is None:
            state, written = self._places[0]
            assert state is not None
            self._advance(next(text[len(written) :] for text, _ in self._edges(state) if text.startswith(written)))

    def _advance(self, piece: bytes) -> None:
        self._text += piece
        places: dict[Place, None] = {}
        for state, written in self._places:
            _follow(state, written + piece, places, self._edges)
        assert places, f"{piece!r} may not come after {self._text!r}"
        self._places = tuple(places)
        for state, after in places:
            if state is None:
                value = self._text[self._n_head : len(self._text) - len(after)]
                self.value = tuple(parse_line(value.decode(), "the answer"))


def encoded(state: State) -> list[tuple[bytes, State | None]]:
    """A state's edges, as bytes."""
    return [(text.encode(), after) for text, after in state.edges]


def _follow(state: State | None, written: bytes, places: dict[Place, None], edges: Edges) -> None:
    """Add the places that are reached from the beginning of a state."""
    if state is None:
        places[None, written] = None
        return
    for text, after in edges(state):
        if len(written) < len(text):
            if text.startswith(written):
                places[state, written] = None
        elif written.startswith(text):
            _follow(after, written[len(text) :], places, edges)


def _first_texts(head: str, state: State, tail: str) -> tuple[str, ...]:
    """An answer's text up to its first choice, with each of that choice's texts."""
    edges: Sequence[Edge] = [("", state)]
    while len(edges) == 1:
        ((text, after),) = edges
        head += text
        if after is None:
            return (head + tail,)
        edges = after.edges
    return tuple(head + text for text, _ in edges)
