"""Which held-out score is the best so far, within a run and across its interruption."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.held_out import HeldOutScoring
from train.config import load_config
from train.errors import Interrupted
from train.setup import open_run
from train.trainer import Trainer


def test_the_best_stays_until_a_better_one_also_across_a_resumption(
    world, train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.2, 0.4, 0.3, 0.7, 0.6])
    exported = []
    export = Trainer._export

    def recorded(self, name, about=None):
        exported.append((self.step, name))
        export(self, name, about)

    monkeypatch.setattr(Trainer, "_export", recorded)
    monkeypatch.setattr(HeldOutScoring, "score", lambda self, model: SimpleNamespace(metrics={}))
    monkeypatch.setattr("eval.metrics.main_figures", lambda task, found: {})
    monkeypatch.setattr("eval.metrics.selection_metric", lambda task, found: next(scores))

    args = [*train_args, "--holdout", "0.25", "--eval_every", "1"]
    config = load_config([*args, "--save_every", "3"])
    first = Trainer(config, open_run(config), world)
    train_step = first.train_step

    def interrupted_in_step_3(batch):
        first.signum = signal.SIGTERM if first.step == 2 else None
        return train_step(batch)

    monkeypatch.setattr(first, "train_step", interrupted_in_step_3)
    with pytest.raises(Interrupted):
        first.run()
    assert exported == [(1, "best"), (3, "best")], "an equal score is no better one"
    config = load_config([*args, "--resume"])
    Trainer(config, open_run(config), world).run()
    assert exported[2:] == [(5, "best"), (6, "export")], "the checkpoint remembers 0.4"
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert (best["step"], best["score"]) == (5, 0.7)
