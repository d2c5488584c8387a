"""The page of a study has all cells of its tables, nothing foreign in its markup, and loads nothing."""

from __future__ import annotations

import html.parser
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
