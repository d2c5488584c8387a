"""A run that is killed again and again, at random moments, ends as one that was left alone, bit for bit.

The same command line starts it each time. Kills fall into the start-up, steps, scorings, saves and exports. They are
drawn with a fixed seed, but what a kill meets depends on the machine's speed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.launching import ROOT, command, environment, with_signals
from tests.train.test_stopping import is_running, taken
from train.checkpointing import checkpoint

KILLS = 13  # of each kind of run: 52 in all
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STEPS = 600
IN_START_UP = 0.25  # of the kills


def start(line: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(
            line, cwd=ROOT, env=environment(), stdout=file, stderr=file, start_new_session=True, preexec_fn=with_signals
        )


def family(pid: int) -> list[int]:
    """A process and its children: torchrun, then its ranks."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        children = []
    return [pid, *sorted(map(int, children))]


def kill(process: subprocess.Popen, draw: random.Random) -> str:
    """Kill the run in a random way, and wait until all its processes are gone; says how."""
    number, alive = draw.choice(SIGNALS), family(process.pid)
    whom = draw.choice(("torchrun", "all", "a rank")) if len(alive) > 1 else "the process"
    for pid in {"torchrun": alive[:1], "a rank": [draw.choice(alive[1:] or alive)]}.get(whom, alive):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    process.wait(120)
    deadline = time.monotonic() + 60
    while any(map(is_running, alive)):
        assert time.monotonic() < deadline, f"{number.name} to {whom}: processes are left"
        time.sleep(0.05)
    return f"{number.name} to {whom}"


def wait_for_moment(process: subprocess.Popen, run: Path, draw: random.Random) -> None:
    """Wait until the next kill, or the end of the run."""
    if draw.random() < IN_START_UP:
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.5, 8.0))
        return
    before, more = taken(run), draw.randint(1, 2 * STEPS // (KILLS + 3))
    while process.poll() is None and taken(run) - before < more:
        time.sleep(0.005)
    time.sleep(draw.uniform(0.0, 0.1))


def everything(run: Path, folder: Path) -> dict[str, Any]:
    """All tensors of the run's last checkpoint and of its export, by name."""
    last = checkpoint.steps_in(run / "checkpoints")[-1]
    dcp_to_torch_save(last, folder / "all.pt")
    stored = torch.load(folder / "all.pt", weights_only=False)
    flat = {f"export.{name}": value for name, value in load_file(run / "export" / "model.safetensors").items()}

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flatten(f"{name}.{key}", inner)
        elif isinstance(value, torch.Tensor):
            flat[name] = value

    flatten("checkpoint", stored)
    return flat


def best(run: Path) -> tuple[int, float]:
    found = json.loads((run / "best" / "best.json").read_text())
    return found["step"], found["score"]


@pytest.mark.slow
@pytest.mark.parametrize("async_save", ["off", "on"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_end_as_one_that_was_left_alone(
    ranks: int, async_save: str, train_args: list[str], tmp_path: Path
) -> None:
    args = [*train_args, "--steps", STEPS, "--log_every", 100, "--save_every", 7, "--async_save", async_save]
    args += ["--holdout", "0.25", "--eval_every", 50, "--max_new_tokens", 4, "--resume", "auto"]

    def line(run: Path) -> list[str]:
        return command(ROOT / "train.py", *args, "--output", run, ranks=ranks)

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    straight = subprocess.run(line(alone), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert straight.returncode == 0, straight.stdout + straight.stderr

    draw, kills, log = random.Random(f"{ranks} {async_save}"), [], tmp_path / "log"
    while True:
        process = start(line(killed), log)
        if len(kills) == KILLS:
            break
        wait_for_moment(process, killed, draw)
        if process.poll() is None:
            kills.append(kill(process, draw))
            print(f"{ranks} rank(s), async_save {async_save}: after {taken(killed)} steps in the log: {kills[-1]}")
        else:
            assert process.returncode == 0, log.read_text()[-5000:]
    assert process.wait(600) == 0, log.read_text()[-5000:]
    assert not list(killed.glob("kept_*")) and not (killed / "run.lock").exists()
    a, b = everything(alone, tmp_path), everything(killed, tmp_path)
    assert a.keys() == b.keys() and len(a) > 30
    differing = [name for name in a if not a[name].equal(b[name])]
    assert not differing, differing
    assert best(alone) == best(killed)
