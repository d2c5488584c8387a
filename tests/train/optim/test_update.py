"""The compiled update gives what the update itself gives, at every step, rate and place, but for rounding."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from train.optim import sharded_adamw, update
from train.optim.formats import OPTIMIZERS
from train.optim.optimizer import build_optimizer, can_compile
from train.optim.sharded_adamw import ShardedAdamW

CASES = [("adamw_sr_bf16", False), ("adamw_sr_8bit", False), ("adamw_sr_8bit", True), ("adamw", True)]
LR = 1e-2
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


def start(optim: str, device: str, compiled: bool, offload: bool) -> tuple[nn.Module, ShardedAdamW]:
    """A model of matrices of several slices and of vectors, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 384), nn.LayerNorm(384)).to(device, OPTIMIZERS[optim].weights)
    optimizer = build_optimizer(
        model, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, formats=OPTIMIZERS[optim],
        offload_states=offload, seed=3,
    )  # fmt: skip
    assert isinstance(optimizer, ShardedAdamW)
    optimizer.compiled = compiled
    return model, optimizer


def take_step(model: nn.Module, optimizer: ShardedAdamW, step: int) -> None:
    """One step with the gradients and the rate of this number; the rate falls."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        grad = torch.randn(parameter.shape, generator=generator) * 1e-2
        parameter.grad = grad.to(parameter.device, parameter.dtype)
    for group in optimizer.param_groups:
        group["lr"] = LR / (step + 1)
    optimizer.step()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optim, offload", CASES)
def test_compiled_it_gives_the_same(optim: str, offload: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps, each from the same weights and states: a code that is rounded to its neighbour in one of them may be
    its block's largest in the next, where it would be the scale of all."""
    monkeypatch.setattr(sharded_adamw, "COMPILED_SLICE", 2**16)
    monkeypatch.setitem(sharded_adamw.SLICE, device, 2**16)
    (plain, plain_optimizer), (compiled, optimizer) = (start(optim, device, c, offload) for c in (False, True))
    for step in range(5):
        take_step(plain, plain_optimizer, step)
        take_step(compiled, optimizer, step)
        for mine, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
            check_weights(optim, mine.detach(), theirs.detach())
            check_states(plain_optimizer.state[mine], optimizer.state[theirs])
            theirs.data.copy_(mine.data)
            for name, value in plain_optimizer.state[mine].items():
                optimizer.state[theirs][name].copy_(value)


def check_weights(optim: str, a: Tensor, b: Tensor) -> None:
    if a.dtype == torch.float32:
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
    else:  # another rounding seldom moves a weight: to a neighbour, or by what a neighbouring code does
        assert (a != b).float().mean() < 1e-3
        atol = (0.1 if optim == "adamw_sr_8bit" else 0.02) * LR  # the error of a state times the learning rate
        torch.testing.assert_close(b, a, rtol=2.0**-7, atol=atol)


def check_states(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if value.dtype == torch.uint8:
            assert (value != theirs[name]).float().mean() < 1e-3, name
        else:
            rtol = 2.0**-7 if value.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(theirs[name], value, rtol=rtol, atol=1e-8, msg=name)


def test_it_may_be_compiled_for_many_kinds_of_slices() -> None:
    """Matrices and vectors, in any format, from the device or from host memory: more than torch's limit of 8."""
    with torch._dynamo.config.patch(recompile_limit=8):
        update._compiled.cache_clear()
        update._compiled()
        assert torch._dynamo.config.recompile_limit >= 64
    update._compiled.cache_clear()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_optimizer_takes_the_one_it_was_told_to(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(*args: object) -> None:
        calls.append("compiled")
        update.update(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sharded_adamw, "compiled_update", counted)
    models = []
    for own in (compiled, False):
        model, optimizer = start("adamw_sr_bf16", "cpu", own, False)
        for step in range(5):
            take_step(model, optimizer, step)
        models.append(model)
    assert len(calls) == (5 * 4 if compiled else 0), "five steps of four parameters"
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


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
