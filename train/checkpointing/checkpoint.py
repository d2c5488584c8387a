"""Training checkpoints: their contents. `train/checkpointing/saver.py` writes them, `tensors.py` loads their tensors.

They are sharded and load on any number of ranks. On the same number, a resumed run is bit-identical to one without
interruption. A run folder holds the last K checkpoints::

    checkpoints/step_000500/
        .metadata, __0_0.distcp, ...   parameters and optimizer states (torch.distributed.checkpoint, one file a rank)
        rng_00000.pt, ...              each rank's random-number states
        run.json                       format, step, resolved config, label sets, identity of model and data
        task.json                      the task: fields, label sets, format of the answer
        prompt.json                    the prompt with its few-shot examples (decoders only)
        trained_texts.npy              hashes of the texts of the training data
        checksums.json                 hashes of all these files, by chunk (`checkpoints_tools/checksums.py`)

Nothing in these files is run: `checkpoints_tools/sharded.py` reads the tensors, and torch's unpickler is not used. What
is read is compared with its checksums first. A resumed run compares the whole checkpoint before it loads, and takes the
newest one without damage; it deletes none because of damage. Checkpoints of older code have no checksums.

A checkpoint is written under a temporary name and renamed when every rank has finished, so one with the final name is
complete. Position in the data and learning rate are not stored: both are pure functions of the step number.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints_tools.checksums import CheckedFile, check_small_files, find_damage, read_checksums
from checkpoints_tools.torch_files import load as load_torch
from data.errors import UserError
from data.files.documents import read_json, shaped
from data.json_text import to_json
from data.task_file import read_task, task_changes
from data.tasks import Task
from train import options
from train.config import FREE_ON_RESUME, TrainConfig
from train.parallel.mesh import MeshShape
from train.patience import Watched

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
TRAINING_FILE = "training.json"  # in an export: the options of its run, and why it had its optimizer
FORMAT = 2  # 1: run.json without a format
TASK_CONTENT = "task_content"  # in a run's identity: `task_hash`
HELD_OUT = "held_out_data"  # likewise: `hash_examples`, of the examples that are scored in training


@dataclass(frozen=True)
class RunState:
    """The contents of ``run.json``.

    Attributes:
        step: optimizer steps taken.
        config: the resolved options by name; in the file, the paths of ``checkpoint`` and ``output`` are absolute.
        identity: what must be the same when resuming: the model's shape, and hashes of tokenizer and data.
        labels: the task's fields with their label sets.
        best: the best held-out score so far; None before the first.
        world_size: number of ranks that wrote the checkpoint.
        mesh: their layout, as `train.parallel.mesh.MeshShape.describe` writes it; empty in older checkpoints.
        optim_reason: why ``--optim auto`` chose this optimizer; empty if it was named, and in older checkpoints.
        unscored: the run was stopped in the scoring that was due after this step.
        watched: the held-out scores up to this step; empty in older checkpoints.
        figures: of the last held-out scoring; None before the first, and in older checkpoints.
    """

    step: Annotated[int, msgspec.Meta(ge=0)]
    config: dict[str, Any]
    identity: dict[str, Any]
    labels: dict[str, list[str]]
    best: float | None
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    mesh: str = ""
    optim_reason: str = ""
    unscored: bool = False
    watched: Watched = Watched()
    figures: dict[str, float] | None = None

    def write(self, folder: Path) -> None:
        named = {name: self.config.get(name) for name in ("checkpoint", "output")}
        absolute = {name: os.path.abspath(path) for name, path in named.items() if path is not None}
        record = {"format": FORMAT, **dataclasses.asdict(self), "config": self.config | absolute}
        text = to_json(record, indent=2, ascii_only=True, default=str)
        (folder / RUN_FILE).write_text(text + "\n", encoding="utf-8")


class Training(msgspec.Struct):
    """What is read of ``training.json``. Exports of older code have no identity."""

    options: dict[str, Any]
    identity: dict[str, Any] | None = None


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:06d}"


def steps_in(checkpoints: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [(int(m[1]), p) for p in checkpoints.glob("step_*") if (m := re.fullmatch(r"step_(\d+)", p.name))]
    return [path for _, path in sorted(found)]


class NewerFormat(UserError):
    """A newer version of this code wrote the checkpoint."""


class _Format(msgspec.Struct):
    format: int = 1


class _UsedOptions(msgspec.Struct):
    """The options of a run that other code than `check_fits` reads from its checkpoints."""

    model: str
    checkpoint: str | None
    optim: str
    row_length: Annotated[int, msgspec.Meta(ge=1)]
    max_length: Annotated[int, msgspec.Meta(ge=1)] | None


def read_state(folder: Path) -> RunState:
    """Read ``run.json``.

    Raises:
        NewerFormat: its format is newer than this version of the code.
        UserError: it is missing, damaged or incomplete.
    """
    path = folder / RUN_FILE
    record, where = read_json(path), f"{path}: identity.model_config"
    stated: _Format = shaped(record, str(path), _Format)
    if stated.format > FORMAT:
        raise NewerFormat(
            f"checkpoint {folder} has format {stated.format}: a newer version of this code saved it, and this one "
            f"knows formats up to {FORMAT}. Use the newer version, or start from the run's export."
        )
    state: RunState = shaped(record, str(path), RunState)
    config = with_defaults(state.config)
    shaped(config, f"{path}: config", _UsedOptions)
    numbers: dict[str, Any] = shaped(state.identity.get("model_config", {}), where, dict[str, Any])
    if numbers.get("head_dim", 0) is None:  # older code stored None for the default width
        width: _Width = shaped(numbers, where, _Width)
        numbers |= {"head_dim": width.dim // width.n_heads}
    return dataclasses.replace(state, config=config, identity=state.identity | {"model_config": numbers})


def with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run as it stored them. One that is missing is newer: its default, except for optim, is the
    earlier behaviour."""
    return _as_json(options.flatten(TrainConfig())) | {"optim": "adamw"} | options.from_older(TrainConfig, stored)


class _Width(msgspec.Struct):
    dim: int
    n_heads: Annotated[int, msgspec.Meta(ge=1)]


def newest_complete(checkpoints: Path, before: Path | None = None) -> Path | None:
    """The newest complete checkpoint; incomplete ones are skipped with a warning.

    Args:
        before: look only at checkpoints that are older than this one.
    """
    folders = steps_in(checkpoints)
    for folder in reversed(folders if before is None else folders[: folders.index(before)]):
        missing = what_is_missing(folder)
        if missing is None:
            return folder
        log.warning("note: checkpoint %s is incomplete or damaged (%s); skipping it.", folder, missing)
    return None


def what_is_missing(folder: Path) -> str | None:
    """Why a checkpoint is incomplete, or None if it is complete. Tensors are not read; see `damage_of`.

    Raises:
        NewerFormat: see `read_state`.
    """
    from checkpoints_tools.sharded import read_metadata  # what it imports takes a second

    try:
        check_small_files(folder)
        state, metadata, sums = read_state(folder), read_metadata(folder), read_checksums(folder)
        for item in metadata.storage_data.values():
            file = folder / item.relative_path
            if not file.is_file() or file.stat().st_size < item.offset + item.length:
                return f"{file.name} is missing or cut off"
        for name, expected in sums.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != expected.bytes:
                return CheckedFile(file, expected).describe([])
        for rank in range(state.world_size):
            if rng_file(folder, rank).name not in sums:
                read_rng(folder, rank)
    except NewerFormat:
        raise
    except UserError as error:
        return str(error)
    return None


def damage_of(folder: Path) -> str | None:
    """What differs from a folder's checksums, or None. Collective: every rank reads an equal share of all bytes."""
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    try:
        found = find_damage(folder, dist.get_rank(), dist.get_world_size())
    except UserError as error:
        found = [str(error)]
    dist.all_gather_object(everyone, found)
    return "; ".join(dict.fromkeys(text for found in everyone for text in found)) or None


def check_fits(
    state: RunState, config: Mapping[str, Any], identity: Mapping[str, Any], folder: Path, task: Task
) -> None:
    """Refuse to resume from a checkpoint of another model, task, data set or configuration.

    Options that do not affect results (`FREE_ON_RESUME`) may differ. Of the task the content is compared, not the name
    of its file. What an older checkpoint does not say of its identity is not compared.

    Raises:
        UserError: names every differing key with both values.
    """
    wanted, found = _as_json({**config, **_by_key(identity)}), {**state.config, **_by_key(state.identity)}
    trained_on = read_task(folder)
    changes = task_changes(trained_on, task, ("the checkpoint", "this run")) if trained_on is not None else []
    unsaid = {key for key in (TASK_CONTENT, HELD_OUT) if key not in found}
    skipped = FREE_ON_RESUME | unsaid | ({TASK_CONTENT} if changes else set())
    differing = [f"  {change}" for change in changes] + [
        f"  {key}: the checkpoint has {found.get(key)}, this run has {wanted.get(key)}"
        for key in sorted(wanted.keys() | found.keys())
        if key not in skipped and wanted.get(key) != found.get(key)
    ]
    if differing:
        raise UserError(
            f"cannot resume from {folder}: it belongs to a different run.\n"
            + "\n".join(differing)
            + "\nUse the options of the first start (they are in config.toml) and the same data, or another --output."
        )


def keep_optimizer(values: dict[str, Any], state: RunState) -> dict[str, Any]:
    """Options with "auto" replaced by what it chose when the run started, even if another would fit now."""
    return values | {"optim": state.config["optim"]} if values["optim"] == "auto" else values


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a checkpoint stores them: paths are texts, tuples are lists."""
    return json.loads(json.dumps(values, default=str))


def _by_key(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the model's shape, so that a message names only the keys that differ."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


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
    rank = dist.get_rank()
    found = read_rng(folder, rank)
    try:
        set_rng_state(found)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"{rng_file(folder, rank)} does not have the states of random-number generators ({error})."
        ) from None


class _RngState(msgspec.Struct):
    """What `rng_state` returns."""

    python: tuple[int, list[int], float | None]
    numpy: tuple[str, Tensor, int, int, float]
    torch: Tensor
    cuda: Tensor | None


def rng_file(folder: Path, rank: int) -> Path:
    return folder / f"rng_{rank:05d}.pt"


def read_rng(folder: Path, rank: int) -> dict[str, Any]:
    """The states of a rank's random-number generators.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    path = rng_file(folder, rank)
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    if (sums := read_checksums(folder).get(path.name)) is not None:
        CheckedFile(path, sums).check()
    found = load_torch(path)
    shaped(found, str(path), _RngState)
    return found


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators, in types that `torch_files` can read."""
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
    torch.set_rng_state(state["torch"].clone())  # torch 2.13 crashes on a tensor that does not begin its storage
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
