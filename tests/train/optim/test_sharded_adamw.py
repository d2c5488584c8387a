"""AdamW on bf16 shards: the update is PyTorch's, the rounding right on average, and sharding changes nothing."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from train.optim.formats import OPTIMIZERS
from train.optim.optimizer import allocate_states, build_optimizer
from train.optim.sharded_adamw import SLICE, ShardedAdamW
from train.optim.update import read_states

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
        optimizer = build_optimizer(model, formats=OPTIMIZERS[optim], **HYPER)
        before = copy.deepcopy(model.state_dict())
        if early:
            allocate_states(optimizer)
            assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        for step in range(2):
            set_grads(model, step)
            optimizer.step()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optim", ["adamw_sr_bf16", "adamw_sr_8bit"])
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_states_in_fewer_bits_stay_near_fp32_ones(optim: str, beta2: float) -> None:
    """A hundred steps; a beta2 of 0.999 is what bf16 states rounded to nearest cannot follow downwards."""
    hyper = HYPER | {"betas": (0.9, beta2)}
    models = tiny(), tiny()
    optimizers = [
        build_optimizer(m, formats=OPTIMIZERS[name], **hyper)
        for m, name in zip(models, ("adamw_sr", optim), strict=True)
    ]
    for step in range(100):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_grads(model, step)
            for p in model.parameters():
                p.grad *= 10 if step < 30 else 1  # large gradients first, which the states have to forget
            optimizer.step()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        want, got = (read_states(o.state[p]) for o, p in zip(optimizers, (a, b), strict=True))
        for mean, low in zip(want, got, strict=True):
            assert (low.view(-1) - mean.view(-1)).norm() < 0.1 * mean.norm()
        assert got[1].mean().item() == pytest.approx(want[1].mean().item(), rel=0.03), (
            "not even a little too large on average"
        )


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_states_in_host_memory_change_no_bit(optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to and fro in slices of a few rows; "adamw" is compared with PyTorch's loop, not its fused kernel."""
    monkeypatch.setitem(SLICE, "cpu", 1000)
    models = tiny(OPTIMIZERS[optim].weights), tiny(OPTIMIZERS[optim].weights)
    optimizers = [
        build_optimizer(models[0], formats=OPTIMIZERS[optim], offload_states=True, **HYPER),
        build_optimizer(models[1], formats=OPTIMIZERS[optim], **HYPER),
    ]
    if optim == "adamw":
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in optimizers[1].param_groups]
        optimizers[1] = torch.optim.AdamW(groups, foreach=False, **HYPER)
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_grads(model, step)
            optimizer.step()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)
        left, right = optimizers[0].state[a], optimizers[1].state[b]
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), key
            assert key == "step" or left[key].any(), "nothing came back"


def test_loaded_states_keep_their_dtype() -> None:
    """PyTorch's own loading would turn codes and fp32 states of bf16 parameters into bf16."""
    model = tiny()
    for optim in BF16:
        optimizer, other = (build_optimizer(model, formats=OPTIMIZERS[optim], **HYPER) for _ in range(2))
        set_grads(model, 0)
        optimizer.step()
        other.load_state_dict(optimizer.state_dict())
        for p in model.parameters():
            assert {k: v.dtype for k, v in other.state[p].items()} == {
                k: v.dtype for k, v in optimizer.state[p].items()
            }
            assert all(torch.equal(other.state[p][k], v) for k, v in optimizer.state[p].items())


@pytest.mark.parametrize(("optim", "want"), [("adamw_sr", 8), ("adamw_sr_bf16", 4), ("adamw_sr_8bit", 2 + 8 / 256)])
def test_bytes_of_the_states_of_a_parameter(optim: str, want: float) -> None:
    model = nn.Linear(2048, 64, bias=False, dtype=torch.bfloat16)
    optimizer = build_optimizer(model, formats=OPTIMIZERS[optim], **HYPER)
    allocate_states(optimizer)
    state = optimizer.state[model.weight]
    n_bytes = sum(t.numel() * t.element_size() for name, t in state.items() if name != "step")
    assert n_bytes / model.weight.numel() == want


@pytest.mark.parametrize("optim", BF16)
def test_the_temporaries_of_a_step_do_not_grow_with_the_parameter(optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 32 bytes an element of a slice, whatever the parameter holds."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Peak(TorchDispatchMode):
        """Bytes of the live tensors that were made under it, at their most."""

        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, int] = {}
            self.most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                storage = out.untyped_storage()
                if storage.data_ptr() not in self.known and storage.data_ptr() not in self.alive:
                    self.alive[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)
                    self.most = max(self.most, sum(self.alive.values()))
            return out

    monkeypatch.setitem(SLICE, "cpu", 2**14)
    model = nn.Linear(512, 256, bias=False, dtype=torch.bfloat16)
    optimizer = build_optimizer(model, formats=OPTIMIZERS[optim], **HYPER)
    set_grads(model, 0)
    optimizer.step()  # tables and states
    with Peak() as peak:
        peak.known = {
            t.untyped_storage().data_ptr()
            for t in (model.weight, model.weight.grad, *optimizer.state[model.weight].values())
        }
        optimizer.step()
    assert 10 < peak.most / 2**14 <= 32, peak.most / 2**14
