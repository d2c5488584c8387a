"""One command for the first start and all that follow: ``--resume auto``; and starts that find what others left."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_tools.checksums import write_checksums
from data.errors import UserError
from tests.launching import ROOT, TICKETS, command, environment, pretend
from tests.train.scripted_scorer import ScriptedScorer
from train import next_command
from train.checkpointing import checkpoint, run_folder
from train.parallel.distributed import World
from train.resolve import load_config
from train.scorer import HeldOutScore
from train.setup import Setup, open_run
from train.together import how_it_ended
from train.trainer import Trainer

TRAIN = ROOT / "train.py"
Launch = Callable[..., subprocess.CompletedProcess]


def opened(args: list[str], *more: str) -> Setup:
    return open_run(load_config([*args, *more]))


def run_here(args: list[str], world: World) -> None:
    config = load_config(args)
    Trainer(config, open_run(config), world).run()


def steps_in_log(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


LEFT = {
    "the log": ["log.jsonl"],
    "the options": ["config.toml"],
    "the command": ["resume.sh"],
    "no checkpoint yet": ["checkpoints/"],
    "half a checkpoint": ["checkpoints/.step_000003.partial/run.json", "log.jsonl", "config.toml"],
    "half an export": [".export.new/model.safetensors", "log.jsonl"],
}


@pytest.mark.parametrize("resume", ["off", "on", "auto"])
@pytest.mark.parametrize("left", LEFT)
def test_leftovers_of_a_start_lose_nothing(
    left: str, resume: str, train_args: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in LEFT[left]:
        path = tmp_path / "run" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if name == "config.toml":
            run_folder.write_config(path.parent, "steps = 6")
        elif not name.endswith("/"):
            path.write_text({"log.jsonl": '{"step": 1, "lo', "resume.sh": next_command.OURS}.get(name, "killed"))
    with caplog.at_level("INFO"):
        assert opened(train_args, "--resume", resume).resume_from is None
    assert caplog.text.count("ended before its first checkpoint. Starting from step 1") == 1


def test_a_start_over_leftovers_is_a_run_like_any_other(world: World, train_args: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".step_000004.partial").mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')
    run_here([*train_args, "--steps", "2"], world)
    assert steps_in_log(run) == [1, 2], "the log of the killed start is gone"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002"]


def test_a_folder_in_which_nothing_ran(train_args: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint in .*run/checkpoints, and no run was started there"):
            opened(train_args, "--resume")
        with caplog.at_level("INFO"):
            assert opened(train_args).resume_from is None and opened(train_args, "--resume", "auto").resume_from is None
        run.mkdir(exist_ok=True)
        (run / "notes.txt").write_text("mine")
    assert "Starting from step 1" not in caplog.text


def test_a_command_that_torchrun_may_give_again_starts_with_resume(
    train_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torchrun --max-restarts 1 train.py ... --resume`` from the very first start."""
    pretend(monkeypatch, 1, TORCHELASTIC_RUN_ID="x", TORCHELASTIC_MAX_RESTARTS="0")
    with pytest.raises(UserError, match="no run was started there"):
        opened(train_args, "--resume")
    pretend(monkeypatch, 1, TORCHELASTIC_MAX_RESTARTS="1")
    assert opened(train_args, "--resume").resume_from is None


def test_what_would_be_lost_is_asked_for(world: World, train_args: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = [*train_args, "--steps", "2", "--save_every", "1"]
    run_here(args, world)
    newest = run / "checkpoints" / "step_000002"
    for args_now in (args, [*args, "--no_resume"]):
        with pytest.raises(UserError, match=r"holds a run already. Continue it with --resume \(with --resume auto"):
            opened(args_now)
    assert opened(args, "--resume").resume_from == opened(args, "--resume", "auto").resume_from == newest
    for resume in ("on", "auto"):
        with pytest.raises(UserError, match="lr: the checkpoint has 0.001, this run has 0.5"):
            opened(args, "--resume", resume, "--lr", "0.5")
    (newest / "run.json").write_text("{")
    assert opened(args, "--resume", "auto").resume_from == newest.with_name("step_000001")
    # Damaged checkpoints are not leftovers: some of what they hold may be saved.
    (newest.with_name("step_000001") / "run.json").unlink()
    for resume, message in (("off", "holds a run already"), ("auto", "none of the checkpoints"), ("on", "none of the")):
        with pytest.raises(UserError, match=message):
            opened(args, "--resume", resume)
    shutil.rmtree(run / "checkpoints")
    for resume in ("off", "on", "auto"):
        with pytest.raises(UserError, match="holds export/, but no checkpoint to continue from"):
            opened(args, "--resume", resume)
    assert (run / "export" / "model.safetensors").is_file()


def test_a_best_model_without_a_checkpoint(world: World, train_args: list[str], tmp_path: Path) -> None:
    """A run that was killed after a scoring and before its first checkpoint."""
    run, args = tmp_path / "run", [*train_args, "--steps", "2"]
    run_here(args, world)
    shutil.rmtree(run / "checkpoints")
    (run / "export").rename(run / "best")
    with pytest.raises(UserError, match="holds best/, .*Start the run again with --resume auto"):
        opened(args)
    assert opened(args, "--resume", "auto").resume_from is None and opened(args, "--resume").resume_from is None
    with pytest.raises(UserError, match=r"(?s)best: it belongs to a different run.*lr: the checkpoint has 0.001"):
        opened(args, "--resume", "auto", "--lr", "0.5")
    (run / "best" / "training.json").unlink()
    with pytest.raises(UserError, match="best is not of a run of this program"):
        opened(args, "--resume", "auto")


@pytest.mark.parametrize(("old", "new"), [("low", "high"), ("the", "our")])
def test_other_held_out_examples_are_another_run(
    old: str, new: str, world: World, train_args: list[str], tmp_path: Path
) -> None:
    table = shutil.copytree(TICKETS.parent, tmp_path / "task") / "train.csv"
    args = [*train_args, "--task", str(table.with_name("tickets.toml")), "--steps", "1", "--holdout", "0.25"]
    args += ["--eval_every", "1"]
    scorer = ScriptedScorer(lambda model, stop: HeldOutScore({}, 0.5))
    Trainer(load_config(args), opened(args), world, scorer).run()
    lines, held_out = table.read_text().splitlines(), [example.text for example in opened(args, "--resume").held_out]
    n = next(n for n, line in enumerate(lines) if any(text in line for text in held_out) and old in line)
    lines[n] = lines[n].replace(old, new)
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"held_out_data: the checkpoint has .*\n.*and the same data") as error:
        opened(args, "--resume")
    assert str(error.value).count("the checkpoint has") == 1, "the rest is the same"
    state = tmp_path / "run/checkpoints/step_000001/run.json"
    record = json.loads(state.read_text())
    del record["identity"]["held_out_data"]  # as older code wrote it
    state.write_text(json.dumps(record))
    write_checksums(state.parent)
    assert opened(args, "--resume").resume_from == state.parent


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_has_finished(ranks: int, launch: Launch, train_args: list[str], tmp_path: Path) -> None:
    args = [*train_args, "--steps", "3", "--resume", "auto"]
    export = tmp_path / "run" / "export" / "model.safetensors"
    assert (first := launch(TRAIN, *args, ranks=ranks)).returncode == 0, first.stderr
    assert "resuming" not in first.stdout and "ended before" not in first.stdout
    weights, written = load_file(export), (export.stat().st_mtime_ns, export.stat().st_ino)
    again = launch(TRAIN, *args, ranks=ranks)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("has finished: all 3 steps are taken") == 1 and "eval.py --model" in again.stdout
    assert again.stdout.split("To score")[1] == first.stdout.split("To score")[1], "the same advice"
    assert written == (export.stat().st_mtime_ns, export.stat().st_ino) and "resuming" not in again.stdout
    if ranks == 2:
        return
    shutil.rmtree(export.parent)  # or the run was killed while it exported
    third = launch(TRAIN, *args)
    assert third.returncode == 0 and "resuming after step 3" in third.stdout, third.stderr
    exported = load_file(export)
    assert all(exported[name].equal(weights[name]) for name in weights)


def test_a_scoring_that_is_still_due_is_something_to_do(
    world: World, train_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*train_args, "--steps", "2", "--resume", "auto", "--export", "off"]
    run_here(args, world)
    config, setup = load_config(args), opened(args)
    assert how_it_ended(config, setup)
    assert not how_it_ended(load_config([*args, "--export", "on"]), setup), "no export yet"
    assert not how_it_ended(load_config([*args, "--resume", "on"]), setup), "exports again"
    read_state = checkpoint.read_state
    monkeypatch.setattr(checkpoint, "read_state", lambda folder: dataclasses.replace(read_state(folder), unscored=True))
    assert not how_it_ended(config, setup)


def test_another_dtype_of_the_export_is_something_to_do(world: World, train_args: list[str], tmp_path: Path) -> None:
    args = [*train_args, "--steps", "1", "--resume", "auto"]
    run_here(args, world)
    assert how_it_ended(load_config(args), opened(args)) and load_config(args).checkpoint.export_dtype == "fp32"
    args += ["--export_dtype", "bf16"]
    assert not how_it_ended(load_config(args), opened(args))
    run_here(args, world)
    stored = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert how_it_ended(load_config(args), opened(args))
    (tmp_path / "run" / "export" / "training.json").write_text("{")
    assert not how_it_ended(load_config(args), opened(args)), "an export that is damaged is written again"


@pytest.mark.parametrize("complete", [True, False])
def test_a_killed_export_of_a_run_that_has_finished(
    complete: bool,
    world: World,
    train_args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A finished run that exported again: the new export counts once it is complete, and nothing hidden stays."""

    def refused(*args: object, **how: object) -> None:
        raise PermissionError("not yours")

    args, run = [*train_args, "--steps", "1", "--resume", "auto"], tmp_path / "run"
    run_here(args, world)
    listed = sorted(path.name for path in run.iterdir())
    shutil.copytree(run / "export", new := run / (".export.new" if complete else "..export.new.partial-7-1a2b"))
    if complete:
        (new / "new").touch()
    shutil.copytree(run / "export", run / ".export.old")
    (run / ".export.old" / "config.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "discard", refused)
        assert how_it_ended(load_config(args), opened(args)), "what cannot be removed does not end the program"
    assert f"what a killed export left in {run} was not removed: not yours" in caplog.text
    assert how_it_ended(load_config(args), opened(args))
    assert sorted(path.name for path in run.iterdir()) == listed
    assert (run / "export" / "new").exists() is complete


def started(args: list[str], *more: str, ranks: int = 2) -> subprocess.Popen:
    words = command(TRAIN, *args, ranks=ranks)
    at = words.index("--standalone")
    return subprocess.Popen(
        [*words[:at], *more, *words[at:]], cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_torchruns_restarts_continue(launch: Launch, train_args: list[str], tmp_path: Path) -> None:
    """A rank dies before the first checkpoint, and once more after it; torchrun starts the same command each time."""
    run, args = tmp_path / "run", [*train_args, "--steps", "30", "--save_every", "4"]
    straight = launch(TRAIN, *args, "--output", tmp_path / "straight", ranks=2)
    assert straight.returncode == 0, straight.stderr
    process = started([*args, "--resume", "auto"], "--max-restarts", "2")
    deadline, dead = time.monotonic() + 200, -1
    for step in (1, 5):
        while not (
            (run / "log.jsonl").exists()
            and f'"step": {step},' in (run / "log.jsonl").read_text()
            and (rank := children(process.pid)[-1]) != dead
        ):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.005)
        os.kill(rank, signal.SIGKILL)
        dead = rank
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert output.count("Starting from step 1") == output.count("resuming after step") == 1, output
    assert set(steps_in_log(run)) == set(range(1, 31))
    a, b = (load_file(folder / "export" / "model.safetensors") for folder in (tmp_path / "straight", run))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
