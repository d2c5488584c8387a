"""The update of AdamW on a part of a parameter: states read, weights and states changed in place.

`update` is written once for two uses. On a CPU it runs as it stands, operation by operation. On a GPU `compiled_update`
makes it a few kernels (`torch.compile`): operation by operation it moves some 400 bytes of memory per parameter, and
half of a step of Llama 3 8B went by in it (`benchmarks/results/gpu.md`). The numbers of a step are tensors there:
torch 2.13 would compile the first step's learning rate as a constant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model.attention import allow_variants
from train.optim.blockwise import dequantize, make_tables, quantize
from train.optim.host_states import States
from train.optim.rounding import flat_indices, random_bits, round_to_bf16


class Numbers(NamedTuple):
    """What a step of AdamW multiplies by; all Python numbers, or all fp32 tensors without dimensions."""

    decay: float | Tensor
    new_mean: float | Tensor
    old_square: float | Tensor
    new_square: float | Tensor
    root_correction: float | Tensor
    eps: float | Tensor
    minus_rate: float | Tensor


def numbers_of_step(*, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int) -> Numbers:
    """The numbers of a step, 1 for the first, as `torch.optim.AdamW` computes them."""
    beta1, beta2 = betas
    return Numbers(
        decay=1 - lr * weight_decay,
        new_mean=1 - beta1,
        old_square=beta2,
        new_square=1 - beta2,
        root_correction=math.sqrt(1 - beta2**step),
        eps=eps,
        minus_rate=-lr / (1 - beta1**step),
    )


class Place(NamedTuple):
    """Which random bits belong to a part: all Python numbers, or int64 tensors without dimensions.

    Attributes:
        key: of the step's random bits for this parameter.
        first: index of the part's first element in the unsharded parameter.
        width: columns of the unsharded parameter.
    """

    key: int | Tensor
    first: int | Tensor
    width: int | Tensor


def update(weights: Tensor, grads: Tensor, states: States, numbers: Numbers, place: Place, round_weights: bool) -> None:
    """Change a part of a parameter and of its states by one step.

    Args:
        weights, grads: [rows, columns], fp32 or bf16.
        states: the part's running means, in any of the formats.
        round_weights: round bf16 weights stochastically, not to nearest.
    """
    bits = None
    if round_weights or ("exp_avg_sq" in states and states["exp_avg_sq"].dtype == torch.bfloat16):
        key = place.key.to(torch.int32) if isinstance(place.key, Tensor) else place.key
        bits = random_bits(flat_indices(weights.shape, place.first, place.width, weights.device), key)
    exp_avg, exp_avg_sq = read_states(states)
    new = adamw_update(weights.float(), grads.float(), exp_avg, exp_avg_sq, numbers)
    write_states(states, exp_avg, exp_avg_sq, bits)
    if round_weights:
        assert bits is not None
        new = round_to_bf16(new, bits)
    weights.copy_(new)  # rounds to nearest unless `new` is rounded already


def adamw_update(weights: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, numbers: Numbers) -> Tensor:
    """One step of AdamW, with the operations in the order of `torch.optim.AdamW`. All tensors: fp32, the same shape.

    Args:
        weights: overwritten with the new weights, and returned.
        exp_avg, exp_avg_sq: running means of gradients and of their squares, updated in place.
    """
    weights.mul_(numbers.decay)
    exp_avg.lerp_(grads, numbers.new_mean)
    exp_avg_sq.mul_(numbers.old_square).addcmul_(grads * numbers.new_square, grads)
    root = exp_avg_sq.sqrt().div_(numbers.root_correction).add_(numbers.eps)
    return weights.addcdiv_(exp_avg * numbers.minus_rate, root)


def read_states(states: States) -> tuple[Tensor, Tensor]:
    """The running means of gradients and of their squares in fp32; for fp32 states these are the stored tensors."""
    if "exp_avg" in states:
        return states["exp_avg"].float(), states["exp_avg_sq"].float()
    exp_avg = dequantize(states["exp_avg_codes"], states["exp_avg_scales"], signed=True)
    root = dequantize(states["exp_avg_sq_codes"], states["exp_avg_sq_scales"], signed=False)
    return exp_avg, root.square_()


def write_states(states: States, exp_avg: Tensor, exp_avg_sq: Tensor, bits: Tensor | None) -> None:
    """Store the updated means that `read_states` returned; overwrites ``exp_avg`` and ``exp_avg_sq``."""
    if "exp_avg" not in states:
        quantize(exp_avg, states["exp_avg_codes"], states["exp_avg_scales"], signed=True)
        quantize(exp_avg_sq.sqrt_(), states["exp_avg_sq_codes"], states["exp_avg_sq_scales"], signed=False)
    elif states["exp_avg"].dtype == torch.bfloat16:
        assert bits is not None
        states["exp_avg"].copy_(exp_avg)
        states["exp_avg_sq"].copy_(round_to_bf16(exp_avg_sq, bits >> 16))  # the lower 16 bits are for the weights


def compiled_update(
    weights: Tensor, grads: Tensor, states: States, numbers: Numbers, place: Place, round_weights: bool
) -> None:
    """`update` in a few kernels. Python numbers become tensors, so that one compiled function serves every step."""
    device = weights.device
    floats = Numbers(*torch.tensor(numbers, dtype=torch.float32).to(device, non_blocking=True).unbind())
    integers = Place(*torch.tensor(place, dtype=torch.int64).to(device, non_blocking=True).unbind())
    if "exp_avg_codes" in states:
        make_tables(device)
    _compiled()(weights, grads, states, floats, integers, round_weights)


@functools.cache
def _compiled() -> Callable[..., None]:
    allow_variants()  # of formats, of vectors and matrices, of sizes that are equal by chance
    return torch.compile(update, dynamic=True, fullgraph=True)
