"""Where the ranks of a start meet: a store that the processes of an earlier attempt have not written to."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

from data.errors import UserError
from train.launched import Launched

POLL_SECONDS = 0.02


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
