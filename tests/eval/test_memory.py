"""The bytes of scoring: by hand, against a trace of the code that scores, and what is said where they do not fit."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import pytest
import torch

from benchmarks import scoring_trace
from checkpoints_tools.llama_heads import without_heads
from checkpoints_tools.registry import MODELS
from data.errors import UserError
from data.packing import padded_length
from eval.job import BatchSize, RequestLengths
from eval.memory import ScoringLoad, check_fits, decoder_memory, decoder_weights, encoder_memory, usable_now
from eval.plan import describe, make_plan
from eval.resolve import load_config
from eval.score import batch_sizes
from model.encoder import Head
from model.llama import Llama
from tests.commands import ROOT, commands_in
from train.planning.hardware import GIB, GPUS, usable

BF16 = torch.bfloat16
LARGE = MODELS["llama3_70b"].config
A100 = usable(GPUS["a100-80g"].memory)


def load_of(name: str, prefix: int, bodies: list[int], limit: int, batch_tokens: int, dtype=BF16) -> ScoringLoad:
    spec = MODELS[name]
    return ScoringLoad(spec, spec.config, dtype, RequestLengths(prefix, bodies, [limit] * len(bodies)), batch_tokens)


@pytest.mark.parametrize("name", ["llama2_7b", "llama2_70b", "llama3_8b", "llama3_70b", "smollm2_135m", "llama_debug"])
def test_weights_are_those_of_the_model(name):
    with torch.device("meta"):
        model = Llama(MODELS[name].config)
    assert decoder_weights(model.config, BF16, 1) == sum(2 * p.numel() for p in model.parameters())


@pytest.mark.parametrize("tp", [1, 8])
def test_keys_and_values_by_hand(tp):
    """llama3_70b: 80 layers, 8 key/value heads of 128; three requests behind a prefix of 100 tokens."""
    load = load_of("llama3_70b", 100, [50, 30, 20], 10, 4096)
    a_token = 2 * 2 * 8 * 128 * 80 // tp  # keys and values, bf16
    for moment in ("bodies", "one token", "logits"):
        parts = load.memory(tp, 1).moments[moment]
        assert parts["keys and values of the prefix"] == 100 * a_token
        assert parts["keys and values of a batch"] == 3 * (50 + 10) * a_token, "slots as long as the longest"
    alone = dataclasses.replace(load, max_batch_tokens=1)
    assert [len(batches) for batches in alone.batches(1)] == [3]
    assert alone.memory(tp, 1).moments["bodies"]["keys and values of a batch"] == 60 * a_token
    assert [len(batches) for batches in alone.batches(2)] == [1, 2], "replicas share the requests"


def test_70b_over_8_gpus_as_the_document_has_it(tmp_path):
    """`docs/memory.md` has the command, the sizes of the plan's fullest batch, and what they need by its formulas."""
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8").partition("\n## Scoring\n")[2]
    (words,) = commands_in(page)
    plan = make_plan(load_config([*words[2:], "--checkpoint", str(tmp_path)]))
    (batches,), memory, P = plan.batches, plan.memory, plan.load.lengths.prefix
    assert memory.fullest == "bodies" and plan.load.lengths.tries is None
    previous, batch = max(itertools.pairwise(batches), key=lambda pair: load_peak(P, pair))
    R, T, S, body = batch.n_requests, batch.n_tokens, batch.slot_length, batch.slot_length - batch.n_new_tokens
    in_words = " ".join(page.split())
    for text in (f"P = {P} ", f"R = {R} ", f"T = {T:,} ", f"S = {S} ", f"body, {body},", f"answer, {S - body} "):
        assert text in in_words, text
    printed = re.search(r"answers included: (\d+) requests with ([\d,]+) tokens", in_words)
    assert printed is not None and f"the largest of {printed[1]} request(s) and {printed[2]} tokens" in describe(plan)

    E, A, KV, F, V, L = 8192, 1024, 128, 3584, 16_032, 80
    weights = 2 * (L * (2 * E * (A + KV) + 3 * E * F) + 2 * V * E + (2 * L + 1) * E)
    a_token, a_row = 4 * KV * L, 2 * 8 * V
    in_table = {
        "weights: ": weights,
        "keys and values of the prefix, once": P * a_token,
        "keys and values of the batch": R * S * a_token,
        "the fullest pass": 12 * E * T + T * (4 * 128 + 32),
        f"logits of the batch before, of {previous.n_requests} requests": previous.n_requests * a_row,
    }
    total = sum(in_table.values())
    assert memory.weights == weights and memory.peak == total
    for start, n in (in_table | {f"total, {total / GIB:.1f} GiB": total}).items():
        assert re.search(rf"^\| {start}.* \| {n / 1e9:.2f} \|$", page, re.MULTILINE), start
    assert f"| {a_token:,} |" in page and f"| {a_row:,} |" in page

    memory = decoder_memory(LARGE, BF16, 8, P, [[batch]])
    scores = [4 * R * S * (KV + 8), 4 * P * KV + 4 * R * 8 * (P + S), 12 * R * 8 * (P + S)]
    assert f"the first, {scores[0] / 1e6:.0f} MB" in page and max(scores) == scores[0]
    assert memory.moments["one token"]["one pass"] == scores[0] + R * (4 * E + 2 * (A + 2 * KV))
    assert memory.moments["logits"] == memory.moments["one token"] | {"one pass": 2 * R * V * (8 + 2)}


def load_peak(prefix: int, batches: Sequence[BatchSize]) -> int:
    return decoder_memory(LARGE, BF16, 8, prefix, [batches]).peak


# Each about another place of a block, or another way of laying out the model. Few layers: then little else counts.
TRACES = {
    "feed-forward": ("llama3_8b", 1, "massive_joint", 4000, BF16, {}),
    "several passes, a long post": ("llama3_8b", 1, "20ng_joint", 4000, BF16, {}),
    "norm": ("llama3_70b", 8, "20ng_joint", 4000, BF16, {}),
    "rotation, no groups": ("llama2_7b", 1, "20ng_joint", 4000, BF16, {"ffn_dim": 2048}),
    "result of feed-forward": ("llama3_70b", 8, "massive_joint", 4000, torch.float32, {}),
    "tied": ("llama3_70b", 2, "massive_joint", 4000, BF16, {"tie_embeddings": True}),
    "large batches": ("llama3_70b", 2, "massive_joint", 16_384, BF16, {}),
    "uneven vocabulary": ("llama3_70b", 8, "massive_joint", 4000, BF16, {"vocab_size": 128_251}),
}
SLOW = [case for case in TRACES if case not in ("feed-forward", "norm")]


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in TRACES])
def test_a_traced_run_takes_what_the_arithmetic_says(case):
    name, tp, task, batch_tokens, dtype, changes = TRACES[case]
    config = dataclasses.replace(MODELS[name].config, n_layers=3, **changes)
    lengths = scoring_trace.requests(task, batch_tokens)
    assert len(batch_sizes("decoder", lengths, 1, batch_tokens)[0]) > 1
    traced = scoring_trace.trace_decoder(config, dtype, tp, lengths, batch_tokens)
    ours = scoring_trace.figures(scoring_trace.planned(config, dtype, tp, lengths, batch_tokens))
    exact = ("weights", "keys and values of the prefix", "keys and values of a batch")
    for kind in exact:
        assert ours[kind] == traced[kind], kind
    held = ours["weights"] + ours["keys and values of the prefix"]
    of_batch = {"prefix": 0, "bodies": ours[exact[2]], "one token": ours[exact[2]]}
    for moment, cache in of_batch.items():
        # What the pass itself takes, which is a small part of the whole.
        passing = (ours[moment] - held - cache, traced[moment] - held - cache)
        assert passing[0] == pytest.approx(passing[1], rel=0.001 if moment != "one token" else 0.03), moment
    peaks = [max(found[moment] for moment in of_batch) for found in (ours, traced)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.001)


LABELS = {  # by the fullest moment; the numbers of labels of class fields, and of requests
    "bodies": ("llama3_8b", 1, "20ng_joint", 4000, BF16, (20, 7), None),
    "bodies, fp32": ("llama2_7b", 1, "massive_joint", 4000, torch.float32, (60, 7), None),
    "logits, no cache": ("llama3_70b", 8, "massive_joint", 16_384, BF16, (60,), None),
    "labels, one pass": ("llama3_8b", 1, "massive_joint", 4000, BF16, (60,), 12),
}


@pytest.mark.parametrize(
    "case", ["bodies", *(pytest.param(c, marks=pytest.mark.slow) for c in LABELS if c != "bodies")]
)
def test_traced_probabilities_of_labels_take_what_the_arithmetic_says(case):
    name, tp, task, batch_tokens, dtype, sizes, n = LABELS[case]
    config = dataclasses.replace(MODELS[name].config, n_layers=3)
    labels = scoring_trace.Labels(sizes, config)
    lengths = scoring_trace.requests(task, batch_tokens)
    lengths = RequestLengths(lengths.prefix, lengths.bodies[:n], lengths.limits[:n], labels.load)
    (passes,) = batch_sizes("decoder", lengths, 1, batch_tokens)
    assert (len({size.n_outputs for size in passes}) > 1) == (n is None) and labels.load.stores == (len(sizes) > 1)
    traced = scoring_trace.trace_decoder(config, dtype, tp, lengths, batch_tokens, labels)
    memory = scoring_trace.planned(config, dtype, tp, lengths, batch_tokens)
    assert memory.fullest == case.split(",")[0]
    ours = scoring_trace.figures(memory, with_labels=True)
    if memory.fullest == "labels":  # half of it, the exponentials, are inside one operation, which a trace cannot see
        ours["bodies"] -= memory.moments["labels"]["one pass"] // 2
    for kind, n_bytes in traced.items():
        assert ours[kind] == pytest.approx(n_bytes, rel=0.0002), kind


@pytest.mark.parametrize("name", ["roberta_large", "llama3_8b", "llama2_7b"])
@pytest.mark.parametrize("documents", [[300] * 13, [20] * 200])
def test_a_traced_row_of_a_model_with_heads_takes_what_the_arithmetic_says(documents, name):
    heads = (Head("intent", "class", 60), Head("slots", "token", 111))
    config = MODELS[name].config if name == "roberta_large" else without_heads(MODELS[name].config)
    config = dataclasses.replace(config, n_layers=5, heads=heads)
    traced = scoring_trace.trace_heads(config, BF16, documents)
    ours = encoder_memory(config, BF16, 1, 0, [[BatchSize(len(documents), padded_length(sum(documents)))]])
    assert ours.weights == traced["weights"]
    assert ours.peak - ours.weights == pytest.approx(traced["a row"] - traced["weights"], rel=0.002)


def test_a_model_that_does_not_fit_is_told_what_would():
    check_fits(load_of("llama3_8b", 1000, [500] * 8, 30, 4096), 1, 1, A100)
    check_fits(load_of("llama3_70b", 1000, [500] * 40, 30, 16_384), 8, 1, A100)
    large = load_of("llama3_70b", 0, [1], 0, 1)
    with pytest.raises(UserError, match=r"needs 131.4 GiB of a GPU \(weights 131.4, .* 74.8 are usable.*fit: --tp 2 "):
        check_fits(large, 1, 1, A100)
    with pytest.raises(UserError, match="under torchrun --nproc_per_node 4"):  # half of the weights alone is 65.7 GiB
        check_fits(load_of("llama3_70b", 3000, [500] * 8, 30, 4096), 1, 1, 65 * GIB)
    with pytest.raises(UserError, match="of each of 4 GPUs.*not fit on 8 GPUs either"):
        check_fits(dataclasses.replace(large, dtype=torch.float32), 4, 1, 24 * GIB)
    many = load_of("llama3_8b", 500, [2000] * 500, 100, 400_000)
    with pytest.raises(UserError, match=r"fit: --batch_tokens 100000 \("):
        check_fits(many, 1, 1, 40 * GIB)
    odd = dataclasses.replace(LARGE, n_kv_heads=2)
    with pytest.raises(UserError, match="not fit on 2 GPUs either"):
        check_fits(dataclasses.replace(large, config=odd), 1, 1, 40 * GIB)
    encoder = load_of("roberta_large", 0, [512] * 10_000, 0, 5_000_000)
    with pytest.raises(UserError, match=r"roberta_large is too large.*fit: --batch_tokens 1250000 \("):
        check_fits(encoder, 1, 1, 40 * GIB)


def test_what_other_processes_hold_cannot_be_used(monkeypatch):
    total, context = 80 * GIB, GIB
    for held in (0, 30 * GIB):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, held=held: (total - held - context, total))
        assert usable_now(torch.device("cuda")) == pytest.approx(usable(total - held), abs=1.1 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - context, total))
    assert usable_now(torch.device("cuda")) == usable(total), "the same limit as a plan's"
