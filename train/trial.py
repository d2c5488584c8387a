"""One worst-case step before step 1: a run that will run out of memory does so at once, and says what needs less.

One step in sixty of 20 Newsgroups holds a post of full length, so a run that fits on average would die in its first
hour, and dozens of GPUs with it. The trial is that step and none easier (`StepLoader.worst_case`): the longest rows
there can be with the most labels they can hold, on every rank, a second pass over them where steps accumulate, with
the optimizer's states in place. It is made of what the run is made of, and leaves nothing behind: no weight changes,
the states are still zero, the gradients are gone. It comes before a checkpoint's optimizer states and before the
random-number generators are set, so a resumed run tries it too and neither can tell.

What a rank runs out of is said by that rank alone, and ends all (`train/parallel/distributed.py`).
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
from train.optim.optimizer import OPTIMIZERS, allocate_states, clip_gradients

log = logging.getLogger(__name__)

# Device types on which it is worth a step's time. Not on CPUs: models there are small, and a process that asks for too
# much is killed by the system rather than told, a minute sooner or later.
TRIED_ON = frozenset({"cuda"})
GIB = 2**30


def try_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: StepBatch, clip: float, device: torch.device
) -> None:
    """Take ``batch``'s step but for its update, and say what it needed.

    The update is tried first, by itself, with gradients of zero: it makes the optimizer's states, so that the passes
    meet them, and takes what memory an update takes.
    """
    start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    allocate_states(optimizer)
    for micro_batch in batch.batches:
        batch_loss(model, micro_batch.to(device), batch.n_label_tokens).backward()
    clip_gradients(model, clip)
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak, there_is = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        torch.cuda.reset_peak_memory_stats(device)
        seconds = time.perf_counter() - start
        log.info("%s needs %.1f of %.1f GiB (tried in %.1f s)", describe(batch), peak / GIB, there_is / GIB, seconds)


def describe(batch: StepBatch) -> str:
    rows, length = batch.batches[0].tokens.shape
    passes = f"{len(batch.batches)} pass{'es' if len(batch.batches) > 1 else ''}"
    return f"the worst step there can be ({passes} of {rows} x {length:,} tokens on each rank)"


@contextmanager
def explain_out_of_memory(what: str, config: TrainConfig, spec: ModelSpec) -> Iterator[None]:
    """Turn PyTorch's "out of memory" into one message that says in what, and which settings need less.

    Raises:
        RunStopped: the GPU's memory does not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        # Libraries that allocate for themselves say it in their own ways.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        advice = "\n".join(f"  {line}" for line in cheaper_settings(options.flatten(config), spec))
        raise RunStopped(f"out of memory in {what}: {error}\nWhat needs less, cheapest first:\n{advice}") from None


def cheaper_settings(values: Mapping[str, Any], spec: ModelSpec) -> list[str]:
    """What is left to change to need less memory, each with its price, the cheapest first; ``values`` are options."""
    row_cuts = spec.architecture.row_bounds_input
    full = values["activation_checkpointing"] == "full"
    found = []
    if (values["micro_rows"] or 1) > 1:
        found.append("--micro_rows 1: more and smaller passes")
    if not full:
        found.append("--activation_checkpointing full: blocks keep only their input; a third more to compute")
    if not row_cuts:
        found.append(f"--row_length below {values['row_length']}: more and smaller passes; max_length is the least")
    if not values["activation_offload"]:
        with_full = "" if full else "--activation_checkpointing full "
        found.append(f"{with_full}--activation_offload on: what they keep goes to host memory; little time")
    if values["precision"] == "fp32":
        found.append("--precision bf16: activations take half; sums round more coarsely")
    else:
        names = list(OPTIMIZERS)
        smaller = names[names.index(values["optim"]) + 1 :]
        if smaller:
            found.append(f"--optim {' or '.join(smaller)}: weights and states take less; updates round more coarsely")
    if not values["offload_states"]:
        found.append("--offload_states on: optimizer states in host memory; every step waits for them")
    if row_cuts:
        found.append(f"--row_length below {values['row_length']}: longer documents are cut")
    return [*found, "more GPUs: each holds less of the model"]
