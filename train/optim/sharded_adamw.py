"""AdamW on the local shards of weights, with low-precision states, stochastic rounding, and states in host memory.

The update is that of `torch.optim.AdamW`, computed in fp32 on one slice of a shard at a time, so that its temporaries
do not grow with the model. Weights and states are stored in the formats of `train/optim/optimizer.py`.

A step needs no communication: a new weight depends only on its own element, and on its block, which is on the same
rank. Ranks with the same shard and gradient therefore compute the same weights. Only checkpoints need DTensors, to know
each shard's offset in the unsharded parameter. The states by format:

    fp32   exp_avg, exp_avg_sq
    bf16   exp_avg, rounded to nearest; exp_avg_sq, rounded stochastically. With a beta2 of 0.999 exp_avg_sq changes by
           a thousandth a step, less than half the distance of two bf16 numbers: rounded to nearest it could never fall.
    8bit   exp_avg_codes, exp_avg_scales, exp_avg_sq_codes, exp_avg_sq_scales (`train/optim/blockwise.py`)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from data.errors import UserError
from train.optim.blockwise import block_size
from train.optim.formats import StateFormat
from train.optim.host_states import States, copied_to_device
from train.optim.rounding import stream_key
from train.optim.update import Place, compiled_update, numbers_of_step, update

# Elements updated at once, each with temporaries of 32 bytes at most: on a GPU enough to keep it busy (8M, 270 MB), on
# a CPU few enough for its cache. A compiled update has hardly any temporaries and pays for each call.
SLICE = {"cuda": 2**23, "cpu": 2**17}
COMPILED_SLICE = 2**25


@dataclass(frozen=True)
class Slice:
    """Some rows of one parameter's shard in one step.

    Attributes:
        weights, grads: [rows, columns], views of the shards.
        states: the same rows of the states, on the device or in host memory.
        group: the parameter's hyperparameters.
        step: 1 for the first.
        place: of the part's random bits.
    """

    weights: Tensor
    grads: Tensor
    states: States
    group: dict[str, Any]
    step: int
    place: Place


class ShardedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) over bf16 or fp32 parameters of one or two dimensions, sharded or not.

    Args:
        groups: parameters by weight decay.
        states: number format of the two running means. With "8bit", tensors without a `block_size` stay in fp32.
        stochastic_rounding: of bf16 weights; False rounds to nearest.
        seed: of stochastic rounding.
        offload: keep states in host memory (`train/optim/host_states.py`).
        compiled: compile the update (`train/optim/update.py`). All ranks must do the same: it may round differently.
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
        offload: bool = False,
        compiled: bool = False,
    ) -> None:
        # The same entries as PyTorch's AdamW, so that "adamw" can be resumed with offloaded states and vice versa.
        theirs = torch.optim.AdamW([torch.zeros(1)], fused=True).defaults
        super().__init__(groups, {**theirs, "lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.states = states
        self.stochastic_rounding = stochastic_rounding
        self.seed = seed
        self.offload = offload
        self.compiled = compiled

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Update every parameter that has a gradient. ``closure`` is part of PyTorch's interface and must be None."""
        assert closure is None
        slices = list(self._slices())
        if self.offload and slices:
            on_device = copied_to_device([s.states for s in slices], slices[0].weights.device)
            for part, states in zip(slices, on_device, strict=True):
                self._update(part, states)
        else:
            for part in slices:
                self._update(part, part.states)

    def _slices(self) -> Iterator[Slice]:
        """The step's slices, parameter by parameter; allocates missing states and increments the step counters."""
        number = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.state[parameter] = self._zeros(parameter)
                state = self.state[parameter]
                state["step"] += 1
                step = int(state["step"].item())
                key = stream_key(self.seed, step, number)
                weights, grads = as_matrix(parameter), as_matrix(parameter.grad)
                stored = {name: as_matrix(value) for name, value in state.items() if name != "step"}
                row, column = origin(parameter)
                width = parameter.shape[1] if parameter.ndim == 2 else 1
                elements = COMPILED_SLICE if self.compiled and not self.offload else SLICE[weights.device.type]
                n_rows = max(1, elements // max(1, weights.shape[1]))
                for start in range(0, weights.shape[0], n_rows):
                    rows = slice(start, start + n_rows)
                    states = {name: value[rows] for name, value in stored.items()}
                    place = Place(key, (row + start) * width + column, width)
                    yield Slice(weights[rows], grads[rows], states, group, step, place)

    def _update(self, part: Slice, states: States) -> None:
        hyper = {name: part.group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        numbers = numbers_of_step(step=part.step, **hyper)
        round_weights = self.stochastic_rounding and part.weights.dtype == torch.bfloat16
        change = compiled_update if self.compiled else update
        change(part.weights, part.grads, states, numbers, part.place, round_weights)

    def _zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's states before its first step.

        Raises:
            UserError: tensor parallelism splits a row in the middle of a block.
        """
        state = {"step": torch.tensor(0.0)}
        block = block_size(parameter.shape) if self.states == "8bit" else None
        if block is None:
            dtype = torch.bfloat16 if self.states == "bf16" else torch.float32
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = zeros_sharded_like(parameter, dtype, self.offload)
            return state
        columns = local_part(parameter).shape[1]
        if columns % block:
            raise UserError(
                f"optim = adamw_sr_8bit: tensor parallelism splits rows of {parameter.shape[1]} into parts of "
                f"{columns}, which is not a multiple of the block size {block}. Use another --tp, or --optim "
                "adamw_sr_bf16."
            )
        for name in ("exp_avg", "exp_avg_sq"):
            state[f"{name}_codes"] = zeros_sharded_like(parameter, torch.uint8, self.offload)
            state[f"{name}_scales"] = zeros_sharded_like(parameter, torch.float32, self.offload, block=block)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load states without a cast; PyTorch's own method would cast them to their parameter's dtype."""
        for mine, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(mine["params"], theirs["params"], strict=True):
                if key in state_dict["state"]:
                    self.state[parameter] = dict(state_dict["state"][key])
            mine.update({name: value for name, value in theirs.items() if name != "params"})


def local_part(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def as_matrix(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor as a matrix, a view; a vector becomes a column."""
    local = local_part(tensor)
    assert local.ndim in (1, 2), tuple(local.shape)
    return local if local.ndim == 2 else local[:, None]


def origin(parameter: Tensor) -> tuple[int, int]:
    """Row and column of the first element of this rank's shard in the unsharded parameter."""
    if not isinstance(parameter, DTensor):
        return 0, 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0], offset[1] if len(offset) == 2 else 0


def zeros_sharded_like(parameter: Tensor, dtype: torch.dtype, offload: bool, block: int = 1) -> Tensor:
    """Zeros with the sharding of a parameter, one for each ``block`` of its columns.

    Raises:
        UserError: no host memory is left.
    """

    def narrowed(shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] // block))

    local_shape, device = narrowed(local_part(parameter).shape), parameter.device
    if offload:
        try:
            local = torch.zeros(local_shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
        except RuntimeError as error:
            raise UserError(
                f"offload_states = on: no more host memory for the optimizer's states: {error}\n"
                "Try an --optim with smaller states, more machines, or --offload_states off."
            ) from None
    else:
        local = torch.zeros(local_shape, dtype=dtype, device=device)
    if not isinstance(parameter, DTensor):
        return local
    # `DTensor.from_local` would move host memory to the mesh's device. FSDP2 uses this constructor as well.
    shape = narrowed(parameter.shape)
    meta = TensorMeta(shape, torch.empty(shape, device="meta").stride(), dtype)
    return DTensor(local, DTensorSpec(parameter.device_mesh, parameter.placements, meta), requires_grad=False)
