"""Programs begin at once: what takes long to import is imported where it is used, and nothing of it for the help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT, TICKETS, environment

RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("imported:", *sys.modules)
"""
TABLES = {"sklearn", "scipy", "pandas", "datasets", "seqeval", "matplotlib", "transformers"}
SHARDING = {"torch.distributed.tensor", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
EXPORT = ROOT / "tests" / "old_files" / "tickets" / "export"


def run(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", RUN, script, *map(str, arguments)],
        cwd=ROOT,
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def start(script: str, *arguments: object) -> tuple[str, set[str]]:
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    shown, imported = done.stdout.split("imported:")
    return shown, set(imported.split())


@pytest.mark.parametrize("script", ["train.py", "eval.py", "predict.py", "eval.page"])
def test_help(script: str) -> None:
    shown, imported = start(script, "--help")
    assert "--task" in shown
    assert "tyro" in imported and not imported & (TABLES | {"torch", "numpy"})


def test_labelling_texts(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the invoice is wrong\n")
    options = ["--checkpoint", EXPORT, "--task", TICKETS, "--input", texts, "--device", "cpu"]
    shown, imported = start("predict.py", *options)
    assert "predicted_queue" in shown
    assert "torch" in imported and not imported & (TABLES | SHARDING | COMPILER)


def test_inspecting_a_checkpoint() -> None:
    shown, imported = start("checkpoints_tools.inspect", EXPORT)
    assert "every tensor fits" in shown and not imported & (TABLES | SHARDING | COMPILER)


def test_scoring(tmp_path: Path) -> None:
    """scikit-learn computes the figures."""
    options = ["--checkpoint", EXPORT, "--task", TICKETS, "--limit", 2, "--device", "cpu", "--output", tmp_path / "run"]
    _, imported = start("eval.py", "--model", "llama", *options)
    assert "sklearn" in imported and not imported & (SHARDING | COMPILER)


def test_training_a_decoder(tmp_path: Path) -> None:
    options = ["--checkpoint", EXPORT, "--task", TICKETS, "--steps", 1, "--device", "cpu", "--output", tmp_path / "run"]
    shown, imported = start("train.py", "--model", "llama", *options, "--cache_dir", tmp_path / "cache")
    assert "step 1/1" in shown
    assert SHARDING <= imported and not imported & TABLES


def test_what_the_figures_need_and_is_missing_shows_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "broken" / "sklearn").mkdir(parents=True)
    (tmp_path / "broken" / "sklearn" / "__init__.py").write_text("raise ImportError('no such library')")
    path = f"{ROOT}{os.pathsep}{tmp_path / 'broken'}"
    options = ["--model", "llama", "--checkpoint", EXPORT, "--task", TICKETS, "--device", "cpu"]
    scoring = ["--limit", 2, "--output", tmp_path / "scored"]
    training = ["--steps", 1, "--holdout", 0.2, "--eval_every", 1, "--cache_dir", tmp_path / "cache"]
    for script, more in ("eval.py", scoring), ("train.py", [*training, "--output", tmp_path / "run"]):
        done = run(script, *options, *more, PYTHONPATH=path)
        assert done.returncode != 0 and "no such library" in done.stderr
        assert "scored" not in done.stderr and "step 1/1" not in done.stdout
