"""Stochastic rounding is right on average, and its bits belong to a number's place in the whole model."""

from __future__ import annotations

import numpy as np
import torch

from train.optim.rounding import flat_indices, random_bits, round_to_bf16, stream_key

CPU = torch.device("cpu")


def bits(n: int, key: int = 1, start: int = 0) -> torch.Tensor:
    return random_bits(torch.arange(start, start + n, dtype=torch.int32), key)


def test_the_hash_is_lowbias32_in_unsigned_arithmetic() -> None:
    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    key = stream_key(0, 1, 2)
    numbers = [0, 1, 2, 65_535, 65_536, 2**31 - 1]
    got = random_bits(torch.tensor(numbers, dtype=torch.int32), key).tolist()
    assert [g % 2**32 for g in got] == [lowbias32(n ^ (key % 2**32)) for n in numbers]


def test_bits_are_uniform_and_unlike_their_neighbours() -> None:
    drawn = bits(2**18, stream_key(0, 1, 2)).numpy()
    for shift in (0, 8, 16, 24):  # chi-squared with 255 degrees of freedom: 255 +- 22.6
        counts = np.bincount((drawn >> shift) & 0xFF, minlength=256)
        assert abs(((counts - 1024.0) ** 2 / 1024.0).sum() - 255) < 5 * 22.6
    low = (drawn & 0xFFFF) / 65536 - 0.5
    for lag in (1, 2, 64, 576, 4096):
        assert abs(np.corrcoef(low[:-lag], low[lag:])[0, 1]) < 5 / np.sqrt(len(low))


def test_steps_parameters_and_seeds_have_streams_of_their_own() -> None:
    low = [(bits(2**14, stream_key(*where)).numpy() & 0xFFFF).astype(float) for where in np.ndindex(2, 3, 3)]
    assert np.abs(np.corrcoef(low) - np.eye(len(low))).max() < 5 / np.sqrt(2**14)


def test_the_mean_over_steps_is_the_number_itself() -> None:
    """Of one element over 2,000 steps, which is what training needs, for eleven fractions of a bf16 interval."""
    ulp = 2.0**-7
    fractions = torch.linspace(0, 1, 11).repeat(2)
    sign = torch.tensor([1.0] * 11 + [-1.0] * 11)
    x = sign * (1 + fractions * ulp)
    n = 2000
    total = torch.zeros(22, dtype=torch.float64)
    for step in range(n):
        indices = flat_indices(torch.Size((22, 1)), 0, 1, CPU)[:, 0]
        rounded = round_to_bf16(x, random_bits(indices, stream_key(7, step, 0)))
        assert ((rounded == sign) | (rounded == sign * (1 + ulp))).all(), "one of the two neighbours"
        total += rounded.double()
    error = (total / n - x.double()).abs() / ulp
    standard = (fractions * (1 - fractions) / n).sqrt()
    assert (error <= 5 * standard + 1e-4).all(), error
    assert (error[standard == 0] == 0).all(), "numbers that bf16 has stay as they are"


def test_bf16_numbers_stay_whatever_the_bits() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    assert torch.equal(round_to_bf16(finite.float(), bits(len(finite))), finite)
    assert torch.equal(round_to_bf16(finite.float(), torch.full((len(finite),), -1, dtype=torch.int32)), finite)


def test_a_part_has_the_bits_it_has_in_the_whole() -> None:
    key = stream_key(0, 3, 5)
    full = random_bits(flat_indices(torch.Size((10, 8)), 0, 8, CPU), key)
    assert len(full.unique()) == 80
    for rows, columns in ((range(0, 5), range(8)), (range(5, 10), range(8)), (range(3, 4), range(4, 8))):
        shape, first = torch.Size((len(rows), len(columns))), rows.start * 8 + columns.start
        part = random_bits(flat_indices(shape, first, 8, CPU), key)
        assert torch.equal(part, full[rows.start : rows.stop, columns.start : columns.stop])


def test_indices_beyond_2_to_the_31_wrap_around() -> None:
    far = flat_indices(torch.Size((1, 4096)), (2**20 - 1) * 4096, 4096, CPU)
    assert far[0, -1] == -1 and far[0, 0] == -4096, "2^32 - 1 as a signed number"
