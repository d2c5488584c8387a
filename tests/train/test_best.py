"""Which held-out score is the best so far, within a run and across its interruption."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.errors import Interrupted
from train.resolve import load_config
from train.setup import open_run
from train.stopping import Stop
from train.trainer import HeldOutScore, Trainer


def test_the_best_stays_until_a_better_one_also_across_a_resumption(
    world, train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Stop
) -> None:
    scores = iter([0.2, 0.2, 0.4, 0.3, 0.7, 0.6])
    exported = []
    export = Trainer._export

    def recorded(self, name, about=None):
        exported.append((self.step, name))
        export(self, name, about)

    monkeypatch.setattr(Trainer, "_export", recorded)
    scorer = SimpleNamespace(score=lambda model, stop: HeldOutScore({}, next(scores)))

    args = [*train_args, "--holdout", "0.25", "--eval_every", "1"]
    config = load_config([*args, "--save_every", "3"])
    first = Trainer(config, open_run(config), world, scorer)
    train_step = first.train_step

    def interrupted_in_step_3(batch):
        told.signum = signal.SIGTERM if first.step == 2 else None
        return train_step(batch)

    monkeypatch.setattr(first, "train_step", interrupted_in_step_3)
    with pytest.raises(Interrupted):
        first.run()
    assert exported == [(1, "best")], "an equal score is no better one, and a run that is to stop does not score"
    told.signum = None
    config = load_config([*args, "--resume"])
    Trainer(config, open_run(config), world, scorer).run()
    assert exported[1:] == [(3, "best"), (5, "best"), (6, "export")], "step 3 is scored now, and 0.4 remembered"
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert (best["step"], best["score"]) == (5, 0.7)


def test_a_score_of_zero_is_not_announced_as_the_best(
    world, train_args: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([0.0, 0.0, 0.4, 0.4, 0.5, 0.0])
    scorer = SimpleNamespace(score=lambda model, stop: HeldOutScore({"accuracy": 0.0}, next(scores)))
    config = load_config([*train_args, "--holdout", "0.25", "--eval_every", "1"])
    with caplog.at_level("INFO"):
        Trainer(config, open_run(config), world, scorer).run()
    said = [message for message in caplog.messages if message.startswith("held-out, step")]
    assert [message.endswith("(best so far)") for message in said] == [False, False, True, False, True, False]
    assert said[0] == "held-out, step 1: accuracy 0.0000"
