"""The attention rules of packed rows and their backends.

One rule defines the mask of every decoder row; `i` and `j` are indices of tokens in the row::

    i attends to j   <=>   j <= i   and   (doc[j] == doc[i]  or  doc[j] == 0)

Document 0 is the shared prefix. Without prefix sharing no token belongs to it, and the rule is the ordinary
block-diagonal causal mask. For a row with a prefix (`0`) of three tokens, two samples and one padding token (`.`)::

    doc    0 0 0 1 1 2 2 2 .          attends to
      0    x                          itself and the past
      0    x x
      0    x x x
      1    x x x x                    the prefix and the past of its own sample
      1    x x x x x
      2    x x x . . x                the prefix, never sample 1
      2    x x x . . x x
      2    x x x . . x x x
      .    x x x . . . . . x          padding attends to the prefix and padding, so that no softmax row is empty

In an encoder row a token attends to all tokens of its document, before and after it, and to no others. There is no
shared prefix: document 0 is an ordinary document. Padding is document -1::

    i attends to j   <=>   doc[j] == doc[i]

    doc    1 1 2 2 2 .
      1    x x
      1    x x
      2    . . x x x
      2    . . x x x
      2    . . x x x
      .    . . . . . x

Where documents branch, a token sees its own path to the root. Tokens are in depth-first order, and `end[j]` is the
index after the last descendant of j. For a prefix (`0`), document 1 with two continuations (`a`, then `b` or `c`) and
document 2::

    i attends to j   <=>   j <= i < end[j]

           0 1 a b c 2     end      With one branch per document, this is the decoder's rule.
      0    x                6
      1    x x              5
      a    x x x            5
      b    x x x x          4
      c    x x x . x        5
      2    x . . . . x      6

The mask depends only on `doc_ids` or `end` and is built once per row, not once per layer: by `build_mask` and
`build_tree_mask` for decoders, by `build_bidirectional_mask` for encoders. This file does not depend on models, caches
or parallelism.

Shapes: B rows, T tokens (queries), S keys, H heads, K key/value heads, D head width; t tokens of one chunk of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# SDPA is called for chunks of this many queries. Each chunk reads only the keys that it attends to: the prefix (of a
# decoder row) and the documents with a token in the chunk, not the full row.
SDPA_CHUNK = 256
# Shorter for encoders on CPU, where SDPA with dropout materializes a chunk's scores; on CUDA each chunk is a launch.
ENCODER_CHUNK_CPU = 128
FLEX_BLOCK = 128  # FlexAttention's block size of queries and keys


@dataclass(frozen=True)
class Chunk:
    """Queries ``[start, end)`` of a row and their visible keys: ``[0, n_prefix)`` and ``[first_key, last_key)``."""

    start: int
    end: int
    first_key: int
    last_key: int
    mask: Tensor  # [B, 1, end - start, n_prefix + last_key - first_key] bool


@dataclass(frozen=True)
class SdpaMask:
    """The mask of either rule for `scaled_dot_product_attention`, in chunks of queries; encoders have no prefix."""

    n_prefix: int
    chunks: tuple[Chunk, ...]


PackedMask = SdpaMask | BlockMask | None  # None: one document per row, plain causal
_Rows = Callable[[int, int], Tensor]  # (start, end) -> a rule's dense mask of these queries, [B, end - start, S] bool


def allowed(doc_ids: Tensor, n_cached: int = 0, start: int = 0, end: int | None = None) -> Tensor:
    """The decoder's rule as a dense boolean mask of the queries ``[start, end)``.

    Args:
        doc_ids: [B, T] int, 0 for the shared prefix, -1 for padding.
        n_cached: number of prefix tokens whose keys come from a cache, before the row's keys.

    Returns:
        [B, end - start, n_cached + T] bool, True where query i may attend to key j.
    """
    keys = _key_docs(doc_ids, n_cached)[:, None, :]  # [B, 1, S]
    index = torch.arange(keys.shape[-1], device=doc_ids.device)
    causal = index[None, :] <= index[n_cached:][start:end, None]  # [t, S]
    return causal & ((keys == doc_ids[:, start:end, None]) | (keys == 0))


def _key_docs(doc_ids: Tensor, n_cached: int) -> Tensor:
    return torch.cat([doc_ids.new_zeros(doc_ids.shape[0], n_cached), doc_ids], dim=1)  # [B, S]


def build_mask(doc_ids: Tensor | None, n_cached: int = 0) -> PackedMask:
    """Build the mask of a batch of packed decoder rows, for the device's backend.

    On CUDA that is FlexAttention, which skips fully masked blocks. Elsewhere it is SDPA, because FlexAttention has no
    backward pass on CPU (torch 2.13).

    Args:
        doc_ids: [B, T], or None for rows of a single document.
        n_cached: number of prefix tokens in a cache, before the row's keys (see `eval/decoder/kv_cache.py`).
    """
    if doc_ids is None:
        assert n_cached == 0, "a cached prefix needs doc_ids"
        return None
    return _flex_mask(doc_ids, n_cached) if doc_ids.is_cuda else _sdpa_mask(doc_ids, n_cached)


def build_tree_mask(ends: Tensor, queries: Tensor, n_prefix: int) -> PackedMask:
    """Build the mask of one row of trees, for the device's backend (see the top of the file).

    Args:
        ends: [S] int64, for each key the index after the last token of its subtree.
        queries: [T] int64, increasing: the index of each query among the keys. Keys that are no queries are cached.
        n_prefix: keys before the first query of which every query is a descendant.
    """

    if ends.is_cuda:
        return _tree_blocks(ends, queries)
    return _chunked_mask(partial(_tree_rows, ends, queries), len(queries), n_prefix)


def _tree_rows(ends: Tensor, queries: Tensor, start: int, end: int) -> Tensor:
    i, j = queries[start:end, None], torch.arange(len(ends), device=ends.device)
    return ((j <= i) & (i < ends))[None]  # [1, end - start, S]


def _tree_blocks(ends: Tensor, queries: Tensor) -> BlockMask:
    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= queries[i]) & (queries[i] < ends[j])

    return _block_mask(partial(_tree_rows, ends, queries), rule, len(queries), len(ends))


def _flex_mask(doc_ids: Tensor, n_cached: int) -> BlockMask:
    T, key_docs = doc_ids.shape[1], _key_docs(doc_ids, n_cached)
    offset = torch.tensor(n_cached, device=doc_ids.device)  # a tensor: a Python int would be compiled as a constant

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i + offset) & ((key_docs[b, j] == doc_ids[b, i]) | (key_docs[b, j] == 0))

    return _block_mask(partial(allowed, doc_ids, n_cached), rule, T, n_cached + T)


def _block_mask(rows: _Rows, rule: Callable[..., Tensor], T: int, S: int) -> BlockMask:
    """A rule as a FlexAttention block mask: the blocks of keys that each block of queries sees partly or fully.

    `create_block_mask` would materialize the [T, S] mask several times, 1 GB at 16,384 tokens. This function
    materializes it for one block of queries at a time.
    """
    seen, full = [], []
    for start in range(0, T, FLEX_BLOCK):
        dense = rows(start, start + FLEX_BLOCK)  # [B, t, S]
        blocks = F.pad(dense, (0, -S % FLEX_BLOCK)).unflatten(-1, (-1, FLEX_BLOCK))
        seen.append(blocks.any(dim=(1, 3)))  # [B, S / block]
        full.append(blocks.all(dim=3).all(dim=1))
    in_full = torch.stack(full, dim=1)[:, None]  # [B, 1, T / block, S / block]
    in_part = torch.stack(seen, dim=1)[:, None] & ~in_full
    return BlockMask.from_kv_blocks(*_block_list(in_part), *_block_list(in_full), FLEX_BLOCK, rule, seq_lengths=(T, S))


def _block_list(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries: how many blocks of keys are True, and the indices of all blocks, True ones first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.int()


def _sdpa_mask(doc_ids: Tensor, n_cached: int) -> SdpaMask:
    # Tokens that are prefix in every row. Only those at the start of the rows can be one slice.
    in_prefix = (doc_ids == 0).all(dim=0)  # [T]
    n_prefix = n_cached + int(in_prefix.long().cumprod(0).sum())
    return _chunked_mask(partial(allowed, doc_ids, n_cached), doc_ids.shape[1], n_prefix)


def _chunked_mask(rows: _Rows, T: int, n_prefix: int) -> SdpaMask:
    chunks = []
    for start in range(0, T, SDPA_CHUNK):
        mask = rows(start, start + SDPA_CHUNK)[:, None]  # [B, 1, t, S]
        own = mask[..., n_prefix:].flatten(0, 2).any(dim=0).nonzero()
        first = n_prefix + int(own[0]) if len(own) else n_prefix
        last = n_prefix + int(own[-1]) + 1 if len(own) else n_prefix
        seen = torch.cat([mask[..., :n_prefix], mask[..., first:last]], dim=-1)
        chunks.append(Chunk(start, min(start + SDPA_CHUNK, T), first, last, seen))
    return SdpaMask(n_prefix, tuple(chunks))


def build_bidirectional_mask(doc_ids: Tensor) -> SdpaMask:
    """Build the mask of a batch of packed encoder rows.

    For SDPA on every device: encoders are fine-tuned with dropout on their attention weights, which FlexAttention does
    not have. If a document ends within a chunk's length, the chunk ends there too, so that documents complete within a
    chunk attend to no key outside it.

    Args:
        doc_ids: [B, T] int, one number per document of a row, -1 for padding.
    """
    T, size = doc_ids.shape[1], SDPA_CHUNK if doc_ids.is_cuda else ENCODER_CHUNK_CPU
    first, last = _key_spans(doc_ids.cpu().numpy())  # one copy: on CUDA every copy to the host waits for the device
    # Indices that no document of any row crosses: no query before them attends to a key after them.
    ends = np.flatnonzero(np.maximum.accumulate(last) == np.arange(1, T + 1)) + 1
    chunks, start = [], 0
    while start < T:
        within = ends[(ends > start) & (ends <= start + size)]
        end = int(within[-1]) if len(within) else min(start + size, T)
        keys = int(first[start:end].min()), int(last[start:end].max())
        mask = doc_ids[:, start:end, None] == doc_ids[:, None, slice(*keys)]  # [B, t, last - first]
        chunks.append(Chunk(start, end, *keys, mask[:, None]))
        start = end
    return SdpaMask(n_prefix=0, chunks=tuple(chunks))


def _key_spans(doc_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each index, over all rows of doc_ids [B, T]: the first key that it attends to, and the last + 1; both [T]."""
    T = doc_ids.shape[1]
    first, last = np.full(T, T), np.zeros(T, dtype=int)
    for row in doc_ids:
        _, start, doc = np.unique(row, return_index=True, return_inverse=True)
        end = T - np.unique(row[::-1], return_index=True)[1]
        first, last = np.minimum(first, start[doc]), np.maximum(last, end[doc])
    return first, last


def attention(q: Tensor, k: Tensor, v: Tensor, mask: PackedMask, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention with the mask of a packed row.

    Args:
        q: [B, T, H, D]
        k, v: [B, S, K, D], where K divides H. S = T, or more if a cached prefix comes before the row.
        mask: from `build_mask` or `build_bidirectional_mask`; None means plain causal (then S = T).
        dropout: dropout probability of the attention weights; above 0 only with an `SdpaMask`. The caller passes 0
            outside training.

    Returns:
        [B, T, H, D]
    """
    assert dropout == 0.0 or isinstance(mask, SdpaMask), "only SDPA in chunks has dropout"
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, D], [B, K, S, D]
    if isinstance(mask, BlockMask):
        # In a compiled block it is compiled with the block.
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        # The kernel for few queries, which is taken otherwise, puts the query heads of a key head in one block of its
        # own. With more than FLEX_BLOCK queries there (65 tokens and 2 heads, say) it has no variant, and fails.
        options = {"BACKEND": "TRITON"}
        out = flex(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1], kernel_options=options)
        return out.transpose(1, 2)
    # With a mask, SDPA's kernels that do not materialize the [T, S] scores need as many key heads as query heads.
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    out = [_attend_chunk(q, k, v, mask.n_prefix, chunk, dropout) for chunk in mask.chunks]
    return (out[0] if len(out) == 1 else torch.cat(out, dim=2)).transpose(1, 2)


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, n_prefix: int, chunk: Chunk, dropout: float) -> Tensor:
    if 0 < n_prefix < chunk.first_key:  # between them are documents that this chunk does not attend to
        k, v = (torch.cat([x[:, :, :n_prefix], x[:, :, chunk.first_key : chunk.last_key]], dim=2) for x in (k, v))
    else:  # one contiguous slice, which needs no copy
        first = 0 if n_prefix else chunk.first_key
        k, v = k[:, :, first : chunk.last_key], v[:, :, first : chunk.last_key]
    q = q[:, :, chunk.start : chunk.end]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chunk.mask, dropout_p=dropout)


@cache
def _compiled_flex():
    # Uncompiled, flex_attention materializes the full [T, S] scores. torch.compile falls back to that silently after
    # too many variants; fullgraph makes this an error.
    allow_variants()
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def allow_variants() -> None:
    """Let torch.compile make more variants of a function: for lengths, batch sizes, with and without gradients."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
