"""Stochastic rounding, from random bits that belong to a number's place in the whole model.

Rounding up with the probability of what would be cut off makes rounding right on average: an update of a hundredth of
the distance between two bf16 numbers is taken whole once in a hundred steps, where rounding to nearest loses it every
time (Gupta et al., 2015; for language models Zamirai et al., 2020).

A number's bits are a hash of (seed, step, parameter, place in the whole parameter). So each shard gets bits of its own,
all replicas of a shard get the same ones and stay identical without a word between them, resuming needs no generator's
state, and a step rounds alike on one rank and on a thousand, on a CPU and on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stream_key(seed: int, step: int, parameter: int) -> int:
    """The key of `random_bits` for one parameter in one step: 32 bits, as a signed integer."""
    return int(np.random.SeedSequence((seed, step, parameter)).generate_state(1, np.uint32).view(np.int32)[0])


def places(rows: range, columns: range, width: int, device: torch.device) -> Tensor:
    """The places of a part of a matrix in the whole of it, row by row, modulo 2^32.

    Args:
        rows, columns: which part.
        width: columns of the whole matrix.

    Returns:
        int32 [len(rows), len(columns)].
    """
    first = torch.arange(rows.start, rows.stop, device=device).mul_(width).add_(columns.start).to(torch.int32)
    return first[:, None] + torch.arange(len(columns), dtype=torch.int32, device=device)


def random_bits(places: Tensor, key: int) -> Tensor:
    """32 random bits for each place: a hash that takes different places to different numbers.

    The mixing is lowbias32 (C. Wellons, 2018, "Prospecting for hash functions"): shifts and odd factors that make every
    bit of the input flip every bit of the output with a probability of nearly one half. Over a uniform key the bits of
    one place are exactly uniform, because the hash is one to one.

    Args:
        places: int32, any shape; overwritten.
        key: from `stream_key`.

    Returns:
        int32, the same tensor. Signed integers wrap around as unsigned ones do, but shift their sign in: hence
        the masks.
    """
    x = places.bitwise_xor_(key)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def round_to_bf16(x: Tensor, bits: Tensor) -> Tensor:
    """Round to one of the two neighbouring bf16 numbers, the nearer the likelier: right on average.

    bf16 is the upper half of fp32, so adding 16 random bits to the lower half carries into the upper one with exactly
    the probability of what is cut off. A number that bf16 has stays what it is.

    Args:
        x: finite numbers, fp32.
        bits: int32, the same shape; the lower 16 bits are used.
    """
    assert x.dtype == torch.float32 and bits.dtype == torch.int32, (x.dtype, bits.dtype)
    carried = (bits & 0xFFFF).add_(x.view(torch.int32)).bitwise_and_(-0x10000)
    return carried.view(torch.float32).to(torch.bfloat16)  # exact: the lower half is zero
