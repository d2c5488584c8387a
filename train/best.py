"""The record of the best held-out score, when a run goes on: it is that of the best model that exists.

A checkpoint has the record of its time. The folder ``best/`` can be newer, if the run was killed beyond its last
checkpoint, or missing. So its own score counts, if it is whole and of this run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist

from data.errors import UserError
from data.files.documents import read_json
from data.tasks import Task
from train import options
from train.checkpointing import checkpoint, run_folder
from train.checkpointing.checkpoint import TRAINING_FILE, RunState, Training
from train.config import TrainConfig

log = logging.getLogger(__name__)


class Best(msgspec.Struct, frozen=True):
    """What is read of ``best.json``: the step after which the model was scored, and its score."""

    step: int
    score: float


def read_best(folder: Path) -> Best | None:
    """Which model of its run an export is, if it is the best one by held-out score; None if it does not say so.

    Raises:
        UserError: ``best.json`` is damaged.
    """
    file = folder / "best.json"
    return read_json(file, Best) if file.is_file() else None


def record_of_best(
    folder: Path, stored: float | None, config: TrainConfig, identity: Mapping[str, Any], task: Task
) -> float | None:
    """The score that a model must exceed to be the best; None if any is better than what there is. Collective.

    A ``folder`` that is damaged or of another run is moved aside, so that nothing replaces it.

    Args:
        folder: ``best/`` of the run.
        stored: the record in the checkpoint that the run goes on from, if there is one.
        identity, task: see `train.setup.Setup`.
    """
    found: list[tuple[Best | None, str | None]] = [(None, None)]
    if dist.get_rank() == 0:
        found = [_examine(folder, config, identity, task)]
    dist.broadcast_object_list(found, src=0)
    best, problem = found[0]
    if best is not None and (damage := checkpoint.damage_of(folder)) is not None:
        best, problem = None, f"is damaged ({damage})"
    if best is not None:
        if best.score != stored:
            before = "" if stored is None else f" (the checkpoint has {stored:.4f})"
            log.info("%s is of step %d and scored %.4f%s", folder, best.step, best.score, before)
        return best.score
    if problem is None:
        return stored
    if dist.get_rank() == 0 and folder.is_dir():
        run_folder.discard(folder, ours=False)
    dist.barrier()
    if stored is not None or problem != MISSING:
        log.warning("note: %s %s. The next model that is scored will be the best so far.", folder, problem)
    return None


MISSING = "does not exist"


def _examine(
    folder: Path, config: TrainConfig, identity: Mapping[str, Any], task: Task
) -> tuple[Best | None, str | None]:
    """What ``best.json`` says, or why it does not count; neither if there is no such file."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None, MISSING
    try:
        training = Training({}, None)
        if (file := folder / TRAINING_FILE).is_file():  # older code wrote none
            training = read_json(file, Training)
        if training.options and not _is_of(training, config, identity, folder, task):
            return None, "is of another run"
        return read_best(folder), None
    except UserError as error:
        return None, f"is damaged ({error})"


def _is_of(training: Training, config: TrainConfig, identity: Mapping[str, Any], folder: Path, task: Task) -> bool:
    theirs = identity if training.identity is None else training.identity
    state = RunState(0, checkpoint.with_defaults(training.options), dict(theirs), {}, None, 1)
    try:
        checkpoint.check_fits(state, options.flatten(config), identity, folder, task)
    except UserError:
        return False
    return True
