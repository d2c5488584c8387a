"""The page of a study: its tables, and links to the reports of its runs. It needs no network and no other file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from eval.page.html import Html, foreign, joined, page, section, table, tag
from eval.study.cells import Outcome
from eval.study.sheets import Range, Sheet, sheets
from eval.study.table import StudyTable, one_line

PROGRAM = "python -m eval.study"
REPORT = "report.html"  # of the study, and of each run beside its results
UNBROKEN = "white-space:nowrap"
NAME = 32  # letters of a name that is not broken


def study_page(name: str, content: StudyTable, outcomes: Sequence[Outcome], output: Path) -> str:
    """The page, with everything escaped that comes from names and errors.

    Args:
        output: the folder that the page will be in; links to reports of runs are relative to it.
    """
    parts = [_section(sheet) for sheet in sheets(content)]
    rows = [(_link(found, output), found.state, foreign(one_line(found.why))) for found in outcomes]
    parts.append(section("Runs", table(("run", "state", "why"), rows, left=(0, 1, 2))))
    done = sum(found.state == "done" for found in outcomes)
    return page(name, parts, PROGRAM, top=tag("p", f"{done} of {len(outcomes)} runs are done.", class_="facts"))


def _section(sheet: Sheet) -> Html:
    rows = [_cells(row, sheet.n_names) for row in sheet.rows]
    for (i, j), drawn in sheet.ranges.items():
        rows[i][j] = joined(rows[i][j], _picture(drawn))
    shown = table(_cells(sheet.headings, 0), rows, left=range(sheet.n_names))
    return section(sheet.title, shown, *(tag("p", foreign(note, 1000), class_="quiet") for note in sheet.notes))


def _cells(cells: Sequence[str], n_names: int) -> list[Html]:
    """Cells with line breaks; the first line of a figure is the figure, the others are about it."""
    found = []
    for i, cell in enumerate(cells):
        first, *more = cell.split("\n")
        shown = tag("span", foreign(first), style=UNBROKEN) if i < n_names and len(first) <= NAME else foreign(first)
        found.append(joined(shown, *(joined(tag("br"), tag("small", foreign(line))) for line in more)))
    return found


def _picture(drawn: Range) -> Html:
    """An interval as a bar, the figure as a dot, and a line at the mark. Its numbers are beside it in words."""

    def place(value: float) -> str:
        return f"{100 * (value - drawn.least) / (drawn.most - drawn.least):.1f}%"

    places = {"from": drawn.low, "to": drawn.high, "at": drawn.value}
    style = ";".join(f"--{name}:{place(value)}" for name, value in places.items())
    mark = Html() if drawn.mark is None else tag("i", style=f"--mark:{place(drawn.mark)}")
    return tag("span", mark, class_="range", style=style, aria_hidden="true")


def _link(found: Outcome, output: Path) -> Html:
    report = found.folder / REPORT
    if not report.is_file():
        return foreign(found.cell.name)
    return tag("a", foreign(found.cell.name), href=quote(os.path.relpath(report, output)))
