"""Disk space and host memory for what a run writes: how much is needed, and whether it is available.

The run folder is on a disk that all machines share (`require_shared`), so only rank 0 checks its free space.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from checkpoints_tools.architectures import ModelConfig
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.registry import ModelSpec
from data.errors import UserError
from model.meta import meta_device
from train.checkpointing import run_folder
from train.checkpointing.checkpoint import read_state
from train.config import TrainConfig
from train.optim.formats import OPTIMIZERS, state_bytes

log = logging.getLogger(__name__)

# Overhead of a checkpoint: headers and metadata for each tensor and rank; random-number states and prompt.
BYTES_PER_TENSOR = 3 * 1024
BYTES_PER_RANK = 64 * 1024

# Longest wait for a file that another machine has written to a shared disk: NFS caches names for up to a minute.
SHARED_WAIT_SECONDS = 70.0


def format_bytes(n: float) -> str:
    """``282.2 GB``, ``1.6 GB``, ``35.0 MB``: in powers of ten."""
    unit = next((u for u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if n >= u[0]), (1e3, "kB"))
    return f"{n / unit[0]:.1f} {unit[1]}"


# --- how much -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredBytes:
    """The computed bytes of one checkpoint and one export.

    Attributes:
        checkpoint: weights and AdamW's two states, in the optimizer's formats.
        export: weights in the export's format.
    """

    checkpoint: int
    export: int


def run_sizes(config: TrainConfig, spec: ModelSpec, model_config: ModelConfig, n_ranks: int) -> StoredBytes:
    """Compute the size of a run's checkpoint and export, before there is anything to measure."""
    with meta_device():
        shapes = [parameter.shape for parameter in spec.build(model_config).parameters()]
    n, export_bytes = sum(shape.numel() for shape in shapes), DTYPES[config.checkpoint.export_dtype].itemsize
    formats = OPTIMIZERS[config.optim.optim]
    states = sum(state_bytes(shape, formats.states) for shape in shapes)
    # Each parameter has three tensors (five with 8-bit states) and a step counter.
    overhead = overhead_bytes((6 if formats.states == "8bit" else 4) * len(shapes), n_ranks)
    return StoredBytes(
        n * formats.weights.itemsize + states + overhead, n * export_bytes + len(shapes) * BYTES_PER_TENSOR
    )


def overhead_bytes(n_tensors: int, n_ranks: int) -> int:
    return n_ranks * (n_tensors * BYTES_PER_TENSOR + BYTES_PER_RANK)


def bytes_to_write(state: Any) -> int:
    """Bytes that all ranks together write for a nested state; replicated shards count once. Collective."""
    n_tensors, local = 0, 0.0
    for tensor in _tensors(state):
        n_tensors += 1
        n_copies = dist.get_world_size()
        if isinstance(tensor, DTensor):
            placed = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
            n_copies = math.prod(size for placement, size in placed if placement.is_replicate())
            n_copies *= dist.get_world_size() // tensor.device_mesh.size()  # replicated over "tensor"
        local += _local_bytes(tensor) / n_copies
    everyone: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(everyone, local)
    return int(sum(everyone)) + overhead_bytes(n_tensors, len(everyone))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _local_bytes(tensor: Any) -> int:
    """Bytes of the plain tensors inside a DTensor's local shard or a quantized state."""
    if not isinstance(tensor, Tensor):
        return 0  # e.g. a DTensor's mesh
    if is_traceable_wrapper_subclass(tensor):
        return sum(_local_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def max_new_folders(existing: int, coming: int, keep: int) -> int:
    """The largest number of additional folders at any time: ``keep`` complete ones, and the next being written.

    Args:
        existing: number of folders now, at most ``keep``.
        coming: number of folders still to be written.
    """
    return 0 if coming == 0 else max(1, min(keep + 1 - existing, coming))


def leftovers(output: Path, keep: int, resume_from: Path | None) -> list[Path]:
    """Folders that a run deletes when it starts or resumes: incomplete ones of a killed run, and checkpoints beyond
    the newest ``keep``."""
    saved = run_folder.checkpoints_in(output)
    if resume_from in saved:  # newer ones are damaged: they are not counted
        saved = saved[: saved.index(resume_from) + 1]
    return run_folder.leftovers(output) + saved[:-keep]


def run_bytes(
    config: TrainConfig,
    sizes: StoredBytes,
    first_step: int,
    total_steps: int,
    resume_from: Path | None,
    unscored: bool = False,
) -> int:
    """Free disk space in bytes that a run needs at its peak; 0 or less means none.

    Args:
        unscored: the model is scored before the next step, if the run scores at all; see `train.trainer`.
    """
    options, output, eval_every = config.checkpoint, config.checkpoint.output, config.eval.eval_every
    remaining, removed = total_steps - first_step, leftovers(output, options.keep, resume_from)
    existing = len([folder for folder in run_folder.checkpoints_in(output) if folder not in removed])
    every = options.save_every or total_steps
    if remaining:
        saves = (total_steps - 1) // every - first_step // every + 1
    else:  # a new run of no steps saves its fitted heads, another one what its last scoring has found
        saves = int((unscored and eval_every > 0) or (not total_steps and resume_from is None))
    checkpoints = max_new_folders(existing, saves, options.keep)
    has_best = (output / "best").exists()
    scorings = 0
    if eval_every:
        at_the_end = remaining > 0 and total_steps % eval_every > 0
        scorings = unscored + total_steps // eval_every - first_step // eval_every + at_the_end
    best = max_new_folders(int(has_best), scorings, 1)
    kept = max(0, min(options.keep, existing + saves) - existing)
    kept_best = int(scorings > 0 and not has_best)
    # A checkpoint, a best model and the export are never written at the same time.
    needed = max(
        checkpoints * sizes.checkpoint + kept_best * sizes.export,
        kept * sizes.checkpoint + best * sizes.export,
        kept * sizes.checkpoint + (kept_best + options.export) * sizes.export,
    )
    return needed - sum(folder_bytes(folder) for folder in removed)


def check_run(config: TrainConfig, sizes: StoredBytes, total_steps: int, resume_from: Path | None) -> None:
    """Check, before anything is loaded, that the disk has space for all that a run will write. Collective.

    Raises:
        UserError: there is too little free disk space.
    """
    first_step, unscored = 0, config.train.fit_heads
    if resume_from is not None:
        state = read_state(resume_from)
        first_step, unscored = state.step, state.unscored
    options = config.checkpoint
    less = ", or keep fewer (--keep 1)" * (options.keep > 1) + ", or omit the export (--export off)" * options.export
    advice = (
        f"A checkpoint takes {format_bytes(sizes.checkpoint)}, an export {format_bytes(sizes.export)}; --keep "
        f"{options.keep} are kept while the next is written. Use an --output on a larger disk{less}."
    )
    # Only on rank 0, which decides: it then deletes files whose sizes another rank might still be asking for.
    rank_0 = dist.get_rank() == 0
    needed = run_bytes(config, sizes, first_step, total_steps, resume_from, unscored) if rank_0 else 0
    require_space(options.output, needed, "what this run writes", advice, UserError)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- is it available ------------------------------------------------------------------------------------------------


def free_bytes(folder: Path) -> int:
    """Free space on the disk of ``folder``, which need not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def too_little_space(folder: Path, needed: int, what: str, advice: str) -> str | None:
    """The message that there is too little free disk space, or None."""
    free = free_bytes(folder)
    if needed <= free:
        return None
    return (
        f"not enough disk space for {what}: it needs {format_bytes(needed)}, and {format_bytes(free)} are free at "
        f"{folder}. {advice}"
    )


def require_space(folder: Path, needed: int, what: str, advice: str, error: type[UserError]) -> None:
    """Raise ``error`` on every rank if rank 0 finds too little free disk space. Collective."""
    message = [too_little_space(folder, needed, what, advice) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(message, src=0)
    if message[0] is not None:
        raise error(message[0]) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def require_shared(folder: Path) -> None:
    """Check that every rank sees a file that rank 0 writes into ``folder``. Collective.

    Raises:
        UserError: names the ranks that do not see it.
    """
    names = [f".shared-{os.urandom(8).hex()}"]
    dist.broadcast_object_list(names, src=0)  # rank 0's
    probe = folder / names[0]
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    dist.barrier()
    deadline = time.monotonic() + SHARED_WAIT_SECONDS
    while not (seen := probe.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    everyone: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(everyone, seen)
    if dist.get_rank() == 0:
        probe.unlink()
    excluded = [str(rank) for rank, seen in enumerate(everyone) if not seen]
    if excluded:
        raise UserError(
            f"output = {folder}: rank(s) {', '.join(excluded)} do not see a file that rank 0 has written there. All "
            "machines write one checkpoint together: use a folder on a disk that they share."
        )


def available_memory() -> int:
    """Available host memory of this machine or container, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(found, _container_memory(found))


def _container_memory(default: int) -> int:
    """Memory available within a container's limit (cgroup 2); the page cache can be dropped and counts as available."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return default
    return default if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def choose_background(wanted: str, copy_bytes: int, device: torch.device) -> bool:
    """Whether checkpoints are written in the background, from a copy in host memory. Collective.

    "auto" is on for GPUs if the copy takes at most half of the available host memory on every machine. On a CPU it is
    off: copy and writer would use memory and cores that training needs.

    Args:
        wanted: "auto", "on" or "off".
        copy_bytes: of all ranks on this machine.

    Raises:
        UserError: "on", but the copy is larger than the available memory of a machine.
    """
    everyone = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(everyone, (copy_bytes, available_memory()))
    copy, available = max(everyone, key=lambda both: both[0] - both[1])
    if wanted == "on" and copy > available:
        raise UserError(
            f"async_save = on: the copy of weights and optimizer states takes {format_bytes(copy)} of host memory on "
            f"each machine, and one has {format_bytes(available)} left. Omit the option or use --async_save off."
        )
    background = wanted == "on" or (wanted == "auto" and device.type == "cuda" and copy <= available / 2)
    if background:
        log.info("checkpoints are written in the background, from a copy of %s on each machine", format_bytes(copy))
    elif wanted == "auto" and device.type == "cuda":
        log.info(
            "note: training waits for its checkpoints to be written. Writing in the background needs a copy of %s; "
            "%s of host memory are available (--async_save on forces it)",
            format_bytes(copy),
            format_bytes(available),
        )
    return background
