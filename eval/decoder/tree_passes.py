"""Forward passes over token tries: the log-probabilities of several continuations of each request, in one pass.

A request is some tokens in a slot of the cache and some that wait (at least one). A pass is one packed row; for each of
its requests the waiting tokens, then the tokens of its trie, in which each sees its own ancestors::

    row         b b b b { " date _time news     b b { " date _time news        b: the body, which waits
    logits at           x   x    x      x                                      where continuations part

As in `eval.decoder.decode`, everything here is a generator of passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.decoder.decode import Forward, NotFiniteLogits
from eval.decoder.kv_cache import Branch, PrefixCache, SlotCache, TreePass
from eval.decoder.trie import TokenTrie
from eval.finite import finite_rows

CHUNK = 1 << 24  # logits that are converted to fp32 at a time: 64 MiB


@dataclass
class Waiting:
    """A request between two passes.

    Attributes:
        request: its index among all requests.
        slot: its slot in the cache.
        n_stored: tokens in the slot.
        tokens: those that follow them, not stored yet; at least one.
    """

    request: int
    slot: int
    n_stored: int
    tokens: list[int]

    def stored(self, n: int) -> None:
        """The first n waiting tokens are in the slot now."""
        self.n_stored += n
        del self.tokens[:n]


@dataclass(frozen=True)
class Room:
    """Where and how large passes are.

    Attributes:
        slots: None: nothing is stored, so each request can be in one pass only.
        max_tokens: upper bound on the tokens of a pass; a request with more is alone in it.
        max_outputs: upper bound on the logits' rows of a pass; likewise.
    """

    prefix: PrefixCache
    slots: SlotCache | None
    max_tokens: int
    max_outputs: int
    device: torch.device | str


def score_tries(
    waiting: Sequence[Waiting], tries: Sequence[Sequence[TokenTrie]], room: Room
) -> Generator[Forward, Tensor, list[Tensor]]:
    """The log-probabilities of each request's continuations, given the text before: [continuations] fp64, on the CPU.

    Afterwards all of a request's waiting tokens but the last are stored, if there are slots. Log-probabilities lack
    those of the tokens with which all continuations begin (`eval.decoder.trie.build_tries`).

    Args:
        tries: for each request those of all its continuations. A request with several takes part in several passes.

    Raises:
        NotFiniteLogits: the model gives NaN or infinity.
    """
    found = [torch.zeros(sum(len(trie.members) for trie in own), dtype=torch.float64) for own in tries]
    for part in range(max(map(len, tries), default=0)):
        present = [i for i, own in enumerate(tries) if part < len(own) and own[part].edges]
        sizes = [(len(waiting[i].tokens) + len(tries[i][part].tokens), len(tries[i][part].outputs)) for i in present]
        for group in grouped_by_size(sizes, room.max_tokens, room.max_outputs):
            chosen = [present[k] for k in group]
            yield from _score(
                [waiting[i] for i in chosen], [tries[i][part] for i in chosen], [found[i] for i in chosen], room
            )
    return found


def grouped_by_size(sizes: Sequence[tuple[int, int]], max_tokens: int, max_outputs: int) -> list[list[int]]:
    """Group requests of these numbers of tokens and outputs into passes, in order; the bounds are those of `Room`."""
    groups: list[list[int]] = []
    n_tokens = n_outputs = 0
    for i, (tokens, outputs) in enumerate(sizes):
        n_tokens, n_outputs = n_tokens + tokens, n_outputs + outputs
        if not groups or n_tokens > max_tokens or n_outputs > max_outputs:
            groups.append([])
            n_tokens, n_outputs = tokens, outputs
        groups[-1].append(i)
    return groups


def _score(
    waiting: Sequence[Waiting], tries: Sequence[TokenTrie], found: Sequence[Tensor], room: Room
) -> Generator[Forward, Tensor, None]:
    row, n_kept = _Row(room), []
    rows: list[int] = []  # of the edges of all tries
    targets: list[int] = []
    for state, trie in zip(waiting, tries, strict=True):
        rows += [len(row.outputs) + output for output, _ in trie.edges]
        targets += [token for _, token in trie.edges]
        n_kept.append(len(state.tokens) - 1 if room.slots is not None else 0)
        row.add(state, trie.tokens, trie.depths, trie.ends, trie.outputs, n_kept[-1])
    logits = yield row.forward()
    edges, finite = log_probabilities(logits, torch.tensor(rows), torch.tensor(targets))
    first_edge = first_output = 0
    for state, trie, own, kept in zip(waiting, tries, found, n_kept, strict=True):
        if not finite[first_output : first_output + len(trie.outputs)].all():
            raise NotFiniteLogits(state.request)
        for member, path in zip(trie.members, trie.paths, strict=True):
            own[member] = sum(edges[first_edge + edge] for edge in path)
        first_edge, first_output = first_edge + len(trie.edges), first_output + len(trie.outputs)
        state.stored(kept)


class _Row:
    """A pass while it is put together."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.outputs: list[int] = []
        self.branches: list[Branch] = []

    def add(
        self,
        state: Waiting,
        tokens: Sequence[int],
        depths: Sequence[int],
        ends: Sequence[int],
        outputs: Sequence[int],
        n_kept: int,
    ) -> None:
        """Add a request's waiting tokens, of which ``n_kept`` are stored, and a trie below the last of them."""
        n, first = len(state.tokens), self.room.prefix.n_tokens + state.n_stored
        root = len(self.tokens) + n - 1
        self.outputs += [root + 1 + node for node in outputs]  # node -1 is the root
        self.tokens += [*state.tokens, *tokens]
        self.positions += [*range(first, first + n), *(first + n - 1 + depth for depth in depths)]
        all_ends = [n + len(tokens)] * n + [n + end for end in ends]
        self.branches.append(Branch(state.slot, state.n_stored, all_ends, n_kept))

    def forward(self) -> Forward:
        room = self.room
        tokens, positions, outputs = (
            torch.tensor(x, device=room.device) for x in (self.tokens, self.positions, self.outputs)
        )
        cache = TreePass(room.prefix, room.slots, self.branches, room.device)
        return {"tokens": tokens[None], "positions": positions[None], "output_index": outputs, "cache": cache}


def feed(waiting: Sequence[Waiting], room: Room) -> Generator[Forward, Tensor, Tensor]:
    """Store all waiting tokens; the logits after the last of each request, [R, V]."""
    parts = []
    for group in grouped_by_size([(len(state.tokens), 1) for state in waiting], room.max_tokens, room.max_outputs):
        row = _Row(room)
        for i in group:
            row.add(waiting[i], (), (), (), (-1,), len(waiting[i].tokens))
        parts.append((yield row.forward()))
        for i in group:
            waiting[i].stored(len(waiting[i].tokens))
    return torch.cat(parts)


def log_probabilities(logits: Tensor, rows: Tensor, tokens: Tensor) -> tuple[list[float], Tensor]:
    """The log-probability of each token in its row of logits; and which rows are without NaN and infinity, [N] bool.

    Computed in fp32, over some rows at a time: the logits of a pass may be a large part of the memory.
    """
    size = max(1, CHUNK // logits.shape[-1])
    total = torch.cat([part.float().logsumexp(dim=-1) for part in logits.split(size)])  # [N]
    rows, tokens = rows.to(logits.device), tokens.to(logits.device)
    return (logits[rows, tokens].float() - total[rows]).tolist(), finite_rows(logits).cpu()
