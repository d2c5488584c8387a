"""Read the result of one cell: its figures, and of each example only what was right, as arrays.

A result is checked before it is used: it is of the cell's task and shots, its predictions are those of the same
scoring, and the figures that follow from them are the stored ones.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.json_text import to_json
from data.tasks import TASKS, Field
from eval.metrics import is_right, main_figure
from eval.results import PREDICTIONS, RESULTS, Results, each_prediction, field_kinds, read_results, stored_task
from eval.study.cells import Outcome
from eval.study.statistics import Counts, example_counts, f1

TOLERANCE = 1e-9  # between a stored figure and the same one from counts


@dataclass(frozen=True)
class FieldScores:
    """What was right in one field.

    Attributes:
        figure: name of the main figure: accuracy, f1 or micro_f1.
        keys: one number for each example, made of its id and gold labels: equal in other runs of the example.
        counts: [N, 3], see `eval.study.statistics`.
        exact: [N], whether the answer is the gold one.
    """

    figure: str
    keys: NDArray[np.uint64]
    counts: Counts
    exact: NDArray[np.bool_]

    @property
    def value(self) -> float:
        """The main figure, in [0, 1]."""
        return float(f1(self.counts.sum(0)))


@dataclass(frozen=True)
class Scores:
    """The result of one cell; ``fields`` by name, in the task's order."""

    results: Results
    fields: dict[str, FieldScores]

    @property
    def n_examples(self) -> int:
        return int(self.results.metrics["n_examples"])


def read_scores(outcome: Outcome) -> Scores:
    """Read the result of a cell that is done.

    Raises:
        UserError: no result there, one that is damaged or was changed, or one of another task or number of shots.
    """
    folder, cell = outcome.folder, outcome.cell
    results = read_results(folder)
    where = folder / RESULTS
    if cell.task in TASKS and results.task != cell.task:
        raise UserError(f"{where} is of the task {results.task}, not of {cell.task}. Score again.")
    if cell.task in TASKS and results.fields.keys() != field_kinds(TASKS[cell.task]).keys():
        raise UserError(f"{where} has the fields {', '.join(results.fields)}, not those of {cell.task}. Score again.")
    if results.shots != cell.shots:
        raise UserError(f"{where} is of {results.shots} shots, not of {cell.shots}. Score again.")
    fields = stored_task(results).fields
    found = _read_fields(folder, results, fields)
    for field in fields:
        own = found[field.name]
        if not _agrees(own, results, field):
            raise UserError(
                f"{where} does not agree with {PREDICTIONS} beside it, which has {len(own.keys):,} examples and "
                f"{own.figure} {own.value:.4f} of {field.name}. One of them was changed. Score again."
            )
        if len(np.unique(own.keys)) < len(own.keys):
            raise UserError(f"{folder / PREDICTIONS} has an example twice. Score again.")
    return Scores(results, found)


def _agrees(own: FieldScores, results: Results, field: Field) -> bool:
    stored = results.metrics["fields"][field.name][own.figure]
    return len(own.keys) == results.metrics["n_examples"] and abs(own.value - stored) <= TOLERANCE


def _read_fields(folder: Path, results: Results, fields: Sequence[Field]) -> dict[str, FieldScores]:
    """Read the predictions once: scores by field."""
    keys = {field.name: array("Q") for field in fields}
    counts = {field.name: array("i") for field in fields}
    exact = {field.name: array("b") for field in fields}
    for prediction in each_prediction(folder, results):
        for field in fields:
            name, gold = field.name, prediction.gold[field.name]
            keys[name].append(_key(prediction.id, gold))
            counts[name].extend(example_counts(field, gold, prediction.parsed.get(name)))
            exact[name].append(is_right(field, gold, prediction.parsed.get(name)))
    return {
        field.name: FieldScores(
            main_figure(field.kind),
            np.array(keys[field.name], np.uint64),
            np.array(counts[field.name], np.int32).reshape(-1, 3),
            np.array(exact[field.name], np.bool_),
        )
        for field in fields
    }


def _key(example: str, gold: str | tuple[str, ...]) -> int:
    digest = hashlib.blake2b(to_json([example, gold], ascii_only=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest)
