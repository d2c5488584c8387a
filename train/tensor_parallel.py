"""Score a model that no single GPU holds: every matrix of a block is split over the ranks, Megatron's way.

    wq wk wv, w1 w3   by output (whole heads, whole hidden units): no communication
    wo, w2            by input: each rank's partial result is summed over the ranks, twice a block
    embedding, norms, head   whole on every rank

So a token costs two small all-reduces a block, where FSDP would gather every weight for it. All ranks run the same
forward passes on the same tokens and get the same logits: nothing in the decoder knows of it.
"""

from __future__ import annotations

import math

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from data.errors import UserError
from model.llama import LlamaConfig


def check_divides(config: LlamaConfig, n_ranks: int) -> None:
    """Raise UserError unless all ranks get equally many whole key/value heads and hidden units."""
    common = math.gcd(config.n_kv_heads, config.ffn_dim)
    if common % n_ranks:
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise UserError(
            f"--tp {n_ranks}: {config.n_kv_heads} key/value heads and {config.ffn_dim} hidden units do not divide. "
            f"Numbers of ranks that do: {fits}."
        )


def split(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the blocks' matrices over ``mesh``, in place; on the meta device, before weights are loaded.

    Raises:
        UserError: see `check_divides`.
    """
    check_divides(model.config, mesh.size())
    plan = {
        "attention.wq": ColwiseParallel(),
        "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(),
        "ffn.w1": ColwiseParallel(),
        "ffn.w3": ColwiseParallel(),
        "ffn.w2": RowwiseParallel(),
    }
    for block in model.layers:
        for name in plan:
            block.get_submodule(name)  # parallelize_module only warns about a name that matches nothing
        parallelize_module(block, mesh, plan)
