"""AdamW on bf16 shards: the update is PyTorch's, the rounding right on average, and sharding changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from train.optimizer import OPTIMIZERS, allocate_states, build_optimizer
from train.sharded_adamw import SLICE, ShardedAdamW

BF16 = [name for name, formats in OPTIMIZERS.items() if formats.weights == torch.bfloat16]
HYPER = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def tiny(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96)).to(dtype)


def set_grads(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = (torch.randn(p.shape, generator=generator) * 1e-2).to(p.dtype)


@pytest.mark.parametrize("elements", [2**17, 100], ids=["one slice", "many slices"])
def test_without_rounding_it_is_torch_adamw(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 weights and states: bit for bit what PyTorch's own loop over parameters gives."""
    monkeypatch.setitem(SLICE, "cpu", elements)
    mine, theirs = tiny(torch.float32), tiny(torch.float32)
    groups = [{"params": list(mine.parameters()), "weight_decay": 0.1}]
    ours = ShardedAdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, states="fp32", stochastic_rounding=False, seed=0)
    reference = torch.optim.AdamW(theirs.parameters(), **HYPER, foreach=False)
    for step in range(5):
        for model, optimizer in ((mine, ours), (theirs, reference)):
            set_grads(model, step)
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[a][key], reference.state[b][key]), key


@pytest.mark.parametrize("optim", BF16)
def test_a_tenth_of_a_rounding_step_moves_the_mean_and_not_the_nearest(optim: str) -> None:
    """Weights of 1 and an update of a tenth of the distance to their neighbour below, in 20 steps."""
    model = nn.Linear(128, 128, bias=False, dtype=torch.bfloat16)
    ulp = 2.0**-8  # of the numbers just below 1
    moved = {}
    for rounding in (True, False):
        nn.init.ones_(model.weight)
        groups = [{"params": [model.weight], "weight_decay": 0.0}]
        optimizer = ShardedAdamW(
            groups, lr=ulp / 10, betas=(0.9, 0.95), eps=1e-8, states=OPTIMIZERS[optim].states,
            stochastic_rounding=rounding, seed=0,
        )  # fmt: skip
        for _ in range(20):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()  # a constant gradient: each update is lr
        moved[rounding] = (1 - model.weight.float().mean().item()) / ulp
    assert moved[False] == 0.0, "rounded to nearest, no weight ever moves"
    # 20 steps of 16,384 weights: the mean of the sums is 2, with a standard error of sqrt(20 * 0.09 / 16384) = 0.01.
    assert moved[True] == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_allocating_early_changes_nothing(optim: str) -> None:
    models = tiny(OPTIMIZERS[optim].weights), tiny(OPTIMIZERS[optim].weights)
    for early, model in enumerate(models):
        optimizer = build_optimizer(model, optim=optim, **HYPER)
        before = copy.deepcopy(model.state_dict())
        if early:
            allocate_states(optimizer)
            assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        for step in range(2):
            set_grads(model, step)
            optimizer.step()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)
