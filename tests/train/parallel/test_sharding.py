"""Sharding, activation checkpointing, accumulation and packing change how a step is computed, not what it computes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.llama import Llama
from tests.train import tiny_run
from tests.train.tiny_run import CASES, make_trainer, run_case


def assert_same_run(
    a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 2e-5, case: str = ""
) -> None:
    counted = ("passes", "dummies", "empty_shards")
    for key in a.keys() - set(counted):
        np.testing.assert_allclose(a[key], b[key], rtol=tolerance, atol=tolerance, err_msg=f"{case} {key}")


@pytest.mark.parametrize("ranks", [2, 3])
def test_one_process_equals_several(
    ranks: int, world, launch: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    """All cases in one launch: starting the processes takes longer than they do."""
    done = launch(Path(tiny_run.__file__), tmp_path, *CASES, ranks=ranks)
    assert done.returncode == 0, done.stderr
    for name in CASES:
        alone, together = run_case(name, tmp_path / "alone", world), dict(np.load(tmp_path / f"{name}.npz"))
        start = make_trainer(tmp_path / "start", world, **CASES[name]).model.named_parameters()
        moved = max(np.abs(tiny_run.whole(p) - alone[key]).max() for key, p in start)
        assert moved > 5e-3, f"{name}: the steps must do something for their equality to mean anything"
        if name == "empty_rank":
            assert together["dummies"].min() >= 1
        if name == "sliver" and ranks == 3:
            assert together["empty_shards"] > 0
        if name.endswith("accumulated"):
            assert together["passes"].min() > 1
        assert_same_run(alone, together, tolerance=2e-2 if "precision" in CASES[name] else 2e-5, case=name)


def test_bf16_is_near_fp32_and_not_the_same(world, tmp_path: Path) -> None:
    full, half = run_case("tied", tmp_path / "a", world), run_case("bf16", tmp_path / "b", world)
    assert not np.array_equal(full["losses"], half["losses"])
    np.testing.assert_allclose(full["losses"], half["losses"], rtol=2e-2)
    assert half["embed.weight"].dtype == np.float32, "the stored weights are fp32"


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_nothing(mode: str, world, tmp_path: Path) -> None:
    plain, recomputed = run_case("untied", tmp_path / "a", world), run_case(mode, tmp_path / "b", world)
    assert plain.keys() == recomputed.keys(), "parameter names stay as they are"
    for key in plain:
        np.testing.assert_array_equal(plain[key], recomputed[key], err_msg=key)


def test_what_is_recomputed(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.llama import RMSNorm
    from train.parallel import parallelize

    calls = {"norm": 0}
    forward = RMSNorm.forward

    def counted(self, x):
        calls["norm"] += 1
        return forward(self, x)

    monkeypatch.setattr(RMSNorm, "forward", counted)
    saved = set()
    decide = parallelize._save_or_recompute

    def recorded(ctx, op, *args, **kwargs):
        policy = decide(ctx, op, *args, **kwargs)
        if policy == parallelize.CheckpointPolicy.MUST_SAVE:
            saved.add(str(op))
        return policy

    monkeypatch.setattr(parallelize, "_save_or_recompute", recorded)
    norms = {}
    for mode in ("none", "selective", "full"):
        trainer = make_trainer(tmp_path / mode, world, activation_checkpointing=mode)
        calls["norm"] = 0
        trainer.train_step(trainer.setup.loader.step(0))
        norms[mode] = calls["norm"]
    assert norms["none"] == 5  # two a block, and the last
    assert norms["selective"] == norms["full"] == 9, "both blocks ran a second time"
    assert {"aten.mm.default", "aten._scaled_dot_product_flash_attention_for_cpu.default"} <= saved


@pytest.mark.parametrize(
    "changed",
    [
        {"packing": False},
        {"share_prefix": False},
        {"packing": False, "micro_rows": 1},
        {"row_length": 36, "micro_rows": 1},
        {"row_length": 36, "micro_rows": 3},
    ],
    ids=str,
)
def test_packing_sharing_and_accumulation_change_nothing(changed: dict, world, tmp_path: Path) -> None:
    plain, other = run_case("tied", tmp_path / "a", world), run_case("tied", tmp_path / "b", world, **changed)
    assert plain["passes"].max() == 1
    if "micro_rows" in changed:
        assert other["passes"].max() > 1, "nothing was accumulated"
    assert_same_run(plain, other)


def test_a_dummy_contributes_exactly_nothing(world, tmp_path: Path) -> None:
    from data.decoder.rows import dummy_batch
    from train.loss import batch_loss

    trainer = make_trainer(tmp_path, world, model_config=tiny_run.TIED)
    batch = trainer.setup.loader.step(0)
    batch_loss(trainer.model, batch.batches[0], batch.n_label_tokens).backward()
    before = [p.grad.full_tensor().clone() for p in trainer.model.parameters()]
    loss = batch_loss(trainer.model, dummy_batch(), batch.n_label_tokens)
    loss.backward()
    assert loss.item() == 0.0
    for parameter, grad in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad.full_tensor(), grad)


def test_random_weights_are_the_seeds(world, tmp_path: Path) -> None:
    a, b = (make_trainer(tmp_path / x, world, seed=s) for x, s in (("a", 0), ("b", 1)))
    reference = Llama(tiny_run.TINY)
    reference.init_weights(torch.Generator().manual_seed(0))
    for (name, mine), other, want in zip(
        a.model.named_parameters(), b.model.parameters(), reference.parameters(), strict=True
    ):
        assert torch.equal(mine.full_tensor(), want), name
        assert name.endswith("norm.weight") or not torch.equal(mine.full_tensor(), other.full_tensor()), name
    for (name, mine), want in zip(a.model.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(mine, want), f"{name} is garbage after to_empty"
