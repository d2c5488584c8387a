"""Table 3 of the paper against the paper's text, and our names in it against the tasks and models that we have."""

from __future__ import annotations

import re

import pytest

from checkpoints_tools.registry import MODELS
from data.tasks import TASKS
from eval.study.paper import COLUMNS, ROWS, paper_column, paper_figure, paper_row, single_task


def test_every_figure_is_that_of_the_paper(shared_dir):
    paper = shared_dir / "paper.txt"
    if not paper.is_file():
        pytest.skip(f"needs the text of the paper; none at {paper} (set SHARED_DIR)")
    text = paper.read_text(encoding="utf-8").split("Table 3:")[0]
    lines = text.rstrip().split("\n")[-24:]
    printed = []
    for line in lines:
        label, figures = re.fullmatch(r"(.*?) ((?:[\d.]+% ?){8})", line).groups()
        printed.append((label, tuple(float(figure) for figure in figures.replace("%", "").split())))
    assert [(row.label, row.figures) for row in ROWS] == printed
    assert sum(len(row.figures) for row in ROWS) == 192
    headings = text.rstrip().split("\n")[-25]
    assert " ".join(column.heading for column in COLUMNS) == headings


def test_labels_say_what_the_rows_are():
    for row in ROWS:
        name = row.label.split()[0].lower().replace("-", "").replace(".", "")
        assert re.sub(r"[-_.]|turbo", "", row.model) == name
        assert row.shots == (5 if "Five-shot" in row.label else 0)
        assert row.tuned == ("w/o" not in row.label)
        assert row.model in MODELS
    assert len({(row.model, row.shots, row.tuned) for row in ROWS}) == 24


def test_columns_are_fields_of_our_tasks():
    for column in COLUMNS:
        task = TASKS[column.task]
        assert column.field in [field.name for field in task.fields]
        assert task.is_joint == column.consolidated
        assert task.dataset == column.dataset.lower()
    assert {(c.task, c.field) for c in COLUMNS} == {(t.name, f.name) for t in TASKS.values() for f in t.fields}


def test_looking_up():
    assert paper_figure("llama3_8b", 0, True, "20ng_20", "group") == 91.6
    assert paper_figure("gpt-4o", 5, False, "massive_joint", "slots") == 39.4
    assert paper_figure("roberta_large", 0, True, "20ng_joint", "root") == 94.6
    assert paper_figure("llama3_8b", 1, True, "20ng_20", "group") is None
    assert paper_figure("llama3_8b", 0, True, "mine", "group") is None
    assert paper_row("llama3_8b", 0, True).label == "Llama3-8B Zero-shot w/ FT"
    assert paper_column("20ng_joint", "root").group == "20NG consolidated"


def test_single_tasks_of_consolidated_ones():
    found = {(c.task, c.field): single_task(c.task, c.field) for c in COLUMNS}
    assert {pair: task for pair, task in found.items() if task} == {
        ("20ng_joint", "group"): "20ng_20",
        ("20ng_joint", "root"): "20ng_7",
        ("massive_joint", "intent"): "massive_intent",
        ("massive_joint", "slots"): "massive_slots",
    }
    assert single_task("mine", "group") is None
