"""What a model costs, computed from its config: floating-point operations of a step and bytes of activations.

One class for decoders, one for decoders with heads and one for encoders, with the same methods (`Costs`).
`train/planning/memory.py` applies optimizer, mesh and activation checkpointing to these numbers; `docs/memory.md`
derives the bytes by hand.

Shapes: E model width, A = H * D and KV = K * D widths of queries and of keys or values, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from model.encoder import EncoderConfig
from model.llama import LlamaConfig
from model.llama_heads import HeadedLlamaConfig

FP32 = 4


@dataclass(frozen=True)
class BlockActivations:
    """Bytes per token in one block.

    Attributes:
        saved: activations that autograd saves without activation checkpointing.
        kept: activations that selective checkpointing saves: the block's input and the matrix products' results.
        widest: gradients at the peak of the backward pass, in the feed-forward network, minus activations freed before.
        input: the block's input.
    """

    saved: int
    kept: int
    widest: int
    input: int


class Costs(Protocol):
    """The costs of an architecture that training and planning need.

    Attributes:
        logits_width: number of logits at one output position, of the widest head if there are several.
        output_matrix: elements of the output matrix if it is as large as the embedding, else 0. Its gradient stays in
            memory until the embedding's is computed.
        table_bytes: bytes per token of tables that a pass computes once for all blocks (rotary tables).
    """

    @property
    def logits_width(self) -> int: ...

    @property
    def output_matrix(self) -> int: ...

    @property
    def table_bytes(self) -> int: ...

    def attended_pairs(self, n_prefix: int, rows: Iterable[np.ndarray]) -> int:
        """(query, key) pairs of the attention mask, without padding.

        Args:
            n_prefix: tokens of the shared prefix at the start of every row.
            rows: for each row, the tokens of each document, without the prefix.
        """
        ...

    def step_flops(self, n_tokens: int, n_outputs: Mapping[str, int], n_pairs: int) -> float:
        """Floating-point operations of one step's forward and backward passes.

        Six per matrix element and token: two in the forward pass, four in the backward pass. Blocks compute every
        token, a head only its output positions, and embeddings are look-ups. Biases and norms are not counted.
        Attention's two products need two operations per pair and channel each in the forward pass, and twice that in
        the backward pass: 12 * H * D per pair and layer. This is the useful work, the numerator of MFU, so
        recomputation by activation checkpointing, padding and dummies are not counted.

        Args:
            n_tokens: tokens of the step, without padding.
            n_outputs: by field, the number of positions at which its logits are computed.
            n_pairs: see `attended_pairs`.
        """
        ...

    def divide_outputs(self, n: int) -> dict[str, int]:
        """Distribute ``n`` output positions evenly over the fields, for `step_flops` when only their sum is known."""
        ...

    def block_activations(self, compute: torch.dtype, tensor: int = 1) -> BlockActivations:
        """Bytes per token of a block's activations.

        Args:
            compute: dtype of the activations.
            tensor: number of tensor-parallel ranks, which split the block's matrices.
        """
        ...


@dataclass(frozen=True)
class DecoderCosts:
    """Costs of a Llama. It has one output field, the answer."""

    config: LlamaConfig

    @property
    def logits_width(self) -> int:
        return self.config.vocab_size

    @property
    def output_matrix(self) -> int:
        return self.config.vocab_size * self.config.dim

    @property
    def table_bytes(self) -> int:
        return FP32 * self.config.head_dim  # cosine and sine, each [D/2]

    def attended_pairs(self, n_prefix: int, rows: Iterable[np.ndarray]) -> int:
        """A token attends to itself, the prefix, and its document's earlier tokens: p + 1 keys at position p."""
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
        """Bytes per token of these activations, see `Costs.block_activations`:

        - per norm: its input in fp32, the normalized input, and the result, which is the next products' input
        - attention: q and k after rotation, v, the output, and one log-sum-exp per head
        - feed-forward: w1's result, its SiLU, w3's result, and their product

        In the backward pass the product is freed before the gradients of the other three exist.
        """
        config = self.config
        c, E, F = compute.itemsize, config.dim, config.ffn_dim
        H, A, KV = config.n_heads, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        norms = 2 * (FP32 + 2 * c) * E
        split_over_ranks = c * (2 * A + 2 * KV) + FP32 * H + 4 * c * F
        return BlockActivations(
            saved=norms + split_over_ranks // tensor,
            kept=c * (3 * E + (A + 2 * KV + 2 * F) // tensor),
            widest=2 * c * F // tensor,
            input=c * E,
        )


class _OfHeads:
    """What heads decide of the costs of a model: they are small, and several."""

    config: Any

    @property
    def logits_width(self) -> int:
        return max((head.n_labels for head in self.config.heads), default=0)

    @property
    def output_matrix(self) -> int:
        return 0

    def divide_outputs(self, n: int) -> dict[str, int]:
        return {head.name: n // len(self.config.heads) for head in self.config.heads}


@dataclass(frozen=True)
class HeadedDecoderCosts(_OfHeads, DecoderCosts):
    """Costs of a Llama with heads: its blocks', and the heads'."""

    config: HeadedLlamaConfig

    def step_flops(self, n_tokens: int, n_outputs: Mapping[str, int], n_pairs: int) -> float:
        E = self.config.dim
        heads = sum((1 + h.of_documents) * E * h.n_labels * n_outputs[h.name] for h in self.config.heads)
        return super().step_flops(n_tokens, {}, n_pairs) + 6.0 * heads


@dataclass(frozen=True)
class EncoderCosts(_OfHeads):
    """Costs of a RoBERTa or BERT with heads."""

    config: EncoderConfig

    @property
    def table_bytes(self) -> int:
        return 0

    def attended_pairs(self, n_prefix: int, rows: Iterable[np.ndarray]) -> int:
        """A token attends to all tokens of its document: n tokens have n * n pairs. There is no prefix."""
        assert not n_prefix, "encoders share no prefix"
        return sum(int((row.astype(np.int64) ** 2).sum()) for row in rows)

    def step_flops(self, n_tokens: int, n_outputs: Mapping[str, int], n_pairs: int) -> float:
        config = self.config
        block = 4 * config.dim**2 + 2 * config.dim * config.ffn_dim
        heads, of_documents = 0, [head.name for head in config.heads if head.of_documents]
        for head in config.heads:
            heads += config.dim * head.n_labels * n_outputs[head.name]
        if config.head == "dense":  # RoBERTa has a dense layer in each head of documents, BERT one for all of them
            denses = of_documents if config.family == "roberta" else of_documents[:1]
            heads += config.dim**2 * sum(n_outputs[name] for name in denses)
        return 6.0 * config.n_layers * block * n_tokens + 6.0 * heads + 12.0 * config.n_layers * config.dim * n_pairs

    def block_activations(self, compute: torch.dtype, tensor: int = 1) -> BlockActivations:
        """Bytes per token of these activations, see `Costs.block_activations`:

        - the block's input, and the sums before and after each norm
        - attention: q, k, v, and the output in the kernel's layout and in wo's
        - feed-forward: w1's result and its GELU
        - two dropout masks of one byte per element

        Encoders have no tensor parallelism.
        """
        assert tensor == 1, "there is no tensor-parallel plan for encoders"
        c, E, F, H = compute.itemsize, self.config.dim, self.config.ffn_dim, self.config.n_heads
        return BlockActivations(
            saved=c * (9 * E + 2 * F) + 2 * E + FP32 * H, kept=c * (7 * E + F) + FP32 * H, widest=c * F, input=c * E
        )
