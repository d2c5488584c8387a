"""States visit the device in two slots: right in whatever order a GPU's streams happen to run."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.errors import UserError
from train.optim import host_states, sharded_adamw
from train.optim.host_states import copied_to_device


class Stream:
    """A queue of work, done in order; what is queued may have to wait for an event of another stream."""

    def __init__(self, everyone: list[Stream]) -> None:
        self.work: list[Callable[[], None] | tuple[Stream, int]] = []
        self.done = 0
        self.everyone = everyone
        everyone.append(self)

    def record_event(self) -> tuple[Stream, int]:
        return self, len(self.work)

    def wait_event(self, event: tuple[Stream, int]) -> None:
        self.work.append(event)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        run(self.everyone, until=self)

    def step(self) -> bool:
        """Do the next piece of work if it need not wait."""
        if self.done == len(self.work):
            return False
        item = self.work[self.done]
        if isinstance(item, tuple):
            stream, count = item
            if stream.done < count:
                return False
        else:
            item()
        self.done += 1
        return True


def run(streams: list[Stream], until: Stream) -> None:
    """Work in random order until one stream has nothing left."""
    while until.done < len(until.work):
        assert any([s.step() for s in random.sample(streams, len(streams))]), "they wait for one another"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """CUDA's streams as `host_states` sees them, and slots in memory that a test can have; the first one computes."""
    everyone: list[Stream] = []
    compute = Stream(everyone)
    cuda = SimpleNamespace(Stream=lambda device: Stream(everyone), current_stream=lambda device: compute)
    shim = SimpleNamespace(cuda=cuda, empty=lambda n, dtype, device: torch.zeros(n, dtype=dtype))

    def copy(source: dict[str, Any], target: dict[str, Any], stream: Stream) -> None:
        def work() -> None:
            for name, tensor in source.items():
                target[name].copy_(tensor)

        stream.work.append(work)

    monkeypatch.setattr(host_states, "torch", shim)
    monkeypatch.setattr(host_states, "_copy", copy)
    return everyone


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_right_in_any_order_of_the_streams(seed: int, n: int, streams: list[Stream]) -> None:
    random.seed(seed)
    host = [{"a": torch.full((3, 5), float(i)), "b": torch.full((3,), i, dtype=torch.uint8)} for i in range(n)]
    here_now = copied_to_device(host, SimpleNamespace(type="cuda"))
    for i, here in enumerate(here_now):
        assert {k: (v.shape, v.dtype) for k, v in here.items()} == {k: (v.shape, v.dtype) for k, v in host[i].items()}

        def update(here: dict[str, torch.Tensor] = here, i: int = i) -> None:
            assert (here["a"] == i).all() and (here["b"] == i).all(), "not what should be here now"
            for tensor in here.values():
                tensor += 100

        streams[0].work.append(update)
        for stream in random.sample(streams, len(streams)):  # some streams get ahead
            while random.random() < 0.7 and stream.step():
                pass
    for i, states in enumerate(host):
        assert (states["a"] == 100 + i).all() and (states["b"] == 100 + i).all(), "not back when the loop is over"


def test_no_host_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    monkeypatch.setattr(sharded_adamw.torch, "zeros", full)
    with pytest.raises(UserError, match="offload_states = on: no more host memory"):
        sharded_adamw.zeros_sharded_like(parameter, torch.float32, offload=True)


@pytest.mark.gpu
@pytest.mark.parametrize("optim", ["adamw_sr", "adamw_sr_bf16", "adamw_sr_8bit"])
def test_on_a_gpu_states_in_pinned_memory_change_no_bit(optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.optim.formats import OPTIMIZERS
    from train.optim.optimizer import build_optimizer

    monkeypatch.setitem(sharded_adamw.SLICE, "cuda", 2**16)
    weights, states = [], []
    for offload in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(1024, 2048, bias=False, dtype=torch.bfloat16, device="cuda")
        optimizer = build_optimizer(
            model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, formats=OPTIMIZERS[optim],
            offload_states=offload,
        )  # fmt: skip
        for _ in range(3):
            model.weight.grad = torch.randn_like(model.weight)
            optimizer.step()
        kept = optimizer.state[model.weight]
        assert all(t.is_pinned() == offload for name, t in kept.items() if name != "step")
        weights.append(model.weight.detach().clone())
        states.append({name: t.cpu() for name, t in kept.items()})
    assert torch.equal(*weights)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
