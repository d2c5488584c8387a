"""Load the parameters and an optimizer's states from a training checkpoint (`train/checkpointing/checkpoint.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from checkpoints_tools.sharded import load_sharded
from data.errors import UserError


def load_model(folder: Path, model: nn.Module) -> None:
    """Load a sharded model's parameters from a checkpoint; each rank reads its own slices.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    state = {"model": get_model_state_dict(model)}
    _read(folder, state)
    set_model_state_dict(model, state["model"])


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load an optimizer's states from a checkpoint; the model's parameters must be loaded already.

    Raises:
        UserError: the checkpoint belongs to another optimizer.
    """
    state = {"optim": get_optimizer_state_dict(model, optimizer)}
    _read(folder, state)
    set_optimizer_state_dict(model, optimizer, state["optim"])


def _read(folder: Path, state: dict[str, Any]) -> None:
    try:
        load_sharded(folder, state)
    except CheckpointException as error:  # a BaseException whose message holds a traceback of every rank
        causes = dict.fromkeys(str(cause) for cause, _ in error.failures.values())
        raise UserError(
            f"checkpoint {folder} does not fit: {'; '.join(causes)}. It was saved with another model or optimizer, or "
            "by another version of this code."
        ) from None
