"""Disk space and host memory: computed right, checked before training, and missed with a clear message."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from data.errors import DISK_FULL, UserError
from tests.train.tiny_run import TIED, TINY, WIDE, make_trainer
from train import options
from train.checkpointing import checkpoint, disk_space
from train.checkpointing.disk_space import StoredBytes, choose_background, format_bytes, max_new_folders, run_bytes
from train.config import TrainConfig
from train.optim.formats import OPTIMIZERS
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer

SIZES = StoredBytes(checkpoint=100, export=10)


@pytest.mark.parametrize(
    ("model_config", "optim"),
    [(TINY, "adamw"), (TIED, "adamw"), *((WIDE, name) for name in OPTIMIZERS if name != "adamw")],
)
def test_sizes_are_those_of_what_is_written(model_config, optim: str, world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world, steps=1, model_config=model_config, optim=optim)
    trainer.run()
    real = disk_space.folder_bytes(checkpoint.newest_complete(trainer.checkpoints))
    parameters = list(trainer.model.parameters())
    measured = disk_space.bytes_to_write([parameters, [trainer.optimizer.state[p] for p in parameters]])
    for expected in (trainer.saver.sizes.checkpoint, measured):
        assert real <= expected <= real + 200_000, (real, expected)


def config(output: Path, **values) -> TrainConfig:
    return options.build(TrainConfig, [dict(output=output, steps=10, save_every=2, keep=2, export=False), values])


@pytest.mark.parametrize(
    ("existing", "coming", "keep", "most"),
    [(0, 0, 2, 0), (0, 1, 2, 1), (0, 2, 2, 2), (0, 9, 2, 3), (2, 9, 2, 1), (1, 9, 2, 2), (1, 1, 2, 1), (3, 5, 2, 1)],
)
def test_the_worst_moment(existing: int, coming: int, keep: int, most: int) -> None:
    assert max_new_folders(existing, coming, keep) == most


@pytest.mark.parametrize(
    ("values", "first_step", "needed"),
    [
        ({}, 0, 300),  # two kept, one being written
        ({"save_every": 0}, 0, 100),
        ({"save_every": 5}, 0, 200),  # steps 5 and 10
        ({"save_every": 4}, 8, 100),  # step 10
        ({}, 10, 0),
        ({"keep": 1}, 0, 200),
        ({"export": True}, 0, 300),  # the export stands beside two
        ({"export": True, "save_every": 0}, 0, 110),
        ({"export": True}, 10, 10),
        ({"eval_every": 5, "holdout": 0.5}, 0, 310),
        ({"eval_every": 5, "holdout": 0.5, "save_every": 0, "export": True}, 0, 120),
    ],
)
def test_what_a_run_needs(values: dict, first_step: int, needed: int, tmp_path: Path) -> None:
    assert run_bytes(config(tmp_path, **values), SIZES, first_step, 10, None) == needed


@pytest.mark.parametrize(
    ("eval_every", "first_step", "total_steps", "unscored", "needed"),
    [
        (0, 0, 0, True, 100),  # fitted heads alone: a checkpoint
        (5, 0, 0, True, 110),  # and best/
        (20, 0, 10, False, 110),
        (20, 0, 10, True, 120),  # best/ of the fitted heads is there while that of the last step is written
        (5, 10, 10, False, 0),
        (5, 10, 10, True, 110),  # the last scoring was stopped: best/, and the step is saved again
        (0, 10, 10, True, 0),  # no scoring any more
    ],
)
def test_what_fitted_heads_and_scorings_that_are_due_need(
    eval_every: int, first_step: int, total_steps: int, unscored: bool, needed: int, tmp_path: Path
) -> None:
    own = config(tmp_path, eval_every=eval_every, holdout=0.5, save_every=0)
    resumed = tmp_path / "checkpoints/step_000010" if first_step else None
    assert run_bytes(own, SIZES, first_step, total_steps, resumed, unscored) == needed


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("keep", "export"), [(1, True), (2, True), (1, False), (2, False)])
def test_advice_for_a_full_disk_is_what_the_run_does_not_do(keep: int, export: bool, tmp_path: Path) -> None:
    own = config(tmp_path, keep=keep, export=export)
    with pytest.raises(UserError) as error:
        disk_space.check_run(own, StoredBytes(10**15, 10**15), 10, None)
    assert error.value.status == DISK_FULL
    assert ("--keep 1)" in str(error.value), "--export off" in str(error.value)) == (keep > 1, export)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("due", [False, True])
def test_a_scoring_is_due_for_fitted_heads_and_after_a_stop(due: bool, tmp_path: Path, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(disk_space, "require_space", lambda folder, needed, *rest: asked.append(needed))
    own = config(tmp_path, eval_every=20, holdout=0.5, save_every=0, fit_heads=due)
    disk_space.check_run(own, SIZES, 10, None)
    (folder := tmp_path / "checkpoints/step_000010").mkdir(parents=True)
    values = {**options.flatten(own), "model": "x"}
    checkpoint.RunState(10, values, {}, {}, None, 1, unscored=due).write(folder)
    disk_space.check_run(own, SIZES, 10, folder)
    assert asked == ([120, 110] if due else [110, 0])


@pytest.mark.parametrize(
    ("first_step", "total_steps", "n"), [(0, 10, 3), (3, 5, 2), (4, 6, 1), (8, 10, 1), (7, 8, 1), (0, 3, 1)]
)
def test_scorings_are_counted_as_the_trainer_scores(first_step: int, total_steps: int, n: int, tmp_path: Path) -> None:
    """Each fourth step, and the last one."""
    steps = range(first_step + 1, total_steps + 1)
    assert len([step for step in steps if step % 4 == 0 or step == total_steps]) == n
    own = config(tmp_path, eval_every=4, holdout=0.5, save_every=0)
    # From the second on, a best model stands beside the one being written.
    assert run_bytes(own, SIZES, first_step, total_steps, None) == 100 + min(n, 2) * 10


def test_what_stands_there_already_counts(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in ("step_000002", "step_000004", "step_000006", ".step_000008.partial"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "run.json").write_bytes(bytes(100))
    newest = checkpoints / "step_000006"
    # The half-written one goes, and with --keep 2 the oldest: 200 bytes. What is to come is one more than the two.
    assert [p.name for p in disk_space.leftovers(tmp_path, 2, newest)] == [".step_000008.partial", "step_000002"]
    assert run_bytes(config(tmp_path), SIZES, 6, 10, newest) == 100 - 200
    assert run_bytes(config(tmp_path, keep=3), SIZES, 6, 10, newest) == 100 - 100
    assert run_bytes(config(tmp_path, keep=1), SIZES, 6, 10, newest) == 100 - 300
    # Those after the one to resume from are damaged: they stay, and are not counted.
    oldest, middle = checkpoints / "step_000002", checkpoints / "step_000004"
    assert disk_space.leftovers(tmp_path, 1, oldest) == [checkpoints / ".step_000008.partial"]
    assert disk_space.leftovers(tmp_path, 1, middle) == [checkpoints / ".step_000008.partial", oldest]


def test_a_full_disk_is_found_before_anything_loads(world, train_args: list[str], monkeypatch) -> None:
    from train import build

    def load(*args, **kwargs) -> None:
        raise AssertionError("something was loaded")

    args = load_config(train_args)
    setup = open_run(args)
    monkeypatch.setattr(build, "parallelize", load)
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 1_000_000)
    with pytest.raises(UserError) as error:
        Trainer(args, setup, world)
    for part in ("it needs ", "and 1.0 MB are free at ", "/run", "--output", "--keep", "--export off"):
        assert part in str(error.value)


def test_a_run_is_opened_before_the_optimizer_is_chosen(train_args: list[str]) -> None:
    args = load_config(train_args)
    open_run(dataclasses.replace(args, optim=dataclasses.replace(args.optim, optim="auto")))  # as on a GPU


def test_too_little_space_for_the_export_is_said_after_the_last_save(world, tmp_path: Path, monkeypatch) -> None:
    trainer = make_trainer(tmp_path, world, steps=1, export=True)
    trainer.saver.sizes = dataclasses.replace(trainer.saver.sizes, export=10**15)
    with pytest.raises(UserError, match=r"disk space for the export export/: it needs 1000.0 TB.*step_000001"):
        trainer.run()
    assert checkpoint.newest_complete(trainer.checkpoints).name == "step_000001"
    assert not (tmp_path / "export").exists()


def test_whether_the_background_has_memory(world, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(disk_space, "available_memory", lambda: 200)
    with caplog.at_level("INFO"):
        assert choose_background("auto", 100, cuda) and choose_background("on", 200, cpu)
        assert "in the background, from a copy of 0.2 kB on each machine" in caplog.text
        assert not choose_background("auto", 100, cpu) and not choose_background("off", 100, cuda)
        assert "note:" not in caplog.text
        assert not choose_background("auto", 101, cuda)
        assert "note: training waits for its checkpoints" in caplog.text
    with pytest.raises(UserError, match="takes 0.2 kB of host memory on each machine, and one has 0.2 kB left"):
        choose_background("on", 201, cuda)


def test_memory_that_is_left() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < disk_space.available_memory() <= total


def test_sizes_in_words() -> None:
    assert [format_bytes(n) for n in (282.2e9, 1_234_567, 3e12, 500)] == ["282.2 GB", "1.2 MB", "3.0 TB", "0.5 kB"]
