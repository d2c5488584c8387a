"""Training checkpoints: their contents, and loading them. `train/checkpointing/saver.py` writes them.

They are sharded and load on any number of ranks. On the same number, a resumed run is bit-identical to one without
interruption. A run folder holds the last K checkpoints::

    checkpoints/step_000500/
        .metadata, __0_0.distcp, ...   parameters and optimizer states (torch.distributed.checkpoint, one file a rank)
        rng_00000.pt, ...              each rank's random-number states
        run.json                       format, step, resolved config, label sets, identity of model and data
        task.json                      the task: fields, label sets, format of the answer
        prompt.json                    the prompt with its few-shot examples (decoders only)

A checkpoint is written under a temporary name and renamed when every rank has finished, so one with the final name is
complete. Position in the data and learning rate are not stored: both are pure functions of the step number.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from data.errors import UserError
from data.json_text import to_json
from train import options
from train.config import FREE_ON_RESUME, TrainConfig
from train.parallel.mesh import MeshShape

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
TRAINING_FILE = "training.json"  # in an export: the options of its run, and why it had its optimizer
FORMAT = 2  # 1: run.json without a format


@dataclass(frozen=True)
class RunState:
    """The contents of ``run.json``.

    Attributes:
        step: optimizer steps taken.
        config: the resolved options by name.
        identity: what must be the same when resuming: the model's shape, and hashes of tokenizer and data.
        labels: the task's fields with their label sets.
        best: the best held-out score so far; None before the first.
        world_size: number of ranks that wrote the checkpoint.
        mesh: their layout, as `train.parallel.mesh.MeshShape.describe` writes it; empty in older checkpoints.
        optim_reason: why ``--optim auto`` chose this optimizer; empty if it was named, and in older checkpoints.
    """

    step: int
    config: dict[str, Any]
    identity: dict[str, Any]
    labels: dict[str, list[str]]
    best: float | None
    world_size: int
    mesh: str = ""
    optim_reason: str = ""

    def write(self, folder: Path) -> None:
        record = {"format": FORMAT, **vars(self)}
        text = to_json(record, indent=2, ascii_only=True, default=str)
        (folder / RUN_FILE).write_text(text + "\n", encoding="utf-8")


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:06d}"


def steps_in(checkpoints: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [(int(m[1]), p) for p in checkpoints.glob("step_*") if (m := re.fullmatch(r"step_(\d+)", p.name))]
    return [path for _, path in sorted(found)]


def read_state(folder: Path) -> RunState:
    """Read ``run.json``.

    Raises:
        UserError: its format is newer than this version of the code.
    """
    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    found = record.pop("format", 1)
    if found > FORMAT:
        raise UserError(
            f"checkpoint {folder} has format {found}: a newer version of this code saved it, and this one knows "
            f"formats up to {FORMAT}. Use the newer version, or start from the run's export."
        )
    record["config"] = options.from_older(TrainConfig, record["config"])
    record["config"].setdefault("optim", "adamw")  # of checkpoints from before this option
    numbers = record["identity"].get("model_config", {})
    if numbers.get("head_dim", 0) is None:  # older code stored None for the default width
        numbers["head_dim"] = numbers["dim"] // numbers["n_heads"]
    return RunState(**record)


def newest_complete(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are skipped with a warning."""
    for folder in reversed(steps_in(checkpoints)):
        missing = what_is_missing(folder)
        if missing is None:
            return folder
        log.warning("note: checkpoint %s is incomplete (%s); skipping it.", folder, missing)
    return None


def what_is_missing(folder: Path) -> str | None:
    """Why a checkpoint is incomplete, or None if it is complete.

    Raises:
        UserError: see `read_state`.
    """
    try:
        state = read_state(folder)
        metadata = dcp.FileSystemReader(folder).read_metadata()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle or JSON file can raise almost any type
        return f"{type(error).__name__}: {error}"
    for item in metadata.storage_data.values():
        file = folder / item.relative_path
        if not file.is_file() or file.stat().st_size < item.offset + item.length:
            return f"{file.name} is missing or cut off"
    for rank in range(state.world_size):
        if not (folder / f"rng_{rank:05d}.pt").is_file():
            return f"rng_{rank:05d}.pt is missing"
    return None


def check_fits(state: RunState, config: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume from a checkpoint of another model, task, data set or configuration.

    Options that do not affect results (`FREE_ON_RESUME`) may differ.

    Raises:
        UserError: names every differing key with both values.
    """
    wanted = json.loads(json.dumps({**config, **_by_key(identity)}, default=str))
    # An option missing from the checkpoint is newer than it; the option's default is the earlier behaviour.
    defaults = json.loads(json.dumps(options.flatten(TrainConfig()), default=str))
    found = {**defaults, **state.config, **_by_key(state.identity)}
    differing = [
        f"  {key}: the checkpoint has {found.get(key)}, this run has {wanted.get(key)}"
        for key in sorted(wanted.keys() | found.keys())
        if key not in FREE_ON_RESUME and wanted.get(key) != found.get(key)
    ]
    if differing:
        raise UserError(
            f"cannot resume from {folder}: it belongs to a different run.\n"
            + "\n".join(differing)
            + "\nUse the options of the first start (they are in config.toml), or another --output."
        )


def _by_key(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the model's shape, so that a message names only the keys that differ."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def load_model(folder: Path, model: nn.Module) -> None:
    """Load a sharded model's parameters from a checkpoint; each rank reads its own slices.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    state = {"model": get_model_state_dict(model)}
    _read(folder, state)
    set_model_state_dict(model, state["model"])


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load an optimizer's states from a checkpoint; the model's parameters must be loaded already.

    Raises:
        UserError: the checkpoint belongs to another optimizer.
    """
    state = {"optim": get_optimizer_state_dict(model, optimizer)}
    _read(folder, state)
    set_optimizer_state_dict(model, optimizer, state["optim"])


def _read(folder: Path, state: dict[str, Any]) -> None:
    try:
        dcp.load(state, checkpoint_id=folder)
    except CheckpointException as error:  # a BaseException whose message holds a traceback of every rank
        causes = dict.fromkeys(str(cause) for cause, _ in error.failures.values())
        raise UserError(
            f"checkpoint {folder} does not fit: {'; '.join(causes)}. It was saved with another model or optimizer, or "
            "by another version of this code."
        ) from None


def load_rng(folder: Path, state: RunState, mesh: str) -> None:
    """Restore the random-number generators; on another mesh only warn."""
    wrote = state.mesh or MeshShape(shard=state.world_size).describe()
    if wrote != mesh:
        log.warning(
            "note: the checkpoint was written on a mesh of %s, this run has %s. Sums round differently, so the result "
            "is not bit-identical to that of an uninterrupted run.",
            wrote,
            mesh,
        )
        return
    set_rng_state(torch.load(folder / f"rng_{dist.get_rank():05d}.pt", weights_only=True))


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators, in types that ``weights_only=True`` can load."""
    version, words, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    assert not isinstance(keys, str)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), pos, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
