"""Saving training checkpoints, optionally in the background: complete or absent, and only with enough disk space.

::

    main thread                                     writer thread
    wait for the previous save, if in flight
    check the free disk space
    copy this rank's shards to host memory
    continue training                               every rank writes its own file (torch.distributed.checkpoint)
      |   each step asks: has the writer failed?    all have written: rename to the final name
      v                                             write the checksums; delete all but the newest K

Without a writer thread the main thread does its work, and needs no copy. Nothing is gathered: each rank writes its own
shards. If replicas hold the same shard, one of them writes it: torch gives each item to the rank that has the least to
write so far, so replicas share the writing evenly. The host copy, however, holds all of a rank's shards.

The writer is a thread, because almost all its time is waiting for the disk, without Python's lock. A process for each
rank would cost its start, some hundred MB of host memory, and shared memory (containers have 64 MB by default).
The thread also computes the checksums, from the bytes on their way to the file. That, too, happens without the lock.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from checkpoints_tools.checksums import CHECKSUMS, FileSums, Summing, write_checksums
from data.files.durable import sync
from train.checkpointing import checkpoint, run_folder
from train.checkpointing.checkpoint import RunState, rng_file, step_folder, steps_in
from train.checkpointing.disk_space import (
    StoredBytes,
    bytes_to_write,
    check_run,
    choose_background,
    format_bytes,
    free_bytes,
    leftovers,
    require_shared,
    require_space,
)
from train.config import TrainConfig
from train.errors import RunStopped
from train.launched import launched
from train.parallel.distributed import World

log = logging.getLogger(__name__)

# torch rounds each pinned block up to a power of two: 11% more for the shards of Llama 3 70B, 10% for 8B on one GPU.
PINNED_ROUNDING = 1.12

# Every rank waits until the slowest one has written its file.
TIMEOUT = timedelta(hours=2)


class SaveFailed(RunStopped):
    """A checkpoint could not be written; earlier ones are unchanged."""


class Saver:
    """Saves a run's checkpoints, one at a time. Every rank has a saver and calls it at the same steps.

    Args:
        checkpoints: their folder, ``checkpoints`` of a run folder, on a disk that all ranks share.
        keep: number of checkpoints to keep, the newest.
        background: write in a thread, from a copy in host memory that is allocated once and reused.
        sizes: computed sizes of a checkpoint and an export.
    """

    def __init__(
        self, checkpoints: Path, keep: int, background: bool, device: torch.device, sizes: StoredBytes
    ) -> None:
        self.checkpoints, self.keep, self.device, self.sizes = checkpoints, keep, device, sizes
        self.copy = HostCopy(pinned=device.type == "cuda") if background else None
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        # A group of its own, because the writer's collectives run concurrently with those of training. Made now: that
        # takes torchrun's store, which is gone if torchrun has died when the run saves for the last time.
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.flight: Future[None] | None = None
        self.flight_step = 0

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: RunState,
        save_with_model: Callable[[Path], None],
    ) -> None:
        """Save a checkpoint of the current state, or start to save it; later training steps do not change it.

        Args:
            save_with_model: writes what belongs to the model, such as the task, into the checkpoint's folder.

        Raises:
            SaveFailed: too little disk space, a failed write, or a failure of the previous save.
        """
        self.finish()
        start = time.perf_counter()
        tensors = {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)}
        needed = bytes_to_write(tensors)
        require_space(self.checkpoints, needed, f"the checkpoint of step {state.step}", self._advice(), SaveFailed)
        copied = None
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # offloaded states may still be being copied to host memory
        if self.copy is not None:
            tensors = self.copy.take(tensors)
            if self.device.type == "cuda":
                copied = torch.cuda.Event()
                copied.record()
        job = partial(self._write, tensors, needed, state, save_with_model, checkpoint.rng_state(), start, copied)
        if self.executor is None:
            job()
        else:
            log.info("saving step %d in the background (copied in %.1f s)", state.step, time.perf_counter() - start)
            self.flight, self.flight_step = self.executor.submit(job), state.step

    @property
    def failed(self) -> bool:
        """Whether the save in flight has failed on this rank; `finish` then raises the reason, on every rank."""
        return self.flight is not None and self.flight.done() and self.flight.exception() is not None

    def finish(self) -> None:
        """Wait for the save in flight, if any.

        Raises:
            SaveFailed: the save failed; raised on every rank.
        """
        flight, self.flight = self.flight, None
        if flight is None:
            return
        if not flight.done():
            log.info("waiting until the checkpoint of step %d is written", self.flight_step)
        flight.result()

    def close(self) -> None:
        """Wait for the save in flight after the run has failed for another reason; log the save's failure, if any."""
        try:
            self.finish()
        except Exception as error:
            log.error("error: %s", error)

    def before_export(self, folder: Path) -> None:
        """Wait for the save in flight, and check that there is disk space for an export.

        Raises:
            SaveFailed: the save failed, or there is too little disk space.
        """
        self.finish()
        require_space(folder, self.sizes.export, f"the export {folder.name}/", self._advice(), SaveFailed)

    def _advice(self) -> str:
        complete = steps_in(self.checkpoints)
        last = f"The last complete checkpoint is {complete[-1]}" if complete else "No checkpoint had been saved yet"
        fewer = f", keep fewer (--keep, now {self.keep})" if self.keep > 1 else ""
        return (
            f"{last}. Free disk space{fewer} or move the run folder to a larger disk (--output), then continue with "
            "--resume."
        )

    def _write(
        self,
        tensors: dict[str, Any],
        needed: int,
        state: RunState,
        save_with_model: Callable[[Path], None],
        random_state: dict[str, Any],
        start: float,
        copied: torch.cuda.Event | None,
    ) -> None:
        """Write one checkpoint; runs on every rank at the same time, in the writer thread if there is one."""
        if copied is not None:
            torch.cuda.set_device(self.device)  # a thread starts on device 0, and would create a context there
            copied.synchronize()
        final = step_folder(self.checkpoints, state.step)
        partial = partial_folder(final)
        rank, files = dist.get_rank(), WatchedFiles()

        def make_folder() -> None:
            if rank == 0:
                run_folder.discard(partial, ours=True)
                partial.mkdir(parents=True)
                sync(self.checkpoints.parent)

        def write_mine() -> None:
            writer = dcp.FileSystemWriter(partial)  # calls fsync on every file
            writer.fs = files
            dcp.save(tensors, storage_writer=writer, process_group=self.group)
            with files.create_stream(rng_file(partial, rank), "wb") as stream:
                torch.save(random_state, cast(IO[bytes], stream))
                stream.flush()
                os.fsync(stream.fileno())
            if rank == 0:
                state.write(partial)
                save_with_model(partial)
                for path in (*partial.glob("*.json"), *partial.glob("*.npy")):
                    sync(path)
                sync(partial)

        def complete() -> None:
            everyone: list[dict[str, FileSums]] = [{}] * dist.get_world_size()
            dist.all_gather_object(everyone, files.sums, group=self.group)
            if rank == 0:
                write_checksums(partial, {name: sums for theirs in everyone for name, sums in theirs.items()})
                sync(partial / CHECKSUMS)
                sync(partial)
                run_folder.replace_checkpoint(final, partial)
                # Newer ones are what a resumed run has skipped, because they are damaged: they are not counted.
                saved = run_folder.checkpoints_in(self.checkpoints.parent)
                for old in saved[: saved.index(final) + 1][: -self.keep]:
                    run_folder.discard(old, ours=True)

        for step in (make_folder, write_mine, complete):
            problem = problem_of(step, files)
            problems: list[OSError | None] = [None] * dist.get_world_size()
            dist.all_gather_object(problems, problem, group=self.group)
            if any(problems):
                break
        else:
            how = " in the background" if self.executor is not None else ""
            log.info("saved %s (%.1f s%s)", final, time.perf_counter() - start, how)
            return
        causes = "; ".join(f"rank {n}: {problem}" for n, problem in enumerate(problems) if problem)
        free = free_bytes(self.checkpoints)
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise SaveFailed(
            f"the checkpoint of step {state.step} could not be written to {self.checkpoints}: {causes}\n"
            f"It needs {format_bytes(needed)}; {format_bytes(free)} were free when it failed. {self._advice()}"
        ) from next(filter(None, problems))


class HostCopy:
    """A copy of a checkpoint's tensors in host memory, allocated by the first `take` and overwritten by later ones.

    On CUDA it is pinned, so copies use PCIe's full bandwidth and run on the compute stream: later kernels wait for
    them, the host does not.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.buffers: dict[str, Tensor] = {}

    @property
    def n_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @torch.no_grad()
    def take(self, value: Any, name: str = "") -> Any:
        """The same nested value with every tensor copied to host memory; DTensors remain DTensors.

        Raises:
            SaveFailed: no host memory is left.
        """
        if isinstance(value, Mapping):
            return {key: self.take(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(item, f"{name}.{n}") for n, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        if is_traceable_wrapper_subclass(value):  # DTensors and quantized states: copy the wrapped tensors
            names, context = value.__tensor_flatten__()
            inner = {key: self.take(getattr(value, key), f"{name}.{key}") for key in names}
            return type(value).__tensor_unflatten__(inner, context, value.shape, value.stride())
        buffer = self.buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            try:
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=self.pinned)
            except RuntimeError as error:
                raise SaveFailed(
                    f"not enough host memory for the copy that a checkpoint is written from; it failed after "
                    f"{format_bytes(self.n_bytes)}: {error}\nContinue from the last checkpoint with --async_save off "
                    "--resume."
                ) from None
            self.buffers[name] = buffer
        return buffer.copy_(value, non_blocking=True)


class WatchedFiles(FileSystem):
    """torch's file system for checkpoints, which also records why a write failed, and checksums of what was written.

    torch.save replaces the system's "No space left on device" with "unexpected pos 704 vs 598".

    Attributes:
        error: the first failure.
        sums: file name → checksums, of every file that was written.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.sums: dict[str, FileSums] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        try:
            with _WatchedStream(io.FileIO(path, mode), self) as stream:
                yield stream
            self.sums[Path(path).name] = stream.summing.sums()
        except OSError as error:
            self.error = self.error or error
            raise

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.sums[Path(new_path).name] = self.sums.pop(Path(path).name)


AT_ONCE = 2**18  # bytes that are hashed and written one after the other


class _WatchedStream(io.BufferedWriter):
    def __init__(self, raw: io.FileIO, files: WatchedFiles) -> None:
        super().__init__(raw)
        self.files, self.summing = files, Summing()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), AT_ONCE):  # what was hashed is still in the processor's cache
                part = view[start : start + AT_ONCE]
                self.summing.update(part)
                super().write(part)
            return len(view)
        except OSError as error:
            self.files.error = self.files.error or error
            raise


def problem_of(step: Callable[[], None], files: WatchedFiles) -> OSError | None:
    """Run ``step``; returns what failed on this rank, or None. Another exception becomes an OSError of its text."""
    try:
        step()
    except CheckpointException as error:  # raised on every rank, with the failures of all ranks
        if files.error is not None:
            return files.error
        mine = error.failures.get(dist.get_rank())
        return OSError(f"{type(mine[0]).__name__}: {mine[0]}") if mine else None
    except OSError as error:
        return error
    except Exception as error:
        return OSError(f"{type(error).__name__}: {error}")
    return None


def open_saver(
    config: TrainConfig, sizes: StoredBytes, total_steps: int, resume_from: Path | None, world: World
) -> Saver:
    """Prepare the run folder and check disk space and host memory, before anything is loaded. Collective.

    Args:
        sizes: bytes of a checkpoint and of an export of this run (`run_sizes`).
        resume_from: the checkpoint that the run continues from, if any.

    Raises:
        UserError: ranks do not share the run folder; too little disk space for what the run writes; or
            ``--async_save on`` without enough host memory.
    """
    options = config.checkpoint
    require_shared(options.output)
    if world.is_main:
        run_folder.clean(options.output)
    dist.barrier()
    check_run(config, sizes, total_steps, resume_from)
    if world.is_main:
        for folder in leftovers(options.output, options.keep, resume_from):
            log.info("removing %s: older than the %d checkpoints to keep", folder, options.keep)
            run_folder.discard(folder, ours=True)
    ranks_here = launched().local_size
    ranks_a_copy = world.size // world.shape.replicate
    copy_bytes = sizes.checkpoint * ranks_here // ranks_a_copy
    if world.device.type == "cuda":
        copy_bytes = int(copy_bytes * PINNED_ROUNDING)
    background = choose_background(options.async_save, copy_bytes, world.device)
    return Saver(options.output / "checkpoints", options.keep, background, world.device, sizes)


def partial_folder(final: Path) -> Path:
    """The temporary folder into which a checkpoint is written."""
    return final.with_name(f".{final.name}.partial")
