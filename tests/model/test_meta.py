"""Models without memory: as PyTorch's own way makes them, but for the initialization."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from checkpoints_tools.registry import get_model_spec
from model.meta import allocate, meta_device


def described(model: nn.Module) -> dict[str, tuple]:
    return {name: (p.shape, p.dtype, p.device.type, p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["llama_debug", "roberta_debug"])
def test_as_torch_makes_them(name: str) -> None:
    spec = get_model_spec(name)
    with torch.device("meta"):
        theirs = spec.build(spec.config).to(torch.bfloat16)
    with meta_device():
        ours = spec.build(spec.config).to(torch.bfloat16)
    next(theirs.parameters()).requires_grad_(False)
    next(ours.parameters()).requires_grad_(False)
    assert described(ours) == described(theirs)
    allocate(ours, torch.device("cpu"))
    theirs.to_empty(device="cpu")
    assert described(ours) == described(theirs)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    places = {p.data_ptr() for p in ours.parameters()}
    assert len(places) == len([*ours.parameters()]), "each has memory of its own"


def test_layers_made_elsewhere_are_initialized() -> None:
    with meta_device():
        assert nn.Linear(3, 4).weight.device.type == "meta"
    torch.manual_seed(0)
    linear = nn.Linear(30, 40)
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), meta_device():
        raise ZeroDivisionError
    again = nn.Linear(30, 40)
    assert torch.equal(linear.weight, again.weight) and linear.weight.std() > 0.05


def test_buffers_are_not_forgotten() -> None:
    with meta_device():
        model = nn.BatchNorm1d(3)
    with pytest.raises(AssertionError, match="meta device"):
        allocate(model, torch.device("cpu"))
