"""A study's tables as text: nothing is lost, nothing in a name changes the form, what is missing is said."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from data.tasks import ClassField, Task
from eval.study.cells import Cell
from eval.study.render import comparisons_csv, csv_text, markdown, runs_csv, show_study, terminal_tables
from eval.study.sheets import figure_lines, p_text, sheets
from eval.study.statistics import Interval
from eval.study.table import Column, Figure, build_table
from tests.eval.study.runs import GROUPS, unfinished, write_cell

LLAMA = Cell("llama3_8b", "20ng_20", 0, True)
ODD = Cell("a|b</td><script>x</script>[bold]\x1b[31m", "20ng_20", 0, True)
TASKS = ("20ng_20", "20ng_7", "20ng_joint", "massive_intent", "massive_slots", "massive_joint")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All tasks with two seeds and with five shots, and rows that failed, are open, or have an odd name."""
    folder = tmp_path_factory.mktemp("study")
    outcomes = [
        write_cell(folder, replace(LLAMA, task=task, shots=shots, seed=seed), lenient=True)
        for task in TASKS for shots in (0, 5) for seed in (0, 1)
    ]  # fmt: skip
    outcomes.append(unfinished(folder, replace(LLAMA, seed=2), "open"))
    outcomes.append(unfinished(folder, replace(LLAMA, model="llama2_7b"), "failed", "out of <memory>"))
    outcomes.append(unfinished(folder, replace(LLAMA, model="bert"), "open"))
    outcomes.append(unfinished(folder, ODD, "running"))
    return build_table(outcomes, resamples=50)


def figure(**more):
    known = {
        "row": LLAMA.row, "column": Column("20ng_20", "group"), "state": "done", "seeds": 1, "failed": 0,
        "name": "accuracy", "values": (0.9124,), "interval": Interval(0.9051, 0.9188), "examples": (7532,),
        "complete": 7532, "paper": 91.6,
    }  # fmt: skip
    return Figure(**known | more)


def test_a_cell_of_the_table_of_figures():
    assert figure_lines(figure()) == ["91.2%", "90.5 to 91.9", "paper 91.6 (-0.4)"]
    assert figure_lines(figure(paper=None)) == ["91.2%", "90.5 to 91.9"]
    for paper in (91.2, 91.28):  # above and below, by less than is shown
        assert figure_lines(figure(paper=paper))[2].endswith("(+0.0)")
    assert figure_lines(figure(values=(0.91, 0.92, 0.9), seeds=3, examples=(7532,) * 3)) == [
        "91.0%", "90.5 to 91.9", "3 seeds", "90.0 to 92.0 range", "paper 91.6 (-0.6)",
    ]  # fmt: skip
    assert figure_lines(figure(state="partial", values=(0.91, 0.92), seeds=4, failed=1, examples=(500, 400)))[2:5] == [
        "2 of 4 seeds, 1 failed",
        "91.0 to 92.0 range",
        "n = 500 / 400",
    ]
    assert figure_lines(figure(state="partial", seeds=3))[2] == "1 of 3 seeds"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"state": "not run"}, "not run"),
        ({"state": "running"}, "running"),
        ({"state": "failed", "failed": 1}, "failed"),
        ({"state": "failed", "seeds": 3, "failed": 3}, "failed"),
        ({"state": "failed", "seeds": 3, "failed": 1}, "1 of 3 seeds failed"),
    ],
)
def test_a_cell_without_a_figure(more, text):
    empty = {"values": (), "interval": None, "examples": (), "name": ""}
    assert figure_lines(figure(**empty | more)) == [text, "paper 91.6"]


def test_small_p_are_not_told_apart():
    assert [p_text(p) for p in (1.0, 0.04271, 0.001, 0.0009, 0.0)] == ["1.000", "0.043", "0.001", "<0.001", "<0.001"]


def test_what_is_missing_is_said(study):
    found, *others = sheets(study)
    assert [sheet.title for sheet in others] == [
        "Counts and costs of each run",
        "Two calls or one: seconds an example",
        "Paired tests",
        "The same, seed by seed",
    ]
    notes = "\n".join(found.notes)
    assert "failed: llama2_7b-20ng_20-0shot-tuned-seed0: out of <memory>" in notes
    assert "Means without all seeds of the study: Llama3-8B Zero-shot w/ FT, 20NG dual 20-class." in notes
    assert "n = 40 examples of 20ng_20: the complete test split has 7,532." in notes
    assert "n = 40 examples of massive_joint: the complete test split has 2,974." in notes
    assert "An empty cell is not part of the study." in notes
    rows = {row[0]: row for row in found.rows}
    assert rows["bert 0-shot w/ FT"][1:3] == ("not run", "")
    assert rows["Llama2-7B Zero-shot w/ FT"][1] == "failed\npaper 89.5"
    assert all(len(row) == len(sheet.headings) for sheet in [found, *others] for row in sheet.rows)


@pytest.mark.parametrize(
    ("limited", "said"),
    [
        ({"limited": True}, ["n = 40 examples of mine: a part of the test examples."]),
        ({"limited": False}, []),
        ({}, ["n = 40 examples of mine: they may be a part of the test examples."]),  # an older result
    ],
)
def test_a_part_of_a_users_test_examples_is_said_where_it_is_known(limited, said, tmp_path):
    task = Task("mine", "20ng", (ClassField("group", GROUPS),))
    outcome = write_cell(tmp_path, replace(LLAMA, task="mine"), task=task, limit=40, **limited)
    found, *_ = sheets(build_table([outcome], resamples=50))
    assert [note for note in found.notes if note.startswith("n = ")] == said
    assert any("n = 40" in line for line in found.rows[0]) == bool(said)


def test_one_run_of_the_complete_split_needs_few_notes(tmp_path):
    (found,) = sheets(build_table([unfinished(tmp_path, replace(LLAMA, model="bert"), "open")]))
    assert found.notes == ()


# --- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("available", [60, 80, 120, 200, 1000])
def test_no_cell_is_cut_on_any_terminal(available, study):
    for sheet in sheets(study):
        shown = io.StringIO()
        parts = terminal_tables(sheet, available)
        console = Console(file=shown, width=available, markup=False, emoji=False, highlight=False)
        for part in parts:
            console.print(part)
        lines = shown.getvalue().split("\n")
        assert max(map(len, lines)) <= available and "…" not in shown.getvalue()
        if sheet.title == "Figures":
            assert (len(parts) > 1) == (available < 200)
        squeezed = "".join(c for c in shown.getvalue() if c not in " \n│┃")
        for row in sheet.rows:
            for cell in row[sheet.n_names :]:
                if available >= 80:
                    assert all("".join(line.split()) in squeezed for line in cell.split("\n"))
        headings = [str(column.header) for part in parts for column in part.columns[sheet.n_names :]]
        assert headings == list(sheet.headings[sheet.n_names :])


def test_names_are_shown_as_they_are(study, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    show_study(study)
    shown = capsys.readouterr().out
    assert "a|b</td><script>x</script>[bold]\\x1b[31m 0-shot w/ FT" in shown and "\x1b" not in shown
    assert shown.count("Paired tests") == 1 and "not run" in shown


def test_an_empty_study_prints_nothing(capsys):
    table = build_table([])
    show_study(table)
    assert capsys.readouterr().out == "" and markdown(table) == ""


# --- documents --------------------------------------------------------------------------------------------------------


def test_markdown_has_equally_many_cells_in_all_lines(study):
    text = markdown(study)
    assert "\x1b" not in text and "<script" not in text and "a\\|b&lt;/td&gt;" in text
    lines = [line for line in text.split("\n") if line.startswith("|")]
    cells = [line.replace("\\|", "").count("|") for line in lines]
    headings = [len(sheet.headings) for sheet in sheets(study) for _ in range(len(sheet.rows) + 2)]
    assert cells == [n + 1 for n in headings]
    assert "| 89.5<br>" not in text and "failed<br>paper 89.5" in text


def test_csv_has_a_line_for_each_figure(study):
    lines = list(csv.DictReader(io.StringIO(csv_text(study))))
    assert len(lines) == len(study.figures) == 2 * 8 + 3
    first = lines[0]
    found = study.figures[LLAMA.row, Column("20ng_20", "group")]
    assert [first[name] for name in ("model", "shots", "tuned", "variant", "task", "field", "figure", "state")] == [
        "llama3_8b", "0", "true", "", "20ng_20", "group", "accuracy", "partial",
    ]  # fmt: skip
    assert [first[name] for name in ("seeds", "planned_seeds", "examples", "paper")] == ["2", "3", "40", "91.6"]
    assert float(first["value"]) == pytest.approx(100 * found.value, abs=1e-4)
    assert float(first["low"]) == pytest.approx(100 * found.interval.low, abs=1e-4)
    assert float(first["high"]) == pytest.approx(100 * found.interval.high, abs=1e-4)
    assert [float(first["min"]), float(first["max"])] == pytest.approx(
        [100 * min(found.values), 100 * max(found.values)], abs=1e-4
    )
    assert float(first["difference"]) == pytest.approx(100 * found.value - 91.6, abs=1e-4)
    failed, not_run, running = lines[-3:]
    assert (failed["state"], failed["why"], failed["value"], failed["paper"]) == (
        "failed", "out of <memory>", "", "89.5",
    )  # fmt: skip
    assert (not_run["state"], not_run["paper"], running["state"]) == ("not run", "", "running")
    assert running["model"] == ODD.model


def test_csv_has_a_line_for_each_field_of_a_run(study):
    lines = list(csv.DictReader(io.StringIO(runs_csv(study))))
    assert len(lines) == sum(len(run.fields) for run in study.details) > len(study.details)
    run = study.details[0]
    assert [lines[0][name] for name in ("model", "task", "seed", "field", "examples", "unparsed")] == [
        run.cell.model, run.cell.task, str(run.cell.seed), run.fields[0].name, str(run.examples), str(run.unparsed),
    ]  # fmt: skip
    assert float(lines[0]["value"]) == pytest.approx(100 * run.fields[0].value, abs=1e-4)
    assert float(lines[0]["seconds_per_example"]) == run.seconds


def test_csv_has_a_line_for_each_comparison(study):
    lines = list(csv.DictReader(io.StringIO(comparisons_csv(study))))
    assert len(lines) == len(study.comparisons) > 0
    for line, own in zip(lines, study.comparisons, strict=True):
        assert (line["compared"], line["task"], line["base_task"]) == (own.what, own.cell.task, own.base.task)
        assert line["seeds"] == " ".join(map(str, own.seeds)) and line["one_of_several"] == str(own.of_several).lower()
        assert float(line["difference"]) == pytest.approx(100 * own.difference.value, abs=1e-4)
        assert float(line["p"]) == own.difference.p and line["test"] == own.difference.test


def test_a_line_break_in_a_reason_stays_in_its_cell(tmp_path):
    table = build_table([unfinished(tmp_path, LLAMA, "failed", "one\n| two |\n\nthree")])
    assert "- failed: llama3_8b-20ng_20-0shot-tuned-seed0: one \\| two \\| three" in markdown(table).split("\n")
    assert len(csv_text(table).splitlines()) == 2
