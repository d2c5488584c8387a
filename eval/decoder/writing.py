"""Write the answers to a field greedily, which are lists: at each step the most probable token that may come next.

A generator of passes, as in `eval.decoder.decode`; which tokens may come next is up to `data.decoder.valid_tokens`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from data.decoder.valid_tokens import Writing
from eval.decoder.decode import Forward, NotFiniteLogits
from eval.decoder.kv_cache import TokenPass
from eval.decoder.tree_passes import Room, Waiting, feed
from eval.finite import finite_rows


def write(
    waiting: Sequence[Waiting], writings: Sequence[Writing], limits: Sequence[int], room: Room, is_last: bool
) -> Generator[Forward, Tensor, list[bool]]:
    """Write one answer for each request, after its waiting tokens; whether the model wrote all of it.

    An answer that reaches its limit, or needs a character that the vocabulary lacks, is completed with as little as
    possible (`Writing.finish`).

    Args:
        limits: of each answer's tokens, those included that the model is not asked for.
        is_last: the requests' slots are not needed any more.

    Raises:
        NotFiniteLogits: the model gives NaN or infinity.
    """
    assert room.slots is not None, "what is written is stored"
    active = [k for k, writing in enumerate(writings) if _goes_on(writing, len(writing.forced), limits[k])]
    if active:
        for k in active:
            waiting[k].tokens += writings[k].forced
        n_written = {k: len(writings[k].forced) for k in active}
        logits = yield from feed([waiting[k] for k in active], room)
        if is_last and len(active) < room.slots.n_slots:
            room.slots.keep(torch.tensor([waiting[k].slot for k in active], device=room.device))
    while active:
        tokens = dict(zip(active, _best(logits, [writings[k].next_tokens() for k in active]), strict=True))
        for k, token in tokens.items():
            if token == NOT_FINITE:
                raise NotFiniteLogits(waiting[k].request)
            if token != NONE_ALLOWED:
                writings[k].add(token)
                n_written[k] += 1
        kept = [
            row
            for row, k in enumerate(active)
            if tokens[k] != NONE_ALLOWED and _goes_on(writings[k], n_written[k], limits[k])
        ]
        if is_last and 0 < len(kept) < len(active):
            room.slots.keep(torch.tensor(kept, device=room.device))
        active = [active[row] for row in kept]
        if active:
            logits = yield from _step([waiting[k] for k in active], [tokens[k] for k in active], room, is_last)
    complete = [writing.value is not None for writing in writings]
    for writing in writings:
        writing.finish()
    return complete


NOT_FINITE, NONE_ALLOWED = -1, -2  # in the place of a token


def _goes_on(writing: Writing, n_written: int, limit: int) -> bool:
    return writing.value is None and n_written < limit


def _best(logits: Tensor, allowed: Sequence[Sequence[int]]) -> list[int]:
    """For each row of logits [R, V] the most probable of its allowed tokens."""
    longest = max(1, max(map(len, allowed)))
    padded = [[*ids, *[ids[0] if ids else 0] * (longest - len(ids))] for ids in allowed]
    ids = torch.tensor(padded, device=logits.device)  # [R, longest]
    best = ids.gather(1, logits.gather(1, ids).argmax(dim=1, keepdim=True))[:, 0]
    best = torch.where(torch.tensor([bool(ids) for ids in allowed], device=logits.device), best, NONE_ALLOWED)
    return torch.where(finite_rows(logits), best, NOT_FINITE).tolist()


def _step(
    waiting: Sequence[Waiting], tokens: Sequence[int], room: Room, is_last: bool
) -> Generator[Forward, Tensor, Tensor]:
    """Feed one token of each request; the logits after it, [R, V].

    `TokenPass` feeds one to every slot. In those of other requests, it is at the last offset, which nothing else uses.
    """
    assert room.slots is not None
    n = room.slots.n_slots
    slots = list(range(n)) if is_last else [state.slot for state in waiting]
    assert len(slots) == len(waiting)
    token, length = [0] * n, [room.slots.slot_length - 1] * n
    for slot, state, new in zip(slots, waiting, tokens, strict=True):
        token[slot], length[slot] = new, state.n_stored
        state.n_stored += 1
    new_tokens, lengths = torch.tensor(token, device=room.device), torch.tensor(length, device=room.device)
    return (
        yield {
            "tokens": new_tokens[:, None],
            "positions": (lengths + room.prefix.n_tokens)[:, None],
            "output_index": torch.tensor(slots, device=room.device),
            "cache": TokenPass(room.prefix, room.slots, lengths),
        }
    )
