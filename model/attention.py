"""The packed attention rule and its backends.

One rule says who sees whom in every decoder row, `i` and `j` being places in the row::

    i attends to j   <=>   j <= i   and   (doc[j] == doc[i]  or  doc[j] == 0)

Document 0 is the shared prefix; without prefix sharing no token belongs to it, and the same rule is the ordinary
block-diagonal causal mask. For a row with a prefix (`0`) of three tokens, two samples and one padding token (`.`)::

    doc    0 0 0 1 1 2 2 2 .          attends to
      0    x                          itself and the past
      0    x x
      0    x x x
      1    x x x x                    the prefix, then its own past
      1    x x x x x
      2    x x x . . x                the prefix, never sample 1
      2    x x x . . x x
      2    x x x . . x x x
      .    x x x . . . . . x          padding sees the prefix and padding, so that no row of the softmax is empty

The mask depends on `doc_ids` alone and is built once a row, not once a layer. This file knows nothing of models,
caches or parallelism.

Shapes: B rows, T tokens (queries), S keys, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# Queries are taken in chunks of this many tokens where SDPA is used: each chunk then meets only the keys it can see,
# the prefix and the documents that the chunk touches, instead of the whole row.
SDPA_CHUNK = 256
FLEX_BLOCK = 128  # FlexAttention's own block of queries and keys


@dataclass(frozen=True)
class Chunk:
    """Queries ``[start, end)`` of a row and the keys they can see: ``[0, n_prefix)`` and ``[first_key, last_key)``."""

    start: int
    end: int
    first_key: int
    last_key: int
    mask: Tensor  # [B, 1, end - start, n_prefix + last_key - first_key] bool


@dataclass(frozen=True)
class SdpaMask:
    """The rule for `scaled_dot_product_attention`, cut into query chunks."""

    n_prefix: int
    chunks: tuple[Chunk, ...]


PackedMask = SdpaMask | BlockMask | None  # None: one document a row, plain causal


def allowed(doc_ids: Tensor, n_cached: int = 0, start: int = 0, end: int | None = None) -> Tensor:
    """The rule as a dense boolean mask of the queries ``[start, end)``.

    Args:
        doc_ids: [B, T] int, 0 for the shared prefix, -1 for padding.
        n_cached: number of prefix tokens whose keys stand in a cache before the row's own keys.

    Returns:
        [B, end - start, n_cached + T] bool, True where query i may attend to key j.
    """
    keys = _key_docs(doc_ids, n_cached)[:, None, :]  # [B, 1, S]
    place = torch.arange(keys.shape[-1], device=doc_ids.device)
    causal = place[None, :] <= place[n_cached:][start:end, None]  # [t, S]
    return causal & ((keys == doc_ids[:, start:end, None]) | (keys == 0))


def _key_docs(doc_ids: Tensor, n_cached: int) -> Tensor:
    return torch.cat([doc_ids.new_zeros(doc_ids.shape[0], n_cached), doc_ids], dim=1)  # [B, S]


def build_mask(doc_ids: Tensor | None, n_cached: int = 0) -> PackedMask:
    """Build the mask of a batch of packed rows, for the backend that suits the device.

    FlexAttention on CUDA, where it skips the blocks that nobody sees; SDPA elsewhere, because FlexAttention has no
    backward pass on CPU (torch 2.13).

    Args:
        doc_ids: [B, T], or None for rows of a single document.
        n_cached: prefix tokens in a cache that come before the row's own keys (see `eval/kv_cache.py`).
    """
    if doc_ids is None:
        assert n_cached == 0, "a cached prefix needs doc_ids"
        return None
    return _flex_mask(doc_ids, n_cached) if doc_ids.is_cuda else _sdpa_mask(doc_ids, n_cached)


def _flex_mask(doc_ids: Tensor, n_cached: int) -> BlockMask:
    """The rule as a FlexAttention block mask: which blocks of keys each block of queries sees in part or in full.

    `create_block_mask` would write out the whole [T, S] mask several times over, 1 GB at 16,384 tokens; here only one
    block of queries is ever written out.
    """
    T, key_docs = doc_ids.shape[1], _key_docs(doc_ids, n_cached)
    offset = torch.tensor(n_cached, device=doc_ids.device)  # a tensor: as a number it would be compiled in

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i + offset) & ((key_docs[b, j] == doc_ids[b, i]) | (key_docs[b, j] == 0))

    seen, full = [], []
    for start in range(0, T, FLEX_BLOCK):
        rows = allowed(doc_ids, n_cached, start, start + FLEX_BLOCK)  # [B, t, S]
        blocks = F.pad(rows, (0, -rows.shape[-1] % FLEX_BLOCK)).unflatten(-1, (-1, FLEX_BLOCK))
        seen.append(blocks.any(dim=(1, 3)))  # [B, S / block]
        full.append(blocks.all(dim=3).all(dim=1))
    full = torch.stack(full, dim=1)[:, None]  # [B, 1, T / block, S / block]
    partial = torch.stack(seen, dim=1)[:, None] & ~full
    return BlockMask.from_kv_blocks(
        *_block_list(partial), *_block_list(full), FLEX_BLOCK, rule, seq_lengths=(T, n_cached + T)
    )


def _block_list(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.int()


def _sdpa_mask(doc_ids: Tensor, n_cached: int) -> SdpaMask:
    T = doc_ids.shape[1]
    # Keys that every row counts as prefix; only a common leading stretch can be addressed as one slice.
    in_prefix = (doc_ids == 0).all(dim=0)  # [T]
    n_prefix = n_cached + int(in_prefix.long().cumprod(0).sum())
    chunks = []
    for start in range(0, T, SDPA_CHUNK):
        mask = allowed(doc_ids, n_cached, start, start + SDPA_CHUNK)[:, None]  # [B, 1, t, S]
        own = mask[..., n_prefix:].flatten(0, 2).any(dim=0).nonzero()
        first = n_prefix + int(own[0]) if len(own) else n_prefix
        last = n_prefix + int(own[-1]) + 1 if len(own) else n_prefix
        seen = torch.cat([mask[..., :n_prefix], mask[..., first:last]], dim=-1)
        chunks.append(Chunk(start, min(start + SDPA_CHUNK, T), first, last, seen))
    return SdpaMask(n_prefix, tuple(chunks))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: PackedMask) -> Tensor:
    """Scaled dot-product attention under the packed rule.

    Args:
        q: [B, T, H, D]
        k, v: [B, S, K, D], K dividing H; S = T, or more where a cached prefix stands before the row.
        mask: from `build_mask`; None means plain causal (then S = T).

    Returns:
        [B, T, H, D]
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, D], [B, K, S, D]
    if isinstance(mask, BlockMask):
        return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)
    # SDPA's kernels that do not write out the [T, S] scores want as many key as query heads when there is a mask.
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    out = [_attend_chunk(q, k, v, mask.n_prefix, chunk) for chunk in mask.chunks]
    return (out[0] if len(out) == 1 else torch.cat(out, dim=2)).transpose(1, 2)


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, n_prefix: int, chunk: Chunk) -> Tensor:
    if chunk.first_key > n_prefix:  # documents in between that nobody in this chunk sees
        k, v = (torch.cat([x[:, :, :n_prefix], x[:, :, chunk.first_key : chunk.last_key]], dim=2) for x in (k, v))
    else:
        k, v = k[:, :, : chunk.last_key], v[:, :, : chunk.last_key]
    return F.scaled_dot_product_attention(q[:, :, chunk.start : chunk.end], k, v, attn_mask=chunk.mask)


@cache
def _compiled_flex():
    # Uncompiled, flex_attention writes out the full [T, S] scores, and torch.compile falls back to that in silence when
    # it has compiled too many variants (lengths, batch sizes, with and without gradients): fullgraph makes it an error.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
