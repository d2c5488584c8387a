"""Measure how long a checkpoint takes to load, and each rank's peak memory.

    python -m benchmarks.loading [--layers 10] [--ranks 1 2] [--rounds 3]

A random Llama (bf16 on disk: 1.03 GB with ten layers) is written to a temporary folder twice, as safetensors and as
Meta's .pth in two parts. For each number of ranks it is loaded into fp32 parameters that are sharded by FSDP2, in
alternating ways:

    slices        `checkpoints_tools.load.load_pretrained`: each rank reads its own slices
    everything    each rank reads all tensors, then keeps its part
    transformers  `from_pretrained`: each rank holds the unsharded model, which would still have to be sharded

Memory is the process's anonymous memory, without mapped files (`benchmarks/host_memory.py`).
"""

from __future__ import annotations

import functools
import json
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.common import in_turn, load_average, run_program, say, table, write_result
from benchmarks.host_memory import AnonymousPeak
from benchmarks.random_checkpoint import load_everything, write_both
from checkpoints_tools.load import load_pretrained, open_checkpoint
from data.errors import UserError
from model.llama import Llama
from train.parallel.distributed import leave_group, start
from train.parallel.parallelize import parallelize

WAYS = {
    "hf, slices": "safetensors, each rank its slices (ours)",
    "meta, slices": "Meta .pth, each rank its slices (ours)",
    "hf, everything": "safetensors, each rank everything",
    "meta, everything": "Meta .pth, each rank everything",
    "hf, transformers": "safetensors, transformers' from_pretrained on each rank",
}


@dataclass
class Args:
    """Measure time and peak memory of loading a checkpoint."""

    layers: int = 10
    """Layers of 90 MB each; embedding and head have 66 MB each."""
    ranks: list[int] = field(default_factory=lambda: [1, 2])
    """Numbers of processes."""
    rounds: int = 3
    """Measurements of each way."""
    folder: Path | None = None
    """Folder for the checkpoints; default: a temporary folder."""
    output: Path | None = None
    """Result file; default benchmarks/results/loading.md."""


def rank_main(rank: int, n_ranks: int, port: int, folder: Path, rounds: int) -> None:
    """One process's work; writes its figures to ``folder/<ranks>-<rank>.json``."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if n_ranks > 1:
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": n_ranks}
        os.environ.update({key: str(value) for key, value in here.items()})
    world = start(torch.device("cpu"))
    torch.set_num_threads(1)
    config = open_checkpoint(folder / "hf").config
    peaks: dict[str, list[int]] = {way: [] for way in WAYS}

    def load(way: str, n: int) -> None:
        form, how = way.split(", ")
        dist.barrier()
        with AnonymousPeak() as peak:
            if how == "transformers":
                model = transformers.AutoModelForCausalLM.from_pretrained(folder / form, dtype=torch.float32)
            else:
                loader: Callable = {"slices": load_pretrained, "everything": load_everything}[how]
                fill_model = functools.partial(loader, folder=folder / form)
                model = parallelize(lambda: Llama(config), world.mesh, world.device, load=fill_model)
            dist.barrier()  # the slowest rank determines the time
        del model
        peaks[way].append(peak.bytes)

    runs = {way: functools.partial(load, way) for way in WAYS}
    in_turn(runs, range(0, 1))  # warm-up: page cache, first allocations
    for seen in peaks.values():
        seen.clear()
    timings = in_turn(runs, range(1, rounds + 1))
    figures = {way: {"seconds": timings[way].wall, "cpu": timings[way].cpu, "peaks": peaks[way]} for way in WAYS}
    (folder / f"{n_ranks}-{rank}.json").write_text(json.dumps(figures))
    leave_group()


def report(figures: dict[int, list[dict]], n_bytes: int, n_parameters: int) -> str:
    """The figures as Markdown; ``figures``: number of ranks → one dict of figures for each rank."""
    rows = []
    for n_ranks, ranks in figures.items():
        for way, description in WAYS.items():
            median = statistics.median(ranks[0][way]["seconds"])
            cpu = statistics.mean(statistics.median(rank[way]["cpu"]) for rank in ranks)
            peak = max(max(rank[way]["peaks"]) for rank in ranks)
            rows.append(
                (
                    description,
                    n_ranks,
                    f"{median:.2f}",
                    ", ".join(f"{s:.2f}" for s in ranks[0][way]["seconds"]),
                    f"{median / n_bytes * 1e9:.2f}",
                    f"{cpu / n_bytes * 1e9:.2f}",
                    f"{peak / 1e9:.2f}",
                    f"{4 * n_parameters / n_ranks / 1e9:.2f}",
                )
            )
    header = [
        "way",
        "ranks",
        "seconds (median)",
        "each",
        "seconds per GB of checkpoint",
        "CPU seconds per GB of checkpoint, each rank",
        "peak anonymous memory per rank, GB",
        "of which its part of the model (fp32), GB",
    ]
    return (
        f"A random Llama of {n_parameters / 1e6:.0f} M parameters, {n_bytes / 1e9:.2f} GB in bf16 on disk, loaded into "
        "fp32 parameters; building and sharding the model on the meta device is part of the time, one thread a rank. "
        "The files were in the page cache, having been read in a round that is not counted: this is the time of "
        "mapping, copying and casting, to which a disk adds its own. Peak memory is what the process itself holds "
        "(anonymous), the pages of mapped files left out: the highest of all ranks and rounds, sampled every "
        "millisecond. transformers' model is whole on every rank. On a busy machine the CPU seconds are what compares."
        f"\n\n{table(header, rows)}"
    )


def run(args: Args, argv: list[str]) -> None:
    load = load_average()
    if args.rounds < 1 or args.layers < 1 or min(args.ranks, default=0) < 1:
        raise UserError("--rounds, --layers and --ranks must be at least 1.")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        say("writing the checkpoints")
        sizes = dict(dim=2048, n_layers=args.layers, n_heads=16, n_kv_heads=4)
        write_both(folder, sizes, vocab_size=16_000, shard_bytes=300_000_000)
        n_bytes = sum(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
        figures = {}
        for n_ranks in args.ranks:
            say(f"{n_ranks} rank(s)")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            mp.spawn(rank_main, (n_ranks, port, folder, args.rounds), nprocs=n_ranks)
            figures[n_ranks] = [json.loads((folder / f"{n_ranks}-{i}.json").read_text()) for i in range(n_ranks)]
    body = report(figures, n_bytes, n_bytes // 2)
    write_result("loading", "Seconds and memory to load a checkpoint", body, argv, args.output, load)


def main(argv: list[str] | None = None) -> int:
    return run_program("loading", Args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
