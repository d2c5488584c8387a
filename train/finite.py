"""Find parameters with NaN or infinite values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from checkpoints_tools.load import clean_name
from checkpoints_tools.registry import architecture_of, config_of
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
    parts = {clean_name(name): _local(parameter) for name, parameter in model.named_parameters()}
    are_finite = torch.stack([all_finite(part) for part in parts.values()]).tolist()
    to_theirs = architecture_of(config).to_theirs
    return [to_theirs(name, config) for name, is_finite in zip(parts, are_finite, strict=True) if not is_finite]


def require_finite_weights(model: nn.Module, device: torch.device) -> None:
    """Check all ranks' weights after an update: the next loss would show too late that one is NaN or infinite.

    Raises:
        NotFinite: on every rank.
    """
    damaged = non_finite_parameters(model)
    (n_damaged,) = all_sum([len(damaged)], device)
    if n_damaged:
        names = ", ".join(damaged[:NAMED]) or "tensors of other ranks"
        raise NotFinite(
            f"these weights hold NaN or infinite values, and were not saved: {names}. Usual cause: a learning rate "
            "that is too high."
        )


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
