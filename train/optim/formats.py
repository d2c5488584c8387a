"""The number formats that AdamW can use, and the memory of its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from train.optim.blockwise import block_size

StateFormat = Literal["fp32", "bf16", "8bit"]


@dataclass(frozen=True)
class OptimFormat:
    """The number formats in which AdamW stores weights and states between steps; it always computes in fp32.

    Attributes:
        weights: of the parameters, and so of their gradients.
        states: of the two running means.
        stochastic_rounding: of new weights to bf16; rounding to nearest would leave most weights unchanged.
    """

    weights: torch.dtype
    states: StateFormat
    stochastic_rounding: bool


OPTIMIZERS: dict[str, OptimFormat] = {
    "adamw": OptimFormat(torch.float32, "fp32", stochastic_rounding=False),
    "adamw_sr": OptimFormat(torch.bfloat16, "fp32", stochastic_rounding=True),
    "adamw_sr_bf16": OptimFormat(torch.bfloat16, "bf16", stochastic_rounding=True),
    "adamw_sr_8bit": OptimFormat(torch.bfloat16, "8bit", stochastic_rounding=True),
}


def is_fused(formats: OptimFormat, offload_states: bool) -> bool:
    """Whether the optimizer is PyTorch's fused AdamW."""
    return formats == OPTIMIZERS["adamw"] and not offload_states


def state_bytes(shape: torch.Size, states: StateFormat) -> int:
    """Bytes of a parameter's two running means over all ranks; ``shape`` is that of the unsharded parameter."""
    block = block_size(shape) if states == "8bit" else None
    if block is None:
        return 2 * shape.numel() * (2 if states == "bf16" else 4)
    return 2 * (shape.numel() + 4 * (shape.numel() // block))
