"""Compare ways to decode during a training run whose gathered weights are freed after each pass: FSDP or a split copy.

    torchrun --nproc_per_node 4 -m benchmarks.score_in_training [--requests 32]

    fsdp, small batches   every pass gathers every weight; a quarter of a rank's requests at a time
    fsdp, one batch       the same with all of a rank's requests at once, so with the fewest passes
    copy                  a new copy, split over all ranks (`eval/decoder/tensor_parallel.py`); all ranks decode all
                          requests
    copy, two replicas    split over half of the ranks; the halves share the requests (an even number of ranks)
    copy with DTensors    like `copy`, but with the DTensors of PyTorch's tensor parallelism

The model is a random Llama in fp32, and all ways must emit the same tokens. Bytes are those that a rank receives:
(n - 1) / n of an all-gather's result over n ranks, and twice that fraction of an all-reduce's tensor. Bytes and passes
do not depend on the hardware; seconds do.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import train.parallel.parallelize
from benchmarks.common import load_average, say, size_of, table, write_result
from data.command_line import cli
from data.packing import balance_counts
from eval.decoder.decode import Decoded, greedy_decode
from eval.decoder.tensor_parallel import copy_for_scoring
from model.llama import Llama, LlamaConfig
from train.parallel.distributed import World, place, run_guarded, start
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import parallelize, reshard

PREFIX_TOKENS = 200


@dataclass
class Args:
    """Decode the same requests through FSDP and with a copy of the model that is split over the ranks."""

    dim: int = 512
    """Width of the model; its feed-forward network is 3.5 times as wide, as in Llama 3 70B."""
    n_layers: int = 6
    """Blocks."""
    requests: int = 32
    """Requests of 8 to 24 tokens each, after a shared prefix of 200."""
    max_new_tokens: int = 12
    """Tokens emitted for each request; none ends earlier."""
    rounds: int = 2
    """Measurements of each way, after a warm-up; the ways alternate."""
    output: Path | None = None
    """Result file; default benchmarks/results/score_in_training.md."""


class Traffic(TorchDispatchMode):
    """Counts the bytes that this rank receives in collectives; all-reduces are over ``n_summed`` ranks."""

    def __init__(self, n_summed: int) -> None:
        super().__init__()
        self.n_summed, self.received = n_summed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        match func.name():
            case "c10d::_allgather_base_":  # (output, input, ...)
                self.received += _size(args[0]) - _size(args[1])
            case "_c10d_functional::all_gather_into_tensor":
                self.received += _size(result) - _size(args[0])
            case "c10d::allreduce_" | "_c10d_functional::all_reduce":
                self.received += 2 * _size(args[0]) * (self.n_summed - 1) // self.n_summed
            case "_c10d_functional::wait_tensor" | "_c10d_functional::_wrap_tensor_autograd":
                pass
            case name:
                assert "c10d" not in name, f"a collective that is not counted: {name}"
        return result


def _size(tensors: Tensor | list[Tensor]) -> int:
    return sum(map(_size, tensors)) if isinstance(tensors, list) else tensors.numel() * tensors.element_size()


@dataclass
class Run:
    """The measurements of one way of decoding, on rank 0.

    Attributes:
        copying, decoding: seconds, round by round.
        copied, received: bytes received while copying, and while decoding.
        passes: forward passes.
        emitted: every request's tokens.
    """

    copying: list[float]
    decoding: list[float]
    copied: int = 0
    received: int = 0
    passes: int = 0
    emitted: list[Decoded] | None = None


class Bench:
    """The sharded model, and the ways to decode with it."""

    def __init__(self, args: Args, world: World) -> None:
        self.args, self.world = args, world
        n_heads = args.dim // 64
        config = LlamaConfig(
            dim=args.dim, n_layers=args.n_layers, n_heads=n_heads, n_kv_heads=n_heads, ffn_dim=args.dim * 7 // 2,
            vocab_size=8192,
        )  # fmt: skip
        self.build = lambda: Llama(config)
        train.parallel.parallelize.RESHARD_FROM = 0  # treat it like a model that does not fit unsharded
        self.model = parallelize(self.build, world.mesh, world.device, precision="fp32")
        draw = torch.Generator().manual_seed(1)
        lengths = torch.randint(8, 25, (args.requests,), generator=draw).tolist()
        self.prefix = torch.randint(8192, (PREFIX_TOKENS,), generator=draw).tolist()
        self.bodies = [torch.randint(8192, (n,), generator=draw).tolist() for n in lengths]
        self.ways: dict[str, Callable[[Run], None]] = {
            "fsdp, small batches": lambda run: self.through_fsdp(run, batches=4),
            "fsdp, one batch": lambda run: self.through_fsdp(run, batches=1),
            "copy": lambda run: self.by_copy(run, self.world.size),
            "copy with DTensors": lambda run: self.by_copy(run, self.world.size, plain=False),
        }
        self.layouts = {world.size: place(world.device, MeshShape(shard=1, tensor=world.size))}
        if world.size % 2 == 0 and world.size > 2:
            half = world.size // 2
            self.layouts[half] = place(world.device, MeshShape(shard=2, tensor=half))
            self.ways["copy, two replicas"] = lambda run: self.by_copy(run, half)

    def through_fsdp(self, run: Run, batches: int) -> None:
        own = balance_counts([len(body) for body in self.bodies], self.world.size)[self.world.rank]
        self._decode(run, self.model, own, self.world.size, -(-len(own) // batches), dist.group.WORLD)
        reshard(self.model)
        run.copying.append(0.0)

    def by_copy(self, run: Run, tp: int, plain: bool = True) -> None:
        ranks = self.layouts[tp]
        start = self._now()
        with Traffic(tp) as traffic:
            copy = (copy_for_scoring if plain else copy_as_dtensors)(
                self.model, self.build, ranks.mesh["tensor"], torch.float32, self.world.device
            )
        run.copying.append(self._now() - start)
        run.copied = traffic.received
        own = balance_counts([len(body) for body in self.bodies], ranks.shape.n_data)[ranks.data_rank]
        self._decode(run, copy, own, tp, len(own), None)

    def _decode(
        self, run: Run, model: nn.Module, own: list[int], n_summed: int, batch: int, group: dist.ProcessGroup | None
    ) -> None:
        passes = []
        handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
        bodies = [self.bodies[i] for i in own]
        start = self._now()
        with Traffic(n_summed) as traffic:
            decoded = greedy_decode(
                model, self.prefix, bodies, self.args.max_new_tokens, set(), max_batch_tokens=10**9,
                max_batch_size=batch, group=group,
            )  # fmt: skip
        run.decoding.append(self._now() - start)
        handle.remove()
        shares: list[Any] = [None] * self.world.size
        dist.all_gather_object(shares, dict(zip(own, decoded, strict=True)))
        answers = {i: answer for share in shares for i, answer in share.items()}
        run.received, run.passes = traffic.received, len(passes)
        run.emitted = [answers[i] for i in range(len(self.bodies))]

    def _now(self) -> float:
        dist.barrier()
        return time.perf_counter()


def copy_as_dtensors(model: nn.Module, build: Callable[[], nn.Module], *where: Any) -> nn.Module:
    """`copy_for_scoring` without its last step, the conversion to plain tensors."""
    with mock.patch("eval.decoder.tensor_parallel.to_plain_tensors", lambda model, *_: model):
        return copy_for_scoring(model, build, *where)


def report(runs: dict[str, Run], bench: Bench) -> str:
    args, world = bench.args, bench.world
    first = next(iter(runs.values()))
    base = statistics.median(map(sum, zip(first.copying, first.decoding, strict=True)))
    rows = []
    for name, run in runs.items():
        seconds = [sum(pair) for pair in zip(run.copying, run.decoding, strict=True)]
        same = sum(a == b for a, b in zip(run.emitted, first.emitted, strict=True))
        rows.append(
            (
                name,
                run.passes,
                f"{run.copied / 1e6:,.0f}",
                f"{run.received / 1e6:,.0f}",
                f"{statistics.median(run.copying):.2f}",
                f"{statistics.median(run.decoding):.2f}",
                ", ".join(f"{s:.2f}" for s in seconds),
                f"{statistics.median(seconds) / base:.2f}",
                f"{same} of {len(run.emitted)}",
            )
        )
    header = [
        "decoding",
        "passes",
        "MB received, copying",
        "MB received, decoding",
        "s copying",
        "s decoding",
        "s in all, each round",
        "ratio",
        "same tokens",
    ]
    n_bytes = sum(p.numel() for p in bench.model.parameters()) * 4
    return (
        f"A random Llama of {size_of(bench.model)} in fp32 ({n_bytes / 1e6:,.0f} MB), sharded over {world.size} gloo "
        f"ranks; {args.requests} requests of 8 to 24 tokens behind {PREFIX_TOKENS} shared ones, {args.max_new_tokens} "
        f"new tokens each. Medians of {args.rounds} rounds, on rank 0.\n\n{table(header, rows)}\n\n"
        "What this can tell about GPUs: the numbers of passes and the bytes, which are the same there, and that all "
        "ways emit the same tokens. What it cannot: seconds. These ranks exchange data through the memory of one "
        f"machine, take turns on {os.cpu_count()} cores, and decode a model whose weights are read in no time. What "
        "seconds follow from these counts for 70B on 8 GPUs is worked out in docs/scoring_in_training.md."
    )


def main() -> None:
    argv = sys.argv[1:]
    args = cli(Args, argv, prog="python -m benchmarks.score_in_training")
    torch.set_num_threads(1)
    load = load_average()
    bench = Bench(args, start(torch.device("cpu")))
    runs = {name: Run([], []) for name in bench.ways}
    for n in range(args.rounds + 1):
        for name, way in bench.ways.items():
            run = Run([], []) if n == 0 else runs[name]
            way(run)
            if bench.world.is_main:
                say(f"round {n}: {name}: {run.copying[-1]:.2f} + {run.decoding[-1]:.2f} s")
    if bench.world.is_main:
        title = "Decoding inside a training run: through FSDP, or by a split copy"
        write_result("score_in_training", title, report(runs, bench), argv, args.output, load)


if __name__ == "__main__":
    run_guarded(main)
