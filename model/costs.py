"""What a model costs, from its config alone: floating-point operations of a step, and bytes of its activations.

One class for decoders and one for encoders, with the same methods (`Costs`). What an optimizer, a mesh or activation
checkpointing make of these numbers is `train/planning/memory.py`'s; `docs/memory.md` derives the bytes by hand.

Shapes: E model width, A = H * D and KV = K * D widths of queries and of keys or values, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from model.encoder import EncoderConfig
from model.llama import LlamaConfig

FP32 = 4


@dataclass(frozen=True)
class BlockActivations:
    """Bytes for one token in one block.

    Attributes:
        saved: what autograd keeps without activation checkpointing.
        kept: what selective checkpointing keeps: the block's input and the matrix products' results.
        widest: gradients at the feed-forward network's widest place, less what has been freed by then.
        input: the block's input.
    """

    saved: int
    kept: int
    widest: int
    input: int


class Costs(Protocol):
    """What training and planning ask of an architecture.

    Attributes:
        logits_width: logits at one output position: of the widest head where there are several.
        output_matrix: elements of an output matrix as large as the embedding, whose gradient waits for the embedding's.
        table_bytes: bytes that a pass computes for every token and all blocks read (rotary tables).
    """

    @property
    def logits_width(self) -> int: ...

    @property
    def output_matrix(self) -> int: ...

    @property
    def table_bytes(self) -> int: ...

    def attended_pairs(self, n_prefix: int, rows: Iterable[np.ndarray]) -> int:
        """(query, key) pairs that attention must look at, padding not counted.

        Args:
            n_prefix: tokens of a prefix that begins every row and that all its documents see.
            rows: by row, the tokens of each document, without the prefix.
        """
        ...

    def step_flops(self, n_tokens: int, n_outputs: Mapping[str, int], n_pairs: int) -> float:
        """Floating-point operations that one step's forward and backward passes need.

        Six per matrix element and token: two in the forward pass, four in the backward. Blocks see every token, a head
        only its output positions, embeddings are look-ups; biases and norms do not count. Attention's two products
        take two operations per pair and channel each, forward, and twice that backward: 12 * H * D per pair and layer.
        Recomputation by activation checkpointing, padding and dummies are not counted: this is the numerator of MFU,
        useful work.

        Args:
            n_outputs: by field, the positions at which its logits are computed.
            n_pairs: see `attended_pairs`.
        """
        ...

    def divide_outputs(self, n: int) -> dict[str, int]:
        """``n`` output positions by field, evenly, for `step_flops` where only their sum is known."""
        ...

    def block_activations(self, compute: torch.dtype, tensor: int = 1) -> BlockActivations:
        """What a block keeps for its backward pass, tensor by tensor.

        Args:
            compute: format of activations.
            tensor: ranks that split the block's matrices.
        """
        ...


@dataclass(frozen=True)
class DecoderCosts:
    """Costs of a Llama. Whatever it writes is one field to it."""

    config: LlamaConfig

    @property
    def logits_width(self) -> int:
        return self.config.vocab_size

    @property
    def output_matrix(self) -> int:
        return self.config.vocab_size * self.config.dim

    @property
    def table_bytes(self) -> int:
        return FP32 * self.config.head_dim  # cosine and sine, each of half a head

    def attended_pairs(self, n_prefix: int, rows: Iterable[np.ndarray]) -> int:
        """A token sees itself and everything before it in its own document, and the prefix: position p sees p + 1."""
        total = 0
        for row in rows:
            n = row.astype(np.int64)
            total += n_prefix * (n_prefix + 1) // 2 + int((n * n_prefix + n * (n + 1) // 2).sum())
        return total

    def step_flops(self, n_tokens: int, n_outputs: Mapping[str, int], n_pairs: int) -> float:
        config = self.config
        D = config.head_dim
        attention = 2 * config.dim * D * (config.n_heads + config.n_kv_heads)  # wq, wo and wk, wv
        block = attention + 3 * config.dim * config.ffn_dim
        head = config.dim * config.vocab_size
        return (
            6.0 * config.n_layers * block * n_tokens
            + 6.0 * head * sum(n_outputs.values())
            + 12.0 * config.n_layers * config.n_heads * D * n_pairs
        )

    def divide_outputs(self, n: int) -> dict[str, int]:
        return {"": n}

    def block_activations(self, compute: torch.dtype, tensor: int = 1) -> BlockActivations:
        """Of each norm its input in fp32, the normalized input and the result, which is the products' input; q, k, v
        and the attention's output, all rotated already, with one log-sum-exp a head; w1's result, its SiLU, w3's
        result and their product. In the backward pass the product is freed before the gradients of the other three are
        there.
        """
        config = self.config
        c, E, F = compute.itemsize, config.dim, config.ffn_dim
        H, A, KV = config.n_heads, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        norms = 2 * (FP32 + 2 * c) * E
        split = c * (2 * A + 2 * KV) + FP32 * H + 4 * c * F
        return BlockActivations(
            saved=norms + split // tensor,
            kept=c * (3 * E + (A + 2 * KV + 2 * F) // tensor),
            widest=2 * c * F // tensor,
            input=c * E,
        )


@dataclass(frozen=True)
class EncoderCosts:
    """Costs of a RoBERTa or BERT with its heads."""

    config: EncoderConfig

    @property
    def logits_width(self) -> int:
        return max((head.n_labels for head in self.config.heads), default=0)

    @property
    def output_matrix(self) -> int:
        return 0

    @property
    def table_bytes(self) -> int:
        return 0

    def attended_pairs(self, n_prefix: int, rows: Iterable[np.ndarray]) -> int:
        """Every token sees its whole document: a document of n tokens has n * n pairs. There is no prefix."""
        assert not n_prefix, "encoders share no prefix"
        return sum(int((row.astype(np.int64) ** 2).sum()) for row in rows)

    def step_flops(self, n_tokens: int, n_outputs: Mapping[str, int], n_pairs: int) -> float:
        config = self.config
        block = 4 * config.dim**2 + 2 * config.dim * config.ffn_dim
        heads = 0
        for head in config.heads:
            dense = config.dim**2 if config.head == "dense" and head.kind == "class" else 0
            heads += (config.dim * head.n_labels + dense) * n_outputs[head.name]
        return 6.0 * config.n_layers * block * n_tokens + 6.0 * heads + 12.0 * config.n_layers * config.dim * n_pairs

    def divide_outputs(self, n: int) -> dict[str, int]:
        return {head.name: n // len(self.config.heads) for head in self.config.heads}

    def block_activations(self, compute: torch.dtype, tensor: int = 1) -> BlockActivations:
        """The block's input; q, k, v, the attention's output as its kernel made it and as wo reads it; sums before and
        after each norm; w1's result and its GELU; two dropout masks of one byte. Encoders are not split.
        """
        assert tensor == 1, "there is no tensor-parallel plan for encoders"
        c, E, F, H = compute.itemsize, self.config.dim, self.config.ffn_dim, self.config.n_heads
        return BlockActivations(
            saved=c * (9 * E + 2 * F) + 2 * E + FP32 * H, kept=c * (7 * E + F) + FP32 * H, widest=c * F, input=c * E
        )
