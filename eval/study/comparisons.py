"""Paired tests between the cells of a study that differ in one thing.

Consolidated against dual (one call for both tasks, or one for each), fine-tuned against not, with examples in the
prompt against without. Both cells of a pair have the same seed, and only examples that both answered are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from eval.study.cells import Cell
from eval.study.paper import single_task
from eval.study.scores import Scores
from eval.study.statistics import RESAMPLES, Difference, compare_runs, paired


@dataclass(frozen=True)
class Comparison:
    """One field of two cells.

    Attributes:
        what: what is compared, such as "consolidated - dual".
        cell: the second one.
        base: the first one, whose figure is subtracted.
        figure: name of the figure.
        examples: how many both answered, with the same gold labels.
        left_out: how many only one of them answered.
        difference: None if they have no examples in common.
    """

    what: str
    cell: Cell
    base: Cell
    field: str
    figure: str
    examples: int
    left_out: int
    difference: Difference | None


def compare_cells(scores: Mapping[Cell, Scores], resamples: int = RESAMPLES, seed: int = 0) -> list[Comparison]:
    """All comparisons between the finished cells: first consolidated - dual, then fine-tuned - not, then shots."""
    pairs = [*_consolidated(scores), *_tuned(scores), *_shots(scores)]
    return [
        _compare(scores, what, cell, base, field, resamples, seed)
        for what, cell, base, field in pairs
        if base in scores and field in scores[base].fields
    ]


def _consolidated(scores: Mapping[Cell, Scores]) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        for field in own.fields:
            if single := single_task(cell.task, field):
                yield "consolidated - dual", cell, replace(cell, task=single), field


def _tuned(scores: Mapping[Cell, Scores]) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        if cell.tuned:
            for field in own.fields:
                yield "fine-tuned - not fine-tuned", cell, replace(cell, tuned=False), field


def _shots(scores: Mapping[Cell, Scores]) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        if cell.shots:
            for field in own.fields:
                yield f"{cell.shots} shots - 0 shots", cell, replace(cell, shots=0), field


def _compare(
    scores: Mapping[Cell, Scores], what: str, cell: Cell, base: Cell, field: str, resamples: int, seed: int
) -> Comparison:
    ours, theirs = scores[cell].fields[field], scores[base].fields[field]
    first, second, left_out = paired((theirs.keys, theirs.counts), (ours.keys, ours.counts))
    difference = None
    if len(first):
        difference = compare_runs(first, second, ours.figure == "accuracy", resamples, seed)
    return Comparison(what, cell, base, field, ours.figure, len(first), left_out, difference)
