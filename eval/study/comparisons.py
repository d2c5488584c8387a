"""Paired tests between the cells of a study that differ in one thing.

Consolidated against dual (one call for both tasks, or one for each), fine-tuned against not, with examples in the
prompt against without, a variant against none. Both cells of a pair have the same seed, and only examples that both
answered are compared. Where several seeds have a pair, the mean of their differences is a comparison of its own. A cell
without fine-tuning and examples has no seed, and is compared with every seed of the fine-tuned one.

Of consolidated and dual runs the exact match is compared too: whether all fields of an example are right, of the dual
runs in all answers together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.study.cells import Cell
from eval.study.paper import single_task
from eval.study.scores import FieldScores, Scores
from eval.study.statistics import RESAMPLES, Difference, common, compare_runs

EXACT = "exact match"
Runs = dict[Cell, dict[str, FieldScores]]  # by cell and field


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
    fields: Runs = {cell: dict(own.fields) for cell, own in scores.items()}
    consolidated = list(_consolidated(fields))
    others = [*_tuned(fields), *_shots(fields), *_variants(fields)]
    for what, cell, base, field in [*consolidated, *_exact_matches(fields), *others]:
        if base in fields and field in fields[base]:
            groups.setdefault((what, replace(cell, seed=0), replace(base, seed=0), field), []).append((cell, base))
    found = [_compare(fields, key[0], key[3], pairs, resamples, seed) for key, pairs in groups.items()]
    for (what, _, _, field), pairs in groups.items():
        if len(pairs) > 1:
            single = (_compare(fields, what, field, [pair], resamples, seed) for pair in pairs)
            found += [replace(own, of_several=True) for own in single]
    return found


def _exact_matches(runs: Runs) -> list[tuple[str, Cell, Cell, str]]:
    """The pairs of consolidated and dual runs, with their exact matches added to the runs."""
    found = []
    for cell, own in list(runs.items()):
        duals = [(field, replace(cell, task=task)) for field in own if (task := single_task(cell.task, field))]
        if len(duals) < 2 or len(duals) < len(own) or not all(dual in runs for _, dual in duals):
            continue
        base = replace(cell, task=" + ".join(dual.task for _, dual in duals))
        fields = [own[field] for field, _ in duals]
        # The examples that all runs have, each by its keys of all fields in the consolidated run.
        keys = np.stack([field.keys for field in fields])
        places = [_places(runs[dual][field].keys, keys[i]) for i, (field, dual) in enumerate(duals)]
        common = np.all([place >= 0 for place in places], axis=0)
        answers = [runs[dual][field].exact[place[common]] for (field, dual), place in zip(duals, places, strict=True)]
        key = np.array([hash(tuple(column)) for column in keys.T.tolist()], np.int64).view(np.uint64)
        own[EXACT] = _exact(key, [field.exact for field in fields])
        runs[base] = {EXACT: _exact(key[common], answers)}
        found.append(("consolidated - dual", cell, base, EXACT))
    return found


def _places(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each wanted key is among the keys; -1 where it is not."""
    places = {key: i for i, key in enumerate(keys.tolist())}
    return np.array([places.get(key, -1) for key in wanted.tolist()], np.int64)


def _exact(keys: NDArray[np.uint64], answers: Sequence[NDArray[np.bool_]]) -> FieldScores:
    """Whether the answers in all fields are right, as the scores of a class field."""
    right = np.all(answers, axis=0)
    counts = np.stack([right, np.ones_like(right), np.ones_like(right)], axis=1).astype(np.int32)
    return FieldScores("accuracy", keys, counts, right)


def _consolidated(scores: Runs) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        for field in own:
            if single := single_task(cell.task, field):
                yield "consolidated - dual", cell, replace(cell, task=single), field


def _tuned(scores: Runs) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        if cell.tuned:
            base = _of_any_seed(scores, replace(cell, tuned=False))
            for field in own:
                yield "fine-tuned - not fine-tuned", cell, base, field


def _shots(scores: Runs) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        if cell.shots:
            base = _of_any_seed(scores, replace(cell, shots=0))
            for field in own:
                yield f"{cell.shots} shots - 0 shots", cell, base, field


def _variants(scores: Runs) -> Iterator[tuple[str, Cell, Cell, str]]:
    for cell, own in scores.items():
        if cell.variant:
            base = _of_any_seed(scores, replace(cell, variant=""))
            for field in own:
                yield f"{cell.variant} - no variant", cell, base, field


def _of_any_seed(scores: Runs, cell: Cell) -> Cell:
    """The cell, or the one of another seed where no seed matters: not fine-tuned, without shots."""
    if cell in scores or cell.tuned or cell.shots:
        return cell
    return next((other for other in scores if replace(other, seed=cell.seed) == cell), cell)


def _compare(
    scores: Runs,
    what: str,
    field: str,
    pairs: Sequence[tuple[Cell, Cell]],
    resamples: int,
    seed: int,
) -> Comparison:
    runs = [scores[cell][field] for pair in zip(*pairs, strict=True) for cell in pair]  # ours, then the bases
    counts, left_out = common([run.keys for run in runs], [run.counts for run in runs])
    ours, theirs = counts[:, : len(pairs)], counts[:, len(pairs) :]
    figure = runs[0].figure
    difference = compare_runs(theirs, ours, figure == "accuracy", resamples, seed) if len(counts) else None
    (cell, base), seeds = pairs[0], tuple(cell.seed for cell, _ in pairs)
    return Comparison(what, cell, base, field, figure, len(counts), left_out, difference, seeds)
