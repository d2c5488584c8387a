"""Decoding equals recomputing everything at every step, one request at a time, and transformers."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from checkpoints_tools.registry import MODELS
from eval.decoder.decode import NotFiniteLogits, batches, greedy_decode
from eval.decoder.kv_cache import PrefixCache, SlotCache, TokenPass
from model.llama import Llama
from tests.reference import ours_from, reference

VOCAB = 301
PREFIX = [7, 8, 9, 250, 11]


@pytest.fixture(scope="module")
def net() -> Llama:
    model = Llama(MODELS["llama_debug"].config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.15)
    return model


@pytest.fixture(scope="module")
def bodies() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 5, 9, 17, 40]))] for _ in range(30)]


def uncached(model: Llama, prompt: list[int], limit: int, stop: set[int]) -> tuple[list[int], bool]:
    """The simplest greedy decoding: the complete sequence through the model for every token."""
    out: list[int] = []
    with torch.no_grad():
        while True:
            token = int(model(torch.tensor([prompt + out]))[0, -1].argmax())
            if token in stop:
                return out, True
            if len(out) == limit:
                return out, False
            out.append(token)


@pytest.fixture(scope="module")
def stop(net: Llama, bodies: list[list[int]]) -> set[int]:
    """Token ids that are really emitted, so that requests stop at different steps."""
    emitted = [uncached(net, PREFIX + body, 12, set())[0] for body in bodies]
    return {emitted[0][3], emitted[1][6], emitted[2][1]}


@pytest.mark.parametrize("prefix", [PREFIX, []])
@pytest.mark.parametrize("max_batch_tokens", [1, 150, 10_000])
def test_equals_uncached_for_ragged_batches(net, bodies, stop, prefix, max_batch_tokens) -> None:
    results = greedy_decode(net, prefix, bodies, 12, stop, max_batch_tokens=max_batch_tokens)
    expected = [uncached(net, prefix + body, 12, stop) for body in bodies]
    assert [(r.tokens, r.stopped) for r in results] == expected
    if prefix:  # the case this test is about: some stop early, at different steps, and some run into the limit
        assert {r.stopped for r in results} == {True, False}
        assert len({len(r.tokens) for r in results if r.stopped}) > 1


def test_own_limits_are_kept(net, bodies, stop) -> None:
    limits = [1 + i % 5 for i in range(len(bodies))]
    results = greedy_decode(net, PREFIX, bodies, limits, stop)
    for result, body, limit in zip(results, bodies, limits, strict=True):
        assert (result.tokens, result.stopped) == uncached(net, PREFIX + body, limit, stop)


def test_prefix_is_prefilled_once_and_each_step_feeds_one_token(net, bodies) -> None:
    fed: list[tuple[int, ...]] = []
    handle = net.register_forward_pre_hook(lambda m, a, k: fed.append(tuple(k["tokens"].shape)), with_kwargs=True)
    greedy_decode(net, PREFIX, bodies, 4, set(), max_batch_tokens=10**6)
    handle.remove()
    assert fed[0] == (1, len(PREFIX))
    assert fed[1] == (1, sum(map(len, bodies)))
    assert fed[2:] == [(len(bodies), 1)] * 4


def test_equals_transformers_generate(bodies) -> None:
    config = MODELS["llama_debug"].config
    hf = reference(config)
    net = ours_from(hf, config)
    emitted = [uncached(net, PREFIX + body, 12, set())[0] for body in bodies[:3]]
    stop = {emitted[0][3], emitted[1][6], emitted[2][1]}
    results = greedy_decode(net, PREFIX, bodies, 12, stop)
    assert {r.stopped for r in results} == {True, False}
    for result, body in zip(results, bodies, strict=True):
        prompt = torch.tensor([PREFIX + body])
        out = hf.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=13,
            eos_token_id=sorted(stop),
            pad_token_id=0,
        )
        new = out[0, prompt.shape[1] :].tolist()
        assert result.tokens == (new[:-1] if new[-1] in stop else new[:12])


def test_every_request_is_handed_over_once_when_it_is_finished(net, bodies, stop) -> None:
    seen: list[tuple[int, list[int], bool]] = []
    results = greedy_decode(
        net, PREFIX, bodies, 5, stop, max_batch_tokens=100,
        finished=lambda found: seen.extend((i, list(one.tokens), one.stopped) for i, one in found.items()),
    )  # fmt: skip
    assert len(seen) == len(bodies) > 1, "once"
    assert sorted(seen) == [(i, one.tokens, one.stopped) for i, one in enumerate(results)], "and complete"


def test_batches_keep_every_request_and_the_bound() -> None:
    bodies = [[0] * n for n in (3, 50, 7, 7, 200, 1)]
    grouped = batches([len(body) for body in bodies], [5] * 6, max_batch_tokens=60, max_batch_size=2)
    assert sorted(i for batch in grouped for i in batch) == list(range(6))
    for batch in grouped:
        assert len(batch) == 1 or len(batch) * (max(len(bodies[i]) for i in batch) + 5) <= 60
        assert len(batch) <= 2


def test_empty_requests(net) -> None:
    assert greedy_decode(net, PREFIX, [], 5, set()) == []
    with pytest.raises(ValueError, match="request 1 is empty"):
        greedy_decode(net, PREFIX, [[1], []], 5, set())


def test_token_pass_is_as_exact_in_bf16_as_fused_attention() -> None:
    """Scores stay in fp32 up to the softmax, as in the kernels of the other passes."""
    torch.manual_seed(0)
    R, P, S, H, K, D = 4, 40, 24, 6, 3, 64
    q, k, v = torch.randn(R, 1, H, D) * 4, torch.randn(R, 1, K, D) * 2, torch.randn(R, 1, K, D)
    prefix, slots = PrefixCache(P), SlotCache(R, S)
    prefix.keys[0], prefix.values[0] = torch.randn(P, K, D) * 2, torch.randn(P, K, D)
    slots.keys[0], slots.values[0] = torch.randn(R, K, S, D) * 2, torch.randn(R, K, S, D)
    lengths = torch.tensor([3, 23, 10, 0])

    def run(dtype: torch.dtype, attend) -> torch.Tensor:
        own_prefix, own_slots = PrefixCache(P), SlotCache(R, S)
        own_prefix.keys[0], own_prefix.values[0] = prefix.keys[0].to(dtype), prefix.values[0].to(dtype)
        own_slots.keys[0], own_slots.values[0] = slots.keys[0].to(dtype), slots.values[0].to(dtype)
        return attend(own_prefix, own_slots, *(x.to(dtype) for x in (q, k, v))).double()

    def ours(prefix, slots, q, k, v):
        return TokenPass(prefix, slots, lengths).attend(0, q, k, v)

    def fused(prefix, slots, q, k, v):
        out = []
        for r, n in enumerate(lengths.tolist()):
            keys = torch.cat([prefix.keys[0].transpose(0, 1), slots.keys[0][r, :, :n], k[r].transpose(0, 1)], dim=1)
            values = torch.cat(
                [prefix.values[0].transpose(0, 1), slots.values[0][r, :, :n], v[r].transpose(0, 1)], dim=1
            )
            out.append(
                F.scaled_dot_product_attention(q[r].transpose(0, 1)[None], keys[None], values[None], enable_gqa=True)
            )
        return torch.stack([o[0].transpose(0, 1) for o in out])

    exact = run(torch.float64, fused)
    torch.testing.assert_close(run(torch.float32, ours), exact, atol=1e-5, rtol=1e-5)
    error, fused_error = (run(torch.bfloat16, f).sub(exact).abs().mean() for f in (ours, fused))
    assert error < 1.5 * fused_error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at_pass", [1, 4])
def test_a_request_without_finite_logits_gets_no_token(net, bodies, value, at_pass) -> None:
    """One logit of one request, in the pass over its body (after that over the prefix) and in a later one."""
    four, n_passes = bodies[:4], 0
    last = sorted(range(4), key=lambda i: -len(four[i]))[-1]  # of the batch: longest first

    def damaged(module, args, logits):
        nonlocal n_passes
        if n_passes == at_pass:
            logits[-1, 17] = value
        n_passes += 1
        return logits

    handle = net.register_forward_hook(damaged)
    try:
        with pytest.raises(NotFiniteLogits) as error:
            greedy_decode(net, PREFIX, four, 12, set(), max_batch_tokens=10_000)
    finally:
        handle.remove()
    assert error.value.request == last and n_passes == at_pass + 1
