"""How many bytes scoring takes on each GPU: arithmetic alone, for a plan and for the check before anything is loaded.

`docs/memory.md` does it by hand for llama3_70b; `benchmarks/scoring_trace.py` compares it with a trace of the code that
runs. What is modelled is a GPU, whose attention never writes out the scores of a prefill. There are no gradients: what
a pass computes is freed as soon as nobody refers to it. A rank holds its slices of the weights throughout, and the keys
and values of the prefix from the first pass on. These moments can be the fullest:

    prefix       the pass over the prefix
    bodies       the pass over a batch's bodies, in its last block, where all of the batch's keys and values are there
    one token    a pass over one new token for each request of a batch
    logits       at the end of such a pass

Shapes: E model width, A = H * D and KV = K * D widths of queries and of keys or values, F feed-forward width, V
vocabulary, L layers; P tokens of the prefix, T of a pass, R requests of a batch with S places each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from checkpoints_tools.registry import ModelConfig, ModelSpec
from data.errors import UserError
from eval.job import BatchSize, RequestLengths
from eval.score import batch_sizes
from model.encoder import Encoder, EncoderConfig
from model.llama import LlamaConfig
from train.planning.hardware import GIB, OUTSIDE_ALLOCATOR, usable
from train.planning.memory import FP32, Bytes

INT64 = 8


@dataclass(frozen=True)
class MemoryByMoment:
    """Bytes of one rank.

    Attributes:
        weights: what is there throughout.
        moments: what comes and goes, by moment and kind.
    """

    weights: int
    moments: dict[str, Bytes]

    @property
    def fullest(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> Bytes:
        """All that is there at the fullest moment, by kind."""
        return {"weights": self.weights, **self.moments[self.fullest]}

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class ScoringLoad:
    """What a scoring run has to hold, whatever the number of GPUs.

    Attributes:
        dtype: of weights and compute.
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
        """What the rank with the largest batches needs, with the model's matrices split over ``tp`` ranks."""
        memory = MEMORY[self.spec.kind]
        return memory(self.config, self.dtype, tp, self.lengths.prefix, self.batches(n_replicas))


def decoder_memory(
    config: LlamaConfig, dtype: torch.dtype, tp: int, prefix: int, replicas: Iterable[Sequence[BatchSize]]
) -> MemoryByMoment:
    """What decoding takes on each of the ``tp`` ranks that split the model.

    Args:
        prefix: P, tokens that all requests share.
        replicas: of each replica the batches in the order in which they are decoded.
    """
    c = dtype.itemsize
    a_token = 2 * c * config.n_layers * config.n_kv_heads * config.head_dim // tp  # its keys and values
    logits = c * _vocabulary(config, tp) * (1 if config.tie_embeddings else tp)  # of a request
    # A pass's logits stay until the next pass has made its own: for a batch's first pass those of the batch before.
    consecutive = {
        (before.n_requests, batch)
        for batches in replicas
        for before, batch in zip([_PREFIX, *batches], batches, strict=False)
    }
    of_prefix = {"keys and values of the prefix": a_token * prefix}
    moments = {"prefix": {**of_prefix, "one pass": _prefill(config, c, tp, prefix, prefix)}}
    passes = {"bodies": _bodies, "one token": _one_token, "logits": _logits}
    for name, bytes_of_pass in passes.items():
        candidates = [
            {
                **of_prefix,
                "keys and values of a batch": a_token * batch.n_requests * batch.slot_length,
                "one pass": bytes_of_pass(config, c, tp, prefix, batch),
                "logits": logits * (n_before if name == "bodies" else batch.n_requests),
            }
            for n_before, batch in consecutive
        ]
        moments[name] = max(candidates, key=lambda parts: sum(parts.values()))
    return MemoryByMoment(decoder_weights(config, dtype, tp), moments)


_PREFIX = BatchSize(1, 0)  # comes before the first batch, and leaves the logits of its last token


def _vocabulary(config: LlamaConfig, tp: int) -> int:
    """Rows of the embedding, and of the head, on the rank with most of them; a tied embedding is not split."""
    return config.vocab_size if config.tie_embeddings else math.ceil(config.vocab_size / tp)


def decoder_weights(config: LlamaConfig, dtype: torch.dtype, tp: int) -> int:
    """Bytes of a rank's weights: a slice of every matrix, and all of the norms and of an embedding that is tied."""
    E, F, L = config.dim, config.ffn_dim, config.n_layers
    A, KV = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    blocks = L * (2 * E * (A + KV) + 3 * E * F) // tp
    n_vocabularies = 1 if config.tie_embeddings else 2
    return dtype.itemsize * (blocks + (2 * L + 1) * E + n_vocabularies * _vocabulary(config, tp) * E)


def _bodies(config: LlamaConfig, c: int, tp: int, prefix: int, batch: BatchSize) -> int:
    return _prefill(config, c, tp, batch.n_tokens, batch.n_requests * batch.slot_length, prefix)


def _prefill(config: LlamaConfig, c: int, tp: int, T: int, filled: int, cached: int | None = None) -> int:
    """Bytes of a pass over T tokens, at the fullest point of the last block.

    A block's input (E) stays until the block is done, and so does what a layer was called with:

        norm          the block's input and the sum, in c; two of x, x^2 and the normalized x, in fp32
        rotation      the norm's result, q, k and v in c; q in fp32, its halves, their products and sum. The block's
                      keys and values are not yet in the cache
        attention     the norm's result, q, k, v and the result; k and v once more, behind the prefix's
        output        the norm's result, q, k, v, attention's result and wo's
        feed-forward  sum, the norm's result; w1's SiLU, w3's result and their product
        its result    the same with w2's result, but of the others the product alone

    Args:
        filled: tokens of the cache that the pass fills.
        cached: tokens of the prefix, when the pass is over bodies. None: it is over the prefix itself; then the cache
            is k and v themselves, and attention (flash attention's) wants them repeated for all query heads.
    """
    E, F, H = config.dim, config.ffn_dim // tp, config.n_heads // tp
    A, KV = H * config.head_dim, config.n_kv_heads * config.head_dim // tp
    inputs = c * (2 * E + A) * T  # of attention
    if cached is not None:
        inputs += 2 * c * KV * T  # k and v beside the cache
        copied = 2 * c * KV * (cached + T)
    else:
        copied = 2 * c * A * T if config.n_heads > config.n_kv_heads else 0
    rotated = (2 * FP32 + (FP32 if c < FP32 else 0)) * A * T
    return _tables(config, T) + max(
        2 * (c + FP32) * E * T,  # norm
        c * (2 * E + A) * T + rotated + 2 * c * KV * (T - filled),  # rotation
        inputs + (c * A + FP32 * H) * T + copied,  # attention
        inputs + c * (A + E) * T,  # output
        3 * c * (E + F) * T,  # feed-forward
        c * (4 * E + F) * T,  # its result
    )


def _tables(config: LlamaConfig, tokens: int) -> int:
    """Angles, cosines and sines of every position; ids, positions, slots and places."""
    return (3 * FP32 * config.head_dim // 2 + 4 * INT64) * tokens


def _one_token(config: LlamaConfig, c: int, tp: int, P: int, batch: BatchSize) -> int:
    """Bytes of a pass over one token a request, at the fullest point of its attention, which is in fp32."""
    R, S = batch.n_requests, batch.slot_length
    H, KV = config.n_heads // tp, config.n_kv_heads * config.head_dim // tp
    cast = FP32 if c < FP32 else 0
    inputs = 2 * c * config.dim + c * (H * config.head_dim + 2 * KV)
    return R * inputs + max(
        cast * R * S * KV + FP32 * R * H * S,  # the requests' own keys and scores
        cast * P * KV + FP32 * R * H * (S + P),  # the prefix's
        3 * FP32 * R * H * (P + S),  # both scores; the two in one; their softmax
        c * (R - 1) * S * KV - R * inputs,  # after the pass: a layer's keys once more, of the requests that go on
    )


def _logits(config: LlamaConfig, c: int, tp: int, P: int, batch: BatchSize) -> int:
    """Bytes of new logits; over several ranks also a rank's own, as they were made and as they are sent."""
    own = c * _vocabulary(config, tp)
    return batch.n_requests * (own if tp == 1 or config.tie_embeddings else own * (tp + 2))


def encoder_memory(
    config: EncoderConfig, dtype: torch.dtype, tp: int, prefix: int, replicas: Iterable[Sequence[BatchSize]]
) -> MemoryByMoment:
    """What a pass over packed rows takes at the fullest place of a block; nothing is split, and there is no prefix.

    The block's input stays; in attention with q, k, v, its result, as its kernel made it and as wo reads it, and wo's
    result; in the feed-forward network with the sum, w1's result and its GELU.
    """
    assert tp == 1 and prefix == 0, (tp, prefix)
    c, longest = dtype.itemsize, max(row.n_tokens for rows in replicas for row in rows)
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in Encoder(config).parameters())
    width = max(7 * config.dim, 2 * config.dim + 2 * config.ffn_dim)
    return MemoryByMoment(c * n_parameters, {"a row": {"one pass": c * width * longest}})


MEMORY: dict[str, Callable[..., MemoryByMoment]] = {"decoder": decoder_memory, "encoder": encoder_memory}


# --- does it fit? -----------------------------------------------------------------------------------------------------


def usable_now(device: torch.device) -> int:
    """Bytes of a GPU that tensors can take, as `usable` has it, less what other processes hold. Before the process
    group starts, so that this process has nothing there yet."""
    free, total = torch.cuda.mem_get_info(device)
    return usable(total - max(0, total - free - int(OUTSIDE_ALLOCATOR)))


def what_would_fit(load: ScoringLoad, tp: int, limit: int) -> str:
    """A sentence that names the smallest change with which scoring takes no more than ``limit`` bytes of a GPU.

    More ranks are tried before smaller batches.

    Args:
        tp: ranks that split the model now, which are too few.
    """
    plan = load.spec.architecture.tensor_plan
    most = math.gcd(*(getattr(load.config, field) for field in plan.divides)) if plan is not None else 1
    for n in (n for n in range(tp, most + 1) if most % n == 0):
        for batch_tokens in (load.max_batch_tokens, load.max_batch_tokens // 4):
            peak = replace(load, max_batch_tokens=batch_tokens).memory(n, n_replicas=1).peak
            if peak <= limit:
                options = [f"--tp {n}"] if n > tp else []
                options += [f"--batch_tokens {batch_tokens}"] if batch_tokens < load.max_batch_tokens else []
                ranks = f", under torchrun --nproc_per_node {n}" if n > tp else ""
                return f"What would fit: {' '.join(options)} ({peak / GIB:.1f} GiB){ranks}."
    return (
        f"Nor would it on {most} GPUs, the most that it can be split over. Take larger ones, or smaller --batch_tokens."
    )


def check_fits(load: ScoringLoad, tp: int, n_replicas: int, limit: int) -> None:
    """Check that scoring takes no more than ``limit`` bytes of each GPU; before anything is loaded.

    Args:
        tp, n_replicas: how the ranks are laid out.

    Raises:
        UserError: it takes more; says what would fit.
    """
    memory = load.memory(tp, n_replicas)
    if memory.peak <= limit:
        return
    parts = ", ".join(f"{kind} {n / GIB:.1f}" for kind, n in memory.parts.items())
    each = f"each of {tp} GPUs" if tp > 1 else "a GPU"
    raise UserError(
        f"{load.spec.name} is too large: scoring takes {memory.peak / GIB:.1f} GiB of {each} ({parts}), of which "
        f"{limit / GIB:.1f} can be used. {what_would_fit(load, tp, limit)}"
    )
