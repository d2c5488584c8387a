"""Eight-bit states: the nearest of the table's values, block by block, and why roots are stored and not squares."""

from __future__ import annotations

import pytest
import torch

from checkpoints_tools.registry import MODELS
from model.llama import Llama
from train.optim.blockwise import block_size, boundaries, dequantize, nearest_codes, quantize, table
from train.optim.update import adamw_update, numbers_of_step, read_states, write_states

CPU = torch.device("cpu")


def decades(rows: int, columns: int, signed: bool, n: float = 8.0) -> torch.Tensor:
    """Random numbers of all magnitudes."""
    x = torch.randn(rows, columns) * 10 ** (-n * torch.rand(rows, columns))
    return x if signed else x.abs()


def coded(x: torch.Tensor, block: int, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = torch.zeros(x.shape, dtype=torch.uint8), torch.zeros(x.shape[0], x.shape[1] // block)
    quantize(x.clone(), codes, scales, signed)
    return codes, scales


@pytest.mark.parametrize("signed", [True, False])
def test_equals_torchao(signed: bool) -> None:
    """The library's table and codes, for the blocks that both have: whole rows."""
    quant = pytest.importorskip("torchao.optim.quant_utils")
    theirs = torch.tensor(quant.create_dynamic_map(signed=signed))
    torch.testing.assert_close(table(signed, CPU), theirs, rtol=2e-6, atol=1e-12)
    x = decades(64, 256, signed)
    codes, scales = coded(x, 256, signed)
    scaled, their_scales = quant.scale_tensor(x, 256)
    their_codes = quant.quantize_8bit_with_qmap(scaled, theirs)
    torch.testing.assert_close(scales.view(-1), their_scales)
    apart = (codes.int() - their_codes.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3, "but for ties, which tables rounded apart decide"
    torch.testing.assert_close(
        dequantize(their_codes, scales, signed), quant.dequant_with_qmap(their_codes, theirs, their_scales)
    )


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_of_all_values(signed: bool) -> None:
    middle = boundaries(signed, CPU)[:-1]
    x = torch.cat([decades(40, 50, signed).view(-1), middle, table(signed, CPU), torch.zeros(2)])
    x[-1] *= -1
    x = x.clamp(-1, 1)
    want = torch.bucketize(x, middle, right=True)
    assert torch.equal(nearest_codes(x, signed).long(), want)
    values = table(signed, CPU).double()
    distance = (x.double()[:, None] - values).abs()
    mine = distance.gather(1, want[:, None])[:, 0]
    assert (mine <= distance.min(dim=1).values + 6e-8).all(), "except for the rounding of the boundaries"


@pytest.mark.parametrize(
    ("signed", "bounds"),
    [(True, [0.062, 0.11, 0.181, 0.276, 0.466, 0.711]), (False, [0.033, 0.062, 0.11, 0.181, 0.276, 0.466])],
)
def test_errors_by_decade_below_the_largest(signed: bool, bounds: list[float]) -> None:
    x = decades(256, 256, signed, 7.0)
    codes, scales = coded(x, 256, signed)
    error = (dequantize(codes, scales, signed) - x).abs() / x.abs()
    depth = (x.abs() / scales).log10().neg()
    for decade, bound in enumerate(bounds):
        errors = error[(depth > decade) & (depth < decade + 1)]
        assert 0.8 * bound < errors.max() <= bound, decade
    largest = depth == 0
    assert largest.sum() >= 256 and error[largest & (x > 0)].max() < 1e-6, "exact but for a rounding"
    assert error[largest].max() < 0.0071, "the table has a 1 and no -1"


def test_blocks_of_zeros_stay_zero_and_tiny_ones_are_not_lost() -> None:
    """A block of 1e-30, as the squares of a large model's gradients may be, is as good as one of 1."""
    x = torch.ones(3, 64)
    x[0], x[1] = 0.0, 1e-30
    codes, scales = coded(x, 32, signed=False)
    back = dequantize(codes, scales, signed=False)
    assert (back[0] == 0).all()
    torch.testing.assert_close(back[1:], x[1:], rtol=1e-6, atol=0.0)


def test_rows_are_quantized_by_themselves() -> None:
    """So that any division of the rows, into any number of parts, holds the same codes and scales."""
    x = decades(12, 192, True)
    codes, scales = coded(x, 64, True)
    for rows in (slice(0, 1), slice(1, 6), slice(6, 12)):
        part_codes, part_scales = coded(x[rows], 64, True)
        assert torch.equal(part_codes, codes[rows]) and torch.equal(part_scales, scales[rows])
    left_codes, left_scales = coded(x[:, :64], 64, True)
    assert torch.equal(left_codes, codes[:, :64]) and torch.equal(left_scales, scales[:, :1])


def test_which_tensors_are_quantized_in_which_blocks() -> None:
    for name in ("llama2_7b", "llama3_8b", "llama2_70b", "llama3_70b"):
        with torch.device("meta"):
            shapes = {n: p.shape for n, p in Llama(MODELS[name].config).named_parameters()}
        blocks = {n: block_size(s) for n, s in shapes.items()}
        odd = "ffn.w2.weight" if name == "llama2_7b" else "none"
        for n, block in blocks.items():
            want = None if "norm" in n else 32 if n.endswith(odd) else 256
            assert block == want, (name, n)
            assert block is None or shapes[n][1] % (8 * block) == 0, "eight ranks can split the rows"
    assert block_size(torch.Size((49_152, 576))) == 64
    assert block_size(torch.Size((2, 384))) is None, "too small"
    assert block_size(torch.Size((500, 30))) is None, "no blocks to speak of"
    assert block_size(torch.Size((8192,))) is None


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_small_gradients_beside_large_ones_get_updates_of_their_size(beta2: float) -> None:
    """Gradients of a constant size each, over four decades within a block. Exact AdamW moves every weight by about lr;
    eight bits may move one by a little more or less, and would by hundreds of lr if squares were what is quantized."""
    torch.manual_seed(0)
    size = 10 ** (-4 * torch.rand(16, 256)) * 1e-3
    hyper = dict(lr=1.0, betas=(0.9, beta2), eps=1e-12, weight_decay=0.0)
    shape = {"exp_avg_codes": (torch.uint8, 256), "exp_avg_scales": (torch.float32, 1)}
    shape |= {name.replace("avg", "avg_sq"): kind for name, kind in shape.items()}
    states = {name: torch.zeros(16, width, dtype=dtype) for name, (dtype, width) in shape.items()}
    exact = torch.zeros(16, 256), torch.zeros(16, 256)
    squares = torch.zeros(16, 256), torch.zeros(16, 256)
    largest = {"exact": 0.0, "ours": 0.0, "squares": 0.0}
    for step in range(1, 101):
        grads = size * (0.3 + torch.randn(16, 256))
        mine, numbers = read_states(states), numbers_of_step(step=step, **hyper)
        for name, (exp_avg, exp_avg_sq) in (("exact", exact), ("ours", mine), ("squares", squares)):
            update = adamw_update(torch.zeros(16, 256), grads, exp_avg, exp_avg_sq, numbers)
            largest[name] = max(largest[name], update.abs().max().item())
        write_states(states, *mine, None)
        squares = (
            dequantize(*coded(squares[0], 256, True), True), dequantize(*coded(squares[1], 256, False), False)
        )  # fmt: skip
    assert largest["exact"] < 1.5 and largest["ours"] < 5
    assert largest["squares"] > 50, "the reason to quantize roots"
