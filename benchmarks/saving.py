"""Measure how long training is blocked by its checkpoints, saved synchronously and in the background.

    python -m benchmarks.saving [--ranks 2] [--rounds 3] [--folder DIR]

A model of SmolLM2-135M's shape with random weights is trained by FSDP2 on gloo ranks of one machine (fp32 weights,
AdamW with fp32 states: 12 bytes a parameter in a checkpoint). Three measurements alternate: steps without a save, a
synchronous save and the same number of steps, a save in the background during as many steps. The cost of a save is
the time of save and steps minus that of the steps alone. Without spare cores, a background save slows the steps down.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.common import load_average, say, table, write_result
from benchmarks.host_memory import anonymous_bytes
from checkpoints_tools.registry import get_model_spec
from data.command_line import cli
from data.decoder.samples import SampleSet
from data.loader import StepLoader
from train.checkpointing.checkpoint import RunState, step_folder
from train.checkpointing.disk_space import StoredBytes, bytes_to_write, folder_bytes, format_bytes
from train.checkpointing.saver import Saver
from train.loss import batch_loss
from train.optim.optimizer import build_optimizer, clip_gradients
from train.parallel.distributed import World, leave_group, start
from train.parallel.parallelize import parallelize


@dataclass
class Args:
    """Time synchronous and asynchronous saves of a model of SmolLM2-135M's size."""

    model: str = "smollm2_135m"
    """Preset whose shape is used; the weights are random."""
    ranks: int = 2
    """Processes."""
    steps: int = 6
    """Optimizer steps in each measurement."""
    rounds: int = 3
    """Rounds; each round measures everything once."""
    folder: Path | None = None
    """Folder in which checkpoints are written and deleted; default: the system's temporary folder."""
    output: Path | None = None
    """Result file; default benchmarks/results/saving.md."""


class Run:
    """One rank's model, trained on random tokens."""

    def __init__(self, model: str, world: World) -> None:
        spec = get_model_spec(model)
        self.world, self.step = world, 0
        self.model = parallelize(lambda: spec.build(spec.config), world.mesh, world.device, precision="fp32")
        self.optimizer = build_optimizer(self.model, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        n, rng = 256, np.random.default_rng(0)
        label_end = 16 * np.arange(1, n + 1)
        samples = SampleSet(
            prefix=rng.integers(0, spec.config.vocab_size, 32).astype(np.int32),
            ids=[str(i) for i in range(n)],
            tokens=rng.integers(0, spec.config.vocab_size, 16 * n).astype(np.int32),
            body_end=label_end - 4,
            label_end=label_end,
            document_tokens=np.full(n, 12, dtype=np.int32),
            truncated=np.zeros(n, dtype=bool),
        )
        self.loader = StepLoader(samples, batch_size=8, row_length=256, rank=world.rank, world_size=world.size)

    def train(self, n: int) -> float:
        """Take ``n`` steps; returns their seconds."""
        begin = time.perf_counter()
        for _ in range(n):
            step = self.loader.step(self.step)
            for batch in step.batches:
                batch_loss(self.model, batch, step.n_label_tokens).backward()
            clip_gradients(self.model, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        dist.barrier()
        return time.perf_counter() - begin

    def state(self) -> RunState:
        return RunState(self.step, {}, {}, {}, None, self.world.size)


def measure(run: Run, saver: Saver, steps: int) -> dict[str, float]:
    """Save, take steps, wait for the save; returns the seconds of each."""
    dist.barrier()
    begin = time.perf_counter()
    saver.save(run.model, run.optimizer, run.state(), lambda folder: None)
    stalled = time.perf_counter() - begin
    trained = run.train(steps)
    saver.finish()
    return {"save": stalled, "steps": trained, "finish": time.perf_counter() - begin - stalled - trained}


def work(rank: int, args: Args, folder: Path, port: int, results: Any) -> None:
    """One rank's work; rank 0 puts its measurements into ``results``."""
    os.environ |= dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(args.ranks), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    world = start(torch.device("cpu"))
    run = Run(args.model, world)
    run.train(2)
    without = anonymous_bytes()
    savers = {
        name: Saver(folder / name / "checkpoints", 1, background, world.device, StoredBytes(0, 0))
        for name, background in (("waits", False), ("background", True))
    }
    found: dict[str, Any] = {"alone": [], "waits": [], "background": []}
    for n in range(args.rounds + 1):  # the first round allocates the copy and is reported separately
        found["alone"].append(run.train(args.steps))
        for name, saver in savers.items():
            found[name].append(measure(run, saver, args.steps))
            if rank == 0:
                say(f"round {n}: {name}: {found[name][-1]}, steps alone {found['alone'][-1]:.2f} s")
    copy = savers["background"].copy
    assert copy is not None
    with_copy = anonymous_bytes()
    needed = bytes_to_write([run.model.state_dict(), [run.optimizer.state[p] for p in run.model.parameters()]])
    memory: list[Any] = [None] * world.size
    dist.all_gather_object(memory, (without, with_copy, copy.n_bytes))
    if rank == 0:
        saved = step_folder(savers["background"].checkpoints, run.step - args.steps)
        found |= {"memory": memory, "needed": needed}
        found["files"] = {file.name: file.stat().st_size for file in saved.glob("*.distcp")}
        found["checkpoint"] = folder_bytes(saved)
        results.put(found)
    for saver in savers.values():
        saver.close()
    dist.barrier()
    leave_group()


def report(found: dict[str, Any], args: Args) -> str:
    """The figures as Markdown."""
    alone = statistics.median(found["alone"][1:])
    rows = []
    for name, title in (("waits", "`--async_save off`"), ("background", "`--async_save on`")):
        timings = found[name][1:]
        median = {key: statistics.median(t[key] for t in timings) for key in timings[0]}
        total = statistics.median(sum(t.values()) for t in timings)
        each = ", ".join(f"{t['save']:.2f}" for t in timings)
        rows.append(
            (title, f"{median['save']:.2f} ({each})", f"{median['steps']:.2f}", f"{median['finish']:.2f}",
             f"{total:.2f}", f"{total - alone:.2f}")
        )  # fmt: skip
    header = ["", "training stands still for (each)", f"{args.steps} steps after it", "then waits for", "all", "cost"]
    first = found["background"][0]["save"]
    without, with_copy, copy = (sum(rank[i] for rank in found["memory"]) for i in range(3))
    files = " + ".join(format_bytes(size) for _, size in sorted(found["files"].items()))
    return f"""{args.model}'s shape; seconds, medians of {args.rounds} rounds on {args.ranks} ranks. {args.steps} steps
alone took {alone:.2f}.
"Cost" is what a save adds to the time of its steps. Every file is brought to the disk itself (fsync) before it counts.

{table(header, rows)}

The first save in the background also makes the copy: training stood still for {first:.2f} s.

- On disk: {format_bytes(found["checkpoint"])} ({files}); computed beforehand: {format_bytes(found["needed"])}.
- In host memory: the copy is {format_bytes(copy)} over all ranks. Anonymous memory of all ranks grew from
  {format_bytes(without)} before the first save to {format_bytes(with_copy)}."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = cli(Args, argv, prog="python -m benchmarks.saving")
    load = load_average()
    folder = Path(tempfile.mkdtemp(prefix="saving-", dir=args.folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        results = mp.get_context("spawn").SimpleQueue()
        ranks = mp.spawn(work, (args, folder, port, results), nprocs=args.ranks, join=False)
        while not ranks.join():
            pass
        found = results.get()
    finally:
        shutil.rmtree(folder)
    write_result("saving", "What a checkpoint costs in training time", report(found, args), argv, args.output, load)
    return 0


if __name__ == "__main__":
    sys.exit(main())
