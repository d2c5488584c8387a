"""Paired tests between the cells of a study that differ in one thing.

Consolidated against dual (one call for both tasks, or one for each), fine-tuned against not, with examples in the
prompt against without, a variant against none. Both cells of a pair have the same seed, and only examples that both
answered are compared. Where several seeds have a pair, the mean of their differences is a comparison of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from eval.study.cells import Cell
from eval.study.paper import single_task
from eval.study.scores import Scores
from eval.study.statistics import RESAMPLES, Difference, common, compare_runs


@dataclass(frozen=True)
class Comparison:
    """One field of two cells.

    Attributes:
        what: what is compared, such as "consolidated - dual".
        cell: the second one; of several seeds that of the first seed.
        base: the first one, whose figure is subtracted.
        figure: name of the figure.
        examples: how many all runs answered, with the same gold labels.
        left_out: how many only some of them answered.
        difference: None if they have no examples in common.
        seeds: of the pairs whose mean it is.
        of_several: whether it is one seed of a mean that is a comparison, too.
    """

    what: str
    cell: Cell
    base: Cell
    field: str
    figure: str
    examples: int
    left_out: int
    difference: Difference | None
    seeds: tuple[int, ...]
    of_several: bool = False


def compare_cells(scores: Mapping[Cell, Scores], resamples: int = RESAMPLES, seed: int = 0) -> list[Comparison]:
    """All comparisons between the finished cells: consolidated - dual, fine-tuned - not, shots, variants; then those of
    single seeds whose means are among them."""
    groups: dict[tuple[str, Cell, Cell, str], list[tuple[Cell, Cell]]] = {}
    for what, cell, base, field in [*_consolidated(scores), *_tuned(scores), *_shots(scores), *_variants(scores)]:
        if base in scores and field in scores[base].fields:
            groups.setdefault((what, replace(cell, seed=0), replace(base, seed=0), field), []).append((cell, base))
    found = [_compare(scores, key[0], key[3], pairs, resamples, seed) for key, pairs in groups.items()]
    for (what, _, _, field), pairs in groups.items():
        if len(pairs) > 1:
            single = (_compare(scores, what, field, [pair], resamples, seed) for pair in pairs)
            found += [replace(own, of_several=True) for own in single]
    return found


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


def _variants(scores: Mapping[Cell, Scores]) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        if cell.variant:
            for field in own.fields:
                yield f"{cell.variant} - no variant", cell, replace(cell, variant=""), field


def _compare(
    scores: Mapping[Cell, Scores],
    what: str,
    field: str,
    pairs: Sequence[tuple[Cell, Cell]],
    resamples: int,
    seed: int,
) -> Comparison:
    runs = [scores[cell].fields[field] for pair in zip(*pairs, strict=True) for cell in pair]  # ours, then the bases
    counts, left_out = common([run.keys for run in runs], [run.counts for run in runs])
    ours, theirs = counts[:, : len(pairs)], counts[:, len(pairs) :]
    figure = runs[0].figure
    difference = compare_runs(theirs, ours, figure == "accuracy", resamples, seed) if len(counts) else None
    (cell, base), seeds = pairs[0], tuple(cell.seed for cell, _ in pairs)
    return Comparison(what, cell, base, field, figure, len(counts), left_out, difference, seeds)
