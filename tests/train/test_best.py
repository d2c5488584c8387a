"""Which held-out score is the best so far, within a run and across its interruption."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints_tools.checksums import write_checksums
from tests.launching import ROOT
from tests.train.scripted_scorer import ScriptedScorer
from train.errors import Interrupted
from train.resolve import load_config
from train.scorer import HeldOutScore
from train.setup import open_run
from train.stopping import Stop
from train.trainer import Trainer


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
    scorer = ScriptedScorer(lambda model, stop: HeldOutScore({}, next(scores)))

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


class Killed(BaseException):
    """Stands for the end of the process."""


def flip_a_byte(run: Path) -> None:
    with (run / "best" / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)
        file.seek(-3, 2)
        file.write(bytes([byte[0] ^ 1]))


def edit(run: Path, name: str, change: Callable[[dict], None]) -> None:
    """Change a JSON file of ``best/`` on purpose, checksums included."""
    path = run / "best" / name
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    write_checksums(run / "best")


BETWEEN: dict[str, tuple[Callable[[Path], object], list[tuple[int, str]], float, str | None]] = {
    # What happens to best/, scored 0.8 in step 3, beyond the checkpoint of step 2 with its 0.4; what the resumed run
    # exports with scores 0.3, 0.5, 0.6, 0.7; the last record; what the log says.
    "nothing": (lambda run: None, [], 0.8, "is of step 3 and scored 0.8000 (the checkpoint has 0.4000)"),
    "deleted": (lambda run: shutil.rmtree(run / "best"), [3, 4, 5, 6], 0.7, "best does not exist"),
    "damaged": (flip_a_byte, [3, 4, 5, 6], 0.7, "is damaged (model.safetensors, bytes "),
    "best.json is damaged": (lambda run: (run / "best" / "best.json").write_text("{"), [3, 4, 5, 6], 0.7, "is damaged"),
    "checksums are damaged": (
        lambda run: (run / "best" / "checksums.json").write_text("{}"), [3, 4, 5, 6], 0.7, "is damaged",
    ),
    "of another run": (
        lambda run: edit(run, "training.json", lambda it: it["options"].update(lr=0.5)),
        [3, 4, 5, 6], 0.7, "another run",
    ),
    "of other data": (
        lambda run: edit(run, "training.json", lambda it: it["identity"].update(training_data="f00")),
        [3, 4, 5, 6], 0.7, "another run",
    ),
    "of other held-out examples": (
        lambda run: edit(run, "training.json", lambda it: it["identity"].update(held_out_data="f00")),
        [3, 4, 5, 6], 0.7, "another run",
    ),
    "of code that did not say which were held out": (
        lambda run: edit(run, "training.json", lambda it: it["identity"].pop("held_out_data")),
        [], 0.8, None,
    ),
    "an older copy": (
        lambda run: edit(run, "best.json", lambda it: it.update(score=0.2, step=1)), [3, 4, 5, 6], 0.7,
        "is of step 1 and scored 0.2000 (the checkpoint has 0.4000)",
    ),
    "of older code": (
        lambda run: edit(run, "training.json", lambda it: it.pop("identity")),
        [], 0.8, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BETWEEN)
def test_the_record_is_the_best_that_exists(
    what: str, world, train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    change, exported_again, record, message = BETWEEN[what]
    run, exported = tmp_path / "run", []
    export = Trainer._export

    def recorded(self, name, about=None):
        exported.append((self.step, name))
        export(self, name, about)
        if about is not None and about["score"] == 0.8:
            raise Killed

    monkeypatch.setattr(Trainer, "_export", recorded)
    args = [*train_args, "--holdout", "0.25", "--eval_every", "1", "--save_every", "2"]
    scores = iter([0.2, 0.4, 0.8, 0.3, 0.5, 0.6, 0.7])
    scorer = ScriptedScorer(lambda model, stop: HeldOutScore({}, next(scores)))
    with pytest.raises(Killed):
        Trainer(load_config(args), open_run(load_config(args)), world, scorer).run()
    assert exported == [(1, "best"), (2, "best"), (3, "best")]
    assert [path.name for path in (run / "checkpoints").glob("step*")] == ["step_000002"]
    before = {path.name: path.read_bytes() for path in (run / "best").iterdir()}
    change(run)
    changed = {path.name: path.read_bytes() for path in (run / "best").iterdir()} if (run / "best").is_dir() else {}
    config = load_config([*args, "--resume"])
    with caplog.at_level("INFO"):
        trainer = Trainer(config, open_run(config), world, scorer)
        trainer.run()
    assert exported[3:] == [*((step, "best") for step in exported_again), (6, "export")]
    assert trainer.best == record == json.loads((run / "best" / "best.json").read_text())["score"]
    assert message is None or any(message in said for said in caplog.messages)
    if what in ("damaged", "best.json is damaged", "of another run"):
        kept = {path.name: path.read_bytes() for path in (run / "kept_best").iterdir()}
        assert kept == changed != before, "it is not lost"
    else:
        assert not (run / "kept_best").exists() or what == "checksums are damaged" or what.startswith("of other")


@pytest.mark.slow
def test_two_ranks_decide_alike(train_args: list[str], tmp_path: Path, launch) -> None:
    run = tmp_path / "run"
    args = [*train_args, "--holdout", "0.25", "--eval_every", "2", "--save_every", "2", "--keep", "9"]
    assert launch(ROOT / "train.py", *args, ranks=2).returncode == 0
    for change, message in (
        (lambda: None, "2.0000 (the checkpoint has"),
        (lambda: flip_a_byte(run), "best is damaged (model"),
    ):
        shutil.rmtree(run / "checkpoints" / "step_000006")
        edit(run, "best.json", lambda it: it.update(score=2.0))  # none is better
        change()
        done = launch(ROOT / "train.py", *args, "--resume", ranks=2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(message) == 1
        score = json.loads((run / "best" / "best.json").read_text())["score"]
        assert (score == 2.0) == (message == "2.0000 (the checkpoint has")
    assert (run / "kept_best" / "model.safetensors").is_file()


def test_a_score_of_zero_is_not_announced_as_the_best(
    world, train_args: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([0.0, 0.0, 0.4, 0.4, 0.5, 0.0])
    scorer = ScriptedScorer(lambda model, stop: HeldOutScore({"accuracy": 0.0}, next(scores)))
    config = load_config([*train_args, "--holdout", "0.25", "--eval_every", "1"])
    with caplog.at_level("INFO"):
        Trainer(config, open_run(config), world, scorer).run()
    said = [message for message in caplog.messages if message.startswith("held-out, step")]
    assert [message.endswith("(best so far)") for message in said] == [False, False, True, False, True, False]
    assert said[0] == "held-out, step 1: accuracy 0.0000"
