"""Everything that is applied to a model, in one fixed order. The model files know nothing of it.

::

    meta device               no memory yet, however large the model
      -> tensor parallelism         if the mesh has a "tensor" dimension: see `train/parallel/tensor_parallel.py`
      -> activation checkpointing   inside the FSDP wrapper: recomputation then sees gathered parameters
      -> compile                    each block with its recomputation, but without FSDP's hooks around it
      -> activation offload         a block's saved input to host memory: see `train/parallel/activation_offload.py`
      -> FSDP2                      block by block; see `shard`
      -> materialize                each rank allocates its own shards only
      -> load                       each rank reads its own slices, or draws random weights without a checkpoint
      -> optimizer                  its states have the shards' shapes
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

from checkpoints_tools.architectures import blocks_of
from model.attention import allow_variants
from model.meta import meta_device
from train.parallel.activation_offload import offload_inputs
from train.parallel.mesh import data_mesh
from train.parallel.tensor_parallel import apply_tensor_parallel

ActivationCheckpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Precision:
    """Dtypes of the stored weights (and so of the gradients), of compute, and of reductions."""

    weights: torch.dtype
    compute: torch.dtype
    reduce: torch.dtype


PRECISIONS: dict[str, Precision] = {
    "bf16": Precision(weights=torch.float32, compute=torch.bfloat16, reduce=torch.float32),
    "fp32": Precision(weights=torch.float32, compute=torch.float32, reduce=torch.float32),
    # For large models, where memory decides. Gradients are stored in bf16 in any case, so FSDP2 adds those of a step's
    # passes in bf16 too. Summing over ranks in fp32 would avoid a few rounding errors of 0.1% (one a rank), but double
    # the traffic. It would also need more memory: for 70B 1.7 GB for the block being reduced (856M parameters), 4.2 GB
    # for embedding and head.
    "bf16_weights": Precision(weights=torch.bfloat16, compute=torch.bfloat16, reduce=torch.bfloat16),
}

# Models with fewer parameters keep blocks unsharded from forward to backward: at most 2 GB in bf16.
RESHARD_FROM = 1_000_000_000

# Selective activation checkpointing saves the results that are expensive to compute. The rest (norms, rotary, SwiGLU's
# product, additions) is cheap to recompute and makes up most of the memory.
_aten = torch.ops.aten
SAVED_OPS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,  # the same with a bias
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        # Seen by the policy only if the block is compiled as one; otherwise it is compiled alone, and recomputed.
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
    load: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a model sharded over ``mesh`` and load its weights.

    Args:
        build: makes the model; called under the meta device. The model has ``layers`` and ``init_weights``.
        mesh: of all ranks; see `train/parallel/mesh.py`.
        precision: key into `PRECISIONS`.
        activation_offload: keep the blocks' saved inputs in host memory; needs full activation checkpointing.
        load: fills the parameters of the materialized model (DTensors). None: random weights, which depend on ``seed``
            and not on the number of ranks.

    Returns:
        The model. Its parameters are DTensors, sharded along their first dimension and, with "tensor", also along the
        dimension that tensor parallelism splits.
    """
    formats = PRECISIONS[precision]
    with meta_device():
        model = build().to(formats.weights)
    if "tensor" in (mesh.mesh_dim_names or ()):
        apply_tensor_parallel(model, mesh["tensor"])
    for block in blocks_of(model):
        if activation_checkpointing != "none":
            checkpoint_activations(block, activation_checkpointing)
        if compile_blocks:
            compile_forward(block)
    if activation_offload:
        assert activation_checkpointing == "full", "only then is a block's input all that it saves"
        offload_inputs(blocks_of(model), device)
    shard(model, data_mesh(mesh), formats)
    assert not list(model.buffers()), "no checkpoint holds buffers, and `to_empty` leaves garbage in them"
    model.to_empty(device=device)
    if load is None:
        init_random(model, build, seed)
    else:
        load(model)
    return model.train()


def compile_forward(block: nn.Module) -> None:
    """Compile a block's forward pass for rows of any length.

    Only sizes that were seen to change become symbolic (``dynamic=None``). With ``dynamic=True`` a head's width would,
    and FlexAttention cannot be compiled for one that is not known.
    """
    allow_variants()
    block.forward = torch.compile(block.forward, dynamic=None)


def checkpoint_activations(block: nn.Module, mode: ActivationCheckpointing) -> None:
    """Make a block recompute its activations in the backward pass; parameter names do not change.

    "full" saves only the block's input, "selective" also the results of `SAVED_OPS`.
    """
    assert mode in ("selective", "full"), mode
    extra: dict[str, Any] = {}
    if mode == "selective":
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _save_or_recompute)
    block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **extra)


def _save_or_recompute(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def shard(model: nn.Module, mesh: DeviceMesh, formats: Precision) -> None:
    """Apply FSDP2: one group for each block; the root's group is the rest (embedding, last norm, head).

    On a mesh ("replicate", "shard") parameters are sharded over the second dimension. Gradients are reduce-scattered
    over the second dimension, then all-reduced over the first.

    A tied head is the embedding's weight, used again at the end of `forward`. In the root's group it stays gathered
    between the two uses; in separate groups it would be freed.

    Gradients are summed over ranks, never averaged: the loss is already divided by the step's global count.
    """
    # No cast of inputs. The root's are token ids; a block's activations already have the compute dtype, and its rotary
    # tables must stay in fp32: FSDP's cast would reach into the dataclass that holds them.
    policy = MixedPrecisionPolicy(param_dtype=formats.compute, reduce_dtype=formats.reduce, cast_forward_inputs=False)
    reshard = reshards_after_forward(model)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            if mesh.size() > 1:  # on a single rank even a division by 1 is a pass over all gradients
                module.set_gradient_divide_factor(1.0)
            # Otherwise FSDP2 uses a pre-multiplied sum, which gloo lacks, or on a single rank an average.
            module.set_force_sum_reduction_for_comms(True)


def reshards_after_forward(model: nn.Module) -> bool:
    """Whether a block's gathered parameters are freed after its forward pass (FSDP2's ``reshard_after_forward``).

    Then the backward pass has to gather again, a third of all communication: only large models need it. On a single
    rank gathering is a copy into the compute dtype. It is cheap; kept, the copies are as large as the model.
    """
    return sum(p.numel() for p in model.parameters()) >= RESHARD_FROM


def keep_unsharded(model: nn.Module, keep: bool) -> None:
    """Keep blocks unsharded after a forward pass, whatever the model's size, or restore what `shard` decided."""
    for block in blocks_of(model):
        assert isinstance(block, FSDPModule)
        block.set_reshard_after_forward(not keep and reshards_after_forward(model), recurse=False)


def reshard(model: nn.Module) -> None:
    """Free gathered parameters, e.g. after a forward pass without a backward; `parameters()` are then the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def init_random(model: nn.Module, build: Callable[[], nn.Module], seed: int) -> None:
    """Fill a sharded model with the random weights of the unsharded model.

    Each rank draws the unsharded weights and keeps its shards. So the weights depend on the seed alone, not on the
    number of ranks. For small models; large ones start from a checkpoint.
    """
    unsharded = build()
    assert callable(unsharded.init_weights)
    unsharded.init_weights(torch.Generator().manual_seed(seed))
    source = dict(unsharded.named_parameters())
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        full = source[name].detach().to(parameter.device, parameter.dtype)
        # src_data_rank=None: every rank has the data, so nothing is sent.
        parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None))
