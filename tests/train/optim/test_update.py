"""The compiled update gives what the update itself gives, at every step, rate and place, but for rounding."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from train.optim import sharded_adamw, update
from train.optim.optimizer import OPTIMIZERS, build_optimizer, can_compile
from train.optim.sharded_adamw import ShardedAdamW

CASES = [("adamw_sr_bf16", False), ("adamw_sr_8bit", False), ("adamw_sr_8bit", True), ("adamw", True)]
LR = 1e-2
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


def steps(optim: str, device: str, compiled: bool, offload: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Weights and states after five steps with a falling rate, of matrices of several slices and of vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 384), nn.LayerNorm(384)).to(device, OPTIMIZERS[optim].weights)
    optimizer = build_optimizer(
        model, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, formats=OPTIMIZERS[optim],
        offload_states=offload, seed=3,
    )  # fmt: skip
    assert isinstance(optimizer, ShardedAdamW)
    optimizer.compiled = compiled
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, generator=generator) * 1e-2
            parameter.grad = grad.to(parameter.device, parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] = LR / (step + 1)
        optimizer.step()
    states = [{name: t.cpu() for name, t in optimizer.state[p].items()} for p in model.parameters()]
    return [p.detach().cpu() for p in model.parameters()], states


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optim, offload", CASES)
def test_compiled_it_gives_the_same(optim: str, offload: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_adamw, "COMPILED_SLICE", 2**16)
    monkeypatch.setitem(sharded_adamw.SLICE, device, 2**16)
    (plain, plain_states), (compiled, compiled_states) = (steps(optim, device, c, offload) for c in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        if a.dtype == torch.float32:
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
        else:  # another rounding seldom moves a weight: to a neighbour, or by what a neighbouring code does
            assert (a != b).float().mean() < 1e-3
            atol = (0.1 if optim == "adamw_sr_8bit" else 0.02) * LR  # the error of a state times the learning rate
            torch.testing.assert_close(b, a, rtol=2.0**-7, atol=atol)
    for mine, theirs in zip(plain_states, compiled_states, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if value.dtype == torch.uint8:
                assert (value != theirs[name]).float().mean() < 1e-3, name
            else:
                rtol = 2.0**-7 if value.dtype == torch.bfloat16 else 1e-5
                close = torch.isclose(theirs[name], value, rtol=rtol, atol=1e-8)
                # A code rounded to its neighbour, 0.7% of the block's largest away, can be the largest a step later.
                assert (~close).float().mean() < (1e-3 if name.endswith("_scales") else 1e-9), name
                torch.testing.assert_close(theirs[name], value, rtol=2.0**-7, atol=1e-8)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_optimizer_takes_the_one_it_was_told_to(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(*args: object) -> None:
        calls.append("compiled")
        update.update(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sharded_adamw, "compiled_update", counted)
    got, want = steps("adamw_sr_bf16", "cpu", compiled, False), steps("adamw_sr_bf16", "cpu", False, False)
    assert len(calls) == (5 * 4 if compiled else 0), "five steps of four parameters"
    assert all(torch.equal(a, b) for a, b in zip(got[0], want[0], strict=True))


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fails(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    hyper = dict(lr=0.1, betas=(0.9, 0.95), eps=1e-8, states="8bit", stochastic_rounding=True, seed=0)
    make = functools.partial(ShardedAdamW, **hyper)
    monkeypatch.setattr(sharded_adamw, "compiled_update", update.update)
    assert can_compile(make, torch.bfloat16, torch.device("cpu")) and not caplog.text
    monkeypatch.setattr(update, "_compiled", lambda: fails)
    monkeypatch.setattr(sharded_adamw, "compiled_update", update.compiled_update)
    assert not can_compile(make, torch.bfloat16, torch.device("cpu"))
    assert "cannot be compiled on this machine (Failed to find C compiler." in caplog.text
    assert "several times as long" in caplog.text and "more" not in caplog.text
