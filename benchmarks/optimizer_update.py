"""Time the update of the low-precision optimizers alone, operation by operation and compiled.

    python -m benchmarks.optimizer_update

On a GPU with 80 GB the parameters have the shapes of Llama 3 8B, on a CPU those of SmolLM2 in one layer. Weights and
gradients are made up, which changes no time. Bytes a parameter are seconds times the card's bandwidth.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import load_average, run_program, table, write_result
from benchmarks.gpu import spec_of_device
from checkpoints_tools.architectures import architecture_of
from checkpoints_tools.registry import MODELS, ModelSpec
from train.optim.formats import OPTIMIZERS
from train.optim.optimizer import build_optimizer
from train.optim.sharded_adamw import ShardedAdamW
from train.planning.hardware import GPUS


@dataclass
class Options:
    """Time the update of the low-precision optimizers."""

    model: str | None = None
    """Model whose shapes the parameters have; default llama3_8b on a GPU, llama_debug on a CPU."""
    optims: tuple[str, ...] = ("adamw_sr_bf16", "adamw_sr_8bit")
    """Optimizers."""
    rounds: int = 5
    """Steps after the first."""
    output: Path | None = None
    """Result file; default benchmarks/results/optimizer_update.md."""


def main(options: Options, argv: list[str]) -> None:
    device, load = torch.device("cuda" if torch.cuda.is_available() else "cpu"), load_average()
    name = options.model or ("llama3_8b" if device.type == "cuda" else "llama_debug")
    spec = MODELS[name]
    assert isinstance(spec, ModelSpec) and spec.config is not None, name
    with torch.device("meta"):
        model = architecture_of(spec.config).build(spec.config)
    shapes = [parameter.shape for parameter in model.parameters()]
    bandwidth = GPUS[spec_of_device(device)].bandwidth
    rows = [
        measure(optim, compiled, shapes, device, options.rounds, bandwidth)
        for optim in options.optims
        for compiled in ((False, True) if device.type == "cuda" else (False,))
    ]
    header = ["", "first, s", "then, s", "bytes a parameter", "temporary memory, MiB"]
    count = sum(shape.numel() for shape in shapes)
    text = f"{count:,} parameters of {name}'s shapes, on {device}; the shortest and longest of {options.rounds} steps."
    write_result("optimizer_update", "The update alone", f"{text}\n\n{table(header, rows)}", argv, options.output, load,
                 device.type == "cuda")  # fmt: skip


def measure(
    optim: str, compiled: bool, shapes: list[torch.Size], device: torch.device, rounds: int, bandwidth: float
) -> list[str]:
    """A row of the table."""
    dtype = OPTIMIZERS[optim].weights
    model = nn.ParameterList(
        [nn.Parameter(torch.zeros(shape, dtype=dtype, device=device).normal_(0.0, 0.02)) for shape in shapes]
    )
    optimizer = build_optimizer(
        model, lr=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, formats=OPTIMIZERS[optim]
    )
    assert isinstance(optimizer, ShardedAdamW)
    optimizer.compiled = compiled
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    first = timed(optimizer, device)
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed(optimizer, device) for _ in range(rounds)]
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else None
    count = sum(shape.numel() for shape in shapes)
    return [
        f"{optim}, {'compiled' if compiled else 'operation by operation'}",
        f"{first:.1f}",
        f"{min(seconds):.3f} to {max(seconds):.3f}",
        f"{min(seconds) * bandwidth / count:.0f}" if device.type == "cuda" else "",
        f"{peak / 2**20:.0f}" if peak is not None else "",
    ]


def timed(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(run_program("optimizer_update", Options, main))
