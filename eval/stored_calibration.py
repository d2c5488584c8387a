"""``calibration.json``: the temperatures of a checkpoint's probabilities, in the folder of its weights.

`train.py --holdout` writes it into the exports of a run, `eval.py --calibrate` into a folder that is there. It says
what it was fitted for, and is used for nothing else: these weights, this task, and a decoder's prompt.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from checkpoints_tools.checksums import replace_file
from checkpoints_tools.file_hashes import weights_of
from checkpoints_tools.formats import CALIBRATION_FILE
from data.decoder.templates import Prompt
from data.errors import UserError
from data.example import hash_examples
from data.files.documents import read_json
from data.json_text import to_json
from data.task_file import task_hash
from data.tasks import ClassField, Task
from eval.calibration import COLDEST, HOTTEST, calibration_error, fit_temperature, scaled
from eval.config import EvalConfig
from eval.job import ScoringJob
from eval.probabilities import gold_indices
from eval.results import Prediction, Temperature
from eval.weights import Weights

FEW_EXAMPLES = 100  # below, a calibration error is mostly chance: its bins have a few examples each

log = logging.getLogger(__name__)

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class FieldCalibration(msgspec.Struct, frozen=True):
    """The temperature of a class field, and the calibration error without and with it on the fitted examples."""

    temperature: Temperature
    ece_before: _Share
    ece_after: _Share


class Calibration(msgspec.Struct, frozen=True):
    """The content of the file.

    Attributes:
        fields: by class field.
        n_examples, split, examples: to which it was fitted; the last one is `data.example.hash_examples`.
        task, prompt, weights: hashes of what it was fitted for; see `task_hash`, `hash_prompt` and `weights_of`.
    """

    format: Literal[1]
    fields: Annotated[dict[str, FieldCalibration], msgspec.Meta(min_length=1)]
    n_examples: Annotated[int, msgspec.Meta(ge=1)]
    split: str
    examples: str
    task: str
    prompt: str = ""
    weights: str = ""

    @property
    def temperatures(self) -> dict[str, float]:
        """By class field."""
        return {name: field.temperature for name, field in self.fields.items()}

    def save(self, folder: Path) -> None:
        """Write the file for the weights in this folder."""
        found = msgspec.structs.replace(self, weights=weights_of(folder))
        replace_file(folder, CALIBRATION_FILE, to_json(msgspec.to_builtins(found), indent=2) + "\n")

    def describe(self) -> str:
        """What was fitted, on one line; and a warning, if there is reason for one."""
        fields = ", ".join(
            f"{name}: temperature {own.temperature:.3g}, calibration error {own.ece_before:.1%} -> {own.ece_after:.1%}"
            for name, own in self.fields.items()
        )
        few = self.n_examples < FEW_EXAMPLES
        rough = f"\nwarning: {self.n_examples} examples are few: these figures are rough." if few else ""
        ends = [name for name, own in self.fields.items() if own.temperature in (COLDEST, HOTTEST)]
        limit = f"\nwarning: the temperature of {' and '.join(ends)} is at its limit." if ends else ""
        return f"{fields} (on the {self.n_examples:,} {self.split} examples that it was fitted to){rough}{limit}"


def fit(job: ScoringJob, predictions: Sequence[Prediction], split: str) -> Calibration:
    """Fit a temperature for each class field to the answers of a job, with their probabilities.

    Args:
        job: has at least one example and one class field.
        split: of its examples, in words.
    """
    fields = {}
    for field in (field for field in job.task.fields if isinstance(field, ClassField)):
        scores = np.array([prediction.log_probs[field.name] for prediction in predictions])
        gold = gold_indices(field, [example.class_label(field.name) for example in job.examples])
        correct = [prediction.parsed[field.name] == prediction.gold[field.name] for prediction in predictions]
        temperature = fit_temperature(scores, gold)
        before, after = (
            calibration_error(np.exp(scaled(scores, value).max(axis=-1)), correct) for value in (1.0, temperature)
        )
        fields[field.name] = FieldCalibration(temperature, before, after)
    examples = hash_examples(job.examples)
    return Calibration(1, fields, len(predictions), split, examples, task_hash(job.task), hash_prompt(job.prompt))


def read_calibration(folder: Path, task: Task, prompt: Prompt | None) -> Calibration | None:
    """The calibration in a checkpoint's folder; None, and a sentence in the log, if it is for something else.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return None
    found = read_json(path, Calibration)
    hashes = {"task": task_hash(task), "prompt": hash_prompt(prompt), "weights": weights_of(folder)}
    others = [name for name, value in hashes.items() if getattr(found, name) != value]
    if others:
        log.warning("note: %s was fitted for another %s; it is not used.", path, " and another ".join(others))
        return None
    names = [field.name for field in task.fields if isinstance(field, ClassField)]
    if sorted(found.fields) != sorted(names):
        raise UserError(
            f"{path} is damaged: it has temperatures of {', '.join(found.fields)}, and the class fields of task "
            f"{task.name} are {', '.join(names)}. Remove it, or fit anew: eval.py --calibrate."
        )
    return found


def calibration_of(options: EvalConfig, weights: Weights, task: Task, prompt: Prompt | None) -> Calibration | None:
    """The calibration that a scoring uses; None: it fits a new one, has no probabilities, or there is none.

    Raises:
        UserError: options that need probabilities, and no class field; or a calibration that is damaged.
    """
    needed = [name for name in ("abstain_below", "calibrate") if getattr(options, name)]
    if needed and not any(isinstance(field, ClassField) for field in task.fields):
        raise UserError(f"--{needed[0]} is about the probabilities of class fields, and task {task.name} has none.")
    others = [field.name for field in task.fields if not isinstance(field, ClassField)]
    if options.abstain_below is not None and others:
        log.info("note: --abstain_below is about class fields; the labels of %s are all given.", " and ".join(others))
    if options.plan or options.calibrate or (prompt is not None and options.decode == "free"):
        return None
    return read_calibration(weights.path, task, prompt)


def check_can_fit(weights: Weights, split: str, fine_tuned: bool) -> None:
    """Check, before any work, that a calibration can be fitted to a split and written into a checkpoint's folder.

    Raises:
        UserError: a training checkpoint, a folder that cannot be written, or the examples of the fine-tuning.
    """
    if weights.is_training:
        raise UserError(
            f"--calibrate: {weights.path} is a training checkpoint, which its run replaces. Calibrate the run's export."
        )
    if not os.access(weights.path, os.W_OK | os.X_OK):
        raise UserError(f"--calibrate: {weights.path} is not writable, so no {CALIBRATION_FILE} can be stored there.")
    if split == "train" and fine_tuned:
        raise UserError(
            "--calibrate --split train: the checkpoint was fine-tuned on these examples, so it is surer of them than "
            "of others. Give --split dev, or train with --holdout, which stores a temperature in the export."
        )


def hash_prompt(prompt: Prompt | None) -> str:
    """A hash of a decoder's prompt; empty for an encoder."""
    return "" if prompt is None else hashlib.sha256(repr(prompt).encode()).hexdigest()
