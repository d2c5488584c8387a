"""What ranks agree on between two forward passes of a scoring."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


class Stopped(Exception):
    """A scoring was told to stop."""


def any_rank(
    active: bool, group: dist.ProcessGroup | None, device: torch.device | str, stop: Callable[[], bool] | None = None
) -> bool:
    """Whether any rank of ``group`` is active; None: whether this one is. Collective.

    Raises:
        Stopped: ``stop`` is true on one of these ranks.
    """
    state = 2 if stop is not None and stop() else int(active)
    if group is not None:
        flag = torch.tensor(state, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        state = int(flag.item())
    if state == 2:
        raise Stopped
    return state == 1
