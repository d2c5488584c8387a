"""Measure the host's work for a decoded token in one block, which does not depend on the device.

    python -m benchmarks.tensor_parallel_overhead

    unsplit    one process, plain tensors
    split      slices as plain tensors, with plain collectives (`eval/decoder/tensor_parallel.py`, in scoring)
    DTensors   slices as DTensors of PyTorch's tensor parallelism (as in training)

The model is so narrow that almost only the host's work remains. The process group has 8 fake ranks, whose collectives
do nothing. A GPU waits for its host, which does the same work, if that takes longer than reading the block's weights.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.common import in_turn, load_average, table, write_result
from data.command_line import cli
from eval.decoder.decode import greedy_decode
from eval.decoder.tensor_parallel import to_plain_tensors
from model.llama import Llama, LlamaConfig
from train.parallel.tensor_parallel import apply_tensor_parallel

N_RANKS, N_LAYERS, N_TOKENS = 8, 20, 20
CONFIG = LlamaConfig(dim=64, n_layers=N_LAYERS, n_heads=8, n_kv_heads=8, ffn_dim=64, vocab_size=304, head_dim=16)


@dataclass
class Args:
    """Time the host's work for one decoded token and block."""

    rounds: int = 5
    """Measurements of each way, after a warm-up; the ways alternate."""
    output: Path | None = None
    """Result file; default benchmarks/results/tensor_parallel_overhead.md."""


def main() -> None:
    argv = sys.argv[1:]
    args = cli(Args, argv, prog="python -m benchmarks.tensor_parallel_overhead")
    torch.set_num_threads(1)
    load = load_average()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=N_RANKS)
    mesh = init_device_mesh("cpu", (N_RANKS,))
    unsplit, split = Llama(CONFIG), Llama(CONFIG)
    for model in (unsplit, split):
        model.init_weights(torch.Generator().manual_seed(0))
    apply_tensor_parallel(split, mesh)
    models = {"unsplit": unsplit, "split": to_plain_tensors(split, partial(Llama, CONFIG), mesh), "DTensors": split}

    def decode(model: torch.nn.Module, n: int) -> None:
        greedy_decode(model, [5, 6], [[1, 2, 3]] * 4, N_TOKENS, set())

    run = {name: partial(decode, model) for name, model in models.items()}
    in_turn(run, range(0, 1))
    timings = in_turn(run, range(1, args.rounds + 1))
    n_passes = N_TOKENS + 2
    each = {name: [s / n_passes / N_LAYERS * 1e3 for s in timing.cpu] for name, timing in timings.items()}
    base = statistics.median(each["unsplit"])
    rows = [
        (name, f"{statistics.median(ms):.2f}", ", ".join(f"{x:.2f}" for x in ms), f"{statistics.median(ms) / base:.1f}")
        for name, ms in each.items()
    ]
    header = ["weights are", "ms of CPU time (median)", "each round", "ratio"]
    more = statistics.median(each["DTensors"]) - statistics.median(each["split"])
    body = (
        f"The host's time for one forward pass through one block while decoding, {N_LAYERS} blocks of width 64, 4 "
        f"requests, {N_RANKS} ranks of a fake process group.\n\n{table(header, rows)}\n\n"
        f"Over the 80 blocks of a 70B model DTensors would cost this host {80 * more:.0f} ms more for each token. "
        "Reading an eighth of its weights in bf16 takes a GPU of 2 TB/s about 9 ms."
    )
    write_result("tensor_parallel_overhead", "What DTensors cost a decoded token", body, argv, args.output, load)


if __name__ == "__main__":
    main()
