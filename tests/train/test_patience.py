"""--patience: at which step a run ends, what it exports, and that kills change neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.errors import UserError
from tests.launching import ROOT
from tests.train.scripted_scorer import ScriptedScorer
from train.errors import Interrupted, RunStopped
from train.patience import Watched
from train.resolve import load_config
from train.run_export import other_dtype
from train.scorer import HeldOutScore
from train.setup import open_run
from train.together import how_it_ended
from train.trainer import Trainer

# Scores after steps 1 to 8. With --patience 2 the run ends after step 6, and the best model is that of step 4.
SCORES = [0.1, 0.5, 0.4, 0.6, 0.6, 0.2, 0.9, 0.9]


class Killed(BaseException):
    """Stands for the end of the process."""


def trainer_of(args: list[str], world) -> Trainer:
    """A run that is scored by its step alone."""

    def score(model, stop) -> HeldOutScore | None:
        found = SCORES[trainer.step - 1]
        return None if stop() else HeldOutScore({"accuracy": found}, found)

    config = load_config(args)
    trainer = Trainer(config, open_run(config), world, ScriptedScorer(score))
    return trainer


def exported(run: Path) -> dict:
    return json.loads((run / "export" / "best.json").read_text())


def events(run: Path, name: str) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == name]


@pytest.fixture
def args(train_args: list[str]) -> list[str]:
    return [*train_args, "--steps", "8", "--holdout", "0.25", "--eval_every", "1", "--patience", "2"]


def test_what_is_counted() -> None:
    watched, ended = Watched(), []
    for step, score in enumerate(SCORES, 1):
        watched = watched.add(score, step)
        ended.append((watched.ends(1), watched.ends(2), watched.ends(None)))
    assert [step for step, (one, _, _) in enumerate(ended, 1) if one][0] == 3, "0.4 after 0.5"
    assert [step for step, (_, two, _) in enumerate(ended, 1) if two][0] == 6, "an equal score is no better one"
    assert not any(never for *_, never in ended)
    assert watched == Watched(0.9, 7, 1)


def test_ends_and_exports_the_best(world, args: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    with caplog.at_level("INFO"):
        trainer = trainer_of(args, world)
        trainer.run()
    said = "\n".join(caplog.messages)
    assert trainer.step == 6
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000006"]
    why = "2 held-out scoring(s) in a row were no better than that of step 4 (0.6000)"
    assert f"the training ended after step 6 of 8, as --patience 2 asks: {why}." in said
    assert (
        "(no better than step 4, 1 of 2 times)" in said and "the best model, of step 4 (held-out score 0.6000)" in said
    )
    assert exported(run) == {"step": 4, "score": 0.6, "accuracy": 0.6}
    assert [(event["step"], event["best_step"]) for event in events(run, "early_end")] == [(6, 4)]
    for name in ("model.safetensors", "README.md", "training.json", "calibration.json"):
        assert (run / "export" / name).read_bytes() == (run / "best" / name).read_bytes()
    rates = [json.loads(line)["lr"] for line in (run / "log.jsonl").read_text().splitlines() if '"lr"' in line]
    assert rates == pytest.approx([1e-3 * (8 - n) / 8 for n in range(6)]), "the schedule is that of all 8 steps"

    config = load_config([*args, "--resume", "auto"])
    found = how_it_ended(config, open_run(config))
    assert found == f"it ended after step 6, as --patience 2 asks: {why}."
    shutil.rmtree(run / "export")
    assert how_it_ended(config, open_run(config)) is None, "the export is missing"
    again = trainer_of([*args, "--resume"], world)
    again.run()
    assert again.step == 6 and exported(run)["step"] == 4, "exports again and trains no more"

    assert "--export_dtype" not in caplog.text
    other = [*args, "--export_dtype", "bf16", "--resume", "auto"]
    note = f" {run / 'export'} is in fp32: the best model was saved before --export_dtype bf16 was given."
    assert how_it_ended(load_config(other), open_run(load_config(other))) == found + note
    assert not other_dtype(tmp_path, "bf16"), "older code did not say which dtype"
    shutil.rmtree(run / "export")
    with caplog.at_level("INFO"):
        trainer_of(other, world).run()
    assert exported(run)["step"] == 4
    assert f"note:{note}" in caplog.text

    longer = [*args, "--patience", "3", "--resume", "auto"]
    assert how_it_ended(load_config(longer), open_run(load_config(longer))) is None
    more = trainer_of(longer, world)
    more.run()
    assert more.step == 8 and exported(run)["step"] == 7
    ended = how_it_ended(load_config(longer), open_run(load_config(longer)))
    assert ended == "all 8 steps are taken."
    last = load_config([*args[:-2], "--resume", "auto"])
    assert how_it_ended(last, open_run(last)) is None, "without --patience the last model is exported"


@pytest.mark.parametrize("save_every", [2, 5])
@pytest.mark.parametrize("killed_in", [1, 2, 3, 4, 5, 6])
def test_killed_and_resumed_ends_at_the_same_step(
    killed_in: int, save_every: int, world, args: list[str], tmp_path: Path
) -> None:
    """The process ends after the step's scoring; a checkpoint is 1 to 5 steps behind, and best/ may be newer."""
    run = tmp_path / "run"
    args = [*args, "--save_every", str(save_every), "--resume", "auto"]
    first = trainer_of(args, world)
    score = first._score

    def killed() -> bool:
        score()
        if first.step == killed_in:
            raise Killed
        return True

    first._score = killed
    with pytest.raises(Killed):
        first.run()
    second = trainer_of(args, world)
    assert second.step == killed_in - 1 - (killed_in - 1) % save_every
    second.run()
    assert (second.step, exported(run)["step"], exported(run)["score"]) == (6, 4, 0.6)
    assert len(events(run, "early_end")) == 1
    config = load_config(args)
    assert how_it_ended(config, open_run(config)) is not None


@pytest.mark.parametrize("place", ["in the last scoring", "before the export"])
def test_stopped_at_the_end(
    place: str, world, args: list[str], tmp_path: Path, told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first = trainer_of(args, world)
    if place == "in the last scoring":
        score = first.scorer.score

        def stopped(model, stop) -> HeldOutScore | None:
            told.signum = 15 if first.step == 6 else None
            return score(model, stop)

        monkeypatch.setattr(first.scorer, "score", stopped)
        with pytest.raises(Interrupted):
            first.run()
        told.signum = None
    else:
        monkeypatch.setattr(first, "_export_end", lambda: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            first.run()
    config = load_config([*args, "--resume", "auto"])
    assert how_it_ended(config, open_run(config)) is None
    second = trainer_of([*args, "--resume", "auto"], world)
    second.run()
    assert second.step == 6 and exported(run)["step"] == 4
    assert how_it_ended(config, open_run(config)) is not None, "the checkpoint knows of the last scoring"


@pytest.mark.parametrize("what", ["deleted", "damaged"])
def test_no_other_model_is_exported_in_the_place_of_the_best(
    what: str, world, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(args, world)
    before_export = trainer.saver.before_export

    def harmed(folder: Path) -> None:
        before_export(folder)
        best = tmp_path / "run" / "best"
        if folder.name == "export" and what == "deleted":
            shutil.rmtree(best)
        elif folder.name == "export":
            content = bytearray((best / "model.safetensors").read_bytes())
            content[-3] ^= 1
            (best / "model.safetensors").write_bytes(content)

    monkeypatch.setattr(trainer.saver, "before_export", harmed)
    message = "best does not exist" if what == "deleted" else "best is damaged (model.safetensors)"
    with pytest.raises(RunStopped) as error:
        trainer.run()
    assert message in str(error.value) and not (tmp_path / "run" / "export").exists()


def test_what_patience_needs(train_args: list[str]) -> None:
    with pytest.raises(UserError, match="patience = 2 counts held-out scorings, and there are none: give --holdout"):
        load_config([*train_args, "--patience", "2"])
    with pytest.raises(UserError, match="patience = 0: must be at least 1"):
        load_config([*train_args, "--patience", "0", "--holdout", "0.2", "--eval_every", "1"])


@pytest.mark.slow
def test_two_ranks_end_together(train_args: list[str], tmp_path: Path, launch) -> None:
    """A model of random weights gets nothing right: its scores are equal, so the second one ends the run."""
    run = tmp_path / "run"
    args = [
        *train_args,
        "--holdout",
        "0.25",
        "--eval_every",
        "1",
        "--patience",
        "1",
        "--lr",
        "1e-9",
        "--resume",
        "auto",
    ]
    done = launch(ROOT / "train.py", *args, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "the training ended after step 2 of 6, as --patience 1 asks" in done.stdout
    assert exported(run)["step"] == 1
    again = launch(ROOT / "train.py", *args, ranks=2)
    assert again.returncode == 0, again.stderr
    assert "has finished: it ended after step 2, as --patience 1 asks" in again.stdout
