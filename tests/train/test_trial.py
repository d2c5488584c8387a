"""The worst step before the first: it leaves no trace, and what does not fit is said once, with what needs less."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints_tools.registry import get_model_spec
from tests.launching import ROOT, TICKETS
from tests.train import tiny_run, trial_run
from train import options, trial
from train.config import TrainConfig
from train.errors import RunStopped
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


@pytest.mark.parametrize("case", trial_run.CASES)
def test_it_leaves_no_trace(case: str, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIED_ON", trial.TRIED_ON)  # put back what `compare` changes
    trial_run.compare(case, tmp_path, world)


def test_two_ranks_one_of_which_runs_out_of_memory(
    launch: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    begun = time.monotonic()
    done = launch(Path(trial_run.__file__), tmp_path, ranks=2)
    assert (tmp_path / "compared").exists(), done.stderr
    assert done.returncode != 0 and time.monotonic() - begun < 100
    assert done.stderr.count("[rank 1] error: out of memory in the worst step there can be") == 1, done.stderr
    assert done.stderr.count("error: out of memory") == 1 and "AssertionError" not in done.stderr
    assert "Connection closed by peer" not in done.stderr, "the cause is said, not its consequences"
    for part in (
        "on each rank), tried before step 1: CUDA out of memory. Tried to allocate",
        "cheapest first:\n  --act",
    ):
        assert part in done.stderr


def run_out(*args: object, **options: object) -> None:
    raise torch.OutOfMemoryError("simulated")


def test_after_it_the_same_folder_takes_cheaper_settings(
    world, train_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trial, "TRIED_ON", {"cpu"})
        patch.setattr(trial, "clip_gradients", run_out)
        config = load_config(train_args)
        with pytest.raises(RunStopped, match=r"tried before step 1: simulated\nWhat needs less"):
            Trainer(config, open_run(config), world)
    config = load_config([*train_args, "--activation_checkpointing", "full", "--steps", "1"])
    Trainer(config, open_run(config), world).run()


@pytest.mark.parametrize("where", ["build_model", "clip_gradients"])
def test_out_of_memory_elsewhere_is_explained_too(
    where: str, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import trainer as module

    monkeypatch.setattr(module, where, run_out)
    what = "building the model" if where == "build_model" else "step 1"
    with pytest.raises(RunStopped, match=f"out of memory in {what}: simulated\nWhat needs less"):
        tiny_run.make_trainer(tmp_path, world).run()


def test_only_out_of_memory_is_explained() -> None:
    config = options.build(TrainConfig, [dict(optim="adamw")])
    with pytest.raises(RuntimeError, match="something else"), trial.explain_out_of_memory("x", config, None):
        raise RuntimeError("something else")
    with (
        pytest.raises(RunStopped, match="CUBLAS_STATUS_ALLOC_FAILED"),
        trial.explain_out_of_memory("x", config, get_model_spec("llama3_8b")),
    ):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def advised(model: str, **values: object) -> list[str]:
    config = options.build(TrainConfig, [dict(model=model, precision="bf16", optim="adamw"), values])
    return [line.split(":")[0] for line in trial.cheaper_settings(options.flatten(config), get_model_spec(model))]


def test_what_is_advised_is_what_is_left_the_cheapest_first() -> None:
    fresh = advised("llama3_8b", micro_rows=2)
    assert fresh[:3] == [
        "--micro_rows 1",
        "--activation_checkpointing full",
        "--activation_checkpointing full --activation_offload on",
    ]
    assert fresh[3].startswith("--optim adamw_sr") and fresh[-2:] == ["--row_length below 2048", "more GPUs"]
    left = advised("llama3_8b", activation_checkpointing="full", activation_offload=True, optim="adamw_sr")
    assert not any("activation" in line or "adamw_sr " in line for line in left)
    assert advised("llama3_8b", precision="fp32")[2] == "--precision bf16"
    assert advised("roberta_large")[1] == "--row_length below 2048", "shorter rows cut no document of an encoder"


def test_every_advised_setting_is_an_option_that_works() -> None:
    args = ["--model", "llama3_8b", "--task", str(TICKETS), "--checkpoint", "x", "--precision", "bf16"]
    for line in advised("llama3_8b", micro_rows=2)[:-2]:
        load_config([*args, *line.split(" or ")[0].split()])


@pytest.mark.gpu
def test_on_cuda_it_is_tried_and_says_what_it_needs(
    launch: Callable[..., subprocess.CompletedProcess], train_args: list[str]
) -> None:
    done = launch(ROOT / "train.py", *train_args, "--device", "cuda", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert "the worst step there can be" in done.stdout and "GiB (tried in" in done.stdout
