"""Stochastic rounding, with random bits that depend on an element's index in the unsharded parameter.

A number is rounded up with a probability equal to the fraction that rounding down would remove. So rounding is exact on
average. Take an update of a hundredth of the distance between two bf16 numbers: it changes the weight by the full
distance once in a hundred steps. Rounding to nearest loses it every time (Gupta et al., 2015; for language models
Zamirai et al., 2020).

An element's bits are a hash of (seed, step, parameter, index in the unsharded parameter). So

- different shards get different bits, and replicas of a shard get the same bits: they stay identical without
  communication
- resuming needs no generator state
- a step rounds the same way on any number of ranks, on CPU and on GPU
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stream_key(seed: int, step: int, parameter: int) -> int:
    """The key of `random_bits` for one parameter in one step: 32 bits, as a signed integer."""
    return int(np.random.SeedSequence((seed, step, parameter)).generate_state(1, np.uint32).view(np.int32)[0])


def flat_indices(shape: torch.Size, first: int | Tensor, width: int | Tensor, device: torch.device) -> Tensor:
    """The row-major indices, modulo 2^32, of a part of a matrix in the full matrix.

    Args:
        shape: rows and columns of the part.
        first: index of the part's first element; a number or an int64 tensor without dimensions, like ``width``.
        width: columns of the full matrix.

    Returns:
        int32 [rows, columns].
    """
    starts = torch.arange(shape[0], device=device).mul_(width).add_(first)
    # The sum is made in 64 bits: with an arange in 32 bits, torch 2.11 compiles kernels that fail.
    return (starts[:, None] + torch.arange(shape[1], device=device)).to(torch.int32)


def random_bits(indices: Tensor, key: int | Tensor) -> Tensor:
    """32 random bits for each index: a hash that maps different indices to different numbers.

    The hash is lowbias32 (C. Wellons, 2018, "Prospecting for hash functions"). Its shifts and odd factors make every
    input bit flip every output bit with a probability of nearly one half. For a uniformly random key the bits of an
    index are exactly uniform, because the hash is a bijection.

    Args:
        indices: int32, any shape; overwritten.
        key: from `stream_key`; a number or an int32 tensor without dimensions.

    Returns:
        int32, the same tensor. The masks are there because a right shift of a signed integer copies its sign bit.
    """
    x = indices.bitwise_xor_(key)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def round_to_bf16(x: Tensor, bits: Tensor) -> Tensor:
    """Round to one of the two neighbouring bf16 numbers, the nearer one with higher probability: exact on average.

    bf16 is the upper half of fp32. Adding 16 random bits to the lower half carries into the upper half, with a
    probability equal to the fraction that is removed. Numbers that bf16 can represent do not change.

    Args:
        x: finite numbers, fp32.
        bits: int32, the same shape; the lower 16 bits are used.
    """
    assert x.dtype == torch.float32 and bits.dtype == torch.int32, (x.dtype, bits.dtype)
    carried = (bits & 0xFFFF).add_(x.view(torch.int32)).bitwise_and_(-0x10000)
    return carried.view(torch.float32).to(torch.bfloat16)  # exact: the lower half is zero
