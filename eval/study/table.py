"""The table of a study: every figure with its interval beside the paper's, costs, latencies and paired tests.

This is the content; `eval.study.render` writes it as text. Figures are parts of 1 here, except those of the paper and
the differences from them, which are in percent and in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data.errors import UserError
from data.source import DATA_SETS
from data.tasks import TASKS
from eval.metrics import main_figure
from eval.study.cells import Cell, Outcome
from eval.study.comparisons import Comparison, compare_cells
from eval.study.paper import COLUMNS, paper_column, paper_figure, paper_row
from eval.study.scores import Scores, read_scores
from eval.study.statistics import RESAMPLES, Interval, aligned, bootstrap_interval, wilson_interval

# done: all seeds. partial: some seeds have a result. Otherwise that of the seed that is furthest.
FigureState = Literal["done", "partial", "failed", "running", "not run"]

# Settings with which seconds change: two runs that differ in one of them have no common latency.
CONDITIONS = ("device", "threads", "ranks", "tp", "precision", "batch_tokens", "decode", "concurrency", "host")


@dataclass(frozen=True)
class Column:
    """One field of one task; ``field`` is empty if nothing is known of the task yet."""

    task: str
    field: str

    @property
    def headings(self) -> tuple[str, str]:
        """Two lines: the group and the field, as in the paper if it has the column."""
        found = paper_column(self.task, self.field)
        return (found.group, found.heading) if found else (self.task, self.field)


@dataclass(frozen=True)
class Figure:
    """What is known of one column in one row.

    Attributes:
        row: the cells' `Cell.row`.
        name: accuracy, f1 or micro_f1; empty without a result.
        seeds: how many the study has.
        failed: how many of them failed.
        values: one for each seed with a result.
        interval: 95%, of the mean of ``values``; None without a result.
        examples: how many were scored, for each of ``values``.
        complete: examples of the complete test split, if it is known.
        limited: whether ``--limit`` left examples out, for each of ``values``; None: an older result does not say.
        paper: the paper's figure in percent; None if it has none.
    """

    row: Cell
    column: Column
    state: FigureState
    seeds: int
    failed: int
    name: str = ""
    values: tuple[float, ...] = ()
    interval: Interval | None = None
    examples: tuple[int, ...] = ()
    complete: int | None = None
    limited: tuple[bool | None, ...] = ()
    paper: float | None = None

    @property
    def value(self) -> float | None:
        """The mean over the seeds that have a result."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def difference(self) -> float | None:
        """From the paper's figure, in points."""
        return None if self.value is None or self.paper is None else 100 * self.value - self.paper

    @property
    def parts(self) -> dict[int, bool]:
        """Numbers of examples that are not the complete test split -> whether that is known or only possible."""
        if self.complete is not None:
            return {n: True for n in self.examples if n != self.complete}
        return {n: own is True for n, own in zip(self.examples, self.limited, strict=True) if own is not False}


@dataclass(frozen=True)
class FieldDetail:
    """Figures of one field of a finished cell: main, of the lenient reading, with entity boundaries."""

    name: str
    figure: str
    value: float
    lenient: float | None
    strict: float | None


@dataclass(frozen=True)
class Detail:
    """Counts and costs of a finished cell; None where the result has none."""

    cell: Cell
    fields: tuple[FieldDetail, ...]
    examples: int
    unparsed: int
    cut_off: int | None
    truncated: int | None
    seconds: float | None
    prompt_tokens: float | None
    new_tokens: float | None


@dataclass(frozen=True)
class Latency:
    """Seconds an example of two single-task calls and of the consolidated call, means over the same seeds.

    Attributes:
        dataset: as in the paper.
        differ: settings in which the runs differ, with which seconds change.
    """

    row: Cell
    dataset: str
    seeds: int
    dual: float
    consolidated: float
    differ: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """How many times as long the two calls take."""
        return self.dual / self.consolidated if self.consolidated > 0 else None


@dataclass(frozen=True)
class StudyTable:
    """All tables of a study.

    Attributes:
        rows: in the order of the study.
        figures: by row and column; without those that the study does not have.
        failures: of each failed cell, why.
        jobs: cells of those that are done that ran at the same time, at most.
        doubts: what may keep the figures from being compared.
    """

    rows: tuple[Cell, ...]
    columns: tuple[Column, ...]
    figures: dict[tuple[Cell, Column], Figure]
    details: tuple[Detail, ...]
    latencies: tuple[Latency, ...]
    comparisons: tuple[Comparison, ...]
    failures: dict[Cell, str]
    jobs: int = 1
    doubts: tuple[str, ...] = ()


def row_label(row: Cell) -> str:
    """The name of a row: the paper's if it has one."""
    found = paper_row(row.model, row.shots, row.tuned)
    label = found.label if found else f"{row.model} {row.shots}-shot {'w/' if row.tuned else 'w/o'} FT"
    return f"{label}, {row.variant}" if row.variant else label


def one_line(text: str) -> str:
    return " ".join(text.split())


def build_table(outcomes: Sequence[Outcome], resamples: int = RESAMPLES, seed: int = 0) -> StudyTable:
    """Read all results and build the table. A result that cannot be read is a failure in it, not an error.

    Args:
        outcomes: of all cells of the study, in its order.
        resamples, seed: of the bootstrap.
    """
    scores, failures, states = dict[Cell, Scores](), dict[Cell, str](), dict[Cell, str]()
    for outcome in outcomes:
        cell = outcome.cell
        states[cell] = outcome.state
        if outcome.state == "failed":
            failures[cell] = one_line(outcome.why)
        if outcome.state == "done":
            try:
                scores[cell] = read_scores(outcome)
            except UserError as error:
                states[cell], failures[cell] = "failed", one_line(str(error))
    rows = tuple(dict.fromkeys(cell.row for cell in states))
    columns = _columns(states, scores)
    figures = {}
    for row in rows:
        for column in columns:
            cells = [cell for cell in states if cell.row == row and cell.task == column.task]
            if cells:
                figures[row, column] = _figure(row, column, cells, states, scores, resamples, seed)
    return StudyTable(
        rows,
        columns,
        figures,
        tuple(_detail(cell, own) for cell, own in scores.items()),
        _latencies(rows, scores),
        tuple(compare_cells(scores, resamples, seed)),
        failures,
        max((outcome.jobs for outcome in outcomes if outcome.state == "done"), default=1),
    )


def _columns(states: Mapping[Cell, str], scores: Mapping[Cell, Scores]) -> tuple[Column, ...]:
    """Those of the paper in its order, then one for each field of other tasks; only of tasks that the study has."""
    tasks = dict.fromkeys(cell.task for cell in states)
    columns = [Column(column.task, column.field) for column in COLUMNS if column.task in tasks]
    for task in tasks:
        if task not in TASKS:
            fields = dict.fromkeys(name for cell, own in scores.items() if cell.task == task for name in own.fields)
            columns += [Column(task, name) for name in fields or [""]]
    return tuple(columns)


def _figure(
    row: Cell,
    column: Column,
    cells: Sequence[Cell],
    states: Mapping[Cell, str],
    scores: Mapping[Cell, Scores],
    resamples: int,
    seed: int,
) -> Figure:
    failed = sum(states[cell] == "failed" for cell in cells)
    paper = paper_figure(row.model, row.shots, row.tuned, column.task, column.field)
    runs = [scores[cell] for cell in cells if cell in scores and column.field in scores[cell].fields]
    if not runs:
        state: FigureState = "not run"
        if failed:
            state = "failed"
        elif any(states[cell] == "running" for cell in cells):
            state = "running"
        return Figure(row, column, state, len(cells), failed, paper=paper)
    fields = [run.fields[column.field] for run in runs]
    if len(fields) == 1 and fields[0].figure == "accuracy":
        interval = wilson_interval(int(fields[0].counts[:, 0].sum()), len(fields[0].counts))
    else:
        counts = aligned([own.keys for own in fields], [own.counts for own in fields])
        interval = bootstrap_interval(counts, resamples, seed)
    return Figure(
        row,
        column,
        "done" if len(runs) == len(cells) else "partial",
        len(cells),
        failed,
        fields[0].figure,
        tuple(own.value for own in fields),
        interval,
        tuple(run.n_examples for run in runs),
        DATA_SETS[TASKS[column.task].dataset].n_test if column.task in TASKS else None,
        tuple(_is_limited(run) for run in runs),
        paper,
    )


def _is_limited(scores: Scores) -> bool | None:
    """Whether ``--limit`` left examples out. None: an older result has as many as the limit and does not say."""
    settings = scores.results.settings
    if "limited" in settings:
        return bool(settings["limited"])
    return None if settings.get("limit") == scores.n_examples else False


def _detail(cell: Cell, scores: Scores) -> Detail:
    results = scores.results
    lenient: dict[str, Any] = (results.metrics.get("lenient") or {}).get("fields", {})
    fields = []
    for name, kind in results.fields.items():
        figure = main_figure(kind)
        strict = results.metrics["fields"][name].get("strict_f1")
        strict = strict if isinstance(strict, int | float) else None
        fields.append(FieldDetail(name, figure, scores.fields[name].value, lenient.get(name, {}).get(figure), strict))
    return Detail(
        cell,
        tuple(fields),
        scores.n_examples,
        int(results.metrics["n_unparsed"]),
        results.counts.get("not_stopped"),
        results.counts.get("truncated"),
        results.cost.get("seconds_per_example"),
        results.cost.get("prompt_tokens"),
        results.cost.get("new_tokens"),
    )


def _latencies(rows: Sequence[Cell], scores: Mapping[Cell, Scores]) -> tuple[Latency, ...]:
    """Of each row and data set with seconds of all three tasks for at least one seed."""
    found = []
    for row in rows:
        for dataset in dict.fromkeys(column.dataset for column in COLUMNS):
            dual = [c.task for c in COLUMNS if c.dataset == dataset and not c.consolidated]
            (joint,) = {c.task for c in COLUMNS if c.dataset == dataset and c.consolidated}
            seeds = [cell.seed for cell in scores if cell.row == row and cell.task == joint]
            trios = [[replace(row, task=task, seed=seed) for task in (*dual, joint)] for seed in seeds]
            trios = [cells for cells in trios if all(_seconds(scores.get(cell)) is not None for cell in cells)]
            if trios:
                seconds = [[_seconds(scores[cell]) or 0.0 for cell in cells] for cells in trios]
                found.append(
                    Latency(
                        row,
                        dataset,
                        len(trios),
                        sum(sum(own[:-1]) for own in seconds) / len(trios),
                        sum(own[-1] for own in seconds) / len(trios),
                        _differences([[scores[cell] for cell in cells] for cells in trios]),
                    )
                )
    return tuple(found)


def _seconds(scores: Scores | None) -> float | None:
    return None if scores is None else scores.results.cost.get("seconds_per_example")


def _differences(trios: Sequence[Sequence[Scores]]) -> tuple[str, ...]:
    """Names of the conditions in which runs that are compared differ."""
    names = [
        name
        for name in CONDITIONS
        if any(own.results.settings.get(name) != trio[0].results.settings.get(name) for trio in trios for own in trio)
    ]
    if any(own.n_examples != trio[0].n_examples for trio in trios for own in trio):
        names.append("number of examples")
    return tuple(names)
