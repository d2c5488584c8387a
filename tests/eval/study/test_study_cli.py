"""A real study, with real training and scoring: ended in the middle of a training, and continued."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.results import read_results
from tests.eval.api.server import FakeServer
from tests.eval.study.test_run import wait_for
from tests.launching import ROOT, environment, with_signals

STUDY = """
[train]
steps = 30
batch_size = 4
limit = 40
row_length = 2048
save_every = 1
log_every = 1
export_dtype = "fp32"
[eval]
limit = 6
max_new_tokens = 12
precision = "fp32"
[models.tiny]
model = "llama_debug"
checkpoint = "{checkpoint}"
[tasks.massive_intent]
data = "sample"
[[cells]]
models = ["tiny"]
tasks = ["massive_intent"]
tuned = [false, true]
"""


@pytest.fixture
def started(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "trial.toml").write_text(STUDY.format(checkpoint=tiny_checkpoint), encoding="utf-8")
    process = start(tmp_path)
    yield process
    process.kill()
    process.wait()


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eval.study", str(folder / "trial.toml"), "--output", str(folder / "out")]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=with_signals,
    )


@pytest.mark.slow
def test_a_study_is_interrupted_and_continued(started: subprocess.Popen[str], tmp_path: Path) -> None:
    tuned = tmp_path / "out/cells/tiny-massive_intent-0shot-tuned-seed0"
    steps = tuned / "train/log.jsonl"
    wait_for(lambda: steps.is_file() and len(steps.read_text().splitlines()) >= 3, seconds=240)
    started.send_signal(signal.SIGINT)
    printed, _ = started.communicate(timeout=120)
    assert started.returncode == 130, printed
    assert "To continue:" in printed and f"-m eval.study {tmp_path}/trial.toml" in printed
    assert json.loads((tuned / "cell.json").read_text())["state"] == "open"
    n_before = len(steps.read_text().splitlines())
    assert n_before < 30, "the training had ended"
    untuned = (tmp_path / "out/cells/tiny-massive_intent-0shot-untuned-seed0/score/results.json").read_bytes()

    again = start(tmp_path)
    printed, _ = again.communicate(timeout=240)
    assert again.returncode == 0, printed
    assert "2 cells: 1 done, 1 open" in printed
    log = (tuned / "log.txt").read_text()
    assert log.count("train.py") >= 2 and "resum" in log
    assert (tmp_path / "out/cells/tiny-massive_intent-0shot-untuned-seed0/score/results.json").read_bytes() == untuned
    results = read_results(tuned / "score")
    assert results.metrics["n_examples"] == 6 and results.model == "llama_debug"
    with (tmp_path / "out/table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["tuned"] for row in rows} == {"true", "false"}


SERVED = """
[models.served]
model = "api"
eval = {{ api_model = "fake", base_url = "{url}", limit = 6 }}
[tasks.massive_intent]
data = "sample"
[tasks.massive_slots]
data = "not there"
[[cells]]
models = ["served"]
tasks = ["massive_intent", "massive_slots"]
tuned = [false]
shots = [0]
"""


def test_a_model_behind_a_server_and_a_cell_that_fails(tmp_path: Path) -> None:
    server = FakeServer()
    try:
        (tmp_path / "trial.toml").write_text(SERVED.format(url=server.url), encoding="utf-8")
        process = start(tmp_path)
        printed, _ = process.communicate(timeout=120)
    finally:
        server.close()
    assert process.returncode == 2, printed
    assert "1 of 2 cells failed: served-massive_slots-0shot-untuned-seed0" in printed
    assert len(server.bodies) == 6
    folder = tmp_path / "out/cells/served-massive_intent-0shot-untuned-seed0"
    assert read_results(folder / "score").metrics["n_examples"] == 6
    assert (folder / "score/report.html").is_file()
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "not there" in page, "why it failed"
    with (tmp_path / "out/table.csv").open(encoding="utf-8", newline="") as file:
        states = {row["task"]: row["state"] for row in csv.DictReader(file)}
    assert states == {"massive_intent": "done", "massive_slots": "failed"}
