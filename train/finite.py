"""Find parameters with NaN or infinite values."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from checkpoints_tools.architectures import architecture_of, config_of
from checkpoints_tools.load import clean_name
from checkpoints_tools.slices import local_slice
from checkpoints_tools.writer import all_finite
from train.errors import NotFinite
from train.parallel.distributed import all_sum

NAMED = 5  # tensors in a message


@torch.no_grad()
def non_finite_parameters(model: nn.Module) -> list[str]:
    """The parameters with NaN or infinite values in this rank's part, by their names in a checkpoint.

    It reads each parameter once, needs no memory for that, and waits once for the device.
    """
    config = config_of(model)
    parts = {clean_name(name): local_slice(parameter)[0] for name, parameter in model.named_parameters()}
    are_finite = torch.stack([all_finite(part) for part in parts.values()]).tolist()
    to_theirs = architecture_of(config).to_theirs
    return [to_theirs(name, config) for name, is_finite in zip(parts, are_finite, strict=True) if not is_finite]


def require_finite_weights(model: nn.Module, device: torch.device) -> None:
    """Check all ranks' weights after an update: the next loss would show too late that one is NaN or infinite.

    Raises:
        NotFinite: on every rank.
    """
    if names := _damaged_on_any_rank(model, device):
        raise NotFinite(
            f"these weights hold NaN or infinite values, and were not saved: {names}. Usual cause: a learning rate "
            "that is too high."
        )


def require_finite_start(model: nn.Module, device: torch.device, checkpoint: Path) -> None:
    """Check all ranks' weights after they were loaded from ``checkpoint``; each is read once, faster than from a disk.

    Raises:
        NotFinite: on every rank.
    """
    if names := _damaged_on_any_rank(model, device):
        raise NotFinite(
            f"{checkpoint} cannot be trained: NaN or infinite values are in its {names}. The checkpoint is damaged, or "
            "its training diverged: get it again, or use an earlier one."
        )


def _damaged_on_any_rank(model: nn.Module, device: torch.device) -> str:
    """The parameters with NaN or infinite values, for a message; empty if there are none on any rank."""
    damaged = non_finite_parameters(model)
    if not any(all_sum([len(damaged)], device)):
        return ""
    everyone: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, damaged)
    names = list(dict.fromkeys(name for rank in everyone for name in rank))
    more = f" and {len(names) - NAMED} more tensors" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
