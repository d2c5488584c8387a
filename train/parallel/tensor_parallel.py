"""Split every matrix over ranks, Megatron's way (Shoeybi et al., 2019), for training and for scoring.

::

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

from data.errors import UserError
from model.llama import LlamaConfig

# The inputs of attention and feed-forward network become DTensors. The partial gradients of wq, wk and wv (w1 and w3)
# are then added locally and all-reduced once, not three times.
BLOCK_PLAN: dict[str, ParallelStyle] = {
    "attention": PrepareModuleInput(input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None)),
    "attention.wq": ColwiseParallel(),
    "attention.wk": ColwiseParallel(),
    "attention.wv": ColwiseParallel(),
    "attention.wo": RowwiseParallel(),
    "ffn": PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),)),
    "ffn.w1": ColwiseParallel(),
    "ffn.w3": ColwiseParallel(),
    "ffn.w2": RowwiseParallel(),
}
VOCABULARY_PLAN: dict[str, ParallelStyle] = {
    "embed": RowwiseParallel(input_layouts=Replicate()),
    "head": ColwiseParallel(output_layouts=Replicate()),
}


def check_divides(config: LlamaConfig, n_ranks: int) -> None:
    """Raise UserError unless key/value heads and hidden units divide evenly over the ranks."""
    common = math.gcd(config.n_kv_heads, config.ffn_dim)
    if common % n_ranks:
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise UserError(
            f"--tp {n_ranks}: {config.n_kv_heads} key/value heads and {config.ffn_dim} hidden units do not divide. "
            f"Numbers of ranks that do: {fits}."
        )


def apply_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a model's matrices over ``mesh``, in place. The model is on the meta device, without weights.

    Raises:
        UserError: see `check_divides`.
    """
    check_divides(model.config, mesh.size())
    # Two of PyTorch's warnings do not matter here. The logits are a view, but are not changed in place. And for an
    # export, a matrix that "tensor" and FSDP2 split along the same dimension is gathered in two steps.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for block in model.layers:
        _apply(block, mesh, BLOCK_PLAN)
    if model.head is not None:
        _apply(model, mesh, VOCABULARY_PLAN)


def _apply(module: nn.Module, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    for name in plan:
        module.get_submodule(name)  # parallelize_module only warns about a name that matches nothing
    parallelize_module(module, mesh, plan)
