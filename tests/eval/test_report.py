"""Tables: every figure in its cell, empty cells for missing ones, and which run is best."""

from __future__ import annotations

import pytest
from rich.console import Console

from data.errors import UserError
from eval.report import compare, comparison_table, details_table, lost_to, markdown
from eval.results import Results, write_run


def results(system, intent=0.5, f1=0.5, exact=0.5, cost=None):
    metrics = {
        "n_examples": 1234,
        "n_unparsed": 7,
        "exact_match": exact,
        "fields": {
            "intent": {"accuracy": intent, "macro_f1": 0.25, "n_unparsed": 3},
            "slots": {"f1": f1, "strict_f1": None, "word_accuracy": 0.75, "n_unparsed": 5},
        },
    }
    fields = {"intent": "class", "slots": "token"}
    return Results(system, "massive_joint", fields, "sample", "test", metrics, cost=cost or {}, counts={"truncated": 2})


def intent_only(system, accuracy):
    run = results(system, accuracy)
    run.fields = {"intent": "class"}
    del run.metrics["fields"]["slots"]
    return run


def text_of(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_markdown():
    lines = markdown(
        [results("a | b", 0.123, cost={"seconds_per_example": 0.5}), intent_only("single", 1.0)]
    ).splitlines()
    assert lines[0].startswith("| system | intent accuracy | slots f1 | exact match | examples | unparsed |")
    assert lines[2].startswith("| a \\| b | 12.3% | 50.0% | 50.0% | 1,234 | 7 | 0.5000 |")
    assert lines[3].startswith("| single | 100.0% |  |  | 1,234 | 7 |  |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_terminal_tables_hold_every_figure():
    shown = text_of(comparison_table([results("one", 0.1), results("two", 0.9)]))
    assert all(part in shown for part in ("one", "two", "10.0%", "90.0%", "1,234"))
    shown = text_of(details_table(results("one", cost={"seconds": 3.0, "new_tokens": 12.5})))
    for part in (
        "macro f1",
        "25.00%",
        "no gold boundaries",
        "exact match",
        "truncated",
        "new tokens per example",
        "12.5",
    ):
        assert part in shown


def test_lenient_figures_stand_beside_the_strict_ones_where_a_run_gains():
    bare, chatty, same = results("bare", 0.2), results("chatty", 0.1), results("same", 0.3)
    chatty.metrics["lenient"] = results("", 0.4).metrics
    same.metrics["lenient"] = results("", 0.3).metrics
    lines = markdown([bare, chatty, same]).splitlines()
    assert lines[0].startswith(
        "| system | intent accuracy | slots f1 | exact match | intent accuracy, lenient | examples |"
    )
    assert lines[2].startswith("| bare | 20.0% | 50.0% | 50.0% |  | 1,234 |")
    assert lines[3].startswith("| chatty | 10.0% | 50.0% | 50.0% | 40.0% | 1,234 |")
    assert lines[4].startswith("| same | 30.0% | 50.0% | 50.0% | 30.0% | 1,234 |")
    assert "lenient" not in markdown([bare, same]) and "lenient" not in text_of(details_table(bare))
    shown = text_of(details_table(chatty))
    assert "read leniently" in shown and "40.00%" in shown and "10.00%" in shown
    assert lost_to(chatty, bare), "the strict figures decide"


def test_winning_takes_every_main_figure():
    after = results("after", 0.9, 0.8, 0.7)
    assert lost_to(after, results("before", 0.8, 0.7, 0.6)) == lost_to(after, intent_only("intent", 0.85)) == {}
    equal = "intent accuracy: after 90.0% does not beat equal 90.0%"
    assert lost_to(after, results("equal", 0.9, 0.7, 0.6)) == {"intent accuracy": equal}
    better = "exact match: after 70.0% does not beat better 71.0%"
    assert lost_to(after, results("better", 0.1, 0.1, 0.71)) == {"exact match": better}


def test_compare(tmp_path, capsys):
    for name, intent in (("before", 0.1), ("after", 0.9)):
        write_run(tmp_path / name, results(name, intent, intent, intent), [])
    runs = [tmp_path / "before", tmp_path / "after"]
    assert compare(runs, winner=tmp_path / "after", markdown_file=tmp_path / "sub" / "table.md")
    assert "after beats before in every figure" in capsys.readouterr().out
    assert "| after | 90.0% |" in (tmp_path / "sub" / "table.md").read_text()
    assert not compare(runs, winner=tmp_path / "before")
    assert "does not beat after 90.0%" in capsys.readouterr().out
    with pytest.raises(UserError, match="not among the compared runs"):
        compare(runs, winner=tmp_path)
    with pytest.raises(UserError, match="not a scored run"):
        compare([tmp_path])


def test_one_figure_may_decide(tmp_path, capsys):
    write_run(tmp_path / "after", results("after", 0.9, 0.2, 0.5), [])
    write_run(tmp_path / "baseline", results("baseline", 0.6, 0.4, 0.3), [])
    runs, after = [tmp_path / "after", tmp_path / "baseline"], tmp_path / "after"
    assert not compare(runs, winner=after)
    assert not compare(runs, winner=after, winner_figure="slots f1")
    capsys.readouterr()
    assert compare(runs, winner=after, winner_figure="exact match")
    printed = capsys.readouterr().out
    assert "after beats baseline in exact match" in printed
    assert "slots f1: after 20.0% does not beat baseline 40.0%" in printed, "figures that do not decide are printed too"
    with pytest.raises(UserError, match="intent accuracy, slots f1, exact match"):
        compare(runs, winner=after, winner_figure="f1")
    with pytest.raises(UserError, match="needs --winner"):
        compare(runs, winner_figure="exact match")
