"""Saves in the background and on full disks: of the right moment, whole or not there, and never silent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import DISK_FULL, UserError
from tests.train.checkpointing.saving_run import SMALL
from tests.train.checkpointing.test_checkpoint import parameters, resumed
from tests.train.tiny_run import TIED, make_trainer, whole
from train.checkpointing import checkpoint, disk_space, saver
from train.checkpointing.saver import HostCopy, SaveFailed
from train.errors import Interrupted, RunStopped
from train.stopping import Stop
from train.trainer import Trainer

WAIT = 20.0


class SlowWriter:
    """Stops every file of a checkpoint, once opened, until `release` is called.

    Attributes:
        writing: set while a file waits.
        on_open: called in the writer's thread with the number of files opened so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writing, self.released, self.n_opened = threading.Event(), threading.Event(), 0
        self.on_open: Callable[[int], None] = lambda n: None
        real = saver.WatchedFiles.create_stream

        @contextmanager
        def create_stream(files: saver.WatchedFiles, path: Path, mode: str) -> Iterator:
            with real(files, path, mode) as stream:
                self.n_opened += 1
                self.writing.set()
                self.on_open(self.n_opened)
                assert self.released.wait(WAIT)
                yield stream

        monkeypatch.setattr(saver.WatchedFiles, "create_stream", create_stream)

    def release(self) -> None:
        self.released.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowWriter]:
    writer = SlowWriter(monkeypatch)
    yield writer
    writer.release()


def take_steps(trainer: Trainer, n: int) -> None:
    for _ in range(n):
        trainer.train_step(trainer.setup.loader.step(trainer.step))


def everything(trainer: Trainer) -> dict[str, np.ndarray]:
    states = {
        f"{name} {key}": whole(value)
        for name, p in trainer.model.named_parameters()
        for key, value in trainer.optimizer.state[p].items()
    }
    return parameters(trainer) | states


@pytest.mark.parametrize("n_before", [0, 1])  # the copy is new, and used again
def test_what_is_saved_is_of_the_step_while_training_goes_on(n_before: int, world, tmp_path: Path, slow) -> None:
    trainer = make_trainer(tmp_path, world, steps=9, model_config=TIED, async_save="on")
    for _ in range(n_before):
        slow.release()
        take_steps(trainer, 1)
        trainer._save()
        trainer.saver.finish()
        slow.released.clear()
    take_steps(trainer, 3)
    trainer._save()
    then, random = everything(trainer), torch.get_rng_state()
    assert slow.writing.wait(WAIT)
    take_steps(trainer, 2)
    torch.rand(3)
    now = everything(trainer)
    assert all(not np.array_equal(then[name], now[name]) for name in then), "training changed all of it"
    final = checkpoint.step_folder(trainer.checkpoints, 3 + n_before)
    assert saver.partial_folder(final).exists() and not final.exists(), "it was still being written"
    slow.release()
    trainer.saver.finish()
    again = resumed(trainer, final)
    assert torch.equal(torch.get_rng_state(), random)
    found = everything(again)
    for name, value in then.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_copy_is_made_once(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world, async_save="on")
    take_steps(trainer, 1)
    trainer._save()
    first = {name: buffer.data_ptr() for name, buffer in trainer.saver.copy.buffers.items()}
    take_steps(trainer, 1)
    trainer._save()
    trainer.saver.finish()
    assert {name: buffer.data_ptr() for name, buffer in trainer.saver.copy.buffers.items()} == first
    n = sum(p.numel() for p in trainer.model.parameters())
    n_tensors = len(list(trainer.model.parameters()))
    assert trainer.saver.copy.n_bytes == 12 * n + 4 * n_tensors, "weights, two states and AdamW's step counters"
    make_trainer(tmp_path / "other", world, async_save="off")._save()


def test_no_host_memory_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": torch.ones(3)}

    def empty(*args, **kwargs):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(SaveFailed, match="can't allocate memory\nContinue .* --async_save off"):
        HostCopy(pinned=False).take(value)


def test_quantized_states_inside_dtensors_are_copied() -> None:
    pytest.importorskip("torchao")
    from torchao.optim.subclass_8bit import OptimState8bit

    state = OptimState8bit.zeros((4, 256))
    state.copy_(torch.randn(4, 256))
    copied = HostCopy(pinned=False).take({"a": [state]})["a"][0]
    before = state.dequantize()
    assert type(copied) is OptimState8bit and torch.equal(copied.dequantize(), before)
    state.copy_(torch.randn(4, 256))
    assert torch.equal(copied.dequantize(), before) and not torch.equal(state.dequantize(), before)


def test_a_second_save_waits_for_the_first_and_says_so(world, tmp_path: Path, slow, caplog) -> None:
    trainer = make_trainer(tmp_path, world, async_save="on")
    trainer._save()
    assert slow.writing.wait(WAIT)
    take_steps(trainer, 1)
    threading.Timer(0.3, slow.release).start()
    with caplog.at_level("INFO"):
        trainer._save()
    assert slow.released.is_set() and checkpoint.step_folder(trainer.checkpoints, 0).exists()
    assert "waiting until the checkpoint of step 0 is written" in caplog.text
    trainer.saver.finish()
    assert len(checkpoint.steps_in(trainer.checkpoints)) == 2


def no_space(n: int) -> Callable[[int], None]:
    def fail(n_opened: int) -> None:
        if n_opened == n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


@pytest.mark.parametrize("async_save", ["off", "on"])
def test_a_failed_save_stops_the_run_and_leaves_the_older_one(
    async_save: str, world, tmp_path: Path, slow: SlowWriter
) -> None:
    slow.release()
    slow.on_open = no_space(4)  # data, metadata and random states of the first checkpoint, data of the second
    trainer = make_trainer(tmp_path, world, steps=9, save_every=2, async_save=async_save)
    if async_save == "on":
        trainer.saver.save = lambda *args, save=trainer.saver.save: (save(*args), wait([trainer.saver.flight], WAIT))
    with pytest.raises(SaveFailed) as error:
        trainer.run()
    assert trainer.step == 4, "in the next step, before its update, not at the next save"
    assert error.value.status == DISK_FULL
    for part in ("step 4 could not", "rank 0: [Errno 28] No space left", "step_000002", "--keep", "--resume"):
        assert part in str(error.value)
    assert [p.name for p in trainer.checkpoints.iterdir()] == ["step_000002"], "the half-written one is gone"
    assert checkpoint.newest_complete(trainer.checkpoints).name == "step_000002"


def test_a_first_save_that_cannot_make_its_folder_says_why(world, tmp_path: Path, monkeypatch) -> None:
    trainer = make_trainer(tmp_path, world, steps=1)
    make = Path.mkdir

    def refuse(path: Path, *args: Any, **options: Any) -> None:
        if path.is_relative_to(trainer.checkpoints):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaveFailed, match=r"step 1 could not be written.*quota exceeded\nIt needs .* were free"):
        trainer.run()


def test_a_save_that_fails_while_the_run_ends_is_not_lost(world, tmp_path: Path, slow: SlowWriter) -> None:
    slow.on_open = no_space(1)
    trainer = make_trainer(tmp_path, world, steps=1, async_save="on", export=True)
    with pytest.raises(SaveFailed, match="No checkpoint had been saved yet"):
        trainer.run()
    assert not (tmp_path / "export").exists()


def test_not_a_number_waits_for_the_save_in_flight(world, tmp_path: Path, slow, monkeypatch) -> None:
    from train import trainer as module

    real = module.field_losses

    def poisoned(model, batch, n_label_tokens):
        bad = trainer.step == 3
        if bad:
            assert slow.writing.is_set() and not slow.released.is_set()
            threading.Timer(0.3, slow.release).start()
        return real(model, batch, n_label_tokens) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(module, "field_losses", poisoned)
    trainer = make_trainer(tmp_path, world, steps=8, save_every=2, async_save="on")
    wait_for_writer(trainer, slow)
    with pytest.raises(RunStopped, match="The last checkpoint is .*step_000002"):
        trainer.run()
    assert [p.name for p in trainer.checkpoints.iterdir()] == ["step_000002"]


def wait_for_writer(trainer: Trainer, slow: SlowWriter) -> None:
    """Make every save return only when its writer has opened a file: what follows happens with a save in flight."""
    real = trainer.saver.save

    def save(*args) -> None:
        slow.writing.clear()
        real(*args)
        assert slow.writing.wait(WAIT)

    trainer.saver.save = save


def test_interrupted_with_a_save_in_flight(world, tmp_path: Path, slow: SlowWriter, told: Stop) -> None:
    slow.release()
    straight = make_trainer(tmp_path / "a", world, steps=6, model_config=TIED)
    straight.run()
    slow.released.clear()
    n_before = slow.n_opened

    def go_on_soon(n_opened: int) -> None:
        if n_opened == n_before + 1:
            threading.Timer(0.3, slow.release).start()

    slow.on_open = go_on_soon
    trainer = make_trainer(tmp_path / "b", world, steps=6, save_every=2, model_config=TIED, async_save="on")
    wait_for_writer(trainer, slow)
    train_step = trainer.train_step

    def told_in_step_3(batch):
        told.signum = signal.SIGINT if trainer.step == 2 else None
        return train_step(batch)

    trainer.train_step = told_in_step_3
    with pytest.raises(Interrupted, match="saved to .*step_000003"):
        trainer.run()
    assert [p.name for p in checkpoint.steps_in(trainer.checkpoints)] == ["step_000002", "step_000003"]
    assert len(list(trainer.checkpoints.iterdir())) == 2, "nothing half-written"
    told.signum = None
    again = resumed(trainer)
    again.run()
    for (name, a), b in zip(everything(straight).items(), everything(again).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_an_interrupt_does_not_claim_a_save_that_failed(world, tmp_path: Path, slow: SlowWriter, told: Stop) -> None:
    slow.on_open = no_space(1)
    trainer = make_trainer(tmp_path, world, steps=9, async_save="on")
    told.signum = signal.SIGINT
    with pytest.raises(SaveFailed, match="step 1 could not be written"):
        trainer.run()


def test_killed_in_the_middle_of_a_save(world, launch, tmp_path: Path, caplog) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from tests.train.tiny_run import make_trainer\n"
        "from train.checkpointing import saver\n"
        "from train.parallel.distributed import start\n"
        "write, n = saver._WatchedStream.write, [0]\n"
        "def killed(stream, data):\n"
        "    if '.step_000004' in str(stream.raw.name) and stream.tell() > 1000:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(stream, data)\n"
        "saver._WatchedStream.write = killed\n"
        "output = Path(sys.argv[1])\n"
        "make_trainer(output, start(torch.device('cpu')), steps=9, save_every=2, async_save='on').run()\n"
    )
    run = tmp_path / "run"
    done: subprocess.CompletedProcess = launch(script, run)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == [".step_000004.partial", "step_000002"]
    (run / "..export.new.partial-123").mkdir()
    with caplog.at_level("INFO"):
        again = resumed(make_trainer(run, world, steps=9, save_every=4))
    assert again.step == 2 and "removing" in caplog.text
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_000002"]
    assert not list(run.glob("*.partial*")), "nor a half-written export"
    again.run()
    assert [p.name for p in checkpoint.steps_in(run / "checkpoints")] == ["step_000008", "step_000009"]


def test_a_disk_that_fills_up(world, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_disk / "run"
    # Checkpoints of 11 MB: large tensors, whose failed writes torch reports as a mistake in its own counting.
    options = dict(steps=9, save_every=2, keep=9, async_save="on", model_config=SMALL)
    with pytest.raises(UserError, match="not enough disk space for what this run writes: .* 55.8 MB, and 29.4 MB are"):
        make_trainer(run, world, **options)
    with monkeypatch.context() as patch:
        patch.setattr(disk_space, "free_bytes", lambda folder: 10**12)  # as if somebody else fills the disk later
        trainer = make_trainer(run, world, **options)
    with pytest.raises(SaveFailed, match="disk space for the checkpoint of step 6: it needs .* MB, and .* MB are free"):
        trainer.run()
    kept = ["step_000002", "step_000004"]
    assert sorted(p.name for p in trainer.checkpoints.iterdir()) == kept
    # The same without the look at the free space: the system stops the writer in the middle.
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 10**12)
    again = resumed(trainer)
    with pytest.raises(SaveFailed, match=r"step 6 could not be written.*No space left on device"):
        again.run()
    assert sorted(p.name for p in trainer.checkpoints.iterdir()) == kept
    assert checkpoint.newest_complete(trainer.checkpoints).name == "step_000004"
