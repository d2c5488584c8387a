"""A tensor-parallel decoder for scoring: loaded from disk, or copied from a model in training. In three steps:

1. Shard on the meta device, as in training (`train/parallel/tensor_parallel.py`): every matrix becomes a DTensor.
2. Load from a Hugging Face folder or a training checkpoint (`eval/setup.py`), or copy from a live model
   (`copy_for_scoring`). Each rank keeps only its slices.
3. `to_plain_tensors`: replace the DTensors by their local slices and plain collectives.

Embedding and head are sharded too. A decoding step reads every weight once. For Llama 3 70B in bf16 on 8 GPUs, per GPU:

    blocks                         17.1  GB
    head, unsharded                 2.1  GB
    head, sharded                   0.26 GB; gathering the logits (0.26 MB per request) costs little in comparison
    embedding and head, unsharded   3.7  GB more memory than sharded, which the cache can use instead

All ranks choose the next token from the same gathered logits, so they cannot diverge.

Why `to_plain_tensors`: a product with a DTensor costs the host a fraction of a millisecond before the device starts,
and a block has seven products. With one token per step, this is several times the GPU's time for the entire step
(`benchmarks/results/score_in_training.md`). Without gradients, DTensors are not needed once the slices are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from checkpoints_tools.load import clean_name, local_slice
from model.meta import meta_device
from train.parallel.tensor_parallel import apply_tensor_parallel


@torch.no_grad()
def copy_for_scoring(
    model: nn.Module, build: Callable[[], nn.Module], mesh: DeviceMesh, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A tensor-parallel copy of a model in training, sharded over ``mesh``, with weights cast to ``dtype``.

    A collective call of all ranks that have a shard of ``model``. One tensor at a time is gathered, and each rank keeps
    its slice of it. All weights pass through each GPU once, as in one forward pass of FSDP. Besides the copy, a rank
    needs memory for the largest tensor.

    Args:
        model: its parameters are DTensors on any mesh.
        build: builds a new model; called under the meta device.
    """
    with meta_device():
        copy = build().to(dtype)
    apply_tensor_parallel(copy, mesh)
    assert not list(copy.buffers()), "to_empty leaves buffers as garbage"
    copy.to_empty(device=device)
    source = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    targets = dict(copy.named_parameters())
    assert source.keys() == targets.keys(), source.keys() ^ targets.keys()
    for name, target in targets.items():
        local, where = local_slice(target)
        sharded = source[name].detach().to(dtype)
        assert isinstance(sharded, DTensor), name
        local.copy_(sharded.full_tensor()[where])
    return to_plain_tensors(copy, build, mesh).eval()


def to_plain_tensors(model: nn.Module, build: Callable[[], nn.Module], mesh: DeviceMesh) -> nn.Module:
    """The same model without DTensors and without gradients; it shares the memory of ``model``.

    Args:
        model: sharded over ``mesh`` by `train.parallel.tensor_parallel.apply_tensor_parallel`, with weights loaded.
        build: builds a new model; called under the meta device.
    """
    with meta_device():
        plain = build()
    group = mesh.get_group()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        if not isinstance(weight, DTensor):
            plain.get_submodule(name).weight = nn.Parameter(weight.detach(), requires_grad=False)
        elif isinstance(module, nn.Embedding):
            plain.set_submodule(name, _EmbeddingSlice(weight, group))
        elif weight.placements == (Shard(1),):  # row-wise parallel
            plain.set_submodule(name, _LinearSlice(weight, partial(_all_reduce, group=group)))
        elif name == "head":
            plain.set_submodule(name, _LinearSlice(weight, partial(_all_gather, n_total=weight.shape[0], group=group)))
        else:  # column-wise parallel; the next layer uses the local outputs
            plain.set_submodule(name, _LinearSlice(weight, lambda x: x))
    assert not any(p.is_meta or isinstance(p, DTensor) for p in plain.parameters())
    return plain


class _LinearSlice(nn.Module):
    """One rank's slice of a linear layer; ``finish`` converts its output to the next layer's input."""

    def __init__(self, weight: DTensor, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        local, _ = local_slice(weight.detach())
        self.weight = nn.Parameter(local, requires_grad=False)
        self.finish = finish

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(F.linear(x, self.weight))


class _EmbeddingSlice(nn.Module):
    """One rank's rows of an embedding; token ids of other ranks give zeros before the all-reduce."""

    def __init__(self, weight: DTensor, group: dist.ProcessGroup) -> None:
        super().__init__()
        local, (rows, _) = local_slice(weight.detach())
        self.weight = nn.Parameter(local, requires_grad=False)
        self.first, self.group = rows.start, group

    def forward(self, tokens: Tensor) -> Tensor:
        row = tokens - self.first
        not_local = (row < 0) | (row >= len(self.weight))
        x = F.embedding(row.masked_fill(not_local, 0), self.weight)
        return _all_reduce(x.masked_fill(not_local[..., None], 0), self.group)


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum the ranks' partial results in place."""
    dist.all_reduce(x, group=group)
    return x


def _all_gather(x: Tensor, n_total: int, group: dist.ProcessGroup) -> Tensor:
    """[N, n] of each rank -> [N, n_total]; the last ranks may have fewer columns than the others."""
    n_each = -(-n_total // group.size())
    x = F.pad(x, (0, n_each - x.shape[-1])).movedim(-1, 0).contiguous()
    gathered = x.new_empty(group.size() * n_each, *x.shape[1:])
    dist.all_gather_single(gathered, x, group=group)
    return gathered[:n_total].movedim(0, -1)
