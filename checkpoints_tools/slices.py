"""Which part of a sharded parameter this rank holds."""

from __future__ import annotations

import math

from torch import Tensor, nn


def local_slice(parameter: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """This rank's part of a parameter, as a plain tensor that shares its memory, and its slices in the parameter.

    Works for the placements of FSDP2 and tensor parallelism, alone or together, evenly divided or not: ``Shard`` and
    ``Replicate`` over meshes of any number of dimensions, and ``_StridedShard``. FSDP2 uses the last for a dimension
    that tensor parallelism has already split: split over "tensor" first, then each part over "shard". Despite the name
    each rank's part is contiguous::

        8 rows on a mesh of shard 2 x tensor 2:   tensor 0        tensor 1
                                      shard 0     rows 0, 1       rows 4, 5
                                      shard 1     rows 2, 3       rows 6, 7
    """
    if type(parameter) in (Tensor, nn.Parameter):
        return parameter, tuple(slice(0, n) for n in parameter.shape)

    # These take most of a second, and what is not split does not need them.
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.distributed.tensor.placement_types import _StridedShard

    assert isinstance(parameter, DTensor), type(parameter)
    mesh, placements = parameter.device_mesh, parameter.placements
    for i, placement in enumerate(placements):
        assert isinstance(placement, Shard | _StridedShard | Replicate), f"unsupported placement {placement}"
        if isinstance(placement, _StridedShard):
            before = [mesh.size(j) for j in range(i + 1, mesh.ndim) if placements[j] == Shard(placement.dim)]
            assert placement.split_factor == math.prod(before), f"not contiguous: {placements}"
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    local = parameter.to_local()
    assert tuple(local.shape) == tuple(shape), (local.shape, shape)
    return local, tuple(slice(begin, begin + n) for begin, n in zip(offset, shape, strict=True))
