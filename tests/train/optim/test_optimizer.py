"""Learning-rate values, parameter groups and clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from train.optim.optimizer import allocate_states, build_optimizer, clip_gradients, learning_rate


@pytest.mark.parametrize(
    ("schedule", "warmup", "want"),
    [
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("cosine", 0, [1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.5]),
        ("constant", 2, [0.5, 1.0, 1.0, 1.0]),
        ("cosine", 2, [0.5, 1.0, 1.0, 0.5]),
        ("linear", 0.5, [0.5, 1.0, 1.0, 0.5]),
        ("linear", 0.1, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 0.99, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_schedules(schedule: str, warmup: float, want: list[float]) -> None:
    got = [learning_rate(step, 4, 1.0, schedule, warmup) for step in range(4)]
    assert got == pytest.approx(want)


def test_equals_torch_linear_decay() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=100)
    for step in range(100):
        assert learning_rate(step, 100, 3e-4, "linear") == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.LayerNorm(3))
    optimizer = build_optimizer(model, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.5), (2, 0.0)]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("limit", [0.0, 1.0, 1e6])
def test_clipping_equals_torch(limit: float) -> None:
    torch.manual_seed(0)
    model, theirs = nn.Linear(4, 4), nn.Linear(4, 4)
    for a, b in zip(model.parameters(), theirs.parameters(), strict=True):
        a.grad = torch.randn_like(a) * 10
        b.grad = a.grad.clone()
    norm = clip_gradients(model, limit)
    want = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit or math.inf)
    torch.testing.assert_close(norm, want)
    for a, b in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_that_are_not_finite_are_left_alone() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[float("inf"), 3.0]])
    assert clip_gradients(model, 1.0).item() == float("inf")
    assert model.weight.grad[0, 1] == 3.0


def test_states_allocated_early_change_nothing() -> None:
    def weights_after(early: bool) -> tuple[torch.Tensor, float]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = build_optimizer(model, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        if early:
            allocate_states(optimizer)
            assert {"exp_avg", "exp_avg_sq", "step"} <= optimizer.state[model.weight].keys()
        for _ in range(2):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            allocate_states(optimizer)  # they are there: nothing happens
        return model.weight.detach().clone(), optimizer.param_groups[0]["lr"]

    (early, early_lr), (late, late_lr) = weights_after(True), weights_after(False)
    assert torch.equal(early, late) and early_lr == late_lr == 0.1
