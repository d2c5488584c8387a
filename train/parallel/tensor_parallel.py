"""Split every matrix over ranks, Megatron's way (Shoeybi et al., 2019), for training and for scoring.

`model/tensor_plans.py` says of each architecture which matrix is split how; here PyTorch does it. Of a Llama::

    wq wk wv, w1 w3   by output (complete heads and hidden units): no communication
    wo, w2            by input: partial results are all-reduced, twice a block; in the backward pass also the partial
                      gradients of the inputs of attention and feed-forward network
    embedding         by token id: a rank looks up its own ids, uses zeros for the others; the results are all-reduced
    head              by token id: each rank's logits are gathered, at label positions only
    norms             replicated over `tensor`; so is an embedding that is tied to the head (in small models)

So a token costs four small all-reduces a block in a training step, and two in a decoding step. FSDP alone would gather
every weight for it. All ranks of the dimension run the same forward passes on the same tokens, hold the same residual
stream and get the same logits, so trainer and decoder need no change. Gradients of replicated parameters are the same
on all these ranks and need no communication.

`docs/multi_node.md` says why there is no sequence parallelism and no loss on parts of the vocabulary.
"""

from __future__ import annotations

import logging
import math
import warnings

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from checkpoints_tools.architectures import ModelConfig, architecture_of, blocks_of, config_of
from data.errors import UserError
from model.tensor_plans import Split, TensorPlan

# What PyTorch calls them.
STYLES: dict[Split, ParallelStyle] = {
    "by output": ColwiseParallel(),
    "by input": RowwiseParallel(),
    "look-up": RowwiseParallel(input_layouts=Replicate()),
    "all outputs": ColwiseParallel(output_layouts=Replicate()),
}


def block_styles(plan: TensorPlan) -> dict[str, ParallelStyle]:
    """The part of a plan that is about blocks, as `parallelize_module` takes it.

    A shared input becomes a DTensor: then the partial gradients that wq, wk and wv (w1 and w3) give back are added up
    before they are summed over the ranks.
    """
    inputs: dict[str, ParallelStyle] = {}
    for name, n_inputs in plan.shared_inputs.items():
        layouts = (Replicate(), *[None] * (n_inputs - 1))
        inputs[name] = PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)
    return inputs | {name: STYLES[split] for name, split in plan.block.items()}


def check_divides(config: ModelConfig, n_ranks: int) -> None:
    """Raise UserError unless all ranks get equally many of what the plan says (key/value heads, hidden units)."""
    plan = architecture_of(config).tensor_plan
    if n_ranks == 1:
        return
    if plan is None:
        raise UserError(f"--tp {n_ranks}: there is no plan for splitting the matrices of a '{config.family}' model.")
    sizes = {what: getattr(config, field) for field, what in plan.divides.items()}
    common = math.gcd(*sizes.values())
    if common % n_ranks:
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        listed = " and ".join(f"{size} {what}" for what, size in sizes.items())
        raise UserError(f"--tp {n_ranks}: {listed} do not divide. Numbers of ranks that do: {fits}.")


def apply_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a model's matrices over ``mesh``, in place. The model is on the meta device, without weights.

    Raises:
        UserError: see `check_divides`.
    """
    config = config_of(model)
    plan = architecture_of(config).tensor_plan
    check_divides(config, mesh.size())
    assert plan is not None, "a tensor dimension of one rank for a model that cannot be split"
    # Two of PyTorch's warnings do not matter here. The logits are a view, but are not changed in place. And for an
    # export, a matrix that "tensor" and FSDP2 split along the same dimension is gathered in two steps.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for block in blocks_of(model):
        _apply(block, mesh, block_styles(plan))
    if not config.tie_embeddings:
        _apply(model, mesh, {name: STYLES[split] for name, split in plan.vocabulary.items()})


def _apply(module: nn.Module, mesh: DeviceMesh, styles: dict[str, ParallelStyle]) -> None:
    for name in styles:
        module.get_submodule(name)  # parallelize_module only warns about a name that matches nothing
    parallelize_module(module, mesh, styles)
