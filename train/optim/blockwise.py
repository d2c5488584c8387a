"""Optimizer states in eight bits: block-wise dynamic quantization (Dettmers et al., 2022, "8-bit Optimizers via
Block-wise Quantization").

Each row of a matrix is divided into blocks. A block stores its largest absolute value in fp32. Each element is divided
by that value and stored as the index of the nearest entry of a table. The entries are dense near 1 and sparse near 0:

    element / block's largest    error
    0.1 to 1                     6% at most, 1% on average
    each decade below            nearly twice that of the decade above
    below 2.7e-7                 becomes 0

Unsigned numbers are as precise as signed ones a decade above, and become 0 below 1.6e-7. Two things
differ from the paper:

- Blocks lie within rows, and codes and scales are two matrices with the same rows. A rank that holds some rows holds
  their blocks. So a checkpoint of 8 ranks loads on 4 or 1 with the same states, and neither FSDP nor
  `torch.distributed.checkpoint` needs to know of blocks.
- The root of the mean squared gradient is quantized, not the mean itself. Squared, a gradient of a thousandth of the
  block's largest is a millionth of its square and becomes 0. The update is then divided by almost 0 and grows several
  hundredfold (`tests/train/optim/test_blockwise.py` shows it). Llama's hidden states have such outliers.

torchao's `AdamW8bit`, the library for this, is used only as the reference in tests (torch 2.13, torchao 0.18):

- It fails on bf16 parameters of FSDP2.
- On local shards its blocks cross rows, and a shard's size decides what is quantized. So another number of ranks cannot
  load its states.
- It rounds with the device's generator, which replicas would have to keep synchronized.
- It quantizes squares, and its scales end at 1e-12, about the squares of 70B clipped gradients.
- It needs a C++ compiler on a CPU.

Only its `torch.bucketize` would be useful here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_BLOCK, SMALLEST_BLOCK = 256, 32
# Smaller tensors stay in fp32: they are a tiny part of a model, and norms need precision.
SMALLEST_TENSOR = 4096
# Tensor parallelism over this many ranks splits a row between blocks, if its length allows.
ROW_PARTS = 8


_TABLES: dict[tuple[str, bool, str], Tensor] = {}  # not functools.cache: torch.compile would look through it


def _made_once(make: Callable[[bool, torch.device], Tensor]) -> Callable[[bool, torch.device], Tensor]:
    """Make a table once for each device."""
    name = make.__name__

    @functools.wraps(make)
    def made(signed: bool, device: torch.device) -> Tensor:
        key = (name, signed, str(device))
        if key not in _TABLES:
            _TABLES[key] = make(signed, device)
        return _TABLES[key]

    return made


def block_size(shape: torch.Size) -> int | None:
    """Elements in a block of a parameter's states; None if they are not quantized.

    It depends only on the shape of the unsharded parameter, so it is the same for every number of ranks. If possible an
    eighth of a row is a multiple of the block, so that tensor parallelism can split the row; otherwise the row is.

    It is 256 for the Llamas, except 32 for one matrix of Llama 2 7B's feed-forward network; 64 for SmolLM2.
    """
    if len(shape) != 2 or shape.numel() < SMALLEST_TENSOR:
        return None
    for length in (shape[1] // ROW_PARTS if shape[1] % ROW_PARTS == 0 else 1, shape[1]):
        block = math.gcd(length, LARGEST_BLOCK)
        if block >= SMALLEST_BLOCK:
            return block
    return None


@_made_once
def table(signed: bool, device: torch.device) -> Tensor:
    """The values of the 256 codes, ascending, fp32: 0, 1, and seven decades of equally spaced values.

    The decade [0.1, 1] has 128 values (64 of each sign if ``signed``); each lower decade has half as many as the one
    above. A decade is divided into as many equal intervals as it has values, and the values are their midpoints.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        n = (64 if signed else 128) >> decade
        middles = [(0.1 + 0.9 * (i + 0.5) / n) * 10.0**-decade for i in range(n)]
        values += middles + ([-x for x in middles] if signed else [])
    assert len(values) == 256
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@_made_once
def boundaries(signed: bool, device: torch.device) -> Tensor:
    """The midpoints between neighbouring table values, then infinity: [256]."""
    values = table(signed, device)
    return torch.cat([(values[1:] + values[:-1]) / 2, values.new_tensor([math.inf])])


@_made_once
def lowest_codes(signed: bool, device: torch.device) -> Tensor:
    """For each value of the upper 16 bits of an fp32 number, the code of the smallest such number: int32 [65536].

    The order is that of the 16 bits as signed integers, from -32,768. Numbers with the same upper bits differ by less
    than a percent, so at most one boundary lies between them. A number's code is therefore its entry or the next code.
    """
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    least = (upper << 16) + (upper < 0) * torch.tensor(0xFFFF, dtype=torch.int32)  # as bits
    assert least.dtype == torch.int32
    codes = torch.bucketize(least.view(torch.float32), boundaries(signed, torch.device("cpu"))[:-1], right=True)
    return codes.to(device, torch.int32)


def make_tables(device: torch.device) -> None:
    """Make all tables of a device: before `torch.compile` compiles a function that uses them."""
    for signed in (True, False):
        for make in (table, boundaries, lowest_codes):
            make(signed, device)


def nearest_codes(x: Tensor, signed: bool) -> Tensor:
    """The index of the table value nearest to each number in ``x``, int32; the upper one if two are equally near.

    The same as ``torch.bucketize(x, boundaries, right=True)``, which is ten times slower on a CPU.
    """
    upper = (x.view(torch.int32) >> 16).add_(2**15)
    codes = look_up(lowest_codes(signed, x.device), upper)
    return codes.add_(x >= look_up(boundaries(signed, x.device), codes))


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, several times faster."""
    return values.index_select(0, index.view(-1)).view(index.shape)


def quantize(x: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """Write ``x`` into ``codes`` and ``scales``.

    Args:
        x: fp32 [rows, columns]; overwritten.
        codes: uint8 [rows, columns].
        scales: fp32 [rows, columns / block]: the largest absolute values of the blocks.
        signed: whether ``x`` may be negative.
    """
    blocks = x.unflatten(1, (scales.shape[1], -1))
    torch.amax(blocks.abs(), dim=2, out=scales)
    blocks.div_(scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None])
    codes.copy_(nearest_codes(x, signed))


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """What `quantize` wrote, in fp32 [rows, columns]."""
    x = look_up(table(signed, codes.device), codes.int())
    x.unflatten(1, (scales.shape[1], -1)).mul_(scales[:, :, None])
    return x
