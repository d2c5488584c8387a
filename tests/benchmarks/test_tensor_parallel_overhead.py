"""The benchmarks of split models run, all ways emit the same tokens, and a copy sends less than gathering does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(start: list[str], *arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *start, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_score_in_training(tmp_path: Path) -> None:
    start = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "benchmarks.score_in_training"]
    options = ["--dim", 128, "--n_layers", 2, "--requests", 6, "--max_new_tokens", 6, "--rounds", 1]
    run(start, *options, "--output", tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    assert text.count("| 6 of 6 |") == 4 and "`torchrun --nproc_per_node 2 -m benchmarks.score_in_training" in text
    mb = {row[1]: int(row[3]) + int(row[4]) for row in (r.split("|") for r in text.splitlines() if "6 of 6" in r)}
    mb = {name.strip(): n for name, n in mb.items()}
    assert mb["copy"] < mb["fsdp, one batch"] < mb["fsdp, small batches"]


@pytest.mark.slow
def test_tensor_parallel_overhead(tmp_path: Path) -> None:
    run(["benchmarks.tensor_parallel_overhead"], "--rounds", 1, "--output", tmp_path / "out.md")
    ratios = {
        name: float(ratio)
        for name, ratio in re.findall(r"^\| (\w+) \|.*\| ([\d.]+) \|$", (tmp_path / "out.md").read_text(), re.M)
    }
    assert ratios["DTensors"] > 2 * ratios["split"]
