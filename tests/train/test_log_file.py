"""``log.jsonl`` on a disk that refuses lines: no run ends by it, and the lines are written later."""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.train.tiny_run import make_trainer
from train import log_file
from train.checkpointing import checkpoint
from train.errors import Interrupted, RunStopped
from train.log_file import LogFile
from train.parallel.distributed import World
from train.stopping import Stop
from train.trainer import Trainer

STEPS = 40
FULL = "log.jsonl cannot be written: No space left on device. Training goes on,"


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file of this process may become larger: a write that would make it so writes a part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def numbers(path: Path) -> list[int]:
    text = path.read_text()
    assert not text or text.endswith("\n"), "whole lines only"
    return [json.loads(line)["n"] for line in text.splitlines()]


@pytest.fixture
def path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO)
    return tmp_path / "log.jsonl"


def test_lines_wait_until_they_can_be_written(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LogFile(path, resumed=False)
    log.write({"n": 0})
    with largest_file(21):  # two lines of 9 bytes, and a part of the third
        for n in range(1, 5):
            log.write({"n": n})
        assert numbers(path) == [0, 1]
    assert caplog.text.count("log.jsonl cannot be written: File too large. Training goes on,") == 1
    log.write({"n": 5})
    assert numbers(path) == [0, 1, 2, 3, 4, 5]
    log.write({"n": 6})
    log.close()
    assert numbers(path) == [0, 1, 2, 3, 4, 5, 6]
    assert len(caplog.messages) == 2 and "can be written again and has the lines that waited" in caplog.messages[1]


def write_six_of_which_one_fits(path: Path, monkeypatch: pytest.MonkeyPatch, close: bool) -> LogFile:
    """At most three lines may wait."""
    monkeypatch.setattr(log_file, "MOST_WAITING", 3)
    log = LogFile(path, resumed=False)
    with largest_file(10):
        for n in range(6):
            log.write({"n": n})
        if close:
            log.close()
    return log


def test_lines_that_wait_at_the_end_are_counted(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_six_of_which_one_fits(path, monkeypatch, close=True)
    assert numbers(path) == [0]
    assert "log.jsonl has not all lines: 5 could not be written." in caplog.messages[-1]


def test_the_oldest_lines_are_dropped_if_too_many_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_six_of_which_one_fits(path, monkeypatch, close=False).close()
    assert numbers(path) == [0, 3, 4, 5]


def test_a_file_that_cannot_be_opened_yet(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir()  # also root cannot write here
    log = LogFile(path, resumed=False)
    log.write({"n": 0})
    path.rmdir()
    path.write_text('{"n": 9}\n')  # of a start before
    log.write({"n": 1})
    log.close()
    assert numbers(path) == [0, 1]
    assert "cannot be written: Is a directory" in caplog.messages[0] and len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", [5]),
        ('{"n": 0}\n', [0, 5]),
        ('{"n": 0}\n{"n": 1}\n{"n', [0, 1, 5]),
        ('{"n": 0}\n\0\0\0\0', [0, 5]),
        ('{"n', [5]),
    ],
)
def test_a_resumed_run_goes_on_after_the_last_whole_line(path: Path, before: str, after: list[int]) -> None:
    path.write_text(before)
    log = LogFile(path, resumed=True)
    log.write({"n": 5})
    log.close()
    assert numbers(path) == after


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """A run folder on a small disk, with its checkpoints on another one."""
    caplog.set_level(logging.INFO)
    (tmp_path / "checkpoints").mkdir()
    (small_disk / "run").mkdir()
    (small_disk / "run" / "checkpoints").symlink_to(tmp_path / "checkpoints")
    return small_disk / "run"


def fill(run: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (run / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def before_step(trainer: Trainer, does: dict[int, Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = trainer.train_step

    def step(batch):
        does.get(trainer.step + 1, lambda: None)()
        return train_step(batch)

    monkeypatch.setattr(trainer, "train_step", step)


def steps_in(log: Path) -> list[int]:
    return [json.loads(line).get("step") for line in log.read_text().splitlines()]


def saved(run: Path) -> list[str]:
    return [folder.name for folder in checkpoint.steps_in(run / "checkpoints")]


def test_a_disk_that_is_full_for_a_time(world: World, run: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    trainer, missing = make_trainer(run, world, steps=STEPS, save_every=30), []

    def free() -> None:
        missing.extend(set(range(1, trainer.step + 1)) - set(steps_in(run / "log.jsonl")))
        (run / "filler").unlink()

    before_step(trainer, {3: lambda: fill(run), 36: free}, monkeypatch)
    trainer.run()
    assert missing, "the disk took all lines"
    assert steps_in(run / "log.jsonl") == list(range(1, STEPS + 1))
    assert saved(run) == ["step_000030", "step_000040"]
    assert caplog.text.count(FULL) == 1


def test_a_full_disk_costs_no_checkpoint_of_a_run_that_is_stopped(
    world: World, run: Path, monkeypatch: pytest.MonkeyPatch, caplog, told: Stop
) -> None:
    trainer = make_trainer(run, world, steps=STEPS)
    before_step(trainer, {3: lambda: fill(run), 36: lambda: setattr(told, "signum", signal.SIGTERM)}, monkeypatch)
    with pytest.raises(Interrupted, match="saved to .*step_000036"):
        trainer.run()
    assert saved(run) == ["step_000036"] and FULL in caplog.text and "log.jsonl has not all lines" in caplog.text


def test_a_full_disk_hides_no_other_error(world: World, run: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    trainer = make_trainer(run, world, steps=STEPS)

    def spoil() -> None:
        next(trainer.model.parameters()).data.fill_(math.nan)

    before_step(trainer, {3: lambda: fill(run), 36: spoil}, monkeypatch)
    with pytest.raises(RunStopped, match="step 36: the loss is nan"):
        trainer.run()
    assert FULL in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_under_tensorboard(world: World, run: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    pytest.importorskip("tensorboard")
    trainer = make_trainer(run, world, steps=STEPS, tensorboard=True)
    before_step(trainer, {3: lambda: fill(run), 36: (run / "filler").unlink}, monkeypatch)
    trainer.run()
    assert caplog.text.count("tensorboard/ gets no more figures: [Errno 28] No space left on device.") == 1
    assert steps_in(run / "log.jsonl") == list(range(1, STEPS + 1)) and saved(run) == ["step_000040"]
