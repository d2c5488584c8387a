"""The plan's bytes: against arithmetic by hand from each model's published config.json, and against a traced step."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

from benchmarks import memory_trace
from checkpoints_tools.registry import MODELS
from model.encoder import Head
from tests.train.planning.memory_by_hand import PUBLISHED, by_hand
from train.optim.formats import OPTIMIZERS
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import RESHARD_FROM
from train.planning.memory import Pass, Settings, count_parameters, training_memory


@pytest.mark.parametrize("optim", list(OPTIMIZERS))
@pytest.mark.parametrize("tokens", [4096, 16_384])
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_figures_of_the_llama_presets_by_hand(name, tokens, optim):
    spec, outputs, ranks = MODELS[name], 168, 8
    sizes = count_parameters(spec, spec.config)
    assert sizes.total == PUBLISHED[name][-1]
    memory = training_memory(
        spec.config, sizes, MeshShape(shard=ranks), Settings(OPTIMIZERS[optim]), Pass(tokens, outputs), ranks
    )
    want = by_hand(name, optim, tokens, outputs, ranks)
    E, V = PUBLISHED[name][0], PUBLISHED[name][5]
    for kind in ("weights", "gradients", "states"):
        assert getattr(memory, kind) == pytest.approx(want[kind], abs=1), kind
    backward = memory.moments["backward"]
    assert backward["gradients"] == memory.gradients
    assert backward["gathered weights"] == want["gathered"]
    assert backward["gradients being reduced"] in (want["reduced"], 0)
    assert backward["head's gradient"] == want["head"]
    assert backward["one block's activations and gradients"] == want["block"]
    small = tokens * 600  # ids, positions, rotary tables
    assert abs(memory.moments["loss"]["saved activations"] - want["saved"]) < small
    assert memory.moments["loss"]["logits"] == want["logits"]
    root_reduce = memory.moments["root reduce"]["unsharded gradients of embedding and head"]
    assert root_reduce == pytest.approx(want["root reduce"], abs=1)
    fixed = want["weights"] + want["gradients"] + want["states"]
    one = want["saved"] / PUBLISHED[name][1]
    moving = max(want["reduced"], one)  # before the last block, one saved input fewer and gradients on their way
    moments = {
        "backward": want["gathered"] + want["head"] + want["block"] + want["saved"] - one + moving,
        "loss": 2 * (2 * V * E + E) + want["saved"] + want["logits"],
        "root reduce": want["root reduce"],
    }
    assert memory.peak == pytest.approx(fixed + max(moments.values()), abs=small)


@pytest.mark.parametrize("optim", list(OPTIMIZERS))
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_step_of_one_pass_by_hand(name, optim):
    """Gradients grow while saved activations go: fullest is the beginning of the backward pass, or its end."""
    E, L, H, K, F, V, _ = PUBLISHED[name]
    spec, tokens, outputs, ranks = MODELS[name], 16_384, 168, 8
    memory = training_memory(
        spec.config,
        count_parameters(spec, spec.config),
        MeshShape(shard=ranks),
        Settings(OPTIMIZERS[optim]),
        Pass(tokens, outputs, accumulates=False),
        ranks,
    )
    want = by_hand(name, optim, tokens, outputs, ranks)
    small, one, of_block = tokens * 600, want["saved"] / L, want["reduced"] / ranks
    staying = want["weights"] + want["states"] + want["head"] + want["block"]
    begin = staying + want["gathered"] + want["saved"] - one + max(want["reduced"] + of_block, one)
    end = staying + want["gathered"] + 2 * one + want["reduced"] + (L - 2) * of_block  # block 0 arrives beside block 1
    root = want["weights"] + want["states"] + L * of_block + want["root reduce"]
    assert memory.peak == pytest.approx(max(begin, end, root), abs=small)


def test_the_plan_for_70b_agrees_with_what_the_design_says():
    """Rounded figures published before this arithmetic existed; `docs/memory.md` says where they differ and why."""
    spec = MODELS["llama3_70b"]
    sizes = count_parameters(spec, spec.config)
    for tokens, published in ((16_384, 93), (8192, 79), (4096, 72)):
        settings = Settings(OPTIMIZERS["adamw_sr_8bit"])
        memory = training_memory(spec.config, sizes, MeshShape(shard=8), settings, Pass(tokens, 0), 8)
        assert memory.peak / 2**30 == pytest.approx(published, rel=0.08)
    assert memory.fixed / 1e9 == pytest.approx(53, rel=0.01)
    assert memory.host["copy for a save in the background"] / 1e9 == pytest.approx(282, rel=0.01)


# Few layers of real widths; each is about one of the moments that can be the fullest.
TRACES = {
    "backward": ("llama3_8b", "full", 16_384, 100, 8, 3),
    "root reduce": ("llama3_8b", "full", 1024, 100, 8, 2),
    "loss": ("llama3_8b", "full", 2048, 20_000, 8, 2),
    "backward, kept gathered": ("llama2_7b", "full", 8192, 100, 8, 3),
    "backward, nothing checkpointed": ("llama3_8b", "none", 8192, 100, 8, 2),
    "backward, products kept": ("llama3_8b", "selective", 16_384, 100, 8, 3),
    "backward, one rank": ("llama3_8b", "full", 16_384, 100, 1, 6),
    "root reduce, one rank": ("llama3_8b", "full", 1024, 100, 1, 2),
    "end of backward, one pass": ("llama3_70b", "full", 8192, 100, 8, 12),
    "backward, one pass": ("llama3_8b", "full", 16_384, 100, 8, 4),
    "backward, bf16 weights": ("llama3_70b", "full", 8192, 100, 8, 3),
    "root reduce, bf16 weights, one rank": ("llama3_8b", "full", 1024, 100, 1, 2),
    "root reduce, one pass": ("llama3_8b", "full", 1024, 100, 8, 2),
}


SLOW = [case for case in TRACES if case not in ("backward", "root reduce", "loss", "backward, one rank")]


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in TRACES])
def test_a_traced_step_needs_what_the_plan_says(case):
    name, checkpointing, tokens, outputs, ranks, layers = TRACES[case]
    config = dataclasses.replace(MODELS[name].config, n_layers=layers)
    optim = memory_trace.TRACED["adamw_sr_bf16" if "bf16 weights" in case else "adamw"]
    settings = Settings(optim, activation_checkpointing=checkpointing)
    mesh, work = MeshShape(shard=ranks), Pass(tokens, outputs, accumulates="one pass" not in case)
    ours = memory_trace.planned(config, name, mesh, settings, work)
    assert ours.fullest == case.partition(",")[0], "the case is not about the moment that it is named for"
    sizes = count_parameters(MODELS[name], config)
    assert (sizes.total < RESHARD_FROM) == ("kept gathered" in case)
    traced = memory_trace.trace(config, mesh, settings, work)
    assert ours.weights == pytest.approx(traced["weights"], rel=0.001)
    assert ours.gradients == pytest.approx(traced["gradients"], rel=0.001)
    assert ours.states == pytest.approx(traced["optimizer states"], rel=0.001)
    assert ours.peak == pytest.approx(traced["peak"], rel=0.005)


@pytest.mark.parametrize("checkpointing", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_a_traced_step_of_an_encoder_needs_what_the_plan_says(checkpointing):
    heads = (Head("intent", "class", 60), Head("slots", "token", 111))
    config = dataclasses.replace(MODELS["roberta_large"].config, n_layers=4, heads=heads)
    settings = Settings(OPTIMIZERS["adamw"], activation_checkpointing=checkpointing)
    mesh, work = MeshShape(shard=8), Pass(4096, 500)
    ours = memory_trace.planned(config, "roberta_large", mesh, settings, work)
    traced = memory_trace.trace(config, mesh, settings, work)
    for kind, n in {"weights": ours.weights, "gradients": ours.gradients, "optimizer states": ours.states}.items():
        assert n == pytest.approx(traced[kind], rel=0.001), kind
    assert ours.peak == pytest.approx(traced["peak"], rel=0.02)


def test_a_shard_of_a_tensor_parallel_and_hybrid_mesh():
    """tp halves the blocks' matrices and what they make; replicas on another machine change nothing on a GPU."""
    spec = MODELS["llama3_70b"]
    E, L, H, K, F, V, _ = PUBLISHED["llama3_70b"]
    sizes, settings, work = count_parameters(spec, spec.config), Settings(OPTIMIZERS["adamw"]), Pass(4096, 10)
    memory = training_memory(spec.config, sizes, MeshShape(shard=4, tensor=2), settings, work, 8)
    matrices = 2 * E * 128 * (H + K) + 3 * E * F
    assert memory.weights == 4 * (L * (matrices // 2 + 2 * E) + 2 * V * E + E) // 4
    assert memory.moments["backward"]["gradients being reduced"] == 4 * (matrices // 2 + 2 * E)
    replicated = training_memory(spec.config, sizes, MeshShape(2, 4, 2), settings, work, 8)
    assert replicated == memory


def test_what_goes_to_host_memory_leaves_the_gpu():
    spec = MODELS["llama3_70b"]
    sizes, work, mesh = count_parameters(spec, spec.config), Pass(16_384, 10), MeshShape(shard=8)
    plain = Settings(OPTIMIZERS["adamw_sr"])
    base = training_memory(spec.config, sizes, mesh, plain, work, 8)
    offloaded = training_memory(spec.config, sizes, mesh, dataclasses.replace(plain, offload_states=True), work, 8)
    assert base.peak - offloaded.peak == base.states
    assert offloaded.host["optimizer states"] == 8 * base.states
    inputs = training_memory(spec.config, sizes, mesh, dataclasses.replace(plain, activation_offload=True), work, 8)
    one = 16_384 * 8192 * 2
    assert inputs.host["offloaded activations"] == 8 * 79 * one
    assert base.peak - inputs.peak == (79 - 2) * one  # of 80 inputs the backward pass meets 79; two stay


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_gpu_allocates_what_the_plan_says(checkpointing):
    """A real trial step on one GPU: 8B's widths, two layers, a row of 8,192 packed tokens."""
    import numpy as np

    from data.decoder.rows import ANSWER, PackedRow, collate
    from model.llama import Llama
    from train.loss import batch_loss
    from train.optim.optimizer import allocate_states, build_optimizer
    from train.parallel.distributed import start
    from train.parallel.parallelize import parallelize

    config = dataclasses.replace(MODELS["llama3_8b"].config, n_layers=2)
    world = start(torch.device("cuda", 0))
    gc.collect()  # what earlier tests left
    before = torch.cuda.memory_allocated()
    try:
        T, N = 8192, 100
        targets = np.full(T, -100, dtype=np.int64)
        targets[:: T // N][:N] = 7
        n_targets = int((targets >= 0).sum())
        row = PackedRow(np.full(T, 5), np.arange(T) % 512, (np.arange(T) // 512 + 1).astype(np.int32), targets, ["a"])
        batch = collate([row]).to(world.device)
        model = parallelize(
            lambda: Llama(config),
            world.mesh,
            world.device,
            activation_checkpointing=checkpointing,
            load=lambda model: [p.data.normal_(0, 0.02) for p in model.parameters()],
        )
        optimizer = build_optimizer(model, lr=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        allocate_states(optimizer)
        batch_loss(model, batch, {ANSWER: n_targets}).backward()
        torch.cuda.reset_peak_memory_stats()
        batch_loss(model, batch, {ANSWER: n_targets}).backward()
        measured = torch.cuda.max_memory_allocated() - before
    finally:
        torch.distributed.destroy_process_group()
    settings = Settings(OPTIMIZERS["adamw"], activation_checkpointing=checkpointing)
    ours = memory_trace.planned(config, "llama3_8b", MeshShape(), settings, Pass(T, n_targets))
    assert ours.peak == pytest.approx(measured, rel=0.10)
