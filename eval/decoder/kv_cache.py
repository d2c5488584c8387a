"""KV cache: keys and values of earlier tokens, so that each new token costs the forward pass of one token.

All requests of a run begin with the same prefix (chat template, instruction, label list, examples). Its keys and
values are computed and stored once. Each request has a slot for its other tokens: its body (b) and the tokens that it
has emitted (e)::

    prefix    [ 1, P, K, D]   |p p p p p p|              shared by all requests, never copied
    slot 1    [ K, S, D]                  |b b b e e . . |
    slot 2    [ K, S, D]                  |b b e e . . . |       S = longest body + longest answer
    slot 3    [ K, S, D]                  |b b b b b e e |

A request's tokens have positions P, P + 1, ...; offset s of a slot has position P + s.

The model gets one of three caches, one for each kind of forward pass. Each defines which tokens attend to which:

    `PrefixPass`   the prefix alone, plain causal; stores its keys and values
    `BodyPass`     all bodies end to end in one packed row after the cached prefix (`model/attention.py`'s rule)
    `TokenPass`    one new token per request

Shapes: R requests (slots), T tokens of a packed row, P prefix, S slot length, H heads, K key/value heads,
G = H / K, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.attention import PackedMask, attention


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
