"""What the launcher says about this process: its rank among how many, and where all of them meet.

The variables are torchrun's; other launchers (mpirun, srun) can be told to set them. They also remain in shells and
images, one without the others. A process without ``RANK`` has no launcher, whatever else is there.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

from data.errors import UserError

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Launched:
    """The place of this process among those that were started together; by default it is alone.

    Attributes:
        local_rank: among the ranks of this machine; None: not said.
        local_size: ranks on this machine; all of them, if not said.
        machines: how many, as far as is said.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int = 1
    machines: int = 1


def launched() -> Launched:
    """This process's place, from the environment.

    Raises:
        UserError: there is only half of what a launcher sets, or a value that cannot be.
    """
    if not os.environ.get("RANK"):
        return Launched()
    needed = ["WORLD_SIZE", *(["MASTER_ADDR", "MASTER_PORT"] if os.environ.get("WORLD_SIZE") != "1" else [])]
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise UserError(
            f"the environment has RANK = {os.environ['RANK']}, but not {', '.join(missing)}: half of what a launcher "
            "sets. Start with torchrun, or let your launcher set all of RANK, WORLD_SIZE, MASTER_ADDR and "
            "MASTER_PORT. For a single process: unset RANK."
        )
    size = _number("WORLD_SIZE", least=1)
    if size > 1:
        _number("MASTER_PORT", least=0, most=65535)
    local_size = _number("LOCAL_WORLD_SIZE", least=1, most=size) if os.environ.get("LOCAL_WORLD_SIZE") else size
    return Launched(
        rank=_number("RANK", least=0, most=size - 1),
        size=size,
        local_rank=_number("LOCAL_RANK", least=0, most=local_size - 1) if os.environ.get("LOCAL_RANK") else None,
        local_size=local_size,
        machines=_number("GROUP_WORLD_SIZE", least=1) if os.environ.get("GROUP_WORLD_SIZE") else size // local_size,
    )


def _number(name: str, least: int, most: int | None = None) -> int:
    text = os.environ[name]
    if text.isascii() and text.isdigit() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    wanted = f"{least} or more" if most is None else f"{least} to {most}"
    raise UserError(
        f"the environment has {name} = {text!r}: expected a whole number, {wanted}. Start with torchrun, which sets "
        "it. For a single process: unset RANK."
    )


def env_rank() -> int:
    """This process's rank, known before there is a process group; 0 without a launcher. Raises nothing."""
    return _or_alone().rank


def env_world_size() -> int:
    return _or_alone().size


def _or_alone() -> Launched:
    try:
        return launched()
    except UserError:
        return Launched()


def under_torchrun() -> bool:
    return bool(os.environ.get("RANK")) and "TORCHELASTIC_RUN_ID" in os.environ


def may_restart() -> bool:
    """Whether torchrun starts the same command again after a failure (--max-restarts)."""
    return under_torchrun() and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def left_over() -> str | None:
    """A sentence about several ranks in the environment of a process that is alone."""
    size = os.environ.get("WORLD_SIZE", "")
    if os.environ.get("RANK") or size in ("", "1"):
        return None
    return f"WORLD_SIZE = {size} in the environment, but not RANK: no launcher started this process, so it works alone."


def meet(place: Launched, timeout: timedelta) -> dist.Store:
    """A store that the processes of this start share, and that nothing was written to before. Collective.

    torchrun keeps one store for all its attempts (--max-restarts), which still has the addresses of the ranks that have
    died. Its restart count does not tell the attempts apart: machines count only the restarts that they caused. So rank
    0 names each attempt, and makes sure that every other rank has the name.

    Raises:
        UserError: the processes do not find each other.
    """
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        return dist.PrefixStore(_name_attempt(store, place, timeout), store)
    except dist.DistError as error:
        raise UserError(
            f"rank {place.rank} of {place.size} does not reach the other ranks at {where} (MASTER_ADDR, MASTER_PORT): "
            f"{str(error).splitlines()[0]} Start all ranks, on addresses that reach each other. For a single process: "
            "unset RANK."
        ) from None


def _name_attempt(store: dist.Store, place: Launched, timeout: timedelta) -> str:
    me = uuid4().hex
    if place.rank:
        store.set(f"process of rank {place.rank}", me)
        name = store.get(f"attempt of process {me}").decode()  # waits; no earlier process can have been told
        store.set(f"{name}: told {place.rank}", "")
        return name
    others, deadline = set(range(1, place.size)), time.monotonic() + timeout.total_seconds()
    while others:
        for rank in sorted(others):
            if store.check([f"{me}: told {rank}"]):
                others.remove(rank)
            elif store.check([process := f"process of rank {rank}"]):  # maybe of one that has died: then it is set anew
                store.set(f"attempt of process {store.get(process).decode()}", me)
        if others and time.monotonic() > deadline:
            raise UserError(f"after {timeout}, rank(s) {', '.join(map(str, sorted(others)))} had not started.")
        time.sleep(POLL_SECONDS)
    return me
