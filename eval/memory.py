"""How many bytes scoring a decoder takes on each GPU, and whether it fits before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from data.decoder.prompts import encode_pieces
from data.errors import UserError
from eval.config import EvalConfig
from eval.decoder.decode import MAX_BATCH_SIZE
from eval.setup import EvalPlan
from model.llama import LlamaConfig

# Left free: PyTorch's kernels and cuBLAS's workspace, NCCL's buffers, and what the allocator cannot use for its holes.
RESERVE = 2 * 2**30


@dataclass(frozen=True)
class ScoringMemory:
    """Bytes of one rank.

    Attributes:
        weights: its slices of the matrices, and the norms.
        cache: keys and values of the prefix and of a batch.
        batch: the fullest moment of passing over a batch.
    """

    weights: int
    cache: int
    batch: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.batch


def scoring_memory(
    config: LlamaConfig, dtype: torch.dtype, tp: int, prefix_tokens: int, batch_tokens: int
) -> ScoringMemory:
    """The arithmetic, for a model split over ``tp`` ranks (1: whole on each).

    Args:
        prefix_tokens: of the shared prefix, which the cache holds once.
        batch_tokens: of the largest batch, answers included.
    """
    c, E, F, V, L = dtype.itemsize, config.dim, config.ffn_dim, config.vocab_size, config.n_layers
    A, KV = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    matrices = L * (2 * E * A + 2 * E * KV + 3 * E * F)
    norms, vocabulary = (2 * L + 1) * E, V * E
    # A tied embedding is whole on every rank (`train/parallel/tensor_parallel.py`).
    weights = norms + (matrices / tp + vocabulary if config.tie_embeddings else (matrices + 2 * vocabulary) / tp)
    tokens = max(prefix_tokens, batch_tokens)  # of one pass: the prefix alone, or the bodies of a batch
    # The residual stream, a norm's fp32 copies and its result; then gate, up, SiLU and product, or queries being
    # rotated in fp32, and keys and values laid behind the prefix's.
    stream = (3 * c + 8) * E * tokens
    inside = max(4 * c * F * tokens, (8 + 3 * c) * A * tokens + 2 * c * KV * (prefix_tokens + tokens)) / tp
    logits = 2 * c * V * MAX_BATCH_SIZE
    return ScoringMemory(
        weights=round(c * weights),
        cache=round(2 * c * L * KV * (prefix_tokens + batch_tokens) / tp),
        batch=round(stream + inside + logits),
    )


def check_fits(
    config: LlamaConfig,
    dtype: torch.dtype,
    tp: int,
    prefix_tokens: int,
    batch_tokens: int,
    free: int,
    name: str,
) -> None:
    """Check that a model fits into ``free`` bytes on each GPU, split as it is to be.

    Raises:
        UserError: it does not; says over how many GPUs it would have to be split.
    """

    def memory(n: int) -> ScoringMemory:
        return scoring_memory(config, dtype, n, prefix_tokens, batch_tokens)

    needed = memory(tp)
    if needed.total + RESERVE <= free:
        return
    common = math.gcd(config.n_kv_heads, config.ffn_dim)
    enough = [n for n in range(tp + 1, common + 1) if common % n == 0 and memory(n).total + RESERVE <= free]
    if enough:
        mend = f"Split it over {enough[0]} GPUs: torchrun --nproc_per_node {enough[0]} eval.py --tp {enough[0]} ..."
    else:
        mend = f"Even split over {common} GPUs, the most it divides into, it would not fit. A smaller --batch_tokens?"
    split = f" on each of {tp} GPUs" if tp > 1 else ""
    raise UserError(
        f"{name} is too large: it needs {needed.weights / 1e9:.1f} GB of weights{split}, {needed.cache / 1e9:.1f} of "
        f"cached keys and values, {needed.batch / 1e9:.1f} to pass over {batch_tokens:,} tokens and "
        f"{RESERVE / 1e9:.1f} to spare; {free / 1e9:.1f} GB are free on the GPU. {mend}"
    )


def check_plan_fits(plan: EvalPlan, options: EvalConfig, dtype: torch.dtype, free: int) -> None:
    """`check_fits` for what ``eval.py`` is about to do with a decoder."""
    prefix = len(encode_pieces(plan.prompt.build(plan.task).prefix, plan.tokenizer))
    batch = max(options.batch_tokens, plan.row_length - prefix)  # a longer request is a batch of its own
    check_fits(plan.config, dtype, options.tp, prefix, batch, free, plan.spec.name)
