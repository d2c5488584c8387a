"""The keys and values a decoder keeps, so that each new token costs one token.

All requests of a run begin with the same prefix (chat template, instruction, label list, examples). Its keys and
values are computed once and are in memory once, however many requests share them; each request has a slot for its
own tokens only. With a prefix of P tokens and R requests of body lengths b1, b2, ... that have emitted e tokens::

    prefix    [ 1, P, K, D]   |p p p p p p|              shared, never copied per request
    slot 1    [ K, S, D]                  |b b b e e . . |
    slot 2    [ K, S, D]                  |b b e e . . . |       S = longest body + longest answer
    slot 3    [ K, S, D]                  |b b b b b e e |

A request's tokens are at positions P, P + 1, ...; a slot's place s holds position P + s.

The model sees one of three caches, one for each kind of forward pass; each decides who attends to whom:

    `PrefixPass`   the prefix alone, plain causal; records its keys and values
    `BodyPass`     all bodies end to end in one packed row behind the cached prefix (`model/attention.py`'s rule)
    `TokenPass`    one new token per request

Shapes: R requests (slots), T tokens of a packed row, P prefix, S places of a slot, H heads, K key/value heads,
G = H / K, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.attention import PackedMask, attention


class PrefixCache:
    """Keys and values of the shared prefix, one pair a layer: [P, K, D]."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}


class SlotCache:
    """Keys and values of the requests in flight, one pair a layer, made when first written to.

    Laid out as [R, K, S, D], so that a step's products with them are batched matrix products over R and K as they lie;
    with S before K, each would first copy all of the cache.
    """

    def __init__(self, n_slots: int, n_places: int) -> None:
        self.n_slots, self.n_places = n_slots, n_places
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(self, layer: int, slot: Tensor, place: Tensor, k: Tensor, v: Tensor) -> None:
        """Store token t's keys and values k[t], v[t] ([T, K, D]) at place[t] of slot[t] (both [T] int64)."""
        if layer not in self.keys:
            K, D = k.shape[1:]
            self.keys[layer] = k.new_zeros(self.n_slots, K, self.n_places, D)
            self.values[layer] = v.new_zeros(self.n_slots, K, self.n_places, D)
        self.keys[layer][slot, :, place] = k
        self.values[layer][slot, :, place] = v

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

    def __init__(self, prefix: PrefixCache, slots: SlotCache, mask: PackedMask, slot: Tensor, place: Tensor) -> None:
        self.prefix, self.slots, self.mask, self.slot, self.place = prefix, slots, mask, slot, place

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.slots.write(layer, self.slot, self.place, k[0], v[0])
        if self.prefix.n_tokens:
            k = torch.cat([self.prefix.keys[layer][None], k], dim=1)  # [1, P + T, K, D]
            v = torch.cat([self.prefix.values[layer][None], v], dim=1)
        return attention(q, k, v, self.mask)


class TokenPass:
    """Forward pass over one new token per request, [R, 1]. ``lengths`` [R]: tokens each slot holds before it."""

    def __init__(self, prefix: PrefixCache, slots: SlotCache, lengths: Tensor) -> None:
        self.prefix, self.slots, self.lengths = prefix, slots, lengths
        self.rows = torch.arange(len(lengths), device=lengths.device)
        places = torch.arange(slots.n_places, device=lengths.device)
        self.hidden = places[None, None, None, :] > lengths[:, None, None, None]  # [R, 1, 1, S] not yet written

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        R, _, H, D = q.shape
        K = k.shape[2]
        self.slots.write(layer, self.rows, self.lengths, k[:, 0], v[:, 0])
        keys, values = self.slots.keys[layer], self.slots.values[layer]  # [R, K, S, D]
        q = q.view(R, K, H // K, D)  # [R, K, G, D]

        # One softmax over two stretches of keys: the prefix, which all requests share (so their queries are folded
        # into one matrix product against it), and the request's own tokens.
        own = _scores(q, keys).masked_fill(self.hidden, float("-inf"))  # [R, K, G, S]
        if not self.prefix.n_tokens:
            return (own.softmax(-1).type_as(values) @ values).view(R, 1, H, D)
        prefix_keys = self.prefix.keys[layer].transpose(0, 1)  # [K, P, D]
        prefix_values = self.prefix.values[layer].transpose(0, 1)  # [K, P, D]
        folded = q.transpose(0, 1).flatten(1, 2)  # [K, R * G, D]
        shared = _scores(folded, prefix_keys).unflatten(1, (R, -1)).transpose(0, 1)  # [R, K, G, P]
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1).type_as(values)
        shared, own = weights.split([self.prefix.n_tokens, self.slots.n_places], dim=-1)
        folded = shared.transpose(0, 1).flatten(1, 2) @ prefix_values  # [K, R * G, D]
        out = own @ values + folded.unflatten(1, (R, -1)).transpose(0, 1)  # [R, K, G, D]
        return out.reshape(R, 1, H, D)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores [..., G, S] in fp32, as the fused kernels of the other passes keep them.

    Rounded to bf16 before the softmax, they would make this pass several times noisier than those it continues.
    """
    return q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
