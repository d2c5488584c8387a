"""bf16 weights, stochastic rounding and eight-bit states on many ranks: the same bits as on one, whatever the mesh."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.optim import optim_run
from tests.train.optim.optim_run import OPTIMS, STAGES, build, clipped, run_stage
from train.optim.blockwise import block_size


def launched(launch: Callable[..., subprocess.CompletedProcess], out: Path, ranks: int) -> list[str]:
    names = [name for name, shape in STAGES.items() if shape.n_ranks == ranks]
    done = launch(Path(optim_run.__file__), out, *names, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return names


def assert_same_bits_as_one_process(out: Path, names: list[str], world, tmp_path: Path) -> None:
    """After every stage the weights and states are those of one process that never stopped."""
    straight = tmp_path / "straight"
    for name in [*names, "one"]:
        want = run_stage("straight", straight, world)
        got = run_stage("one", out / "run", world) if name == "one" else dict(np.load(out / f"{name}.npz"))
        for key, value in want.items():
            np.testing.assert_array_equal(got[key], value, err_msg=f"{name} {key}")
        assert all(got[f"{optim}/differing"] == 0 for optim in OPTIMS)
        if name != "one":
            np.testing.assert_allclose(got["norms"], clipped(world, "adamw_sr"), rtol=2e-5)
    codes = [key for key in want if key.endswith("_codes")]
    assert codes and all(want[key].any() for key in codes), "nothing was quantized"


@pytest.fixture(scope="module")
def four_ranks(launch: Callable[..., subprocess.CompletedProcess], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four")
    launched(launch, out, 4)
    return out


def test_resharded_from_mesh_to_mesh_it_is_one_run(four_ranks: Path, world, tmp_path: Path) -> None:
    names = [name for name, shape in STAGES.items() if shape.n_ranks == 4]
    assert_same_bits_as_one_process(four_ranks, names, world, tmp_path)
    norms = np.load(four_ranks / "tp.npz")["norms"]
    assert norms[0] > 2 and norms[1] == pytest.approx(1.0, abs=2e-3), "clipped, but for the rounding of bf16"


@pytest.mark.slow
def test_resharded_from_eight_ranks_to_four_to_one(launch, world, tmp_path: Path) -> None:
    names = launched(launch, tmp_path, 8) + launched(launch, tmp_path, 4)
    assert_same_bits_as_one_process(tmp_path, names, world, tmp_path)


def test_shards_round_in_their_own_ways_and_replicas_alike(four_ranks: Path) -> None:
    """Weights of 1 with a gradient of 1: whatever differs after a step is the rounding. Ranks are (replica, shard)."""
    patterns = np.load(four_ranks / "hybrid.npz")["patterns"]
    assert patterns.shape == (4, 2048)
    moved = patterns != 1
    assert (0.28 < moved.mean(axis=1)).all() and (moved.mean(axis=1) < 0.39).all(), "a third of the weights moved"
    np.testing.assert_array_equal(patterns[0], patterns[2])
    np.testing.assert_array_equal(patterns[1], patterns[3])
    agree = (moved[0] == moved[1]).mean()  # of two unrelated streams: 1/9 + 4/9
    assert agree == pytest.approx(5 / 9, abs=0.06)


def test_rows_cut_in_the_middle_of_a_block_are_refused(four_ranks: Path) -> None:
    assert "rows of 192 into parts of 96, which is not a multiple of the block size 64" in str(
        np.load(four_ranks / "tp.npz")["refusal"]
    )


def test_the_made_up_model_has_whole_blocks_for_two_ranks(world) -> None:
    model, _ = build(world, "adamw_sr_8bit")
    blocks = {name: block_size(p.shape) for name, p in model.named_parameters()}
    assert {None, 32, 64} == set(blocks.values()), blocks
    assert sum(p.numel() for n, p in model.named_parameters() if blocks[n]) > 500_000
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
