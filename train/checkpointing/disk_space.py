"""Room for what a run writes, on the disk and in host memory: how much it needs, and whether it is there.

The run folder lies on a disk that all machines share (`require_shared`), so rank 0 looks at its free space for all.
"""

from __future__ import annotations

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

from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.registry import ModelConfig, ModelSpec
from data.errors import UserError
from train.checkpointing.checkpoint import read_state, steps_in
from train.config import TrainConfig
from train.optim.optimizer import OPTIMIZERS
from train.optim.sharded_adamw import state_bytes

log = logging.getLogger(__name__)

# What a checkpoint has beside its tensors: headers and metadata for each rank's part of each, random states, prompt.
BYTES_PER_TENSOR = 3 * 1024
BYTES_PER_RANK = 64 * 1024

# How long to wait for a file that another machine has written to a shared disk: NFS remembers names for up to a minute.
SHARED_WAIT_SECONDS = 70.0


def format_bytes(n: float) -> str:
    """``282.2 GB``, ``1.6 GB``, ``35.0 MB``: powers of ten, as disks are sold."""
    unit = next((u for u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if n >= u[0]), (1e3, "kB"))
    return f"{n / unit[0]:.1f} {unit[1]}"


# --- how much -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of a run's folders, before there is anything to measure.

    Attributes:
        checkpoint: weights and AdamW's two states, as the optimizer keeps them.
        export: weights alone, as exported.
    """

    checkpoint: int
    export: int


def run_sizes(config: TrainConfig, spec: ModelSpec, model_config: ModelConfig, n_ranks: int) -> StoredBytes:
    """What one checkpoint and one export of a run will take."""
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in spec.build(model_config).parameters()]
    n, export_bytes = sum(shape.numel() for shape in shapes), DTYPES[config.checkpoint.export_dtype].itemsize
    formats = OPTIMIZERS[config.optim.optim]
    states = sum(state_bytes(shape, formats.states) for shape in shapes)
    # Three tensors and a step counter a parameter; in eight bits, five.
    overhead = overhead_bytes((6 if formats.states == "8bit" else 4) * len(shapes), n_ranks)
    return StoredBytes(
        n * formats.weights.itemsize + states + overhead, n * export_bytes + len(shapes) * BYTES_PER_TENSOR
    )


def overhead_bytes(n_tensors: int, n_ranks: int) -> int:
    return n_ranks * (n_tensors * BYTES_PER_TENSOR + BYTES_PER_RANK)


def bytes_to_write(state: Any) -> int:
    """What all ranks together will write of a nested state: shards once, whoever else holds them too. Collective."""
    n_tensors, local = 0, 0.0
    for tensor in _tensors(state):
        n_tensors += 1
        n_copies = dist.get_world_size()
        if isinstance(tensor, DTensor):
            placed = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
            n_copies = math.prod(size for placement, size in placed if placement.is_replicate())
            n_copies *= dist.get_world_size() // tensor.device_mesh.size()  # what tensor parallelism leaves whole
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
        return 0  # a DTensor's mesh
    if is_traceable_wrapper_subclass(tensor):
        return sum(_local_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def at_most_new(existing: int, coming: int, keep: int) -> int:
    """How many folders there will be more than now, at the worst moment: ``keep`` stay and the next stands beside them.

    Args:
        existing: how many there are, at most ``keep``.
        coming: how many are still to be written.
    """
    return 0 if coming == 0 else max(1, min(keep + 1 - existing, coming))


def leftovers(output: Path, keep: int, resume_from: Path | None) -> list[Path]:
    """What a run that is started or resumed deletes first: what one that was killed left half-written, and the oldest
    checkpoints, where fewer are kept than before."""
    checkpoints = output / "checkpoints"
    partial = [*checkpoints.glob(".step_*.partial"), *output.glob(".export.new"), *output.glob(".best.new")]
    partial += [*output.glob("..export.new.partial-*"), *output.glob("..best.new.partial-*")]
    return partial + [folder for folder in steps_in(checkpoints)[:-keep] if folder != resume_from]


def run_bytes(
    config: TrainConfig, sizes: StoredBytes, first_step: int, total_steps: int, resume_from: Path | None
) -> int:
    """Free bytes that a run needs on its disk for all it will write, at the worst moment; 0 or less: none."""
    options, output = config.checkpoint, config.checkpoint.output
    remaining, gone = total_steps - first_step, leftovers(output, options.keep, resume_from)
    existing = len([folder for folder in steps_in(output / "checkpoints") if folder not in gone])
    every = options.save_every or total_steps
    saves = (total_steps - 1) // every - first_step // every + 1 if remaining else 0
    checkpoints = at_most_new(existing, saves, options.keep)
    has_best = (output / "best").exists()
    scorings = -(-remaining // config.eval.eval_every) if config.eval.eval_every else 0
    best = at_most_new(int(has_best), scorings, 1)
    kept = max(0, min(options.keep, existing + saves) - existing)
    kept_best = int(scorings > 0 and not has_best)
    # Never at once: a checkpoint being written, a best one being written, the export.
    needed = max(
        checkpoints * sizes.checkpoint + kept_best * sizes.export,
        kept * sizes.checkpoint + best * sizes.export,
        kept * sizes.checkpoint + (kept_best + options.export) * sizes.export,
    )
    return needed - sum(folder_bytes(folder) for folder in gone)


def check_run(config: TrainConfig, sizes: StoredBytes, total_steps: int, resume_from: Path | None) -> None:
    """Find out before a run loads anything whether the disk has room for all that it will write. Collective.

    Raises:
        UserError: it has not.
    """
    first_step = read_state(resume_from).step if resume_from is not None else 0
    options = config.checkpoint
    what_to_do = (
        f"A checkpoint takes {format_bytes(sizes.checkpoint)}, an export {format_bytes(sizes.export)}; --keep "
        f"{options.keep} are kept while the next is written. Name an --output on a larger disk, keep fewer (--keep 1), "
        "or leave the export out (--export off)."
    )
    needed = run_bytes(config, sizes, first_step, total_steps, resume_from)
    require_room(options.output, needed, "what this run writes", what_to_do, UserError)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- is it there ----------------------------------------------------------------------------------------------------


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def no_room(folder: Path, needed: int, what: str, what_to_do: str) -> str | None:
    """The message that there is no room, or None."""
    free = free_bytes(folder)
    if needed <= free:
        return None
    return (
        f"no room for {what}: it needs {format_bytes(needed)}, and {format_bytes(free)} are free at {folder}. "
        f"{what_to_do}"
    )


def require_room(folder: Path, needed: int, what: str, what_to_do: str, error: type[UserError]) -> None:
    """Raise ``error`` on every rank if rank 0 finds no room. Collective."""
    said = [no_room(folder, needed, what, what_to_do) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(said, src=0)
    if said[0] is not None:
        raise error(said[0])


def require_shared(folder: Path) -> None:
    """Every rank must see what rank 0 writes into ``folder``. Collective.

    Raises:
        UserError: names the ranks that do not.
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
    blind = [str(rank) for rank, sees in enumerate(everyone) if not sees]
    if blind:
        raise UserError(
            f"output = {folder}: rank(s) {', '.join(blind)} do not see there what rank 0 has written. All machines "
            "write one checkpoint together: name a folder on a disk that they share."
        )


def available_memory() -> int:
    """Host memory that this machine, or this container, has left for new pages, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(found, _container_memory(found))


def _container_memory(default: int) -> int:
    """What a container's limit (cgroup 2) leaves; files in the page cache can be dropped and do not count."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return default
    return default if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def choose_background(wanted: str, copy_bytes: int, device: torch.device) -> bool:
    """Whether checkpoints are written in the background, from a copy in host memory. Collective.

    "auto" is on where the weights are in a GPU's memory and the copy takes at most half of what host memory has left
    on every machine. On a CPU it is off: the copy would come out of the memory that training itself needs, and the
    writer's work out of its cores.

    Args:
        wanted: "auto", "on" or "off".
        copy_bytes: of all ranks on this machine.

    Raises:
        UserError: "on", and a machine has not as much memory left as the copy takes.
    """
    everyone = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(everyone, (copy_bytes, available_memory()))
    copy, available = max(everyone, key=lambda both: both[0] - both[1])
    if wanted == "on" and copy > available:
        raise UserError(
            f"async_save = on: the copy of weights and optimizer states takes {format_bytes(copy)} of host memory on "
            f"each machine, and one has {format_bytes(available)} left. Leave it out or use --async_save off."
        )
    background = wanted == "on" or (wanted == "auto" and device.type == "cuda" and copy <= available / 2)
    if background:
        log.info("checkpoints are written in the background, from a copy of %s on each machine", format_bytes(copy))
    elif wanted == "auto" and device.type == "cuda":
        log.info(
            "note: training waits for its checkpoints to be written: a copy for the background would take %s of the "
            "%s that host memory has left (--async_save on does it all the same)",
            format_bytes(copy),
            format_bytes(available),
        )
    return background
