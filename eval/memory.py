"""How many bytes scoring needs on each GPU: arithmetic, for a plan and for the check before a model is loaded.

`docs/memory.md` derives it by hand for llama3_70b. `benchmarks/scoring_trace.py` compares it with a trace of the
scoring code. Assumed is a GPU, where attention never writes out the scores of a prefill. There are no gradients, so
tensors are freed at their last use. A rank always holds its slices of the weights, and from the first pass on the
prefix's keys and values. These moments can be the fullest:

    prefix       the pass over the prefix
    bodies       the pass over a batch's bodies, in its last block, when the batch's cache is complete; with
                 ``--decode labels`` the bodies and the tries of labels below them
    one token    a pass over one new token for each request of a batch
    logits       at the end of such a pass; with ``--decode labels`` of the pass over bodies and tries
    labels       while the log-probabilities of labels are computed, after such a pass

Shapes: E model width, A = H * D and KV = K * D widths of queries and of keys or values, F feed-forward width, V
vocabulary, L layers; P tokens of the prefix, T tokens of a pass, R requests of a batch, S tokens of a request's slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.registry import ModelSpec
from data.errors import UserError
from eval.decoder.tree_passes import CHUNK
from eval.job import BatchSize, RequestLengths
from eval.score import batch_sizes
from model.costs import FP32
from model.llama import LlamaConfig
from model.llama_heads import HeadedConfig, HeadedLlamaConfig
from model.meta import meta_device
from train.planning.hardware import GIB, OUTSIDE_ALLOCATOR, Bytes, usable

INT64 = 8


@dataclass(frozen=True)
class MemoryByMoment:
    """Bytes of one rank.

    Attributes:
        weights: in memory at every moment.
        moments: temporary memory by moment and kind.
    """

    weights: int
    moments: dict[str, Bytes]

    @property
    def fullest(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> Bytes:
        """Everything in memory at the fullest moment, by kind."""
        return {"weights": self.weights, **self.moments[self.fullest]}

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class ScoringLoad:
    """What a scoring run computes; independent of the number of GPUs.

    Attributes:
        dtype: format of weights and activations.
        max_batch_tokens: see `eval.job.ScoringJob`.
    """

    spec: ModelSpec
    config: ModelConfig
    dtype: torch.dtype
    lengths: RequestLengths
    max_batch_tokens: int

    def batches(self, n_replicas: int) -> list[list[BatchSize]]:
        """The batches of each replica."""
        return batch_sizes(self.spec.kind, self.lengths, n_replicas, self.max_batch_tokens)

    def memory(self, tp: int, n_replicas: int) -> MemoryByMoment:
        """Memory of the rank with the largest batches, with the model's matrices split over ``tp`` ranks."""
        memory = MEMORY[self.spec.kind]
        return memory(self.config, self.dtype, tp, self.lengths.prefix, self.batches(n_replicas))


def decoder_memory(
    config: LlamaConfig, dtype: torch.dtype, tp: int, prefix: int, replicas: Iterable[Sequence[BatchSize]]
) -> MemoryByMoment:
    """Memory of decoding on each of the ``tp`` ranks that split the model.

    Args:
        prefix: P, tokens that all requests share.
        replicas: for each replica, its batches in the order of decoding.
    """
    c = dtype.itemsize
    bytes_per_token = 2 * c * config.n_layers * config.n_kv_heads * config.head_dim // tp  # keys and values
    logits = c * _vocabulary(config, tp) * (1 if config.tie_embeddings else tp)  # per request
    # A pass's logits are freed once the next pass has computed its own. So a batch's first pass holds the logits of the
    # batch before.
    consecutive = {
        (_outputs(previous), batch)
        for batches in replicas
        for previous, batch in zip([_PREFIX, *batches], batches, strict=False)
    }
    prefix_cache = {"keys and values of the prefix": bytes_per_token * prefix}
    moments = {"prefix": {**prefix_cache, "one pass": _prefill(config, c, tp, prefix, prefix)}}
    passes = {"bodies": _bodies, "one token": _one_token, "logits": _logits, "labels": _log_probabilities}
    for name, bytes_of_pass in passes.items():
        candidates = [
            {
                **prefix_cache,
                "keys and values of a batch": bytes_per_token * batch.n_requests * batch.slot_length,
                "one pass": bytes_of_pass(config, c, tp, prefix, batch),
                "logits": logits * _held(name, n_previous, batch),
            }
            for n_previous, batch in consecutive
        ]
        moments[name] = max(candidates, key=lambda parts: sum(parts.values()))
    return MemoryByMoment(decoder_weights(config, dtype, tp), moments)


def _outputs(batch: BatchSize) -> int:
    """Rows of logits of a batch's largest pass."""
    return batch.n_outputs or batch.n_requests


def _held(moment: str, n_previous: int, batch: BatchSize) -> int:
    """Rows of logits besides those that the pass computes."""
    is_first = moment == "bodies" or (moment == "logits" and batch.n_outputs)
    return n_previous if is_first else _outputs(batch)


_PREFIX = BatchSize(1, 0)  # precedes the first batch; its last token's logits are still in memory then


def _vocabulary(config: LlamaConfig, tp: int) -> int:
    """Maximum rows of the embedding, and of the head, on one rank; a tied embedding is not split."""
    return config.vocab_size if config.tie_embeddings else math.ceil(config.vocab_size / tp)


def decoder_weights(config: LlamaConfig, dtype: torch.dtype, tp: int) -> int:
    """Bytes of a rank's weights: a slice of each matrix, and the unsharded norms and tied embedding."""
    E, F, L = config.dim, config.ffn_dim, config.n_layers
    A, KV = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    blocks = L * (2 * E * (A + KV) + 3 * E * F) // tp
    n_vocabularies = 1 if config.tie_embeddings else 2
    return dtype.itemsize * (blocks + (2 * L + 1) * E + n_vocabularies * _vocabulary(config, tp) * E)


def _bodies(config: LlamaConfig, c: int, tp: int, prefix: int, batch: BatchSize) -> int:
    return _prefill(config, c, tp, batch.n_tokens, batch.n_requests * batch.slot_length, prefix)


def _prefill(config: LlamaConfig, c: int, tp: int, T: int, filled: int, cached: int | None = None) -> int:
    """Bytes of a pass over T tokens, at the fullest point of the last block.

    The block's input (E) is in memory until the block ends, and so are the arguments of the current layer. Formats are
    c, if not named:

        norm          the block's input, the residual sum; in fp32 two of x, x^2 and the normalized x
        rotation      the norm's output, q, k, v; in fp32 q, its halves, their products and sum. The block's keys and
                      values are not yet in the cache
        attention     the norm's output, q, k, v and the output; a copy of k and v, concatenated to the prefix's
        wo            the norm's output, q, k, v, the outputs of attention and wo
        feed-forward  the residual sum, the norm's output; SiLU of w1's output, w3's output and their product
        w2            the residual sum, the norm's output; the product, w2's output

    Args:
        filled: tokens of the cache that the pass fills.
        cached: tokens of the prefix, for a pass over bodies. None for the pass over the prefix: then k and v are the
            cache, and flash attention needs them repeated for all query heads.
    """
    E, F, H = config.dim, config.ffn_dim // tp, config.n_heads // tp
    A, KV = H * config.head_dim, config.n_kv_heads * config.head_dim // tp
    inputs = c * (2 * E + A) * T  # arguments of attention
    if cached is not None:
        inputs += 2 * c * KV * T  # k and v, in addition to the cache
        copied = 2 * c * KV * (cached + T)
    else:
        copied = 2 * c * A * T if config.n_heads > config.n_kv_heads else 0
    rotated = (2 * FP32 + (FP32 if c < FP32 else 0)) * A * T
    return _tables(config, T) + max(
        2 * (c + FP32) * E * T,  # norm
        c * (2 * E + A) * T + rotated + 2 * c * KV * (T - filled),  # rotation
        inputs + (c * A + FP32 * H) * T + copied,  # attention
        inputs + c * (A + E) * T,  # wo
        3 * c * (E + F) * T,  # feed-forward
        c * (4 * E + F) * T,  # w2
    )


def _tables(config: LlamaConfig, tokens: int) -> int:
    """Bytes of cosines and sines of every position; token ids, positions, slots and offsets."""
    return (FP32 * config.head_dim + 4 * INT64) * tokens


def _one_token(config: LlamaConfig, c: int, tp: int, P: int, batch: BatchSize) -> int:
    """Bytes of a pass over one token per request, at the fullest point of its attention, which is in fp32."""
    if not batch.n_new_tokens:
        return 0
    R, S = batch.n_requests, batch.slot_length
    H, KV = config.n_heads // tp, config.n_kv_heads * config.head_dim // tp
    cast = FP32 if c < FP32 else 0
    inputs = 2 * c * config.dim + c * (H * config.head_dim + 2 * KV)
    return R * inputs + max(
        cast * R * S * KV + FP32 * R * H * S,  # keys and scores of the slots
        cast * P * KV + FP32 * R * H * (S + P),  # keys and scores of the prefix
        3 * FP32 * R * H * (P + S),  # both scores, their concatenation, its softmax
        c * (R - 1) * S * KV - R * inputs,  # after the pass: one layer's keys copied, of the unfinished requests
    )


def _logits(config: LlamaConfig, c: int, tp: int, P: int, batch: BatchSize) -> int:
    """Bytes of new logits; with tensor parallelism also a rank's own slice, as computed and as sent.

    Tries need those of many rows, of which the outputs of the last norm count too, and the pass's tables.
    """
    own = c * _vocabulary(config, tp)
    rows = c * config.dim * batch.n_outputs + (_tables(config, batch.n_tokens) if batch.n_outputs else 0)
    return rows + _outputs(batch) * (own if tp == 1 or config.tie_embeddings else own * (tp + 2))


def _log_probabilities(config: LlamaConfig, c: int, tp: int, P: int, batch: BatchSize) -> int:
    """Bytes of some rows of logits in fp32, and of their exponentials."""
    rows = min(batch.n_outputs, max(1, CHUNK // config.vocab_size))
    return (2 * FP32 if c < FP32 else FP32) * rows * config.vocab_size


def encoder_memory(
    config: HeadedConfig, dtype: torch.dtype, tp: int, prefix: int, replicas: Iterable[Sequence[BatchSize]]
) -> MemoryByMoment:
    """Memory of a pass over packed rows at the fullest point of a block; nothing is split, and there is no prefix.

    In an encoder's attention: the block's input, q, k, v, the kernel's output, a copy of it that wo reads, and wo's
    output. In its feed-forward network: the block's input, the residual sum, w1's output and its GELU. In a decoder's
    blocks: as in a pass over bodies, and the states of the inner layer that heads read.
    """
    assert tp == 1 and prefix == 0, (tp, prefix)
    c, longest = dtype.itemsize, max(row.n_tokens for rows in replicas for row in rows)
    with meta_device():
        n_parameters = sum(p.numel() for p in architecture_of(config).build(config).parameters())
    if isinstance(config, HeadedLlamaConfig):
        row = _prefill(config, c, 1, longest, filled=0, cached=0) + c * config.dim * longest
    else:
        row = c * max(7 * config.dim, 2 * config.dim + 2 * config.ffn_dim) * longest
    return MemoryByMoment(c * n_parameters, {"a row": {"one pass": row}})


MEMORY: dict[str, Callable[..., MemoryByMoment]] = {"decoder": decoder_memory, "encoder": encoder_memory}


# --- does it fit? -----------------------------------------------------------------------------------------------------


def usable_now(device: torch.device) -> int:
    """Bytes of a GPU that tensors can use (`usable`), less the memory of other processes.

    Call it before the process group starts: this process must not hold any memory there yet.
    """
    free, total = torch.cuda.mem_get_info(device)
    return usable(total - max(0, total - free - int(OUTSIDE_ALLOCATOR)))


def what_would_fit(load: ScoringLoad, tp: int, limit: int) -> str:
    """A sentence that names the smallest change with which scoring needs at most ``limit`` bytes of a GPU.

    For each number of ranks, smaller batches are tried before more ranks.

    Args:
        tp: tensor-parallel ranks now, with which it does not fit.
    """
    plan = load.spec.architecture.tensor_plan
    max_tp = math.gcd(*(getattr(load.config, field) for field in plan.divides)) if plan is not None else 1
    for n in (n for n in range(tp, max_tp + 1) if max_tp % n == 0):
        for batch_tokens in (load.max_batch_tokens, load.max_batch_tokens // 4):
            peak = replace(load, max_batch_tokens=batch_tokens).memory(n, n_replicas=1).peak
            if peak <= limit:
                options = [f"--tp {n}"] if n > tp else []
                options += [f"--batch_tokens {batch_tokens}"] if batch_tokens < load.max_batch_tokens else []
                ranks = f", under torchrun --nproc_per_node {n}" if n > tp else ""
                return f"What would fit: {' '.join(options)} ({peak / GIB:.1f} GiB){ranks}."
    split = f"It would not fit on {max_tp} GPUs either, the most that can split it. " if max_tp > 1 else ""
    return f"{split}Use larger GPUs, or a smaller --batch_tokens."


def check_fits(load: ScoringLoad, tp: int, n_replicas: int, limit: int) -> None:
    """Check, before anything is loaded, that scoring needs at most ``limit`` bytes of each GPU.

    Args:
        tp, n_replicas: tensor-parallel ranks of a replica, and replicas.

    Raises:
        UserError: it needs more; the message says what would fit.
    """
    memory = load.memory(tp, n_replicas)
    if memory.peak <= limit:
        return
    parts = ", ".join(f"{kind} {n / GIB:.1f}" for kind, n in memory.parts.items())
    each = f"each of {tp} GPUs" if tp > 1 else "a GPU"
    raise UserError(
        f"{load.spec.name} is too large: scoring needs {memory.peak / GIB:.1f} GiB of {each} ({parts}), but only "
        f"{limit / GIB:.1f} are usable. {what_would_fit(load, tp, limit)}"
    )
