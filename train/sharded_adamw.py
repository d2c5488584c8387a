"""AdamW on the local shards of bf16 weights, with stochastic rounding.

The update is that of `torch.optim.AdamW`, computed in fp32 one slice of a shard at a time, so that its temporaries do
not grow with the model; what is stored between steps is stored in fewer bits (`train/optimizer.py` says which). Nothing
of a step crosses ranks: an element's new weight depends on that element alone.

States are DTensors placed as their parameter is, so that checkpoints know where each shard lies in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from train.rounding import places, random_bits, round_to_bf16, stream_keys

StateFormat = Literal["fp32"]

# Elements updated at once. A slice's temporaries are about 30 bytes an element: on a GPU large enough to keep it busy
# (8M: 250 MB), on a CPU small enough for its cache.
SLICE = {"cuda": 2**23, "cpu": 2**17}


class ShardedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) over bf16 or fp32 parameters, sharded or not, in at most two dimensions.

    Args:
        groups: parameters by weight decay.
        states: number format of the two running means.
        stochastic_rounding: how bf16 weights are rounded; False rounds to nearest.
        seed: of stochastic rounding.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        states: StateFormat,
        stochastic_rounding: bool,
        seed: int,
    ) -> None:
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, weight_decay=0.0))
        self.states = states
        self.stochastic_rounding = stochastic_rounding
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient. ``closure``, a part of PyTorch's interface, must be None."""
        assert closure is None
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, number)
                number += 1

    def allocate(self, parameter: Tensor) -> None:
        """Make a parameter's states as zeros, as before its first step."""
        zeros = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        self.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": zeros,
            "exp_avg_sq": torch.zeros_like(zeros),
        }

    def _update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        if not self.state[parameter]:
            self.allocate(parameter)
        state = self.state[parameter]
        state["step"] += 1
        step = int(state["step"].item())
        keys = stream_keys(self.seed, step, number)
        weights, grads = as_matrix(parameter), as_matrix(parameter.grad)
        exp_avg, exp_avg_sq = as_matrix(state["exp_avg"]), as_matrix(state["exp_avg_sq"])
        first_row, first_column = origin(parameter)
        width = parameter.shape[1] if parameter.ndim == 2 else 1
        columns = range(first_column, first_column + weights.shape[1])
        for rows in slices(weights):
            new = adamw_update(
                weights[rows].float(), grads[rows].float(), exp_avg[rows], exp_avg_sq[rows], step=step, **hyper(group)
            )
            if weights.dtype == torch.bfloat16 and self.stochastic_rounding:
                where = range(first_row + rows.start, first_row + rows.stop)
                new = round_to_bf16(new, random_bits(places(where, columns, width, new.device), keys[0]))
            weights[rows] = new

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over states as they are; PyTorch's own method would cast them to their parameter's dtype."""
        for mine, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(mine["params"], theirs["params"], strict=True):
                if key in state_dict["state"]:
                    self.state[parameter] = dict(state_dict["state"][key])
            mine.update({name: value for name, value in theirs.items() if name != "params"})


def adamw_update(
    weights: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> Tensor:
    """One step of AdamW, the operations in the order of `torch.optim.AdamW`'s; everything fp32, one shape.

    Args:
        weights: overwritten with the new weights, and returned. With fp32 parameters it is their own memory.
        exp_avg, exp_avg_sq: running means of gradients and of their squares, updated in place.
        step: 1 for the first.
    """
    beta1, beta2 = betas
    weights.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(grads, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    root = exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    return weights.addcdiv_(exp_avg, root, value=-lr / (1 - beta1**step))


def hyper(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}


def as_matrix(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, as a matrix that shares its memory; a vector becomes a column."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
    assert local.ndim in (1, 2), tuple(local.shape)
    return local if local.ndim == 2 else local[:, None]


def slices(matrix: Tensor) -> Iterator[slice]:
    """Rows of a matrix, `SLICE` elements at a time."""
    step = max(1, SLICE[matrix.device.type] // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        yield slice(start, min(start + step, matrix.shape[0]))


def origin(parameter: Tensor) -> tuple[int, int]:
    """Row and column at which this rank's part of a parameter begins in the whole."""
    if not isinstance(parameter, DTensor):
        return 0, 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0], offset[1] if len(offset) == 2 else 0
