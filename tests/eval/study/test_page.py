"""The page of a study has all cells of its tables, nothing foreign in its markup, and loads nothing."""

from __future__ import annotations

import html.parser
import re
from dataclasses import replace
from pathlib import Path

from eval.page.html import start
from eval.study.cells import Cell
from eval.study.page import PROGRAM, study_page
from eval.study.sheets import sheets
from eval.study.table import build_table
from tests.eval.study.runs import unfinished, write_cell

INTENT = Cell("llama3_8b", "massive_intent", 0, True)
ODD = Cell("a|b</td><script>x</script>\x1b[31m אבג 🙂", "massive_intent", 0, True)


class Tags(html.parser.HTMLParser):
    """Checks that tags are closed in order; collects their names, the cells' texts, and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.cells: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag == "br":
            self.cells[-1] += "\n"
        elif tag not in ("meta", "link"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


def test_the_page_has_all_cells_and_nothing_foreign(tmp_path: Path) -> None:
    done = write_cell(tmp_path, INTENT)
    (done.folder / "report.html").touch()
    outcomes = [done, unfinished(tmp_path, ODD, "failed", "out of <memory>\nat step 3")]
    table = build_table(outcomes, resamples=50)
    text = study_page("trial <b>", table, outcomes, tmp_path)
    assert text.startswith(start(PROGRAM)) and "<script" not in text and "trial &lt;b&gt;" in text
    parser = Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == [] and "script" not in parser.names
    expected = [cell for sheet in sheets(table) for row in (sheet.headings, *sheet.rows) for cell in row]
    shown = [cell.replace("\x1b", "\\x1b") for cell in expected]
    assert parser.cells[: len(shown)] == shown
    assert parser.cells[len(shown) :][-3:] == [ODD.name.replace("\x1b", "\\x1b"), "failed", "out of <memory> at step 3"]
    outside = [link for link in parser.links if not link.startswith(("#", "data:"))]
    assert len(outside) == 1 and (tmp_path / outside[0]).is_file(), "the report of the finished run"
    assert "1 of 2 runs are done" in text


def test_intervals_are_drawn_beside_their_numbers(tmp_path: Path) -> None:
    """Of a figure from 0 to 1 with the paper's as a mark; of differences around zero, all of a kind on one scale."""
    cells = [Cell("llama3_8b", "massive_intent", 0, True, seed) for seed in (0, 1)]
    cells += [replace(cell, shots=5) for cell in cells]
    outcomes = [write_cell(tmp_path, cell, good) for cell, good in zip(cells, (0.5, 0.6, 0.9, 0.9), strict=True)]
    table = build_table(outcomes, resamples=200)
    shown = {sheet.title: sheet.ranges for sheet in sheets(table)}
    (zero, five) = table.figures.values()
    drawn = shown["Figures"][0, 1]
    assert zero.interval and (drawn.low, drawn.value, drawn.high) == (zero.interval.low, zero.value, zero.interval.high)
    assert (drawn.least, drawn.most, drawn.mark) == (0.0, 1.0, zero.paper / 100 if zero.paper else None)
    assert shown["Figures"][1, 1].value == five.value
    mean, single = shown["Paired tests"][0, 4], shown["The same, seed by seed"]
    assert mean.mark == 0.0 and mean.least == -mean.most and mean.most == max(map(abs, (mean.low, mean.high)))
    assert single[0, 4].most == single[1, 4].most == max(max(abs(own.low), abs(own.high)) for own in single.values())
    text = study_page("trial", table, outcomes, tmp_path)
    assert text.count('class="range"') == 2 + 1 + 2
    styles = re.findall(r'class="range" style="--from:([\d.]+)%;--to:([\d.]+)%;--at:([\d.]+)%"', text)
    assert styles[0] == tuple(f"{100 * x:.1f}" for x in (drawn.low, drawn.high, drawn.value))
    places = [100 * (x + mean.most) / (2 * mean.most) for x in (mean.low, mean.high, mean.value)]
    assert styles[2] == tuple(f"{x:.1f}" for x in places) and 'style="--mark:50.0%"' in text


def test_cells_that_shared_a_machine_say_so(tmp_path: Path) -> None:
    done = write_cell(tmp_path, INTENT)
    assert build_table([done], resamples=50).jobs == 1
    table = build_table([replace(done, jobs=4)], resamples=50)
    note = "Seconds: up to 4 runs shared the machine, so each took longer than it does by itself."
    assert [sheet.title for sheet in sheets(table) if note in sheet.notes] == ["Counts and costs of each run"]
