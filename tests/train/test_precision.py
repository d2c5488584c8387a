"""What FSDP's mixed precision casts, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch

from checkpoints_tools.registry import MODELS
from model.llama import Llama, RowContext
from train.parallel.distributed import World, resolve_precision
from train.parallel.parallelize import parallelize


def test_blocks_compute_in_bf16_with_rotary_tables_in_fp32(world: World) -> None:
    config = MODELS["llama_debug"].config
    model = parallelize(lambda: Llama(config), world.mesh, world.device, precision="bf16")
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, RowContext]) -> None:
        seen.append((args[0].dtype, args[1].cos.dtype))

    for layer in model.layers:
        layer.attention.register_forward_pre_hook(look)
    logits = model(torch.arange(8)[None])
    logits.float().sum().backward()
    assert seen == [(torch.bfloat16, torch.float32)] * config.n_layers
    assert logits.dtype == torch.bfloat16
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("device", "has", "means"),
    [
        ("cuda", {}, "bf16"),
        ("cpu", {"avx2": True}, "fp32"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
    ],
)
def test_auto_is_bf16_only_where_the_hardware_multiplies_it(device, has, means, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert resolve_precision("auto", device) == means
    assert resolve_precision("fp32", device) == "fp32" and resolve_precision("bf16", device) == "bf16"
