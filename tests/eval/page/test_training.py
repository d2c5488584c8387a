"""Learning curves are those of the log, as `train.metrics` writes it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.errors import UserError
from eval.page.training import POINTS, binned, find_log, read_log, training_section
from eval.results import Results
from eval.weights import hash_weights
from tests.eval.page.runs import Read
from tests.launching import ROOT
from train.metrics import RunLog

RESULTS = Results("s", "t", {"m": "class"}, "d", "test", {})
OLD = ROOT / "tests" / "old_files"
RATES = dict(lr=1e-3, grad_norm=1.0, tokens_per_second=1.0, examples_per_second=1.0, memory_gib=1.0, seconds_left=1.0)


def write_log(folder, steps, resumed=False, weighted=False):
    log = RunLog(folder, active=True, total_steps=100, start_step=0, resumed=resumed, log_every=100, tensorboard=False)
    for step in steps:
        log.step({"step": step, "loss": 10.0 / step, **({"weighted": True} if weighted else {}), **RATES})
        if step % 4 == 0:
            log.event("score", step=step, score=0.5, **{"mood accuracy": step / 100, "<b> f1": 0.25})
    log.close()


def test_a_log_of_the_trainer_is_read(tmp_path, capsys):
    write_log(tmp_path, range(1, 9))
    found = read_log(tmp_path / "log.jsonl")
    assert found.losses == {step: 10.0 / step for step in range(1, 9)} and not found.is_weighted
    assert found.scores == {step: {"mood accuracy": step / 100, "<b> f1": 0.25} for step in (4, 8)}
    write_log(tmp_path, [7, 8, 9], resumed=True, weighted=True)
    found = read_log(tmp_path / "log.jsonl")
    assert sorted(found.losses) == list(range(1, 10)) and found.is_weighted, "a step that occurs twice counts once"


def test_old_logs_are_read():
    found = read_log(OLD / "intent" / "log.jsonl")
    assert sorted(found.scores) == [50, 100] and len(found.losses) == 100


def test_a_cut_last_line_is_left_out(tmp_path):
    lines = ['{"step": 1, "loss": 2.0}', '{"event": "stopped", "step": 2, "loss": "nan"}', '{"st']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found = read_log(tmp_path / "log.jsonl")
    assert found.losses == {1: 2.0} and found.last_event == "stopped"


def test_the_log_of_a_run_that_went_on_after_a_cut_line_is_read(tmp_path, capsys):
    write_log(tmp_path, [1, 2])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    write_log(tmp_path, [3, 4], resumed=True)
    assert sorted(read_log(tmp_path / "log.jsonl").losses) == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["", "{}\n", "x\n", '{"step": "1", "loss": 1}\n', '{"step": true, "loss": 1}\n'])
def test_what_is_no_log_is_refused(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match="log.jsonl"):
        training_section(RESULTS, tmp_path / "run", tmp_path)
    (tmp_path / "run").mkdir()
    assert "Not shown: " in training_section(RESULTS, tmp_path / "run", None), "one that is not named is no error"


def test_the_log_is_found(tmp_path):
    run = tmp_path / "scored"
    run.mkdir()
    assert find_log(run, None) is None
    with pytest.raises(UserError, match=r"--train .*scored has no log.jsonl"):
        find_log(run, run)
    (tmp_path / "log.jsonl").write_text("")
    assert find_log(run, None) == tmp_path / "log.jsonl"
    assert "Give --train" in training_section(RESULTS, tmp_path / "a" / "b", None)


def test_long_curves_are_shortened():
    steps = np.arange(1, 1_001)
    x, mean, low, high = binned(steps, steps.astype(float))
    assert len(x) == POINTS and x == mean and low[0] == 1.0 and high[-1] == 1000.0
    assert binned(np.array([3, 5]), np.array([1.0, 2.0])) == ([3.0, 5.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])


def test_the_section(tmp_path, capsys):
    write_log(tmp_path, range(1, 9))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(json.dumps({"event": "early_end", "step": 8}) + "\n")
    read = Read(training_section(RESULTS, tmp_path, tmp_path))
    assert len(read.named("svg")) == 2 and {"mood accuracy", "<b> f1"} <= set(read.texts) and not read.problems
    assert "Loss of 8 steps." in read.texts and "ended early" in read.text
    write_log(tmp_path, range(1, 500))
    assert "the mean of about 6 steps" in Read(training_section(RESULTS, tmp_path, tmp_path)).text


def test_it_says_whether_the_weights_are_those_of_the_run():
    run = OLD / "intent"
    theirs = Results("s", "t", {"m": "class"}, "d", "test", {}, weights=hash_weights(run / "export"))
    assert "are those of its export" in training_section(theirs, run, run)
    theirs.weights = "0" * 64
    assert "are not those of its export" in training_section(theirs, run, run)
    theirs.weights = ""
    assert "scored weights" not in training_section(theirs, run, run)


@pytest.mark.parametrize("theirs", ["{export} + {other}", "{other} + {export}", "{export} + {export}", "{export}"])
def test_the_weights_of_joined_runs_are_compared_one_by_one(theirs):
    run, other = OLD / "intent", "0" * 64
    joined = Results("s", "t+u", {"m": "class"}, "d", "test", {}, settings={"combined": []})
    joined.weights = theirs.format(export=hash_weights(run / "export"), other=other)
    assert "weights of its export are among those of the two joined runs" in training_section(joined, run, run)
    joined.weights = f"{other} + {other}"
    assert "are not those of its export" in training_section(joined, run, run)
    joined.weights = other
    assert "weights" not in training_section(joined, run, run), "those of the second run are not known"
