"""AdamW, the learning-rate schedules, and gradient clipping over sharded parameters."""

from __future__ import annotations

import functools
import logging
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from train.optim.formats import OPTIMIZERS, OptimFormat, is_fused
from train.optim.sharded_adamw import ShardedAdamW
from train.parallel.distributed import all_sum

log = logging.getLogger(__name__)

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate(step: int, total_steps: int, peak: float, schedule: Schedule, warmup_steps: float = 0) -> float:
    """The learning rate of a step: a pure function, so that resuming needs no scheduler state.

    ::

        linear, 8 steps, warm-up 2        step 0        peak / 2
        lr  |  ._                         steps 1, 2    peak; the decay starts at step 2
            | /  `-._                     step 7        peak / 6
            |/       `-.                  step 8        would be 0, one past the last step
            +-----------> step

    Args:
        step: 0 for the first optimizer step.
        total_steps: number of steps of the run.
        peak: the rate after warm-up.
        schedule: after the warm-up: "linear" or "cosine" decay to zero, or "constant".
        warmup_steps: steps of linear increase; below 1, their part of all steps.
    """
    if warmup_steps < 1:
        warmup_steps = round(warmup_steps * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    assert schedule == "linear", schedule
    return peak * (1.0 - done)


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    formats: OptimFormat = OPTIMIZERS["adamw"],
    offload_states: bool = False,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) over all parameters, with weight decay on matrices only.

    Args:
        model: its parameters are stored in ``formats.weights``.
        formats: one of `OPTIMIZERS`, or another combination.
        offload_states: keep the states in host memory. Results are bit-identical, except for "adamw", which without
            offloading uses PyTorch's fused kernel.
        seed: of stochastic rounding.
    """
    assert {p.dtype for p in model.parameters()} == {formats.weights}, formats
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if is_fused(formats, offload_states):
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    make = functools.partial(
        ShardedAdamW,
        lr=lr,
        betas=betas,
        eps=eps,
        states=formats.states,
        stochastic_rounding=formats.stochastic_rounding,
        seed=seed,
        offload=offload_states,
    )
    return make(groups, compiled=_all_compile(make, formats.weights, next(model.parameters()).device))


def _all_compile(make: Callable[..., ShardedAdamW], weights: torch.dtype, device: torch.device) -> bool:
    """Whether the update is compiled: on GPUs, if every rank can. Ranks with the same shard must do the same."""
    if device.type != "cuda":
        return False
    mine = can_compile(make, weights, device)
    return mine if not dist.is_initialized() else all_sum([float(not mine)], device) == [0.0]


def can_compile(make: Callable[..., ShardedAdamW], weights: torch.dtype, device: torch.device) -> bool:
    """Whether a compiled step works with these formats: it needs a C compiler and Python's headers."""
    # A matrix that is large enough to be quantized, and a vector.
    parameters = [nn.Parameter(torch.zeros(shape, dtype=weights, device=device)) for shape in ((64, 64), (64,))]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        make([{"params": parameters, "weight_decay": 0.0}], compiled=True).step()
    except Exception as error:  # of the compiler, or of the one that it calls
        log.warning(
            "note: the optimizer's update cannot be compiled on this machine (%s), so it takes several times as long. "
            "It needs a C compiler and Python's header files.",
            (str(error).strip() or type(error).__name__).splitlines()[0],
        )
        return False
    return True


def allocate_states(optimizer: torch.optim.Optimizer) -> None:
    """Allocate AdamW's states now, as zeros, instead of in its first step. Weights and existing states do not change.

    For a trial step's peak memory, which must include the optimizer states.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if not optimizer.state[p]]
    if not parameters:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    for parameter in parameters:
        optimizer.state[parameter]["step"].zero_()


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their norm over all ranks is at most ``max_norm``; 0 only measures the norm.

    Returns:
        The norm before clipping, a scalar, the same on every rank. If it is NaN or infinite, gradients do not change.
    """
    by_mesh: dict[DeviceMesh | None, list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.grad is not None:
            by_mesh[getattr(parameter.grad, "device_mesh", None)].append(parameter)
    # Mesh by mesh, because no operation takes tensors of different meshes. With tensor parallelism, split matrices have
    # the "tensor" dimension and replicated parameters do not. DTensor counts replicas once.
    norms = [norm_of([p.grad for p in parameters if p.grad is not None]) for parameters in by_mesh.values()]
    norm = norm_of([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    if max_norm > 0 and torch.isfinite(norm):
        for parameters in by_mesh.values():
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def norm_of(tensors: list[Tensor]) -> Tensor:
    """The norm of all elements, in fp32: `get_total_norm` would round the norm of each bf16 tensor to bf16."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32)))
