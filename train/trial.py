"""One worst-case step before step 1: a run that does not fit fails at once and names the settings that need less.

One step in sixty of 20 Newsgroups holds a post of full length, so a run that fits on average would fail in its first
hour. The trial is the worst step possible (`StepLoader.worst_case`). Every rank computes the longest rows, filled with
labels, with a second pass if steps accumulate, and with the optimizer's states in memory.

The trial changes nothing: weights stay the same, states stay zero, gradients are freed. It comes before a checkpoint's
optimizer states are loaded and before the random-number generators are seeded. So a resumed run tries it too, with the
same result as without it.

Only the rank that runs out of memory reports it, and all ranks end (`train/parallel/distributed.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from checkpoints_tools.registry import ModelSpec
from data.loader import StepBatch
from train import options
from train.config import TrainConfig
from train.errors import RunStopped
from train.loss import batch_loss
from train.optim.formats import OPTIMIZERS
from train.optim.optimizer import allocate_states, clip_gradients

log = logging.getLogger(__name__)

# Device types with a trial step. Not CPUs: models there are small, and the system kills a process that needs too much
# memory without raising an error.
TRIED_ON = frozenset({"cuda"})
GIB = 2**30


def try_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: StepBatch, clip: float, device: torch.device
) -> None:
    """Run ``batch``'s step without its update, and log the peak memory.

    An update with zero gradients comes first. It needs as much memory as any update, and allocates the optimizer's
    states, so that they are in memory during the passes.
    """
    start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    allocate_states(optimizer)
    for micro_batch in batch.batches:
        batch_loss(model, micro_batch.to(device), batch.total_weights).backward()
    clip_gradients(model, clip)
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        torch.cuda.reset_peak_memory_stats(device)
        seconds = time.perf_counter() - start
        log.info("%s needs %.1f of %.1f GiB (tried in %.1f s)", describe(batch), peak / GIB, total / GIB, seconds)


def describe(batch: StepBatch) -> str:
    """Name the trial step, with its passes and rows."""
    rows, length = batch.batches[0].tokens.shape
    passes = f"{len(batch.batches)} pass{'es' if len(batch.batches) > 1 else ''}"
    return f"the worst step there can be ({passes} of {rows} x {length:,} tokens on each rank)"


@contextmanager
def explain_out_of_memory(what: str, config: TrainConfig, spec: ModelSpec) -> Iterator[None]:
    """Replace PyTorch's out-of-memory error by a message that says what ran and which settings need less.

    Raises:
        RunStopped: out of GPU memory.
    """
    try:
        yield
    except RuntimeError as error:
        # Libraries with their own allocators raise other errors.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        advice = "\n".join(f"  {line}" for line in cheaper_settings(options.flatten(config), spec))
        raise RunStopped(f"out of memory in {what}: {error}\nWhat needs less, cheapest first:\n{advice}") from None


def cheaper_settings(values: Mapping[str, Any], spec: ModelSpec) -> list[str]:
    """Settings left to change that need less memory, each with its cost, cheapest first; ``values`` are options."""
    row_bounds_input = spec.architecture.row_bounds_input
    full = values["activation_checkpointing"] == "full"
    found = []
    if (values["micro_rows"] or 1) > 1:
        found.append("--micro_rows 1: more and smaller passes")
    if not full:
        found.append("--activation_checkpointing full: blocks save only their input; a third more computation")
    if not row_bounds_input:
        found.append(f"--row_length below {values['row_length']}: more and smaller passes; at least max_length")
    if not values["activation_offload"]:
        with_full = "" if full else "--activation_checkpointing full "
        found.append(f"{with_full}--activation_offload on: saved inputs move to host memory; little time")
    if values["precision"] == "fp32":
        found.append("--precision bf16: activations take half the memory; sums are rounded more")
    else:
        names = list(OPTIMIZERS)
        smaller = names[names.index(values["optim"]) + 1 :]
        if smaller:
            found.append(f"--optim {' or '.join(smaller)}: weights and states take less; updates are rounded more")
    if not values["offload_states"]:
        found.append("--offload_states on: optimizer states in host memory; every step waits for copies")
    if row_bounds_input:
        found.append(f"--row_length below {values['row_length']}: longer documents are cut")
    return [*found, "more GPUs: each holds less of the model"]
