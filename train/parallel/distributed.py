"""The process group, with or without torchrun; which rank prints; how one rank's failure ends all ranks.

A single process gets a process group of one rank, so that FSDP2 is the only code path. Collectives run over gloo on
CPU and NCCL on CUDA; on CUDA there is a gloo group as well, for checkpoints and objects.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from data import terminal
from data.errors import UserError
from data.files.documents import permitted
from train import stopping
from train.errors import Interrupted
from train.launched import env_rank, env_world_size, launched, left_over
from train.parallel.meeting import meet
from train.parallel.mesh import MeshShape

log = logging.getLogger(__name__)

# Before a rank prints an error that rank 0 prints too, or that another rank's exit has caused, it waits this long.
# torchrun normally kills it first, so the cause is printed once. If no other rank prints, this one does.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class World:
    """This process's ranks, its device, and the mesh of all processes.

    Attributes:
        size: number of all ranks.
        mesh, shape: how the ranks are laid out (`train/parallel/mesh.py`).
        data_group: this rank's data-parallel group, whose ranks work on different samples; None: all ranks.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    shape: MeshShape
    data_group: dist.ProcessGroup | None

    @property
    def data_rank(self) -> int:
        """The data-parallel rank, below ``shape.n_data``: which part of the samples this rank works on."""
        return self.rank // self.shape.tensor

    @property
    def tensor_rank(self) -> int:
        """The tensor-parallel rank, among the ranks that work on the same samples."""
        return self.rank % self.shape.tensor

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def resolve_device(wanted: str) -> str:
    """What ``--device`` means on this machine, "cpu" or "cuda": "auto" is CUDA if available."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def resolve_precision(wanted: str, device: str) -> str:
    """What ``--precision`` means on this machine, "bf16" or "fp32": "auto" is bf16 where the hardware supports it.

    These are CUDA, and CPUs with AMX or AVX512-BF16, on which bf16 products are about five times faster than fp32 ones.
    Other CPUs emulate bf16, several times slower than fp32.
    """
    if wanted != "auto":
        return wanted
    cpu = torch.cpu.get_capabilities() if device == "cpu" else {}
    return "bf16" if device == "cuda" or cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def pick_device(wanted: str) -> torch.device:
    """This rank's device; ``wanted`` is "auto", "cpu" or "cuda".

    Raises:
        UserError: CUDA was asked for and is not available, or this machine has fewer GPUs than ranks.
    """
    if resolve_device(wanted) == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device = cuda: PyTorch finds no CUDA device. Use --device cpu or a machine with a GPU.")
    place = launched()
    if place.local_rank is None and place.size > 1:
        raise UserError(
            "the environment has no LOCAL_RANK, so this rank does not know its GPU. Start with torchrun, or let your "
            "launcher set it to the number of the rank on its machine."
        )
    local_rank = place.local_rank or 0
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{place.local_size} ranks on this machine, but only {torch.cuda.device_count()} GPUs. Start torchrun with "
            "a smaller --nproc_per_node."
        )
    return torch.device("cuda", local_rank)


def start(device: torch.device, shape: MeshShape | None = None, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Join the launcher's process group, or make one of a single rank. ``shape`` None: sharded over all ranks.

    Raises:
        UserError: the launcher's environment is not whole, or the ranks do not find each other.
    """
    me = launched()
    if note := left_over():
        log.info("note: %s", note)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # A hash store needs no port, so no port can collide.
    store = meet(me, timeout) if me.size > 1 else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=me.rank, world_size=me.size, timeout=timeout)
    return place(device, shape or MeshShape(shard=dist.get_world_size()))


def place(device: torch.device, shape: MeshShape) -> World:
    """Lay out the ranks of the process group in ``shape``; returns this process's view. Collective."""
    size, local_rank = dist.get_world_size(), launched().local_rank or 0
    assert shape.n_ranks == size, (shape, size)
    mesh, data_group = shape.build(device.type), None
    if shape.tensor > 1:
        groups = [list(range(first, size, shape.tensor)) for first in range(shape.tensor)]
        data_group, _ = dist.new_subgroups_by_enumeration(groups)
    return World(dist.get_rank(), local_rank, size, device, mesh, shape, data_group)


def set_up_logging(stream: terminal.Stream = "stdout") -> None:
    """Let rank 0 log plain messages to a standard stream, and the other ranks nothing."""
    terminal.open_streams()
    terminal.show_logs(stream, logging.INFO if env_rank() == 0 else logging.CRITICAL + 1)


def run_guarded(main: Callable[[], None], prints_result: bool = True) -> None:
    """Run ``main`` and turn what it raises into a message and an exit status. Returns only after success on one rank.

    Args:
        prints_result: it is a failure (status 1) if not all could be printed, for example because a disk is full.

    UserError: the message alone, once, status 2 (RunStopped: 3; a full disk: 4). Interrupted: status 128 + signal.
    Anything else: the failing rank's traceback, status 1. The process exits without waiting for other ranks, which may
    hang in a collective; torchrun ends them.
    """
    status = 0
    stopping.watch()
    try:
        with permitted():
            main()
    except Interrupted as stop:
        if env_rank() == 0:  # raised on every rank
            _print_at_end(str(stop))
        status = 128 + stop.signum
    except UserError as error:
        _print_error(f"error: {error}", wait=env_rank() != 0)
        status = error.status
    except Exception as error:
        # When a rank exits, gloo and NCCL raise on its peers; the first rank's own error matters more.
        from_peer = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        _print_error(traceback.format_exc(), wait=from_peer and env_world_size() > 1)
        status = 1
    if prints_result:
        status = terminal.status_of(status)
    leave_group(status)


def leave_group(status: int = 0) -> None:
    """Leave the process group, if any. Returns only after success on one rank; else the process ends at once.

    Even after success not by sys.exit: with gloo, one run in ten aborts during interpreter shutdown ("terminate called
    without an active exception", torch 2.13). torchrun would report such a run as failed.
    """
    several = dist.is_initialized() and dist.get_world_size() > 1
    if status == 0 and dist.is_initialized():
        dist.destroy_process_group()
    if status or several:
        stopping.leave(status)


def _print_error(message: str, wait: bool) -> None:
    if wait:
        time.sleep(GRACE_SECONDS)
    prefix = f"[rank {env_rank()}] " if env_rank() else ""
    _print_at_end(prefix + message)


def _print_at_end(message: str) -> None:
    terminal.end()  # of a bar, if the error passed by its end
    terminal.say(message, "stderr")


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Sum each of a few numbers over all ranks, in fp64 and with one all-reduce."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
