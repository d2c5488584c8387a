"""What FSDP's mixed precision casts, and what it must leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from checkpoints_tools.registry import MODELS
from data.errors import UserError
from model.llama import Llama, RowContext
from train.parallel.distributed import World, resolve_precision
from train.parallel.parallelize import parallelize
from train.planning.plan import settle_optimizer
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


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


@pytest.mark.parametrize(
    ("optim", "began", "now"), [("adamw", "bf16", "fp32"), ("adamw", "fp32", "bf16"), ("adamw_sr", "bf16", "fp32")]
)
def test_a_resumed_run_keeps_what_auto_meant_where_it_began(
    optim: str, began: str, now: str, world: World, train_args: list[str], tmp_path: Path, monkeypatch, caplog
) -> None:
    """``--optim auto`` as well: on a CPU it means adamw, and a run that began on GPUs may have another one."""
    args = [*train_args, "--steps", "2", "--save_every", "1", "--export", "off"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": began == "bf16"})
    config = load_config([*args, "--optim", optim])
    assert config.train.precision == began
    Trainer(config, open_run(config), world).run()
    shutil.rmtree(tmp_path / "run/checkpoints/step_000002")

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": now == "bf16"})
    again = [*args, "--resume", "auto"]
    with caplog.at_level("INFO"):
        config = load_config(again)
    assert (config.train.precision, config.optim.optim) == (began, optim)
    said = f"precision: {began}, as where the run began; a run that starts here has {now}"
    assert (said in caplog.messages) == (optim == "adamw")
    setup = open_run(config)
    resumed = Trainer(settle_optimizer(config, setup, world), setup, world)
    assert resumed.step == 1
    resumed.run()
    assert load_config([*again, "--output", str(tmp_path / "new")]).train.precision == now, "it starts here"
    other = load_config([*again, "--precision", now, "--optim", "adamw"])
    with pytest.raises(UserError, match=f"precision: the checkpoint has {began}, this run has {now}"):
        open_run(other)
