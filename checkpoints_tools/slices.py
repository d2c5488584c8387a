"""Which part of a sharded parameter this rank holds."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard


def local_slice(parameter: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """The part of a parameter that this rank holds, as a plain tensor that shares its memory, and where it lies.

    Works for all that FSDP2 and tensor parallelism make, alone or together, evenly divided or not: ``Shard`` and
    ``Replicate`` over meshes of any dimensions, and ``_StridedShard``. The last is what FSDP2 says of a dimension that
    tensor parallelism has split before: split over "tensor" first, then each of these parts over "shard". In spite of
    its name each rank's part is one piece::

        8 rows on a mesh of shard 2 x tensor 2:   tensor 0        tensor 1
                                      shard 0     rows 0, 1       rows 4, 5
                                      shard 1     rows 2, 3       rows 6, 7
    """
    if not isinstance(parameter, DTensor):
        return parameter, tuple(slice(0, n) for n in parameter.shape)
    mesh, placements = parameter.device_mesh, parameter.placements
    for i, placement in enumerate(placements):
        assert isinstance(placement, Shard | _StridedShard | Replicate), f"no rank holds a part of it under {placement}"
        if isinstance(placement, _StridedShard):
            before = [mesh.size(j) for j in range(i + 1, mesh.ndim) if placements[j] == Shard(placement.dim)]
            assert placement.split_factor == math.prod(before), f"not one piece: {placements}"
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    local = parameter.to_local()
    assert tuple(local.shape) == tuple(shape), (local.shape, shape)
    return local, tuple(slice(begin, begin + n) for begin, n in zip(offset, shape, strict=True))
