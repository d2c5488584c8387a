"""Split every matrix over ranks, Megatron's way (Shoeybi et al., 2019), for training and for scoring.

::

    wq wk wv, w1 w3   by output (whole heads, whole hidden units): no communication
    wo, w2            by input: the ranks' partial results are summed, twice a block; and so are, on the way back, the
                      partial gradients of attention's and the feed-forward network's inputs
    embedding         by token id: a rank looks up its own ids, has zeros for the others, and the results are summed
    head              by token id: each rank's logits are gathered, at label positions only
    norms             whole on every rank; so is an embedding that is the head as well (small models tie them)

So a token costs four small all-reduces a block in a training step, and two in a decoding step, where FSDP alone would
gather every weight for it. All ranks of the dimension run the same forward passes on the same tokens, hold the same
residual stream and get the same logits: neither the trainer nor the decoder knows of it. The gradients of what is whole
on every rank come out the same on all of them and need no communication.

Why the residual stream is not cut along the sequence as well, and the loss not computed on the parts of the vocabulary:
`docs/multi_node.md`.
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

# Attention and the feed-forward network take their input as a DTensor: then the partial gradients that wq, wk and wv
# (w1 and w3) give back are added up before they are summed over the ranks, once and not three times.
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
    """Raise UserError unless all ranks get equally many whole key/value heads and hidden units."""
    common = math.gcd(config.n_kv_heads, config.ffn_dim)
    if common % n_ranks:
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise UserError(
            f"--tp {n_ranks}: {config.n_kv_heads} key/value heads and {config.ffn_dim} hidden units do not divide. "
            f"Numbers of ranks that do: {fits}."
        )


def apply_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a model's matrices over ``mesh``, in place; on the meta device, before weights are loaded.

    Raises:
        UserError: see `check_divides`.
    """
    check_divides(model.config, mesh.size())
    # What PyTorch would warn of, and what is not so here: the logits are a view, which nobody changes in place; and a
    # matrix split twice along one dimension (over "tensor", then by FSDP2) is gathered in two steps, for an export.
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
