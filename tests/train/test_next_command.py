"""What is said at a run's start about its settings, and at its end about the next command."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import UserError
from eval.resolve import load_config as load_eval_config
from tests.launching import ROOT, TICKETS, pretend
from train.next_command import eval_command
from train.resolve import describe_settings, load_config, recipe_for

GPU = 80 * 10**9


def words(config, n_parameters=10**8, gpu_bytes=None) -> list[str]:
    return shlex.split(eval_command(config, Path("runs/a b/export"), n_parameters, gpu_bytes))


def test_the_command_that_scores_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = ["--model", "llama3_8b", "--output", "runs/a b"]
    own = load_eval_config(words(load_config([*base, "--task", str(TICKETS)]))[2:])
    assert (own.model, own.checkpoint, own.task) == ("llama3_8b", Path("runs/a b/export"), str(TICKETS))
    assert not own.data and not own.allow_mismatch
    more = [*base, "--task", "massive_joint", "--data", "sample", "--allow_mismatch"]
    paper = load_eval_config(words(load_config(more))[2:])
    assert (paper.task, paper.data, paper.allow_mismatch) == ("", "sample", True), "the export has the task"


def test_a_model_larger_than_a_gpu_is_scored_split(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 8)
    config = load_config(["--model", "llama3_70b", "--task", "massive_joint"])
    assert words(config, 70 * 10**9, GPU)[-2:] == ["--tp", "8"]
    assert "--nproc_per_node" in words(config, 8 * 10**9, GPU) and "--tp" not in words(config, 8 * 10**9, GPU)
    assert "--tp" not in words(config, 70 * 10**9, None)


def test_the_start_shows_what_is_not_the_recipes() -> None:
    base = ["--model", "smollm2_135m", "--task", "massive_joint", "--output", "runs/a [b]", "--device", "cpu"]
    head, *lines = describe_settings(load_config([*base, "--precision", "fp32"])).splitlines()
    assert head == "settings that are not those of smollm2_135m's recipe (runs/a [b]/config.toml has all):"
    assert [line.split()[0] for line in lines] == ["model", "task", "optim", "precision", "device", "output"]
    assert '  precision = "fp32" (recipe: "auto")' in lines and '  model = "smollm2_135m"' in lines
    assert any(line.startswith('  optim = "adamw" (chosen by --optim auto: ') for line in lines)
    recipe = recipe_for("smollm2_135m", "massive_joint")
    same = [word for name in ("batch_size", "lr", "row_length") for word in (f"--{name}", str(recipe[name]))]
    assert describe_settings(load_config([*base, "--precision", "fp32", *same])).splitlines() == [head, *lines]
    config = load_config([*base, "--steps", "7", "--lr", "1e-3"])
    shown = describe_settings(replace(config))
    assert "  steps = 7\n" in shown and "epochs" not in shown, "one replaces the other"
    assert "  lr = 0.001 (recipe: 0.0001)" in shown


def test_a_name_that_no_file_can_hold_is_refused_at_the_start() -> None:
    base = ["--model", "smollm2_135m", "--task", "massive_joint"]
    with pytest.raises(UserError, match="output = 'runs/.udcff': not UTF-8, so it cannot be recorded"):
        load_config([*base, "--output", "runs/\udcff"])
    with pytest.raises(UserError, match="name = '.udcff'"):
        load_eval_config([*base, "--name", "\udcff"])
    with pytest.raises(UserError, match="name = '.udcff'"):
        load_eval_config(["--combine", "a", "b", "--name", "\udcff"])
