"""Tables: every figure in its cell, empty cells for missing ones, and which run is best."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from data.errors import UserError
from data.example import Example
from data.tasks import MultiField, Task
from eval.decoder.score import read_answer
from eval.report import all_figures, compare, comparison_tables, details_table, lost_to, markdown, show_details
from eval.results import Results, field_kinds, measure, read_results, write_run


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


def text_of(*tables, width=200):
    console = Console(width=width, markup=False)
    with console.capture() as capture:
        console.print(*tables)
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
    shown = text_of(*comparison_tables([results("one", 0.1), results("two", 0.9)], 200)[0])
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


def test_names_are_shown_as_they_are(tmp_path, capsys):
    """None is rich's markup: that vanished from the tables, or ended in a MarkupError."""
    names = ["run [lr=1e-4]", "run [lr=3e-4]", "a [/b]", "[bold]b :smile:[/bold]"]
    for i, name in enumerate(names):
        run = results(name, cost={"[/x]": 1.0})
        run.metrics["fields"] = {"in[/]tent": run.metrics["fields"]["intent"], "slots": run.metrics["fields"]["slots"]}
        run.fields = {"in[/]tent": "class", "slots": "token"}
        run.task, run.data, run.counts = "[task]", "[/data]", {"[n]": 3}
        write_run(tmp_path / str(i), run, [])
        show_details(run)
        shown = capsys.readouterr().out
        assert shown.startswith(f"{name}: [task], [/data] test\n")
        assert all(part in shown for part in ("in[/]tent", "[n]", "[/x]"))
    folders = [tmp_path / str(i) for i in range(len(names))]
    compare(folders, winner=folders[2], markdown_file=tmp_path / "[b].md")
    shown = capsys.readouterr().out
    assert all(name in shown for name in names) and "in[/]tent accuracy" in shown
    assert f"written to {tmp_path}/[b].md" in shown and "a [/b] 50.0% does not beat" in shown


def test_counts_of_zero_are_omitted():
    run = results("one", intent=0.0)
    run.counts, run.cost = {"truncated": 0, "not_stopped": 4}, {"new_tokens": 0.0, "prompt_tokens": 0.5}
    run.metrics["n_unparsed"] = run.metrics["fields"]["intent"]["n_unparsed"] = 0
    shown = text_of(details_table(run))
    assert "not stopped" in shown and "truncated" not in shown and "with an unparsed" not in shown
    assert "prompt tokens" in shown and "new tokens" not in shown, "an encoder writes none"
    assert shown.count("n unparsed") == 1 and "0.00%" in shown, "a figure of zero is none of them"
    compared = text_of(*comparison_tables([run], 200)[0])
    assert "prompt tok" in compared and "unparsed" not in compared and "new tok" not in compared
    unparsed = text_of(*comparison_tables([run, results("two")], 200)[0])
    assert "unparsed" in unparsed and "│        0 │" in unparsed
    assert "unparsed" in markdown([run]), "a document's tables keep their columns"


def test_a_threshold_is_shown_as_it_was_given():
    """Not rounded: with 0.995 the table said that labels are given from 100% on."""
    run = results("one")
    fields = {"intent": {"answered": 0.5, "accuracy": 1.0}}
    run.metrics["abstaining"] = {"below": 0.995, "answered": 0.5, "exact_match": 1.0, "fields": fields}
    shown = text_of(details_table(run))
    assert "intent, given from 0.995 on" in shown and "all class fields given from 0.995 on" in shown


def test_figures_are_whole_on_a_narrow_terminal():
    cost = {"seconds_per_example": 12.3456, "prompt_tokens": 1234.5, "computed_tokens": 345.6, "new_tokens": 7.8}
    runs = [results("a name that is longer than the column [b]", 0.123, cost=cost), results("two", 1.0)]
    shown = {}
    for width in (80, 100, 200):
        tables, left_out = comparison_tables(runs, width)
        shown[width] = text_of(*tables, width=width)
        assert all(len(line) <= width for line in shown[width].splitlines())
        assert "…" not in shown[width] and "12.3%" in shown[width] and "1,234" in shown[width]
        assert ("1234.5" in shown[width]) == ("prompt tok" not in left_out)
    assert comparison_tables(runs, 80)[1] == ["s/example", "prompt tok", "computed tok", "new tok"]
    assert comparison_tables(runs, 200)[1] == [] and "intent accuracy" in shown[200]


def of_many_fields(system, n_fields, first, name="f"):
    run = results(system, exact=first)
    run.metrics["fields"] = {f"{name}{i}": {"accuracy": first + i / 1000} for i in range(n_fields)}
    run.fields = dict.fromkeys(run.metrics["fields"], "class")
    return run


@pytest.mark.parametrize(
    ("n_runs", "n_fields", "width", "n_tables"),
    [(2, 16, 80, 4), (10, 7, 80, 2), (2, 16, 100, 3), (2, 7, 80, 2), (2, 2, 40, 2)],
)
def test_many_figures_are_in_several_tables(n_runs, n_fields, width, n_tables):
    """In one, the column of names was empty, and figures were cut."""
    runs = [of_many_fields(f"TF-IDF + run {i}", n_fields, i / 100) for i in range(n_runs)]
    tables, _ = comparison_tables(runs, width)
    lines = text_of(*tables, width=width).splitlines()
    assert len(tables) == n_tables and all(len(line) <= width and "…" not in line for line in lines)
    for i in range(n_runs):
        rows = [line.split("│") for line in lines if f"TF-IDF + run {i} " in line]
        values = [cell.strip() for row in rows for cell in row[2:-1] if "%" in cell]
        assert values == [f"{i / 100 + k / 1000:.1%}" for k in range(n_fields)] + [f"{i / 100:.1%}"]
    headings = [str(column.header) for table in tables for column in table.columns]
    assert [h for h in headings if "accuracy" in h] == [f"f{k} accuracy" for k in range(n_fields)]
    styles = [[str(cell.style) for cell in column.cells] for table in tables for column in table.columns[1:]]
    assert all(own == [""] * (n_runs - 1) + ["bold"] for own in styles[: n_fields + 1])


def test_headings_longer_than_a_line_are_broken():
    runs = [of_many_fields("one", 2, 0.1, "q" * 100), of_many_fields("two", 2, 0.2, "q" * 100)]
    tables, _ = comparison_tables(runs, 80)
    shown = text_of(*tables, width=80)
    assert "…" not in shown and shown.count("q") == 200 and all(part in shown for part in ("10.0%", "20.1%", "one"))


def test_lenient_figures_stand_beside_the_strict_ones_where_they_differ():
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


def test_a_lenient_figure_that_is_lower_is_shown_too():
    """The second answer is none when read strictly; its wrong label counts only when read leniently."""
    task = Task("t", "custom", (MultiField("topics", ("p", "q")),))
    examples = [Example(str(i), "x", {"topics": ("p",)}) for i in range(2)]
    answers = ['["p"]', "q"]
    about = {"truncated": False, "stopped": True, "n_prompt_tokens": 1, "n_new_tokens": 1}
    found = [read_answer(task, own, raw, **about) for own, raw in zip(examples, answers, strict=True)]
    run = Results("r", "t", field_kinds(task), "own", "test", measure(task, examples, found))
    (own,) = all_figures([run])
    strict, lenient = ([value for name, value in own.items() if name.endswith("f1" + end)] for end in ("", ", lenient"))
    assert lenient < strict and len(lenient) == len(strict) == 1


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
    file = runs[1] / "results.json"  # names the same run
    assert compare(runs, winner=file) and compare([runs[0], file], winner=runs[1])
    with pytest.raises(UserError, match="not among the compared runs"):
        compare(runs, winner=tmp_path)
    with pytest.raises(UserError, match="not a scored run"):
        compare([tmp_path])


def test_a_winner_needs_something_to_beat(tmp_path, capsys):
    write_run(tmp_path / "both", results("both", 0.9, 0.2, 0.5), [])
    for field in ("intent", "slots"):
        run = results(field, 0.6, 0.4, 0.3)
        run.fields = {field: run.fields[field]}
        run.metrics["fields"] = {field: run.metrics["fields"][field]}
        write_run(tmp_path / field, run, [])
    both, intent, slots = (tmp_path / name for name in ("both", "intent", "slots"))
    with pytest.raises(UserError, match="no other run is compared with it"):
        compare([both], winner=both)
    with pytest.raises(UserError, match="slots has no such figure, only slots f1"):
        compare([intent, slots], winner=intent)
    with pytest.raises(UserError, match="intent has no such figure, only intent accuracy"):
        compare([both, intent], winner=both, winner_figure="exact match")
    assert compare([both, intent], winner=both, winner_figure="intent accuracy")


def own_fields(system, accuracy, exact):
    """A run of an unrelated joint task."""
    run = results(system, exact=exact)
    run.task, run.fields = "tickets", {"queue": "class", "urgency": "class"}
    run.metrics["fields"] = dict.fromkeys(run.fields, {"accuracy": accuracy, "macro_f1": 0.25, "n_unparsed": 3})
    return run


def test_exact_matches_of_other_fields_are_not_compared(tmp_path, capsys):
    runs = {"tickets": own_fields("tickets", 0.9, 0.7), "massive": results("massive", 0.5, 0.4, 0.3)}
    runs["dual"] = results("dual", 0.4, 0.3, 0.2)
    runs["dual"].task, runs["dual"].fields = "massive_slots+massive_intent", {"slots": "token", "intent": "class"}
    for name, run in runs.items():
        write_run(tmp_path / name, run, [])
    tickets, massive, dual = (tmp_path / name for name in runs)
    has = "massive has no such figure, only intent accuracy, slots f1, exact match of other fields"
    for figure in (None, "exact match"):
        with pytest.raises(UserError, match=has):
            compare([tickets, massive], winner=tickets, winner_figure=figure)
    assert lost_to(runs["massive"], runs["tickets"]) == {}
    capsys.readouterr()
    assert compare([massive, dual], winner=massive) and "massive beats dual in every figure" in capsys.readouterr().out
    (table,), _ = comparison_tables(list(runs.values()), 200)
    (exact,) = (column for column in table.columns if str(column.header) == "exact match")
    assert [str(cell.style) for cell in exact.cells] == ["bold", "bold", ""]


def test_the_figures_in_which_a_run_wins_are_named_unless_all_were_compared(tmp_path, capsys):
    runs = [results("both", 0.9, 0.8, 0.7), results("worse", 0.1, 0.1, 0.1)]
    for run in [*runs, intent_only("single", 0.6), intent_only("other", 0.5)]:
        write_run(tmp_path / run.system, run, [])
    both, *others = (tmp_path / name for name in ("both", "single", "worse", "other"))
    assert compare([both, others[0]], winner=both)
    assert capsys.readouterr().out.endswith("both beats single in intent accuracy\n")
    assert compare([both, *others], winner=both)
    assert capsys.readouterr().out.endswith("both beats single, other in intent accuracy; worse in every figure\n")


def test_runs_on_different_examples_are_named(tmp_path, capsys):
    for name, examples in (("all", "a"), ("again", "a"), ("some", "b"), ("older", "")):
        run = results(name)
        run.examples = examples
        write_run(tmp_path / name, run, [])
    compare([tmp_path / "all", tmp_path / "again", tmp_path / "older"])
    assert "note" not in capsys.readouterr().out
    compare([tmp_path / "all", tmp_path / "some"])
    assert "note: scored on different examples: all: 1,234 examples; some: 1,234 examples." in capsys.readouterr().out


def test_runs_on_the_same_examples_are_a_group_and_equal_names_have_their_folders(tmp_path, capsys):
    """A run replaced the one before it on the same examples, so the note named two that agree."""
    for folder, system, examples, n in (("e1", "export", "a", 100), ("lr", "TF-IDF", "a", 100),
                                        ("e2", "export", "b", 60), ("older", "older", "", 60)):  # fmt: skip
        run = results(system, 0.9 if folder == "e1" else 0.5, 0.9, 0.9)
        run.examples, run.metrics["n_examples"] = examples, n
        write_run(tmp_path / folder, run, [])
    e1, lr, e2, older = (tmp_path / name for name in ("e1", "lr", "e2", "older"))
    with pytest.raises(UserError, match="was scored on other examples"):
        compare([e1, lr, e2, older], winner=e1, winner_figure="intent accuracy")
    printed = capsys.readouterr().out
    groups = f"export ({e1}), TF-IDF: 100 examples; export ({e2}), older: 60 examples."
    assert f"note: scored on different examples: {groups}\n" in printed
    write_run(e3 := tmp_path / "e3", replace(read_results(e2), examples="a"), [])
    assert compare([e1, lr, e3], winner=e1, winner_figure="intent accuracy")
    printed = capsys.readouterr().out
    assert f"export ({e1}) beats TF-IDF, export ({e3}) in intent accuracy\n" in printed
    assert f"slots f1: export ({e1}) 90.0% does not beat export ({e3}) 90.0%\n" in printed
    compare([e1, lr])
    assert "(" not in capsys.readouterr().out


def test_no_run_wins_against_one_on_other_examples(tmp_path, capsys):
    """It exited with 0, and a gate in CI passed. Other tasks on the same texts, and older files, are compared."""
    tasks = {"best": ("massive_joint", "a", "t"), "some": ("massive_joint", "b", "u"), "old": ("massive_joint", "", "")}
    tasks |= {name: ("massive_intent+massive_slots", name, texts) for name, texts in (("dual", "t"), ("part", "u"))}
    for i, (name, (task, examples, texts)) in enumerate(tasks.items()):
        run = results(name, *[0.9 - i / 10] * 3)
        write_run(tmp_path / name, replace(run, task=task, examples=examples, texts=texts), [])
    fewer = replace(intent_only("fewer fields", 0.1), examples="e", texts="t")  # the file of the task has changed since
    write_run(tmp_path / "fewer", fewer, [])
    best, some, old, dual, part, less = (tmp_path / name for name in (*tasks, "fewer"))
    assert compare([best, old, dual, less], winner=best) and "note" not in capsys.readouterr().out
    for other in (some, part):
        with pytest.raises(UserError, match=f"best was scored on other examples than {other.name}, .* Score both"):
            compare([best, dual, other], winner=best)
        assert "note: scored on different examples" in capsys.readouterr().out
    assert not compare([old, best, some], winner=old), "these differ from each other, not from the one of an older file"


def test_runs_of_different_tasks_with_a_common_figure_are_compared_by_their_texts(tmp_path, capsys):
    def note_of(*runs):
        for i, (system, task, texts, n) in enumerate(runs):
            run = own_fields(system, 0.5, 0.5) if task == "tickets" else results(system)
            run.task, run.examples, run.texts, run.metrics["n_examples"] = task, system, texts, n
            write_run(tmp_path / str(i), run, [])
        compare([tmp_path / str(i) for i in range(len(runs))])
        return "".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("note"))

    dual, joint = ("dual", "massive_intent+massive_slots", "a", 104), ("joint", "massive_joint", "a", 104)
    assert not note_of(dual, joint), "their hashes of examples differ: each task has its own gold labels"
    part = ("part", "massive_joint", "b", 104)
    assert note_of(dual, part) == "note: scored on different examples: dual: 104 examples; part: 104 examples."
    assert not note_of(dual, ("old", "massive_joint", "", 104)), "nothing but the number is known"
    old = note_of(dual, ("old", "massive_joint", "", 20))
    assert old == "note: scored on different examples: dual: 104 examples; old: 20 examples."
    assert not note_of(dual, ("other", "tickets", "b", 20)), "no figure is compared"


def test_runs_on_texts_of_their_training_are_named(tmp_path, capsys):
    """Only the page of one run and its `results.json` said so: the best row of a table was learnt by heart."""
    for name, split, n in (("leaked", "test", 1200), ("clean", "test", 0), ("own", "train", 1234)):
        run = replace(results(name), split=split, examples=split)
        run.counts["trained_on"] = n
        write_run(tmp_path / name, run, [])
    leaked, clean, own = (tmp_path / name for name in ("leaked", "clean", "own"))
    note = "note: leaked: 1,200 of its 1,234 examples have a text of the training (docs/scoring.md).\n"
    compare([leaked, clean], markdown_file=tmp_path / "t.md")
    printed, written = capsys.readouterr().out, (tmp_path / "t.md").read_text()
    assert note in printed and printed.count("note") == 1
    assert written.endswith(f"|\n\n{note}") and written.count("note") == 1
    compare([clean, own], markdown_file=tmp_path / "t.md")  # a table with notes is replaced as any
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "note" in line)
    assert "different examples: clean" in line and f"\n\n{line}\n" in (tmp_path / "t.md").read_text()


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
