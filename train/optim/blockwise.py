"""Optimizer states in eight bits: block-wise dynamic quantization (Dettmers et al., 2022, "8-bit Optimizers via
Block-wise Quantization").

A row of a matrix is cut into blocks; a block keeps its largest absolute value in fp32 and each element, divided by it,
as the index of the nearest entry of a table. The table's entries are dense near 1 and thin out towards 0: the error of
a number is 6% at most within a decade of its block's largest and 1% on average, both nearly double with every further
decade, and below 1.6e-7 of the largest a number becomes 0 (numbers without a sign fare a decade better). Two things
differ from the paper:

- Blocks lie within rows, and codes and scales are two matrices with the same rows. Whoever holds some rows holds their
  blocks, so a checkpoint written by 8 ranks loads on 4 or 1 and holds the same states, and neither FSDP nor
  `torch.distributed.checkpoint` need to know of blocks.
- Of the mean of squared gradients the root is quantized, not the mean itself. Squared, a gradient of a thousandth
  beside the block's largest is a millionth and becomes 0, and the update, divided by nothing, grows several hundredfold
  (`tests/train/optim/test_blockwise.py` shows it). Llama's hidden states have such outliers.

torchao's `AdamW8bit`, the library for this, stays what the tests compare with: it fails on bf16 parameters of FSDP2
(torch 2.13, torchao 0.18); on their local shards it cuts blocks across rows and decides by a shard's size what to
quantize, so that another number of ranks cannot load its states; it rounds from the device's generator, which replicas
would have to keep in step; it quantizes squares; its scales end at 1e-12, where the squares of 70B clipped gradients
lie; and it needs a C++ compiler on a CPU. What would be left of it here is `torch.bucketize`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

LARGEST_BLOCK, SMALLEST_BLOCK = 256, 32
# Smaller tensors keep fp32: they are nothing of a model's size, and norms matter more than most.
SMALLEST_TENSOR = 4096
# Ranks of tensor parallelism that may split a row without cutting a block.
ROW_PARTS = 8


def block_size(shape: torch.Size) -> int | None:
    """Elements in a block of a parameter's states; None where they are not quantized.

    From the shape of the whole parameter alone: the same for every number of ranks. Blocks divide an eighth of a row if
    any do, so that tensor parallelism may split the row, else the row (256 for every matrix of the Llamas but one of
    Llama 2 7B's feed-forward network: 32; 64 for SmolLM2).
    """
    if len(shape) != 2 or shape.numel() < SMALLEST_TENSOR:
        return None
    for length in (shape[1] // ROW_PARTS if shape[1] % ROW_PARTS == 0 else 1, shape[1]):
        block = math.gcd(length, LARGEST_BLOCK)
        if block >= SMALLEST_BLOCK:
            return block
    return None


@functools.cache
def table(signed: bool, device: torch.device) -> Tensor:
    """The 256 values that a code may stand for, ascending, fp32: 0, 1, and seven decades of equally spaced ones.

    The decade [0.1, 1] has 128 of them (64 of each sign if ``signed``), each lower one half as many as that above it;
    they are the middles of that many equal parts.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        n = (64 if signed else 128) >> decade
        middles = [(0.1 + 0.9 * (i + 0.5) / n) * 10.0**-decade for i in range(n)]
        values += middles + ([-x for x in middles] if signed else [])
    assert len(values) == 256
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def borders(signed: bool, device: torch.device) -> Tensor:
    """Where the nearest of the table's values changes; and infinity: [256]."""
    values = table(signed, device)
    return torch.cat([(values[1:] + values[:-1]) / 2, values.new_tensor([math.inf])])


@functools.cache
def lowest_codes(signed: bool, device: torch.device) -> Tensor:
    """The code of the least number among those of fp32 that share their upper 16 bits: int32 [65536].

    In the order of those bits, as signed integers from -32,768 up. The numbers of one entry are less than a percent
    apart, and so at most one border lies between them: a number's code is its entry's or the next.
    """
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    least = (upper << 16) + (upper < 0) * torch.tensor(0xFFFF, dtype=torch.int32)  # bits; of the most negative below 0
    assert least.dtype == torch.int32
    codes = torch.bucketize(least.view(torch.float32), borders(signed, torch.device("cpu"))[:-1], right=True)
    return codes.to(device, torch.int32)


def nearest_codes(x: Tensor, signed: bool) -> Tensor:
    """The indices of the table's values nearest to the numbers in ``x``, of two equally near ones the upper; int32.

    That is ``torch.bucketize(x, borders, right=True)``, which takes ten times as long on a CPU.
    """
    upper = (x.view(torch.int32) >> 16).add_(2**15)
    codes = look_up(lowest_codes(signed, x.device), upper)
    return codes.add_(x >= look_up(borders(signed, x.device), codes))


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
