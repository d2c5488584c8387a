"""Measure what checksums cost: the hash, writing a training checkpoint, loading an export, and checking all of it.

    python -m benchmarks.checksums [--rounds 5] [--folder DIR]

The export is SmolLM2-135M in fp32 (538 MB); the training checkpoint has its weights and AdamW's two states, in fp32
(1.6 GB). All files are in the page cache when they are read, so the cost is not hidden behind a disk. Each is measured
with and without checksums, alternating. Seconds for larger models are computed: bytes of a rank / measured rate. Rates
are from CPU seconds, which are comparable even on a busy machine.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import xxhash

from benchmarks.common import (
    Inputs,
    Timing,
    checkpoint_folder,
    in_turn,
    load_average,
    load_ours,
    run_program,
    table,
    write_result,
)
from checkpoints_tools.checksums import CHECKSUMS, CHUNK, Summing, find_damage, read_checksums, write_checksums
from train.checkpointing.saver import WatchedFiles

HASHES: dict[str, Callable[[memoryview], object]] = {
    "xxh3_64 (xxhash)": xxhash.xxh3_64_digest,
    "crc32 (zlib)": zlib.crc32,
    "sha256 (hashlib)": lambda chunk: hashlib.sha256(chunk).digest(),
    "blake2b (hashlib)": lambda chunk: hashlib.blake2b(chunk).digest(),
}
# Bytes that each of 8 ranks writes to a checkpoint (fp32 weights and states), and reads of an export in bf16.
COMPUTED = {"Llama 3 8B": (8.03e9 * 12 / 8, 8.03e9 * 2 / 8), "Llama 3 70B": (70.6e9 * 12 / 8, 70.6e9 * 2 / 8)}


@dataclass
class Args(Inputs):
    """Time hashing, writing, loading and checking SmolLM2."""

    rounds: int = 5
    """Rounds; each round measures everything once."""
    folder: Path | None = None
    """Folder in which checkpoints are written and deleted; default: the system's temporary folder."""


def save(tensors: dict[str, Any], folder: Path, checksums: bool) -> None:
    """Write a training checkpoint as `train.checkpointing.saver` does, with or without checksums; without fsync."""
    shutil.rmtree(folder, ignore_errors=True)
    writer, files = dcp.FileSystemWriter(folder, sync_files=False), WatchedFiles()
    writer.fs = files
    real = Summing.update
    if not checksums:
        Summing.update = lambda self, data: None  # type: ignore[method-assign]
    try:
        dcp.save(tensors, storage_writer=writer, no_dist=True)
    finally:
        Summing.update = real  # type: ignore[method-assign]
    if checksums:
        write_checksums(folder, files.sums)


def measure(args: Args, export: Path, work: Path) -> tuple[dict[str, float], dict[str, Timing], dict[str, int]]:
    """Rates of the hashes in bytes a second, seconds of all else by name, and bytes of both folders."""
    plain, checked, saved = work / "plain", work / "checked", work / "saved"
    for folder in (plain, checked):
        shutil.copytree(export, folder, ignore=shutil.ignore_patterns(CHECKSUMS))
    write_checksums(checked)
    content = memoryview((plain / "model.safetensors").read_bytes())
    chunks = [content[i : i + CHUNK] for i in range(0, len(content), CHUNK)]
    hashed = in_turn(
        {name: lambda n, f=f: [f(chunk) for chunk in chunks] for name, f in HASHES.items()}, range(args.rounds)
    )
    rates = {name: len(content) / timing.median_cpu for name, timing in hashed.items()}

    weights = {name: p.detach() for name, p in load_ours(plain).named_parameters()}
    states = {key: {name: torch.rand_like(p) for name, p in weights.items()} for key in ("exp_avg", "exp_avg_sq")}
    tensors = {"model": weights, "optim": states}
    timings = in_turn(
        {
            "load an export without checksums": lambda n: load_ours(plain),
            "load an export with checksums": lambda n: load_ours(checked),
            "check an export completely": lambda n: find_damage(checked),
            "write checksums of an export": lambda n: write_checksums(checked),
            "write a training checkpoint without checksums": lambda n: save(tensors, saved, checksums=False),
            "write a training checkpoint with checksums": lambda n: save(tensors, saved, checksums=True),
            "check a training checkpoint completely": lambda n: find_damage(saved),
        },
        range(-1, args.rounds),
    )
    for timing in timings.values():
        del timing.wall[0], timing.cpu[0]  # the first round fills caches
    sizes = {
        name: sum(file.bytes for file in read_checksums(f).values())
        for name, f in (("export", checked), ("checkpoint", saved))
    }
    return rates, timings, sizes


def report(rates: dict[str, float], timings: dict[str, Timing], sizes: dict[str, int], rounds: int) -> str:
    """The figures as Markdown."""
    hashes = [(name, f"{rate / 1e9:.1f}") for name, rate in rates.items()]
    seconds = [(name, f"{t.median:.2f}", f"{t.median_cpu:.2f}", t.each) for name, t in timings.items()]
    hashing = rates["xxh3_64 (xxhash)"]
    checking = sizes["checkpoint"] / timings["check a training checkpoint completely"].median_cpu
    computed = [
        (name, f"{written / 1e9:.1f}", f"{written / hashing:.1f}", f"{written / checking:.1f}",
         f"{read / 1e9:.1f}", f"{read / checking:.1f}")
        for name, (written, read) in COMPUTED.items()
    ]  # fmt: skip
    header = ["", "GB written", "s to hash", "s to check before a resume", "GB of an export read", "s to check"]
    return f"""Hashing chunks of {CHUNK // 2**20} MiB that are in memory, a CPU second:

{table(["hash", "GB"], hashes)}

Seconds, medians of {rounds} rounds. The export has {sizes["export"] / 1e6:.0f} MB, the training checkpoint
{sizes["checkpoint"] / 1e9:.2f} GB. All files are in the page cache, and nothing is brought to the disk itself.

{table(["", "seconds", "CPU seconds", "each"], seconds)}

By arithmetic, for each of 8 ranks: hashing at {hashing / 1e9:.1f} GB/s what is in memory, checking at
{checking / 1e9:.1f} GB/s what is in the page cache. From a disk, its rate counts. fp32 checkpoints, bf16 exports.

{table(header, computed)}"""


def run(args: Args, argv: list[str]) -> None:
    torch.set_num_threads(1)
    load = load_average()
    with checkpoint_folder(args) as export, tempfile.TemporaryDirectory(dir=args.folder) as work:
        found = measure(args, export, Path(work))
    write_result("checksums", "What checksums cost", report(*found, args.rounds), argv, args.output, load)


if __name__ == "__main__":
    sys.exit(run_program("checksums", Args, run))
