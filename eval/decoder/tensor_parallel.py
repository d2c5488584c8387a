"""A tensor-parallel decoder for scoring: read from disk, or copied out of a model in training.

::

    apply        on the meta device, as in training (`train/parallel/tensor_parallel.py`): every matrix becomes a
                 DTensor that knows which slice of it each rank holds
      fill       from a Hugging Face folder or a training checkpoint (`eval/setup.py`), or from a live model
                 (`copy_for_scoring`): whichever it is, a rank keeps its own slices and nothing else
      to_plain_tensors   the same slices as plain tensors, with plain collectives

Embedding and head are split too. A step of decoding reads every weight once: of Llama 3 70B in bf16 over 8 GPUs the
blocks are 17.1 GB a GPU; an unsharded head would add 2.1 GB to read, an eighth of it adds 0.26, and gathering the
logits (0.26 MB a request) costs far less than reading the difference. Unsharded, the two would also take 3.7 GB a GPU
from the cache. And because all ranks choose the next token from the same gathered logits, they cannot part ways.

Why `to_plain_tensors`: a product with a DTensor keeps the host busy for a fraction of a millisecond before the device
has anything to do, and a block has seven. One token at a time that is several times what a GPU needs for the step
(`benchmarks/results/score_in_training.md`), and without gradients nothing is left for DTensors to do once the slices
are in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from checkpoints_tools.load import clean_name, local_slice
from train.parallel.tensor_parallel import apply_tensor_parallel


@torch.no_grad()
def copy_for_scoring(
    model: nn.Module, build: Callable[[], nn.Module], mesh: DeviceMesh, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A copy of a model in training, split over ``mesh``, its weights cast to ``dtype``.

    A collective call of all ranks that hold a shard of ``model``. One tensor at a time is gathered, and each
    rank keeps its slice of it: all weights pass through each GPU once, as in one forward pass of FSDP, and the most
    that a rank holds beside the copy is the largest tensor.

    Args:
        model: its parameters are DTensors on any mesh.
        build: makes the model anew; called under the meta device.
    """
    with torch.device("meta"):
        copy = build().to(dtype)
    apply_tensor_parallel(copy, mesh)
    assert not list(copy.buffers()), "to_empty leaves buffers as garbage"
    copy.to_empty(device=device)
    source = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    targets = dict(copy.named_parameters())
    assert source.keys() == targets.keys(), source.keys() ^ targets.keys()
    for name, target in targets.items():
        local, where = local_slice(target)
        local.copy_(source[name].detach().to(dtype).full_tensor()[where])
    return to_plain_tensors(copy, build, mesh).eval()


def to_plain_tensors(model: nn.Module, build: Callable[[], nn.Module], mesh: DeviceMesh) -> nn.Module:
    """A model that shares the memory of a tensor-parallel one and gives its results; no DTensors, no gradients.

    Args:
        model: as `train.parallel.tensor_parallel.apply_tensor_parallel` made it, its slices in place.
        build: makes the model anew; called under the meta device.
    """
    with torch.device("meta"):
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
        elif weight.placements == (Shard(1),):  # split by input
            plain.set_submodule(name, _LinearSlice(weight, lambda x: _add_up(x, group)))
        elif name == "head":
            plain.set_submodule(name, _LinearSlice(weight, lambda x, n=weight.shape[0]: _gather(x, n, group)))
        else:  # split by output; what comes next is split alike
            plain.set_submodule(name, _LinearSlice(weight, lambda x: x))
    assert not any(p.is_meta or isinstance(p, DTensor) for p in plain.parameters())
    return plain


class _LinearSlice(nn.Module):
    """One rank's slice of a linear layer; ``finish`` makes of its result what the next layer takes."""

    def __init__(self, weight: DTensor, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to_local(), requires_grad=False)
        self.finish = finish

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(F.linear(x, self.weight))


class _EmbeddingSlice(nn.Module):
    """The rows of an embedding that one rank holds; it has zeros for the ids of others."""

    def __init__(self, weight: DTensor, group: dist.ProcessGroup) -> None:
        super().__init__()
        local, (rows, _) = local_slice(weight.detach())
        self.weight = nn.Parameter(local, requires_grad=False)
        self.first, self.group = rows.start, group

    def forward(self, tokens: Tensor) -> Tensor:
        row = tokens - self.first
        foreign = (row < 0) | (row >= len(self.weight))
        x = F.embedding(row.masked_fill(foreign, 0), self.weight)
        return _add_up(x.masked_fill(foreign[..., None], 0), self.group)


def _add_up(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' partial results, summed; in place."""
    dist.all_reduce(x, group=group)
    return x


def _gather(x: Tensor, n_full: int, group: dist.ProcessGroup) -> Tensor:
    """[N, n] of each rank -> [N, n_full]; the last rank may have fewer than the others."""
    n_each = -(-n_full // group.size())
    x = F.pad(x, (0, n_each - x.shape[-1])).movedim(-1, 0).contiguous()
    full = x.new_empty(group.size() * n_each, *x.shape[1:])
    dist.all_gather_single(full, x, group=group)
    return full[:n_full].movedim(0, -1)
