"""Everything that is done to a model from outside, in one fixed order.

::

    meta device               no memory yet, however large the model
      -> tensor parallelism         where the mesh has a "tensor" dimension: see `train/parallel/tensor_parallel.py`
      -> activation checkpointing   inside what FSDP wraps: recomputation then sees gathered parameters
      -> compile                    each block with its recomputation, but without FSDP's hooks around it
      -> activation offload         what a block saves to host memory: see `train/parallel/activation_offload.py`
      -> FSDP2                      block by block; see `shard`
      -> materialize                each rank allocates its own shards and nothing else
      -> load                       each rank reads its own slices, or draws random weights where there are none to read
      -> optimizer                  its states take the shards' shape

The model files know nothing of any of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from train.parallel.activation_offload import offload_inputs
from train.parallel.mesh import data_mesh
from train.parallel.tensor_parallel import apply_tensor_parallel

ActivationCheckpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Precision:
    """Number formats: of the stored weights (and so of gradients and optimizer states), of compute, of reductions."""

    weights: torch.dtype
    compute: torch.dtype
    reduce: torch.dtype


PRECISIONS: dict[str, Precision] = {
    "bf16": Precision(weights=torch.float32, compute=torch.bfloat16, reduce=torch.float32),
    "fp32": Precision(weights=torch.float32, compute=torch.float32, reduce=torch.float32),
    # Of large models, where memory decides. Gradients are stored in bf16 whichever way they are summed. Summing in fp32
    # as well would save a few roundings of 0.1% (one a rank), and cost 1.7 GB more for each block of 70B that is being
    # reduced (856M parameters), 4.2 GB more for its embedding and head, and twice the traffic.
    "bf16_weights": Precision(weights=torch.bfloat16, compute=torch.bfloat16, reduce=torch.bfloat16),
}

# Models of fewer parameters keep blocks unsharded from forward to backward: at most 2 GB in bf16.
RESHARD_FROM = 1_000_000_000

# What selective activation checkpointing keeps instead of recomputing: the results that are dear to compute. All the
# rest (norms, rotary, SwiGLU's product, additions) is cheap to redo and makes up most of the memory.
_aten = torch.ops.aten
SAVED_OPS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,  # the same with a bias
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        # Seen only where the whole block is compiled; compiled by itself it hides from the policy and is recomputed.
        torch.ops.higher_order.flex_attention,
    }
)


def parallelize(
    build: Callable[[], nn.Module],
    mesh: DeviceMesh,
    device: torch.device,
    *,
    precision: str = "bf16",
    activation_checkpointing: ActivationCheckpointing = "none",
    activation_offload: bool = False,
    compile_blocks: bool = False,
    load: Callable[[nn.Module], None] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a model sharded over ``mesh`` and fill it.

    Args:
        build: makes the model; called under the meta device. The model has ``layers`` and ``init_weights``.
        mesh: of all ranks; see `train/parallel/mesh.py`.
        precision: key into `PRECISIONS`.
        activation_offload: with full activation checkpointing, the blocks' saved inputs go to host memory.
        load: fills the parameters of the materialized model (DTensors); None leaves random weights, which are those of
            ``seed`` whatever the number of ranks.

    Returns:
        The model; its parameters are DTensors, sharded over their first dimension and, with "tensor", over that which
        tensor parallelism splits.
    """
    formats = PRECISIONS[precision]
    with torch.device("meta"):
        model = build().to(formats.weights)
    if "tensor" in (mesh.mesh_dim_names or ()):
        apply_tensor_parallel(model, mesh["tensor"])
    for block in blocks(model):
        if activation_checkpointing != "none":
            checkpoint_activations(block, activation_checkpointing)
        if compile_blocks:
            block.forward = torch.compile(block.forward, dynamic=True)
    if activation_offload:
        assert activation_checkpointing == "full", "blocks then save nothing but their input"
        offload_inputs(blocks(model), device)
    shard(model, data_mesh(mesh), formats)
    assert not list(model.buffers()), "no checkpoint holds buffers, and `to_empty` leaves garbage in them"
    model.to_empty(device=device)
    if load is None:
        init_random(model, build, seed)
    else:
        load(model)
    return model.train()


def blocks(model: nn.Module) -> nn.ModuleList:
    """A model's layers, one after another: what is sharded, recomputed and compiled one by one."""
    assert isinstance(model.layers, nn.ModuleList)
    return model.layers


def checkpoint_activations(block: nn.Module, mode: ActivationCheckpointing) -> None:
    """Make a block recompute its activations in the backward pass; parameter names stay as they are.

    "full" keeps the block's input alone, "selective" also the results of `SAVED_OPS`.
    """
    assert mode in ("selective", "full"), mode
    extra: dict[str, Any] = {}
    if mode == "selective":
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _save_or_recompute)
    block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **extra)


def _save_or_recompute(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def shard(model: nn.Module, mesh: DeviceMesh, formats: Precision) -> None:
    """Apply FSDP2: one group a block; what is left (embedding, last norm, head) is the root's group.

    On a mesh ("replicate", "shard") parameters are sharded over the second dimension, and gradients, once reduced to
    shards, are summed over the first.

    A tied head is the embedding's own weight, used again at the end of `forward`; in the root's group it stays gathered
    from the first use to the last. Groups of their own would free it in between.

    Gradients are summed over ranks, never averaged: the loss is already divided by the step's global count.
    """
    # Inputs are left as they are: token ids at the root, and for the blocks activations, which are in the compute dtype
    # already, and the rotary tables, which must stay in fp32: FSDP's cast reaches into the dataclass that holds them.
    policy = MixedPrecisionPolicy(param_dtype=formats.compute, reduce_dtype=formats.reduce, cast_forward_inputs=False)
    reshard = reshards_after_forward(model)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            if mesh.size() > 1:  # a single rank would divide by it, 1 or not: a pass over all gradients
                module.set_gradient_divide_factor(1.0)
            # Else a factor of 1 becomes a pre-multiplied sum, which gloo lacks, or an average on a single rank.
            module.set_force_sum_reduction_for_comms(True)


def reshards_after_forward(model: nn.Module) -> bool:
    """Whether a block's gathered parameters are freed after its forward pass (FSDP2's ``reshard_after_forward``).

    A second gathering for the backward pass is a third of all communication, worth it only for large models. On a
    single rank gathering is a copy into the compute dtype: cheap, and as large as the model if it stays.
    """
    return sum(p.numel() for p in model.parameters()) >= RESHARD_FROM


def keep_unsharded(model: nn.Module, keep: bool) -> None:
    """Keep blocks unsharded after a forward pass, whatever their size, or go back to what `shard` decided."""
    for block in blocks(model):
        assert isinstance(block, FSDPModule)
        block.set_reshard_after_forward(not keep and reshards_after_forward(model), recurse=False)


def reshard(model: nn.Module) -> None:
    """Free gathered parameters, e.g. after a forward pass without a backward; `parameters()` are the shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def init_random(model: nn.Module, build: Callable[[], nn.Module], seed: int) -> None:
    """Fill a sharded model with the random weights that an unsharded one would start with.

    Each rank draws the whole model and keeps its shards, so that the weights depend on the seed alone and not on the
    number of ranks. For small models; large ones start from a checkpoint.
    """
    whole = build()
    assert callable(whole.init_weights)
    whole.init_weights(torch.Generator().manual_seed(seed))
    source = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        full = source[name].detach().to(parameter.device, parameter.dtype)
        # src_data_rank=None: every rank has the data already, nothing needs to be sent.
        parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None))
