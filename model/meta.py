"""Build a model without memory: its parameters have shapes and no values, until they are loaded or initialized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def meta_device() -> Iterator[None]:
    """Inside, modules are built on PyTorch's meta device, and `torch.nn.init` does nothing.

    ``torch.device("meta")`` alone lets PyTorch's layers initialize the values that are not there, and imports the
    compiler for it, which takes a second.
    """
    with torch.device("meta"), _NoInit():
        yield


def allocate(model: nn.Module, device: torch.device) -> None:
    """Give the parameters of an unsharded model memory with any contents, as `nn.Module.to_empty` does.

    That works for sharded models too, and imports sympy first, which takes half a second.
    """
    assert not list(model.buffers()), "these would stay on the meta device"
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            new = torch.empty(old.shape, dtype=old.dtype, device=device)
            setattr(module, name, nn.Parameter(new, old.requires_grad))


class _NoInit(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
