"""What to type after a training run."""

from __future__ import annotations

from pathlib import Path

import torch

from data.commands import command
from train.config import TrainConfig
from train.parallel.launched import launched, under_torchrun

SHARE_FOR_WEIGHTS = 0.7  # of a GPU's memory; the rest is for keys, values and activations of scoring


def eval_command(config: TrainConfig, folder: Path, n_parameters: int, gpu_bytes: int | None) -> str:
    """The command that scores what the run has trained on its task's test split.

    Args:
        folder: the export or the checkpoint to score.
        n_parameters: of the model, which is scored in bf16 on GPUs.
        gpu_bytes: memory of one GPU; None: on CPUs.
    """
    ranks, data = launched().local_size, config.data
    needs_split = gpu_bytes is not None and n_parameters * torch.bfloat16.itemsize > SHARE_FOR_WEIGHTS * gpu_bytes
    options = {
        "model": config.model.model,
        "checkpoint": folder,
        # The export has its task, but of a user's own the files with the examples are named by the TOML file alone.
        "task": data.task if data.task.endswith(".toml") else None,
        "data": data.data,
        "allow_mismatch": config.model.allow_mismatch,
        "cache_dir": data.cache_dir,
        "tp": ranks if needs_split and ranks > 1 else None,
    }
    return command("eval.py", options, ranks=ranks)


def launcher() -> list[str]:
    """The start of the command line, before the script's name, as far as the environment tells."""
    if not under_torchrun():
        return ["python"]
    place = launched()
    # Several machines also need a rendezvous endpoint, which torchrun does not pass on.
    several = ["--nnodes", str(place.machines), "..."] if place.machines > 1 else []
    return ["torchrun", "--nproc_per_node", str(place.local_size), *several]
