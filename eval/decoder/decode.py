"""Greedy decoding: token ids in, token ids out.

There are three kinds of forward pass, one small function each: `prefill_prefix` once per run, `_prefill_bodies` once
per batch of requests, `_decode_tokens` until all requests of the batch are done. They are generators: each yields the
arguments of a forward pass and is sent the logits. Only `run_passes` calls the model, once per iteration of one
loop. This loop keeps ranks in step: under FSDP every forward pass is a collective, so a rank without requests runs
dummy passes until the last rank is done.

The decoder does not depend on text, prompts or labels. It calls only the model's `forward`, because FSDP's hooks are
there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eval.decoder.kv_cache import BodyPass, PrefixCache, PrefixPass, SlotCache, TokenPass
from eval.finite import finite_rows
from eval.together import any_rank
from model.attention import build_mask

MAX_BATCH_SIZE = 256  # requests decoded together
NO_TOKEN = -1  # in the place of a token whose logits are NaN or infinite

Forward = dict  # keyword arguments of one forward pass
Passes = Generator[Forward, Tensor, None]


@dataclass
class Decoded:
    """The answer to one request.

    Attributes:
        tokens: emitted ids, without the stop token.
        stopped: True if a stop token ended it, False if it reached its ``max_new_tokens``.
    """

    tokens: list[int] = field(default_factory=list)
    stopped: bool = False

    @property
    def n_fed(self) -> int:
        """The answer's tokens that the model has read."""
        return len(self.tokens)


class NotFiniteLogits(ValueError):
    """A request's logits are NaN or infinite, so no token is the most probable one."""

    def __init__(self, request: int) -> None:
        super().__init__(f"the logits of request {request} are NaN or infinite")
        self.request = request


def greedy_decode(
    model: nn.Module,
    prefix: Sequence[int],
    bodies: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    stop_ids: set[int],
    *,
    device: torch.device | str = "cpu",
    max_batch_tokens: int = 4096,
    max_batch_size: int = MAX_BATCH_SIZE,
    group: dist.ProcessGroup | None = None,
    finished: Callable[[Mapping[int, Decoded]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Decoded]:
    """Decode every request greedily: at each step the most probable token, until a stop token or the limit.

    A request's result does not depend on the other requests of its batch, except for rounding: another order of sums
    can change the argmax of near-equal logits. In fp32 we have not seen this; in bf16 it happened up to once in 1,000
    emitted tokens (`benchmarks/results/batch_flips.md`).

    Args:
        model: maps ``(tokens, positions, doc_ids, output_index, cache)`` to logits, as `model.llama.Llama`.
        prefix: ids at the start of every request, prefilled once. May be empty.
        bodies: each request's ids after the prefix, at least one token each.
        max_new_tokens: limit on emitted tokens without the stop token, one for all or one per request.
        stop_ids: token ids that end an answer.
        max_batch_tokens: upper bound on the tokens of a batch, answers included; a longer request runs alone.
        max_batch_size: upper bound on the requests of a batch.
        group: ranks that must run equal numbers of forward passes (FSDP); None for an unsharded model.
        finished: called with the requests that have finished since the last call, by their index.
        stop: asked before each forward pass; all ranks of ``group`` stop if it is true on one.

    Returns:
        One `Decoded` per request, in their order.

    Raises:
        ValueError: an empty body, or unequal numbers of limits and requests.
        NotFiniteLogits: the model gives NaN or infinity.
        Stopped: ``stop`` was true.
    """
    limits = [max_new_tokens] * len(bodies) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(bodies):
        raise ValueError(f"{len(bodies)} requests but {len(limits)} values of max_new_tokens")
    empty = [i for i, body in enumerate(bodies) if not len(body)]
    if empty:
        raise ValueError(f"request {empty[0]} is empty: it needs at least one token after the prefix")
    results = [Decoded() for _ in bodies]
    passes = _all_passes(prefix, bodies, limits, stop_ids, results, max_batch_tokens, max_batch_size, device, finished)
    run_passes(model, passes, device, group, stop)
    return results


@torch.no_grad()
def run_passes(
    model: nn.Module,
    passes: Passes,
    device: torch.device | str,
    group: dist.ProcessGroup | None,
    stop: Callable[[], bool] | None,
) -> None:
    """Run the forward passes that a generator asks for, on every rank of ``group`` equally many.

    Raises:
        Stopped: ``stop`` was true.
    """
    was_training = model.training
    model.eval()
    dummy = {"tokens": torch.zeros(1, 1, dtype=torch.long, device=device)}
    try:
        call = next(passes, None)
        while any_rank(call is not None, group, device, stop):
            logits = model(**(call or dummy))
            call = _send(passes, logits) if call is not None else None
    finally:
        model.train(was_training)


def batches(
    lengths: Sequence[int], limits: Sequence[int], max_batch_tokens: int, max_batch_size: int = MAX_BATCH_SIZE
) -> list[list[int]]:
    """Group requests, longest first, so that batch size x (longest body + longest answer) is within the bound.

    Args:
        lengths, limits: of each request, tokens of its body and most tokens of its answer.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i] - limits[i], i))
    grouped: list[list[int]] = []
    longest = limit = 0
    for i in order:
        longest, limit = max(longest, lengths[i]), max(limit, limits[i])
        fits = grouped and len(grouped[-1]) < max_batch_size
        if fits and (len(grouped[-1]) + 1) * (longest + limit) <= max_batch_tokens:
            grouped[-1].append(i)
        else:
            grouped.append([i])
            longest, limit = lengths[i], limits[i]
    return grouped


def _all_passes(prefix, bodies, limits, stop_ids, results, max_tokens, max_size, device, finished) -> Passes:
    if not bodies:
        return
    cache = PrefixCache(len(prefix))
    if len(prefix):
        yield from prefill_prefix(prefix, cache, device)
    for batch in batches([len(body) for body in bodies], limits, max_tokens, max_size):
        own_bodies = [bodies[i] for i in batch]
        slots = SlotCache(len(batch), max(map(len, own_bodies)) + max(limits[i] for i in batch))
        first = yield from _prefill_bodies(own_bodies, cache, slots, device)
        answers = _Answers(batch, [results[i] for i in batch], [limits[i] for i in batch], stop_ids, finished)
        yield from _decode_tokens(first, own_bodies, answers, cache, slots, device)


def prefill_prefix(prefix: Sequence[int], cache: PrefixCache, device: torch.device | str) -> Passes:
    tokens = torch.tensor([list(prefix)], device=device)
    positions = torch.arange(len(prefix), device=device)[None]
    last = torch.tensor([len(prefix) - 1], device=device)
    yield {"tokens": tokens, "positions": positions, "output_index": last, "cache": PrefixPass(cache)}


def _prefill_bodies(
    bodies: Sequence[Sequence[int]], prefix: PrefixCache, slots: SlotCache, device: torch.device | str
) -> Generator[Forward, Tensor, Tensor]:
    """One packed row of all bodies, after the cached prefix. Returns each request's first new token, [R]."""
    lengths = torch.tensor([len(body) for body in bodies])
    slot = torch.repeat_interleave(torch.arange(len(bodies)), lengths, output_size=sum(map(len, bodies)))  # [T]
    ends = lengths.cumsum(0)
    offset = torch.arange(len(slot)) - (ends - lengths)[slot]  # [T]
    tokens = torch.tensor([token for body in bodies for token in body])
    tokens, slot, offset, last = (x.to(device) for x in (tokens, slot, offset, ends - 1))
    mask = build_mask(slot[None] + 1, n_cached=prefix.n_tokens)
    cache = BodyPass(prefix, slots, mask, slot, offset)
    logits = yield {
        "tokens": tokens[None],
        "positions": offset[None] + prefix.n_tokens,
        "output_index": last,
        "cache": cache,
    }
    return _most_probable(logits)


def _most_probable(logits: Tensor) -> Tensor:
    """Each row's most probable token, [R]; `NO_TOKEN` for NaN and infinity, so that this is read with the tokens."""
    return torch.where(finite_rows(logits), logits.argmax(dim=-1), NO_TOKEN)


def _decode_tokens(
    next_token: Tensor,
    bodies: Sequence[Sequence[int]],
    answers: _Answers,
    prefix: PrefixCache,
    slots: SlotCache,
    device: torch.device | str,
) -> Passes:
    """Feed each request's newest token back until all are done; drop finished requests from the batch."""
    lengths = torch.tensor([len(body) for body in bodies], device=device)
    while True:
        keep = answers.take(next_token.tolist())
        if not keep:
            return
        if len(keep) < len(lengths):
            index = torch.tensor(keep, device=device)
            slots.keep(index)
            next_token, lengths = next_token[index], lengths[index]
        logits = yield {
            "tokens": next_token[:, None],
            "positions": (lengths + prefix.n_tokens)[:, None],
            "output_index": torch.arange(len(lengths), device=device),
            "cache": TokenPass(prefix, slots, lengths),
        }
        next_token, lengths = _most_probable(logits), lengths + 1


class _Answers:
    """The answers of the unfinished requests. `take` adds each step's tokens and returns the rows to keep."""

    def __init__(
        self,
        requests: list[int],
        results: list[Decoded],
        limits: list[int],
        stop_ids: set[int],
        finished: Callable[[Mapping[int, Decoded]], None] | None,
    ) -> None:
        self.rows = list(zip(requests, results, limits, strict=True))
        self.stop_ids, self.finished = stop_ids, finished

    def take(self, tokens: list[int]) -> list[int]:
        keep, finished = [], {}
        for row, ((request, result, limit), token) in enumerate(zip(self.rows, tokens, strict=True)):
            if token == NO_TOKEN:
                raise NotFiniteLogits(request)
            if token in self.stop_ids:
                result.stopped = True
            elif len(result.tokens) < limit:
                result.tokens.append(token)
                keep.append(row)
                continue
            finished[request] = result
        # The token after the limit is computed but not kept: it may be the stop token.
        if self.finished is not None and finished:
            self.finished(finished)
        self.rows = [self.rows[row] for row in keep]
        return keep


def _send(passes: Passes, logits: Tensor) -> Forward | None:
    try:
        return passes.send(logits)
    except StopIteration:
        return None
