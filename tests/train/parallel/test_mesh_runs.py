"""Every device mesh computes what one process does, and a run goes on from one to another."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints_tools.architectures import costs_of
from data.packing import PADDING_DOC
from tests.train.parallel import mesh_run
from tests.train.parallel.mesh_run import CASES, NET, STAGES, run_case, run_stage
from tests.train.tiny_run import make_trainer, whole
from train.parallel.mesh import MeshShape
from train.trainer import Trainer


@pytest.fixture(scope="module")
def four_ranks(launch: Callable[..., subprocess.CompletedProcess], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of all cases and stages that take four ranks."""
    return launched(launch, tmp_path_factory.mktemp("four"), 4)


def launched(launch: Callable[..., subprocess.CompletedProcess], out: Path, ranks: int) -> Path:
    names = [name for name, (shape, _) in CASES.items() if shape.n_ranks == ranks]
    names += [name for name, shape in STAGES.items() if shape.n_ranks == ranks]
    done = launch(Path(mesh_run.__file__), out, *names, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr and "redistribut" not in done.stderr, done.stderr
    return out


def assert_equals_one_process(name: str, folder: Path, world, tmp_path: Path) -> None:
    alone, together = run_case(name, tmp_path / "alone", world), dict(np.load(folder / f"{name}.npz"))
    start = make_trainer(tmp_path / "start", world, **{"model_config": NET, **CASES[name][1]}).model.named_parameters()
    moved = max(np.abs(whole(p) - alone[key]).max() for key, p in start)
    assert moved > 5e-3, "the steps must do something for their equality to mean anything"
    assert together["differing"] == 0, "ranks that hold the same have come apart"
    if name == "tp":
        assert together["passes"].min() > 1, "nothing was accumulated"
    np.testing.assert_allclose(together["flops"], flops_of(name, world, tmp_path), rtol=1e-6)
    for key in alone.keys() - {"passes", "differing", "flops"}:
        np.testing.assert_allclose(together[key], alone[key], rtol=2e-6, atol=2e-6, err_msg=key)


def flops_of(name: str, world, tmp_path: Path) -> list[float]:
    """What the steps of a case need, however many ranks split each matrix: prefixes are computed once a row."""
    shape, options = CASES[name]
    total = []
    for n in range(2):
        of_ranks = []
        for rank in range(shape.n_data):
            place = dataclasses.replace(world, rank=rank, shape=MeshShape(shard=shape.n_data))
            with pytest.MonkeyPatch.context() as patch:  # its loader is all that is wanted of such a trainer
                patch.setattr(Trainer, "_build_model", lambda self: None)
                trainer = make_trainer(tmp_path / "loader", place, **{"model_config": NET, **options})
            of_ranks.append(trainer.setup.loader.step(n))
        batches = [b for step in of_ranks for b in step.batches if not b.dummy]
        pairs = sum(int((b.positions + 1)[b.doc_ids != PADDING_DOC].sum()) for b in batches)  # each, all before it
        total.append(costs_of(NET).step_flops(of_ranks[0].n_real_tokens, of_ranks[0].n_label_tokens, pairs))
    return total


@pytest.mark.parametrize(
    "name", [name for name, (shape, _) in CASES.items() if shape.n_ranks == 4 and name != "rounded"]
)
def test_a_mesh_of_four_equals_one_process(name: str, four_ranks: Path, world, tmp_path: Path) -> None:
    assert_equals_one_process(name, four_ranks, world, tmp_path)


def test_random_rounding_leaves_copies_the_same(four_ranks: Path) -> None:
    found = dict(np.load(four_ranks / "rounded.npz"))
    assert found["differing"] == 0 and np.isfinite(found["losses"]).all()
    embedding = torch.from_numpy(found["embed.weight"])
    assert torch.equal(embedding.bfloat16().float(), embedding), "the weights are bf16"


def test_ranks_with_different_commands_or_files_do_not_start(four_ranks: Path) -> None:
    for rank in range(4):
        said = (four_ranks / f"disagreement{rank}.txt").read_text()
        assert "lr: rank 0 has 0.01, rank(s) 2 have 0.5" in said and "rank(s) 2 have other" in said, said
        assert len(said.splitlines()) == 3


def assert_goes_on(folder: Path, world, tmp_path: Path) -> None:
    """From stage to stage the same bits, and at the end the run that one process makes without stopping."""
    results = {p.stem: dict(np.load(p)) for p in folder.glob("*.npz") if p.stem in STAGES}
    results["one"] = run_stage("one", folder / "staged", world)
    in_order = [results[name] for name in STAGES if name in results]
    for before, after in zip(in_order, in_order[1:], strict=False):
        saved = {key.removeprefix("saved/"): value for key, value in before.items() if key.startswith("saved/")}
        loaded = {key.removeprefix("loaded/"): value for key, value in after.items() if key.startswith("loaded/")}
        assert saved.keys() == loaded.keys() and any(key.endswith("exp_avg_sq") for key in saved)
        for key, value in saved.items():
            np.testing.assert_array_equal(value, loaded[key], err_msg=key)
    straight = tmp_path / "straight"
    for _ in in_order:
        last = run_stage("one", straight, world)
    for key, value in last.items():
        if key.startswith("saved/"):
            np.testing.assert_allclose(in_order[-1][key], value, rtol=5e-6, atol=5e-6, err_msg=key)


def test_a_run_goes_on_from_mesh_to_mesh(four_ranks: Path, world, tmp_path: Path, caplog) -> None:
    assert_goes_on(four_ranks, world, tmp_path)
    assert "on a mesh of shard 2 x tensor 2, this run has shard 1. Sums round differently" in caplog.text


@pytest.mark.slow
def test_a_run_goes_on_from_eight_ranks_to_four_to_one(launch, world, tmp_path: Path) -> None:
    launched(launch, tmp_path, 8)
    assert_equals_one_process("hybrid_tp", tmp_path, world, tmp_path)
    launched(launch, tmp_path, 4)
    assert_goes_on(tmp_path, world, tmp_path)
