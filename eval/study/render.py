"""Write the tables of a study for the terminal, as Markdown and as CSV; `eval.study.page` writes them as HTML.

What they say is in `eval.study.sheets`. CSV has one line for each figure, run or comparison instead, with its parts as
columns.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from rich.cells import cell_len
from rich.table import Table

from data.terminal import literal, printable, say, show, width
from eval.study.cells import Cell
from eval.study.sheets import Sheet, sheets
from eval.study.table import Figure, StudyTable, one_line

NAME_WIDTH, WORD_WIDTH = 16, 24  # of a column of names, if its names are as long; and if one word is as long
CSV_COLUMNS = (
    "model", "shots", "tuned", "variant", "task", "field", "figure", "seeds", "planned_seeds", "examples", "value",
    "low", "high", "min", "max", "paper", "difference", "state", "why",
)  # fmt: skip
RUN_COLUMNS = (
    "model", "shots", "tuned", "variant", "task", "seed", "field", "figure", "examples", "value", "lenient",
    "with_boundaries", "unparsed", "cut_off", "documents_cut", "seconds_per_example", "prompt_tokens", "new_tokens",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "compared", "model", "shots", "tuned", "variant", "task", "base_task", "field", "figure", "seeds", "examples",
    "left_out", "difference", "low", "high", "p", "test", "one_of_several",
)  # fmt: skip


# --- terminal ---------------------------------------------------------------------------------------------------------


def show_study(table: StudyTable) -> None:
    """Print all tables with their notes. A table that is too wide is printed in parts, each with the names."""
    for sheet in sheets(table):
        say(f"\n{sheet.title}")
        for part in terminal_tables(sheet, width()):
            show(part)
        for note in sheet.notes:
            say(note)


def terminal_tables(sheet: Sheet, available: int) -> list[Table]:
    """A table, in as many parts as lines of ``available`` characters need; the columns of names are in each."""
    columns = list(zip(sheet.headings, *sheet.rows, strict=True))
    names = range(sheet.n_names)
    numbers = [_longest_line(column) for column in columns]
    widths = numbers
    if _table_width(numbers) > available:
        narrow = [max(NAME_WIDTH, min(WORD_WIDTH, _longest_word(columns[i]))) for i in names]
        widths = [*map(min, numbers[: sheet.n_names], narrow), *numbers[sheet.n_names :]]
    parts, start = list[list[int]](), sheet.n_names
    while start < len(columns) or not parts:
        end = start + 1
        while end < len(columns) and _table_width([*widths[: sheet.n_names], *widths[start : end + 1]]) <= available:
            end += 1
        parts.append([*names, *range(start, min(end, len(columns)))])
        start = end
    return [_terminal_table(sheet, part, widths) for part in parts]


def _terminal_table(sheet: Sheet, part: Sequence[int], widths: Sequence[int]) -> Table:
    found = Table(show_lines=any("\n" in cell for row in sheet.rows for cell in row))
    for i in part:
        justify: Literal["left", "right"] = "left" if i < sheet.n_names else "right"
        found.add_column(literal(sheet.headings[i]), justify=justify, overflow="fold", width=widths[i])
    for row in sheet.rows:
        found.add_row(*(literal(row[i]) for i in part))
    return found


def _longest_line(cells: Sequence[str]) -> int:
    return max(cell_len(printable(line)) for cell in cells for line in cell.split("\n"))


def _longest_word(cells: Sequence[str]) -> int:
    return max((cell_len(printable(word)) for cell in cells for word in cell.split()), default=0)


def _table_width(columns: Sequence[int]) -> int:
    """Characters of a line of rich's table, whose columns have these widths: a border and spaces around each."""
    return sum(columns) + 3 * len(columns) + 1


# --- documents --------------------------------------------------------------------------------------------------------


def markdown(table: StudyTable) -> str:
    """All tables with their notes, as Markdown."""
    return "\n".join(line for sheet in sheets(table) for line in _markdown_lines(sheet))


def _markdown_lines(sheet: Sheet) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown_text(cell).replace("\n", "<br>") for cell in cells) + " |"

    n = sheet.n_names
    yield f"## {sheet.title}\n"
    yield line(sheet.headings)
    yield line(["---"] * n + ["---:"] * (len(sheet.headings) - n))
    yield from map(line, sheet.rows)
    yield ""
    yield from (f"- {_markdown_text(one_line(note))}" for note in sheet.notes)
    yield ""


def _markdown_text(text: str) -> str:
    """A text that is shown as it is: no cell ends in it, and nothing in it is HTML."""
    return html.escape(printable(text), quote=False).replace("|", "\\|").replace("\r", " ")


# --- CSV --------------------------------------------------------------------------------------------------------------


def csv_text(table: StudyTable) -> str:
    """One line for each figure, in percent and points; what is not known is empty.

    ``seeds`` have a result, of ``planned_seeds``; ``examples`` is the number of the seed with the fewest.
    """
    figures = (table.figures.get((row, column)) for row in table.rows for column in table.columns)
    return _csv(CSV_COLUMNS, [_csv_line(table, figure) for figure in figures if figure])


def runs_csv(table: StudyTable) -> str:
    """One line for each field of each finished run, in percent: figures of all readings, counts and costs."""
    return _csv(RUN_COLUMNS, [
        _names(run.cell) | {
            "seed": run.cell.seed, "examples": run.examples, "field": field.name, "figure": field.figure,
            "value": _percent(field.value), "lenient": _percent(field.lenient),
            "with_boundaries": _percent(field.strict),
            "unparsed": run.unparsed, "cut_off": run.cut_off, "documents_cut": run.truncated,
            "seconds_per_example": run.seconds, "prompt_tokens": run.prompt_tokens, "new_tokens": run.new_tokens,
        }
        for run in table.details for field in run.fields
    ])  # fmt: skip


def comparisons_csv(table: StudyTable) -> str:
    """One line for each paired test, in points; those of single seeds whose mean is tested are marked."""
    lines = []
    for own in table.comparisons:
        found = own.difference
        line = _names(own.cell) | {
            "compared": own.what, "base_task": own.base.task, "seeds": " ".join(map(str, own.seeds)),
            "field": own.field, "figure": own.figure, "examples": own.examples, "left_out": own.left_out,
            "one_of_several": str(own.of_several).lower(),
        }  # fmt: skip
        if found is not None:
            low, high = found.interval.low, found.interval.high
            line |= {"difference": _percent(found.value), "low": _percent(low), "high": _percent(high)}
            line |= {"p": found.p, "test": found.test}
        lines.append(line)
    return _csv(COMPARISON_COLUMNS, lines)


def _csv(columns: Sequence[str], lines: Sequence[dict[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _names(cell: Cell) -> dict[str, object]:
    return {
        "model": cell.model,
        "shots": cell.shots,
        "tuned": str(cell.tuned).lower(),
        "variant": cell.variant,
        "task": cell.task,
    }


def _csv_line(table: StudyTable, figure: Figure) -> dict[str, object]:
    row, column = figure.row, figure.column
    failures = [why for cell, why in table.failures.items() if cell.row == row and cell.task == column.task]
    low, high = (figure.interval.low, figure.interval.high) if figure.interval else (None, None)
    return _names(replace(row, task=column.task)) | {
        "field": column.field,
        "figure": figure.name,
        "seeds": len(figure.values),
        "planned_seeds": figure.seeds,
        "examples": min(figure.examples, default=None),
        "value": _percent(figure.value),
        "low": _percent(low),
        "high": _percent(high),
        "min": _percent(min(figure.values, default=None)),
        "max": _percent(max(figure.values, default=None)),
        "paper": figure.paper,
        "difference": None if figure.difference is None else round(figure.difference, 4),
        "state": figure.state,
        "why": "; ".join(failures),
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)
