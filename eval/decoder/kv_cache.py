"""KV cache: keys and values of earlier tokens, so that each new token costs the forward pass of one token.

All requests of a run begin with the same prefix (chat template, instruction, label list, examples). Its keys and
values are computed and stored once. Each request has a slot for its other tokens: its body (b) and the tokens that it
has emitted (e)::

    prefix    [ 1, P, K, D]   |p p p p p p|              shared by all requests, never copied
    slot 1    [ K, S, D]                  |b b b e e . . |
    slot 2    [ K, S, D]                  |b b e e . . . |       S = longest body + longest answer
    slot 3    [ K, S, D]                  |b b b b b e e |

A request's tokens have positions P, P + 1, ...; offset s of a slot has position P + s.

The model gets one of four caches, one for each kind of forward pass. Each defines which tokens attend to which:

    `PrefixPass`   the prefix alone, plain causal; stores its keys and values
    `BodyPass`     all bodies end to end in one packed row after the cached prefix (`model/attention.py`'s rule)
    `TreePass`     new tokens of several requests, as trees, in one packed row
    `TokenPass`    one new token per request

Shapes: R requests (slots), T tokens of a packed row, P prefix, S slot length, H heads, K key/value heads,
G = H / K, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.attention import PackedMask, attention, build_tree_mask


class PrefixCache:
    """Keys and values of the shared prefix, one pair per layer: [P, K, D]."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}


class SlotCache:
    """Keys and values of the unfinished requests, one pair per layer, allocated at the first write.

    The layout is [R, K, S, D], so that a step's products are batched matrix products over R and K without a copy. With
    S before K, each product would first copy the entire cache.
    """

    def __init__(self, n_slots: int, slot_length: int) -> None:
        self.n_slots, self.slot_length = n_slots, slot_length
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(self, layer: int, slot: Tensor, offset: Tensor, k: Tensor, v: Tensor) -> None:
        """Store token t's keys and values k[t], v[t] ([T, K, D]) at offset[t] of slot[t] (both [T] int64)."""
        if layer not in self.keys:
            K, D = k.shape[1:]
            self.keys[layer] = k.new_zeros(self.n_slots, K, self.slot_length, D)
            self.values[layer] = v.new_zeros(self.n_slots, K, self.slot_length, D)
        self.keys[layer][slot, :, offset] = k
        self.values[layer][slot, :, offset] = v

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these ([r] int64), in this order."""
        self.n_slots = len(slots)
        for layer in self.keys:
            self.keys[layer] = self.keys[layer][slots]
            self.values[layer] = self.values[layer][slots]


class PrefixPass:
    """Forward pass over the prefix alone, [1, P]."""

    def __init__(self, prefix: PrefixCache) -> None:
        self.prefix = prefix

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.prefix.keys[layer], self.prefix.values[layer] = k[0], v[0]
        return attention(q, k, v, None)


class BodyPass:
    """Forward pass over all bodies, packed end to end in one row, [1, T]."""

    def __init__(self, prefix: PrefixCache, slots: SlotCache, mask: PackedMask, slot: Tensor, offset: Tensor) -> None:
        self.prefix, self.slots, self.mask, self.slot, self.offset = prefix, slots, mask, slot, offset

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.slots.write(layer, self.slot, self.offset, k[0], v[0])
        if self.prefix.n_tokens:
            k = torch.cat([self.prefix.keys[layer][None], k], dim=1)  # [1, P + T, K, D]
            v = torch.cat([self.prefix.values[layer][None], v], dim=1)
        return attention(q, k, v, self.mask)


@dataclass(frozen=True)
class Branch:
    """What one request feeds in a `TreePass`: tokens after those of its slot, as a tree.

    Attributes:
        slot: its slot.
        n_stored: tokens of the slot that they follow.
        ends: for each new token, in depth-first order, the index after the last token of its subtree.
        n_kept: the first so many new tokens are stored in the slot, after its ``n_stored``.
    """

    slot: int
    n_stored: int
    ends: Sequence[int]
    n_kept: int


class TreePass:
    """Forward pass over new tokens of several requests, packed end to end in one row, [1, T].

    A token attends to the prefix, to its request's stored tokens, and to its ancestors among the new ones
    (`model.attention.build_tree_mask`). The keys of a pass are these, in this order::

        prefix | stored tokens of the first request, its new ones | those of the second | ...

    Args:
        slots: may be None if nothing is stored, before or after.
    """

    def __init__(
        self, prefix: PrefixCache, slots: SlotCache | None, branches: Sequence[Branch], device: torch.device | str
    ) -> None:
        self.prefix, self.slots = prefix, slots
        ends: list[int] = []  # of the keys after the prefix
        new: list[int] = []  # the place of each new token among these keys
        stored, kept = _Places(), _Places()
        for branch in branches:
            first = prefix.n_tokens + len(ends)
            after = first + branch.n_stored + len(branch.ends)
            stored.add(first, branch.slot, 0, branch.n_stored)
            kept.add(len(new), branch.slot, branch.n_stored, branch.n_kept)
            ends += [after] * branch.n_stored
            ends += [first + branch.n_stored + end for end in branch.ends]
            new += range(first + branch.n_stored, after)
        self.n_keys = prefix.n_tokens + len(ends)
        assert slots is not None or not (stored.keys or kept.keys)
        self.new = torch.tensor(new, device=device)
        self.stored, self.kept = stored.to(device), kept.to(device)
        all_ends = torch.tensor([self.n_keys] * prefix.n_tokens + ends, device=device)
        self.mask = build_tree_mask(all_ends, self.new, prefix.n_tokens)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (self._gathered(cached, layer, x[0]) for cached, x in (("keys", k), ("values", v)))
        rows, slot, offset = self.kept
        if len(rows):
            assert self.slots is not None
            self.slots.write(layer, slot, offset, k[0, rows], v[0, rows])
        return attention(q, keys[None], values[None], self.mask)

    def _gathered(self, cached: str, layer: int, new: Tensor) -> Tensor:
        """The keys or values of the pass, [S, K, D]."""
        out = new.new_empty(self.n_keys, *new.shape[1:])
        out[self.new] = new
        if self.prefix.n_tokens:
            out[: self.prefix.n_tokens] = getattr(self.prefix, cached)[layer]
        place, slot, offset = self.stored
        if len(place):
            out[place] = getattr(self.slots, cached)[layer][slot, :, offset]
        return out


class _Places:
    """Tokens of a pass and their places in slots."""

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.slots: list[int] = []
        self.offsets: list[int] = []

    def add(self, key: int, slot: int, offset: int, n: int) -> None:
        """Add n tokens that follow each other."""
        self.keys += range(key, key + n)
        self.slots += [slot] * n
        self.offsets += range(offset, offset + n)

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
        """Each [n] int64."""
        keys, slots, offsets = (
            torch.tensor(x, dtype=torch.int64, device=device) for x in (self.keys, self.slots, self.offsets)
        )
        return keys, slots, offsets


class TokenPass:
    """Forward pass over one new token per request, [R, 1]. ``lengths`` [R]: tokens in each slot before it."""

    def __init__(self, prefix: PrefixCache, slots: SlotCache, lengths: Tensor) -> None:
        self.prefix, self.slots, self.lengths = prefix, slots, lengths
        self.rows = torch.arange(len(lengths), device=lengths.device)
        offsets = torch.arange(slots.slot_length, device=lengths.device)
        self.hidden = offsets[None, None, None, :] > lengths[:, None, None, None]  # [R, 1, 1, S] not yet written

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        R, _, H, D = q.shape
        K = k.shape[2]
        self.slots.write(layer, self.rows, self.lengths, k[:, 0], v[:, 0])
        keys, values = self.slots.keys[layer], self.slots.values[layer]  # [R, K, S, D]
        q = q.view(R, K, H // K, D)  # [R, K, G, D]

        # One softmax over the keys of the prefix and of the request's slot. All requests share the prefix's keys, so
        # their queries are folded into one matrix product with them.
        own = _scores(q, keys).masked_fill(self.hidden, float("-inf"))  # [R, K, G, S]
        if not self.prefix.n_tokens:
            return (own.softmax(-1).type_as(values) @ values).view(R, 1, H, D)
        prefix_keys = self.prefix.keys[layer].transpose(0, 1)  # [K, P, D]
        prefix_values = self.prefix.values[layer].transpose(0, 1)  # [K, P, D]
        folded = q.transpose(0, 1).flatten(1, 2)  # [K, R * G, D]
        shared = _scores(folded, prefix_keys).unflatten(1, (R, -1)).transpose(0, 1)  # [R, K, G, P]
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1).type_as(values)
        shared, own = weights.split([self.prefix.n_tokens, self.slots.slot_length], dim=-1)
        folded = shared.transpose(0, 1).flatten(1, 2) @ prefix_values  # [K, R * G, D]
        out = own @ values + folded.unflatten(1, (R, -1)).transpose(0, 1)  # [R, K, G, D]
        return out.reshape(R, 1, H, D)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores [..., G, S] in fp32, as in the fused kernels of the other passes.

    With scores rounded to bf16 before the softmax, this pass would be several times less accurate than the others.
    """
    return q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
