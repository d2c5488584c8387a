"""Writing training checkpoints, while training goes on if asked to: whole or not at all, and never without room.

::

    main thread                                     writer's thread
    wait for the save before, if it is in flight
    is there room on the disk?
    copy this rank's shards to host memory
    train on                                        every rank writes its own file (torch.distributed.checkpoint)
      |   each step asks: has the writer failed?    all have written: rename to the final name
      v                                             delete all but the newest K

Without a background the main thread does itself what the writer does, and needs no copy. No rank ever gathers anything:
each writes the shards it holds. Where replicas hold the same shard, one of them writes it: torch gives each item to the
rank that has least to write so far, so that replicas share the writing evenly; every rank copies all it holds, though.

A thread, not a process: a process of its own a rank costs its start, some hundred MB of host memory and shared memory
(of which containers have 64 MB by default) for what is almost all waiting: for the disk, without Python's lock.
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
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from data.decoder.fewshot import PromptSpec
from train.checkpointing import checkpoint
from train.checkpointing.checkpoint import RUN_FILE, RunState, step_folder, steps_in
from train.checkpointing.disk_space import (
    StoredBytes,
    bytes_to_write,
    check_run,
    choose_background,
    format_bytes,
    leftovers,
    require_room,
    require_shared,
)
from train.config import TrainConfig
from train.errors import RunStopped
from train.parallel.distributed import World

log = logging.getLogger(__name__)

# torch rounds each pinned block up to a power of two: 11% for the shards of Llama 3 70B, 10% for 8B on one GPU.
PINNED_ROUNDING = 1.12

# Ranks wait for the slowest one's file.
TIMEOUT = timedelta(hours=2)


class SaveFailed(RunStopped):
    """A checkpoint could not be written; those before it are as they were."""


class Saver:
    """Saves a run's checkpoints, at most one at a time. Every rank has one and calls it at the same steps.

    Args:
        checkpoints: their folder, on a disk that all ranks share.
        keep: how many of the newest are kept.
        background: write in a thread, from a copy in host memory that is made once and used for every save.
        sizes: what is going to be written, as far as it can be known.
    """

    def __init__(
        self, checkpoints: Path, keep: int, background: bool, device: torch.device, sizes: StoredBytes
    ) -> None:
        self.checkpoints, self.keep, self.device, self.sizes = checkpoints, keep, device, sizes
        self.copy = HostCopy(pinned=device.type == "cuda") if background else None
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self.group: dist.ProcessGroup | None = None
        self.flight: Future[None] | None = None
        self.flight_step = 0

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, prompt_spec: PromptSpec | None
    ) -> None:
        """Save a checkpoint of this very moment, or begin to; what training does from now on is not in it.

        Raises:
            SaveFailed: there is no room for it on the disk, or it could not be written; or the save before failed.
        """
        self.finish()
        start = time.perf_counter()
        if self.group is None:
            # Of its own: the writer's collectives run beside those of the training.
            self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        tensors = {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)}
        needed = bytes_to_write(tensors)
        require_room(self.checkpoints, needed, f"the checkpoint of step {state.step}", self._what_to_do(), SaveFailed)
        copied = None
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # states that are kept in host memory may still be on their way there
        if self.copy is not None:
            tensors = self.copy.take(tensors)
            if self.device.type == "cuda":
                copied = torch.cuda.Event()
                copied.record()
        job = partial(self._write, tensors, needed, state, prompt_spec, checkpoint.rng_state(), start, copied)
        if self.executor is None:
            job()
        else:
            log.info("saving step %d in the background (copied in %.1f s)", state.step, time.perf_counter() - start)
            self.flight, self.flight_step = self.executor.submit(job), state.step

    @property
    def failed(self) -> bool:
        """Whether the save in flight has failed on this rank; `finish` then raises why, on every rank."""
        return self.flight is not None and self.flight.done() and self.flight.exception() is not None

    def finish(self) -> None:
        """Wait for the save in flight, if any.

        Raises:
            SaveFailed: it failed; on every rank alike.
        """
        flight, self.flight = self.flight, None
        if flight is None:
            return
        if not flight.done():
            log.info("waiting for the checkpoint of step %d, which is still being written", self.flight_step)
        flight.result()

    def close(self) -> None:
        """Wait for the save in flight at the end of a run that fails for another reason: only report its failure."""
        try:
            self.finish()
        except Exception as error:
            log.error("error: %s", error)

    def before_export(self, folder: Path) -> None:
        """Wait for the save in flight, and see whether there is room for an export.

        Raises:
            SaveFailed: the save failed, or there is none.
        """
        self.finish()
        require_room(folder, self.sizes.export, f"the export {folder.name}/", self._what_to_do(), SaveFailed)

    def _what_to_do(self) -> str:
        complete = steps_in(self.checkpoints)
        last = f"The last complete checkpoint is {complete[-1]}" if complete else "No checkpoint had been saved yet"
        return (
            f"{last}. Make room there, keep fewer (--keep, now {self.keep}) or move the run folder to a larger disk "
            "(--output), and go on with --resume."
        )

    def _write(
        self,
        tensors: dict[str, Any],
        needed: int,
        state: RunState,
        prompt_spec: PromptSpec | None,
        random_state: dict[str, Any],
        start: float,
        copied: torch.cuda.Event | None,
    ) -> None:
        """Write one checkpoint; runs on every rank at the same time, in the writer's thread if there is one."""
        if copied is not None:
            torch.cuda.set_device(self.device)  # a thread starts on device 0, and would open a context there
            copied.synchronize()
        final = step_folder(self.checkpoints, state.step)
        partial = partial_folder(final)
        rank, files = dist.get_rank(), WatchedFiles()

        def make_folder() -> None:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)

        def write_mine() -> None:
            writer = dcp.FileSystemWriter(partial)  # calls fsync on every file
            writer.fs = files
            dcp.save(tensors, storage_writer=writer, process_group=self.group)
            torch.save(random_state, partial / f"rng_{rank:05d}.pt")
            sync(partial / f"rng_{rank:05d}.pt")
            if rank == 0:
                state.write(partial)
                sync(partial / RUN_FILE)
                if prompt_spec is not None:
                    prompt_spec.save(partial)
                sync(partial)

        def complete() -> None:
            if rank == 0:
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                sync(self.checkpoints)
                for old in steps_in(self.checkpoints)[: -self.keep]:
                    shutil.rmtree(old)

        for step in (make_folder, write_mine, complete):
            problem = problem_of(step, files)
            problems: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(problems, problem, group=self.group)
            if any(problems):
                break
        else:
            how = " in the background" if self.executor is not None else ""
            log.info("saved %s (%.1f s%s)", final, time.perf_counter() - start, how)
            return
        said = "; ".join(f"rank {n}: {problem}" for n, problem in enumerate(problems) if problem)
        free = shutil.disk_usage(self.checkpoints).free
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise SaveFailed(
            f"the checkpoint of step {state.step} could not be written to {self.checkpoints}: {said}\n"
            f"It needs {format_bytes(needed)}; {format_bytes(free)} were free when it failed. {self._what_to_do()}"
        )


class HostCopy:
    """A copy in host memory of what a checkpoint holds, made at the first `take` and overwritten by every later one.

    On CUDA it is pinned, so that the copies run at the bus's full speed and in the stream's order: what training does
    next waits for them, the processor does not.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.buffers: dict[str, Tensor] = {}

    @property
    def n_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @torch.no_grad()
    def take(self, value: Any, name: str = "") -> Any:
        """The same nested value with every tensor's contents in host memory; DTensors stay what they are.

        Raises:
            SaveFailed: no host memory is left.
        """
        if isinstance(value, Mapping):
            return {key: self.take(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(item, f"{name}.{n}") for n, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        if is_traceable_wrapper_subclass(value):  # DTensors and quantized states: copy the tensors that they wrap
            names, context = value.__tensor_flatten__()
            inner = {key: self.take(getattr(value, key), f"{name}.{key}") for key in names}
            return type(value).__tensor_unflatten__(inner, context, value.shape, value.stride())
        buffer = self.buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            try:
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=self.pinned)
            except RuntimeError as error:
                raise SaveFailed(
                    f"no host memory is left for the copy that a checkpoint is written from, after "
                    f"{format_bytes(self.n_bytes)}: {error}\nGo on from the last checkpoint with --async_save off "
                    "--resume."
                ) from None
            self.buffers[name] = buffer
        return buffer.copy_(value, non_blocking=True)


class WatchedFiles(FileSystem):
    """torch's way to files, which remembers why a write failed.

    torch.save replaces the system's "No space left on device" by "unexpected pos 704 vs 598".
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        try:
            with _WatchedStream(io.FileIO(path, mode), self) as stream:
                yield stream
        except OSError as error:
            self.error = self.error or error
            raise


class _WatchedStream(io.BufferedWriter):
    def __init__(self, raw: io.FileIO, files: WatchedFiles) -> None:
        super().__init__(raw)
        self.files = files

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.files.error = self.files.error or error
            raise


def problem_of(step: Callable[[], None], files: WatchedFiles) -> str | None:
    """Run ``step``; what went wrong on this very rank, or None."""
    try:
        step()
    except CheckpointException as error:  # raised on every rank, with what failed on each
        if files.error is not None:
            return str(files.error)
        mine = error.failures.get(dist.get_rank())
        return f"{type(mine[0]).__name__}: {mine[0]}" if mine else None
    except OSError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def open_saver(
    config: TrainConfig, sizes: StoredBytes, total_steps: int, resume_from: Path | None, world: World
) -> Saver:
    """Prepare the run folder and check disk space and host memory, before anything is loaded. Collective.

    Args:
        sizes: bytes of a checkpoint and of an export of this run (`run_sizes`).
        resume_from: the checkpoint that the run continues from, if any.

    Raises:
        UserError: ranks do not share the run folder; the disk is too small for what the run writes; or
            ``--async_save on`` without enough host memory.
    """
    options = config.checkpoint
    require_shared(options.output)
    check_run(config, sizes, total_steps, resume_from)
    if world.is_main:
        for folder in leftovers(options.output, options.keep, resume_from):
            log.info("removing %s: half-written, or older than the %d checkpoints to keep", folder, options.keep)
            shutil.rmtree(folder)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    ranks_a_copy = world.size // world.shape.replicate
    copy_bytes = sizes.checkpoint * ranks_here // ranks_a_copy
    if world.device.type == "cuda":
        copy_bytes = int(copy_bytes * PINNED_ROUNDING)
    background = choose_background(options.async_save, copy_bytes, world.device)
    return Saver(options.output / "checkpoints", options.keep, background, world.device, sizes)


def partial_folder(final: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return final.with_name(f".{final.name}.partial")


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
