"""The tables of a study in words: titles, headings, cells and notes.

Every form that `eval.study.render` writes has these texts, except CSV, which has the figures as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.study.cells import Cell
from eval.study.comparisons import Comparison
from eval.study.table import Column, Detail, Figure, Latency, StudyTable, row_label

SMALLEST_P = 0.001  # smaller ones are not told apart: 2,000 resamples cannot


@dataclass(frozen=True)
class Range:
    """An interval to be drawn in a cell.

    Attributes:
        low, value, high: the interval, and the figure in it.
        least, most: the ends of the scale.
        mark: another value on it: the paper's figure, or zero.
    """

    low: float
    value: float
    high: float
    least: float
    most: float
    mark: float | None


@dataclass(frozen=True)
class Sheet:
    """One table as text.

    Attributes:
        headings: of the columns; a line break is a second line.
        rows: cells with line breaks, as many as headings.
        n_names: the first columns, which have names and not numbers.
        notes: sentences below.
        ranges: by row and column, where a form has pictures.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_names: int
    notes: tuple[str, ...]
    ranges: Mapping[tuple[int, int], Range] = field(default_factory=dict)


def sheets(table: StudyTable) -> list[Sheet]:
    """All tables that have a row."""
    found = [
        Sheet(
            "Figures",
            ("model", *("\n".join(filter(None, column.headings)) for column in table.columns)),
            tuple(_figure_row(table, row) for row in table.rows),
            1,
            tuple(figure_notes(table)),
            _figure_ranges(table),
        ),
        Sheet(
            "Counts and costs of each run",
            ("model", "run", "main figures", "read leniently", "with boundaries", "examples", "unparsed",
             "cut off", "documents cut", "s/example", "prompt tok", "new tok"),
            tuple(map(_detail_row, table.details)),
            2,
            (
                "Main figures are of the exact reading of the answers. With boundaries: F1 of entities that may be "
                "neighbours of one type. Cut off: answers that ran into their limit of tokens. Tokens are per example.",
                *_jobs_notes(table),
            ),
        ),
        Sheet(
            "Two calls or one: seconds an example",
            ("model", "data", "seeds", "two calls", "consolidated call", "ratio"),
            tuple(map(_latency_row, table.latencies)),
            2,
            (*_latency_notes(table.latencies), *_jobs_notes(table)),
        ),
        _comparison_sheet("Paired tests", [own for own in table.comparisons if not own.of_several]),
        _comparison_sheet("The same, seed by seed", [own for own in table.comparisons if own.of_several]),
    ]  # fmt: skip
    return [sheet for sheet in found if sheet.rows]


# --- figures ----------------------------------------------------------------------------------------------------------


def _figure_row(table: StudyTable, row: Cell) -> tuple[str, ...]:
    found = (table.figures.get((row, column)) for column in table.columns)
    return (row_label(row), *("" if figure is None else "\n".join(figure_lines(figure)) for figure in found))


def _figure_ranges(table: StudyTable) -> dict[tuple[int, int], Range]:
    """Of all figures with an interval, from 0 to 1."""
    found = {}
    for (row, column), own in table.figures.items():
        if own.value is not None and own.interval is not None:
            paper = None if own.paper is None else own.paper / 100
            drawn = Range(own.interval.low, own.value, own.interval.high, 0.0, 1.0, paper)
            found[table.rows.index(row), 1 + table.columns.index(column)] = drawn
    return found


def figure_lines(figure: Figure) -> list[str]:
    """A cell of the table of figures, in lines."""
    paper = [] if figure.paper is None else [f"paper {figure.paper:.1f}"]
    if figure.value is None or figure.interval is None:
        return [state_text(figure), *paper]
    if figure.difference is not None:
        paper = [f"{paper[0]} ({_signed(figure.difference)})"]
    lines = [f"{figure.value:.1%}", _percents(figure.interval.low, figure.interval.high)]
    if figure.seeds > 1:
        lines.append(state_text(figure))
    if len(figure.values) > 1:
        lines.append(f"{_percents(min(figure.values), max(figure.values))} range")
    if figure.parts:
        lines.append("n = " + " / ".join(f"{n:,}" for n in dict.fromkeys(figure.examples)))
    return lines + paper


def state_text(figure: Figure) -> str:
    """How far a figure is: which part of its seeds has a result, and whether some failed."""
    n = len(figure.values)
    if n == figure.seeds:
        return f"{n} seeds" if n > 1 else "1 seed"
    if not n:
        return f"{figure.failed} of {figure.seeds} seeds failed" if 0 < figure.failed < figure.seeds else figure.state
    return f"{n} of {figure.seeds} seeds" + (f", {figure.failed} failed" if figure.failed else "")


def figure_notes(table: StudyTable) -> list[str]:
    """What to know about the figures, and what is missing."""
    figures = list(table.figures.values())
    notes = []
    if any(figure.values for figure in figures):
        notes.append(
            "Below a figure: its 95% interval, which says how much it depends on the choice of test examples. Wilson's "
            "for the accuracy of one run; else percentiles of the bootstrap over the examples."
        )
    if any(len(figure.values) > 1 for figure in figures):
        notes.append("Of several seeds: the mean; the interval of the mean; the range from the lowest to the highest.")
    if any(figure.paper is not None for figure in figures):
        notes.append("paper: the figure in the paper's Table 3, and by how many points ours is higher.")
    if any((row, column) not in table.figures for row in table.rows for column in table.columns):
        notes.append("An empty cell is not part of the study.")
    notes += _missing_seeds(figures)
    parts = dict.fromkeys(
        (own.column.task, n, own.complete, is_known) for own in figures for n, is_known in own.parts.items()
    )
    for task, n, complete, is_known in parts:
        of = "a part of the test examples" if is_known else "they may be a part of the test examples"
        of = of if complete is None else f"the complete test split has {complete:,}"
        notes.append(f"n = {n:,} examples of {task}: {of}.")
    notes += [f"failed: {cell.name}: {why or 'no reason is recorded'}" for cell, why in table.failures.items()]
    notes += [f"note: {doubt}." for doubt in table.doubts]
    return notes


def _missing_seeds(figures: Sequence[Figure]) -> list[str]:
    partial = [f"{row_label(own.row)}, {name_of(own.column)}" for own in figures if own.state == "partial"]
    return [f"Means without all seeds of the study: {'; '.join(partial)}."] if partial else []


def name_of(column: Column) -> str:
    return " ".join(filter(None, column.headings))


# --- the other tables -------------------------------------------------------------------------------------------------


def _detail_row(detail: Detail) -> tuple[str, ...]:
    def figures(values: Sequence[float | None]) -> str:
        named = [(own.name, value) for own, value in zip(detail.fields, values, strict=True) if value is not None]
        return "\n".join(f"{name} {value:.1%}" for name, value in named)

    return (
        row_label(detail.cell.row),
        f"{detail.cell.task}, seed {detail.cell.seed}",
        figures([own.value for own in detail.fields]),
        figures([own.lenient for own in detail.fields]),
        figures([own.strict for own in detail.fields]),
        f"{detail.examples:,}",
        f"{detail.unparsed:,}",
        "" if detail.cut_off is None else f"{detail.cut_off:,}",
        "" if detail.truncated is None else f"{detail.truncated:,}",
        "" if detail.seconds is None else f"{detail.seconds:.4f}",
        "" if detail.prompt_tokens is None else f"{detail.prompt_tokens:.1f}",
        "" if detail.new_tokens is None else f"{detail.new_tokens:.1f}",
    )


def _latency_row(latency: Latency) -> tuple[str, ...]:
    return (
        row_label(latency.row),
        latency.dataset,
        str(latency.seeds),
        f"{latency.dual:.4f}",
        f"{latency.consolidated:.4f}",
        "" if latency.ratio is None else f"{latency.ratio:.2f}" + (", not comparable" if latency.differ else ""),
    )


def _latency_notes(latencies: Sequence[Latency]) -> list[str]:
    notes = ["Ratio: how many times as long the two calls take. Seconds are those of scoring divided by the examples: "
             "a latency only for batches of one. Of an API they are a call's latency, which the server's queue is part "
             "of."]  # fmt: skip
    differ = dict.fromkeys(name for latency in latencies for name in latency.differ)
    if differ:
        notes.append(f"Not comparable: the runs differ in {', '.join(differ)}.")
    return notes


def _jobs_notes(table: StudyTable) -> list[str]:
    many = f"Seconds: up to {table.jobs} runs shared the machine, so each took longer than it does by itself."
    return [many] if table.jobs > 1 else []


def _comparison_sheet(title: str, comparisons: Sequence[Comparison]) -> Sheet:
    return Sheet(
        title,
        ("compared", "model", "field", "difference", "95% interval", "p", "examples", "test"),
        tuple(map(_comparison_row, comparisons)),
        3,
        tuple(_comparison_notes(comparisons)),
        _difference_ranges(comparisons),
    )


def _difference_ranges(comparisons: Sequence[Comparison]) -> dict[tuple[int, int], Range]:
    """All differences of one kind have the same scale, with zero in its middle."""
    found = [(i, own, own.difference) for i, own in enumerate(comparisons) if own.difference is not None]
    most = dict[str, float]()
    for _, own, difference in found:
        ends = (difference.interval.low, difference.value, difference.interval.high)
        most[own.what] = max(most.get(own.what, 0.0), *map(abs, ends))
    return {
        (i, 4): Range(difference.interval.low, difference.value, difference.interval.high, -widest, widest, 0.0)
        for i, own, difference in found
        if (widest := most[own.what]) > 0
    }


def _comparison_row(comparison: Comparison) -> tuple[str, ...]:
    cell, found = comparison.cell, comparison.difference
    return (
        comparison.what,
        row_label(cell.row),
        f"{cell.task} {comparison.field}, "
        + (f"{n} seeds" if (n := len(comparison.seeds)) > 1 else f"seed {cell.seed}"),
        "" if found is None else _signed(100 * found.value),
        "" if found is None else f"{_signed(100 * found.interval.low)} to {_signed(100 * found.interval.high)}",
        "" if found is None else p_text(found.p),
        f"{comparison.examples:,}" + (f" ({comparison.left_out:,} left out)" if comparison.left_out else ""),
        "none in common" if found is None else found.test,
    )


def _comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    n = sum(own.difference is not None for own in comparisons)
    notes = ["Differences in points, of the same examples in two runs; intervals from the paired bootstrap. Of several "
             "seeds: the mean of their differences. p: exact test of McNemar for the accuracy of one seed, else the "
             "paired bootstrap. Of pairs that differ only by chance, about one in twenty has p < 0.05; here are "
             f"{n} tests."]  # fmt: skip
    if any(own.left_out for own in comparisons):
        notes.append("Left out: examples that only some of the runs have, or have with other gold labels.")
    return notes


def p_text(p: float) -> str:
    return f"<{SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"


def _signed(points: float) -> str:
    return f"{round(points, 1) + 0.0:+.1f}"  # without a negative zero


def _percents(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
