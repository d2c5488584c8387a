"""The content of a study's table, from made-up results: figures, seeds, the paper's, costs, latencies, paired tests."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from data.example import Example
from data.tasks import TASKS, ClassField, MultiField, Task
from eval.report import figures, lenient_figures
from eval.results import read_predictions, read_results
from eval.study.cells import Cell
from eval.study.statistics import compare_runs, mcnemar, wilson_interval
from eval.study.table import Column, build_table, row_label
from tests.eval.study.runs import N, examples, unfinished, word_task, write_cell

LLAMA = Cell("llama3_8b", "20ng_20", 0, True)
GROUP, SLOTS = Column("20ng_20", "group"), Column("massive_slots", "slots")


def only(table, column=GROUP):
    ((row, _),) = [key for key in table.figures if key[1] == column]
    return table.figures[row, column]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_columns_are_the_papers_then_those_of_other_tasks(tmp_path):
    mine = Task("mine", "custom", (ClassField("topic", ("a", "b")), MultiField("tags", ("x", "y"))))
    scored = [Example(f"mine/test/{i}", "", {"topic": "ab"[i % 2], "tags": ("x",) * (i % 2)}) for i in range(10)]
    own = replace(LLAMA, task="mine")
    table = build_table(
        [
            write_cell(tmp_path, own, task=mine, scored=scored),
            unfinished(tmp_path, replace(own, task="later"), "open"),
            write_cell(tmp_path, replace(LLAMA, task="massive_joint")),
            write_cell(tmp_path, replace(LLAMA, task="20ng_joint")),
            write_cell(tmp_path, LLAMA),
        ],
        resamples=100,
    )
    assert [(c.task, c.field) for c in table.columns] == [
        ("20ng_20", "group"),
        ("20ng_joint", "group"),
        ("20ng_joint", "root"),
        ("massive_joint", "intent"),
        ("massive_joint", "slots"),
        ("mine", "topic"),
        ("mine", "tags"),
        ("later", ""),
    ]
    assert [c.headings for c in table.columns[1:3]] == [
        ("20NG consolidated", "20-class"),
        ("20NG consolidated", "7-class"),
    ]
    found = {c: figure for (_, c), figure in table.figures.items()}
    assert [found[c].name for c in table.columns] == ["accuracy"] * 4 + ["f1", "accuracy", "micro_f1", ""]
    assert found[Column("later", "")].state == "not run"
    assert table.rows == (LLAMA.row,)


@pytest.mark.parametrize("task", list(TASKS))
def test_figures_are_those_of_the_results(task, tmp_path):
    outcome = write_cell(tmp_path, replace(LLAMA, task=task))
    table = build_table([outcome], resamples=200)
    stored = read_results(outcome.folder).metrics["fields"]
    assert len(table.figures) == len(TASKS[task].fields)
    for (_, column), figure in table.figures.items():
        assert figure.state == "done" and figure.examples == (N,)
        assert figure.value == pytest.approx(stored[column.field][figure.name], abs=1e-12)
        assert 0.3 < figure.interval.low < figure.value < figure.interval.high < 1


def test_the_accuracy_of_one_run_has_wilsons_interval(tmp_path):
    figure = only(build_table([write_cell(tmp_path, LLAMA)]))
    assert figure.interval == wilson_interval(round(figure.value * N), N)


def test_rows_are_in_the_order_of_the_study(tmp_path):
    cells = [
        replace(LLAMA, variant="short"),
        replace(LLAMA, shots=5),
        replace(LLAMA, model="bert"),
        replace(LLAMA, seed=1, shots=5),
        LLAMA,
    ]
    table = build_table([unfinished(tmp_path, cell, "open") for cell in cells])
    assert [row_label(row) for row in table.rows] == [
        "Llama3-8B Zero-shot w/ FT, short",
        "Llama3-8B Five-shot w/ FT",
        "bert 0-shot w/ FT",
        "Llama3-8B Zero-shot w/ FT",
    ]


def test_the_papers_figure_and_the_difference_in_points(tmp_path):
    figure = only(build_table([write_cell(tmp_path, LLAMA)]))
    assert figure.paper == 91.6
    assert figure.difference == pytest.approx(100 * figure.value - 91.6)
    for other in (replace(LLAMA, model="bert"), replace(LLAMA, shots=1)):
        figure = only(build_table([write_cell(tmp_path, other)]))
        assert figure.paper is None and figure.difference is None


def test_seeds_are_averaged_and_missing_ones_are_known(tmp_path):
    cells = [replace(LLAMA, seed=seed) for seed in range(3)]
    done = [write_cell(tmp_path, cell) for cell in cells]
    figure = only(build_table(done))
    values = [read_results(one.folder).metrics["fields"]["group"]["accuracy"] for one in done]
    assert len(set(values)) > 1
    assert figure.values == pytest.approx(values) and figure.value == pytest.approx(np.mean(values))
    assert (figure.state, figure.seeds) == ("done", 3)
    assert figure.interval.low < figure.value < figure.interval.high

    for state, n_failed in (("open", 0), ("running", 0), ("failed", 1)):
        figure = only(build_table([done[0], unfinished(tmp_path, cells[1], state, "out of memory"), done[2]]))
        assert (figure.state, figure.seeds, figure.failed) == ("partial", 3, n_failed)
        assert figure.values == pytest.approx([values[0], values[2]])


def test_the_interval_of_a_mean_draws_the_same_examples_for_all_seeds(tmp_path):
    """Two seeds with the same answers are as sure as one."""
    one, two = (replace(LLAMA, seed=seed, task="massive_slots") for seed in range(2))
    first = write_cell(tmp_path, one)
    copy = unfinished(tmp_path, two, "done")
    copy.folder.mkdir()
    for path in first.folder.iterdir():
        (copy.folder / path.name).write_bytes(path.read_bytes())
    single, both = only(build_table([first]), SLOTS), only(build_table([first, copy]), SLOTS)
    width, of_both = (own.interval.high - own.interval.low for own in (single, both))
    assert both.value == single.value and of_both == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("state", ["open", "running", "failed"])
def test_a_figure_without_a_result(state, tmp_path):
    table = build_table([unfinished(tmp_path, LLAMA, state, "it\nended")])
    figure = only(table)
    assert figure.state == {"open": "not run"}.get(state, state)
    assert figure.value is None and figure.interval is None and figure.paper == 91.6
    assert table.failures == ({LLAMA: "it ended"} if state == "failed" else {})


def test_a_part_of_the_test_split_is_known(tmp_path):
    figure = only(build_table([write_cell(tmp_path, LLAMA)]))
    assert figure.parts == {N: True} and figure.complete == 7532
    mine, cell = word_task("Other"), replace(LLAMA, task="mine")
    scored = [replace(e, labels={"entities": e.labels["slots"]}, bio={}) for e in examples("massive")]
    column = Column("mine", "entities")
    whole = only(build_table([write_cell(tmp_path / "a", cell, task=mine, scored=scored)]), column)
    assert not whole.parts
    assert not replace(figure, examples=(7532,), limited=(True,)).parts
    for i, (limited, parts) in enumerate([({"limited": True}, {N: True}), ({"limited": False}, {}), ({}, {N: False})]):
        outcome = write_cell(tmp_path / str(i), cell, task=mine, scored=scored, limit=N, **limited)
        assert only(build_table([outcome]), column).parts == parts, "an older result does not say whether it is a part"


# --- damaged results --------------------------------------------------------------------------------------------------


def edit(folder, change):
    path = folder / "results.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def set_accuracy(found):
    found["metrics"]["fields"]["group"]["accuracy"] = 0.99


def other_count(found):
    found["metrics"]["n_examples"] = N + 1


def twice(folder):
    edit(folder, lambda found: found.update(predictions="", metrics=found["metrics"] | {"n_examples": 2 * N}))
    text = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(text + text)


DAMAGES = {
    "another figure": (lambda f: edit(f, set_accuracy), "does not agree with predictions.jsonl.*40 examples"),
    "another number": (lambda f: edit(f, other_count), "does not agree with predictions.jsonl"),
    "a list": (lambda f: edit(f, lambda found: found.update(metrics=[])), "metrics"),
    "another task": (lambda f: edit(f, lambda found: found.update(task="20ng_7")), "is of the task 20ng_7"),
    "other fields": (lambda f: edit(f, lambda found: (
        found.update(fields={"g": "class"}), found["metrics"]["fields"].update(g={"accuracy": 0.5}))),
        "has the fields g, not those of 20ng_20"),
    "other shots": (lambda f: edit(f, lambda found: found.update(shots=5)), "is of 5 shots, not of 0"),
    "not JSON": (lambda f: (f / "results.json").write_text("{"), "not JSON"),
    "no results": (lambda f: (f / "results.json").unlink(), "is not a scored run"),
    "no predictions": (lambda f: (f / "predictions.jsonl").unlink(), "has no predictions.jsonl"),
    "a line changed": (lambda f: (f / "predictions.jsonl").write_text("{}\n"), "is not of the scoring"),
    "twice": (twice, "has an example twice"),
}  # fmt: skip


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_result_is_a_failure_in_the_table(damage, tmp_path):
    bad, good = write_cell(tmp_path, LLAMA), write_cell(tmp_path, replace(LLAMA, seed=1))
    spoil, why = DAMAGES[damage]
    spoil(bad.folder)
    table = build_table([bad, good], resamples=100)
    figure = only(table)
    assert (figure.state, figure.failed, len(figure.values)) == ("partial", 1, 1)
    assert list(table.failures) == [LLAMA] and "\n" not in table.failures[LLAMA]
    assert re.search(why, table.failures[LLAMA])
    assert [detail.cell for detail in table.details] == [good.cell]


def test_odd_values_beside_the_figures_do_not_end_the_table(tmp_path):
    outcome = write_cell(tmp_path, replace(LLAMA, task="massive_slots"))
    edit(outcome.folder, lambda found: found["metrics"]["fields"]["slots"].update(strict_f1={}))
    edit(outcome.folder, lambda found: found.update(settings={"limit": "x", "device": [1]}, cost={}, counts={}))
    (detail,) = build_table([outcome], resamples=100).details
    assert detail.fields[0].strict is None and detail.seconds is None and detail.cut_off is None


@pytest.mark.parametrize("other", ["O", "none"])
def test_a_users_name_for_words_without_an_entity(other, tmp_path):
    """results.json has it."""
    scored = []
    for example in examples("massive"):
        types = tuple(other if kind == "Other" else kind for kind in ("Other", *example.labels["slots"], "Other"))
        scored.append(dataclasses.replace(example, labels={"entities": types}, bio={}))
    outcome = write_cell(tmp_path, replace(LLAMA, task="mine"), task=word_task(other), scored=scored)
    table = build_table([outcome], resamples=100)
    stored = read_results(outcome.folder).metrics["fields"]["entities"]["f1"]
    assert only(table, Column("mine", "entities")).value == pytest.approx(stored, abs=1e-12)


def test_an_empty_study():
    table = build_table([])
    assert not (table.rows or table.columns or table.details or table.comparisons)


# --- costs and latencies ----------------------------------------------------------------------------------------------


def test_counts_and_costs_of_a_run(tmp_path):
    outcome = write_cell(tmp_path, replace(LLAMA, task="massive_joint"), lenient=True)
    results = read_results(outcome.folder)
    table = build_table([outcome, unfinished(tmp_path, LLAMA, "open")], resamples=100)
    (detail,) = table.details
    assert (detail.examples, detail.cut_off, detail.truncated) == (N, 3, 2)
    assert (detail.seconds, detail.prompt_tokens, detail.new_tokens) == (0.5, 100.0, 5.0)
    assert detail.unparsed == results.metrics["n_unparsed"] > 0
    assert [(own.name, own.figure) for own in detail.fields] == [("intent", "accuracy"), ("slots", "f1")]
    strict, lenient = figures(results), lenient_figures(results)
    assert [own.value for own in detail.fields] == pytest.approx([strict["intent accuracy"], strict["slots f1"]])
    assert [own.lenient for own in detail.fields] == [lenient["intent accuracy"], lenient["slots f1"]]
    assert detail.fields[0].lenient > detail.fields[0].value
    assert [own.strict for own in detail.fields] == [None, results.metrics["fields"]["slots"]["strict_f1"]]


def test_two_calls_against_one(tmp_path):
    def outcomes(seed, *tasks):
        seconds = {"20ng_20": 0.3, "20ng_7": 0.2, "20ng_joint": 0.25 * (1 + seed)}
        return [
            write_cell(tmp_path, replace(LLAMA, task=task, seed=seed), seconds=seconds[task], threads=2)
            for task in tasks
        ]

    (both,) = build_table(
        [*outcomes(0, "20ng_joint", "20ng_20", "20ng_7"), *outcomes(1, "20ng_joint", "20ng_7", "20ng_20")], 50
    ).latencies
    assert (both.row, both.dataset, both.seeds, both.differ) == (LLAMA.row, "20NG", 2, ())
    assert (both.dual, both.consolidated) == pytest.approx((0.5, 0.375))
    assert both.ratio == pytest.approx(0.5 / 0.375)
    # A seed without all three is left out, and so is a row without any such seed.
    (one,) = build_table([*outcomes(0, "20ng_joint", "20ng_20", "20ng_7"), *outcomes(1, "20ng_joint")], 50).latencies
    assert (one.seeds, one.ratio) == (1, pytest.approx(2.0))
    assert build_table(outcomes(0, "20ng_joint", "20ng_20"), 50).latencies == ()


def test_latencies_of_other_machines_are_marked(tmp_path):
    outcomes = [
        write_cell(tmp_path, replace(LLAMA, task=task), scored=examples("massive", n), device=device)
        for task, device, n in [("massive_joint", "a", 40), ("massive_intent", "b", 40), ("massive_slots", "b", 30)]
    ]
    (latency,) = build_table(outcomes, 50).latencies
    assert latency.differ == ("device", "number of examples")


# --- paired tests -----------------------------------------------------------------------------------------------------


def named(table):
    return {(c.what, c.cell.task, c.field, c.base): c for c in table.comparisons}


def test_consolidated_against_dual(tmp_path):
    cells = [replace(LLAMA, task=task) for task in ("massive_intent", "massive_slots", "massive_joint")]
    outcomes = [write_cell(tmp_path, cell, good) for cell, good in zip(cells, (0.6, 0.6, 0.9), strict=True)]
    found = named(build_table(outcomes, resamples=500))
    assert list(found) == [
        ("consolidated - dual", "massive_joint", "intent", cells[0]),
        ("consolidated - dual", "massive_joint", "slots", cells[1]),
        ("consolidated - dual", "massive_joint", "exact match", replace(LLAMA, task="massive_intent + massive_slots")),
    ]
    intent, slots, exact = found.values()
    dual, joint = (
        np.array([p.parsed["intent"] == p.gold["intent"] for p in read_predictions(o.folder)])
        for o in (outcomes[0], outcomes[2])
    )
    assert (intent.examples, intent.left_out, intent.difference.test) == (N, 0, "McNemar")
    assert intent.difference.value == pytest.approx(joint.mean() - dual.mean()) and intent.difference.value > 0
    assert intent.difference.p == mcnemar(dual, joint) < 0.1
    stored = [read_results(o.folder).metrics["fields"]["slots"]["f1"] for o in outcomes[1:]]
    assert slots.difference.value == pytest.approx(stored[1] - stored[0])
    assert slots.difference.test == "bootstrap" and slots.difference.interval.low > 0
    right = [
        {p.id: all(p.parsed[name] == p.gold[name] for name in p.gold) for p in read_predictions(o.folder)}
        for o in outcomes
    ]
    dual, joint = (
        np.array([own[id] for id in right[2]]) for own in ({i: right[0][i] and right[1][i] for i in right[0]}, right[2])
    )
    assert joint.mean() == read_results(outcomes[2].folder).metrics["exact_match"] > dual.mean()
    assert exact.difference.value == pytest.approx(joint.mean() - dual.mean())
    assert (exact.examples, exact.left_out, exact.difference.test) == (N, 0, "McNemar")
    assert exact.difference.p == mcnemar(dual, joint)


def test_exact_matches_of_examples_that_all_runs_have(tmp_path):
    cells = [replace(LLAMA, task=task) for task in ("massive_intent", "massive_slots", "massive_joint")]
    parts = [examples("massive", 30), examples("massive", 30, start=5), examples("massive", 30, start=8)]
    outcomes = [write_cell(tmp_path, cell, scored=part) for cell, part in zip(cells, parts, strict=True)]
    (exact,) = (c for c in build_table(outcomes, resamples=50).comparisons if c.field == "exact match")
    assert exact.examples == 30 - 8


def test_a_run_that_was_only_prompted_is_compared_with_all_seeds(tmp_path):
    cells = [*(replace(LLAMA, seed=seed) for seed in (1, 2)), replace(LLAMA, tuned=False)]
    outcomes = [write_cell(tmp_path, cell, good) for cell, good in zip(cells, (0.9, 0.9, 0.3), strict=True)]
    mean, *single = build_table(outcomes, resamples=50).comparisons
    assert mean.seeds == (1, 2) and [own.seeds for own in single] == [(1,), (2,)]
    assert {own.base for own in (mean, *single)} == {cells[2]}
    assert mean.difference.value == pytest.approx(np.mean([own.difference.value for own in single]))


def test_shots_of_several_seeds_against_the_only_one_without(tmp_path):
    """A model that was not fine-tuned answers the same without shots, whatever the seed: a study runs it once."""
    base = replace(LLAMA, tuned=False, shots=0, seed=0)
    cells = [base, *(replace(base, shots=5, seed=seed) for seed in (1, 2))]
    cells += [replace(base, variant="short", seed=3)]
    table = build_table([write_cell(tmp_path, cell) for cell in cells], resamples=100)
    shots, short, *single = table.comparisons
    assert (shots.what, shots.seeds, shots.base) == ("5 shots - 0 shots", (1, 2), base)
    assert (short.what, short.seeds, short.base) == ("short - no variant", (3,), base)
    assert [(c.cell, c.base) for c in single] == [(cell, base) for cell in cells[1:3]]


def test_tuned_against_untuned_and_shots_against_none(tmp_path):
    cells = [
        replace(LLAMA, tuned=tuned, shots=shots, seed=seed) for tuned in (True, False) for shots in (0, 5)
        for seed in (0, 1)
    ]  # fmt: skip
    cells += [replace(own, variant="short") for own in (LLAMA, cells[2])] + [replace(LLAMA, model="bert", shots=5)]
    table = build_table([write_cell(tmp_path, cell) for cell in cells], resamples=100)
    pairs = [(c.what, c.cell, c.base) for c in table.comparisons]
    tuned = [("fine-tuned - not fine-tuned", c, replace(c, tuned=False)) for c in cells[:4]]
    shots = [("5 shots - 0 shots", c, replace(c, shots=0)) for c in cells[:8] if c.shots]
    short = [("short - no variant", c, replace(c, variant="")) for c in cells[8:10]]
    assert len(shots) == 4
    means = [*tuned[::2], *shots[::2], ("5 shots - 0 shots", cells[9], cells[8]), *short]
    assert pairs == means + tuned + shots
    assert [c.seeds for c in table.comparisons] == [(0, 1)] * 4 + [(0,)] * 3 + [(0,), (1,)] * 4
    assert [c.of_several for c in table.comparisons] == [False] * 7 + [True] * 8
    mean, *single = (c.difference.value for c in table.comparisons if c.cell.shots == 0 and c.what.startswith("fine"))
    assert mean == pytest.approx(np.mean(single))


def test_only_common_examples_are_compared(tmp_path):
    cells = [replace(LLAMA, shots=shots) for shots in (0, 5)]
    changed = examples("20ng", 30, start=20)
    changed[0] = dataclasses.replace(changed[0], labels={"group": "misc.forsale"})  # another gold label
    outcomes = [write_cell(tmp_path, cells[0]), write_cell(tmp_path, cells[1], scored=changed)]
    (found,) = build_table(outcomes, resamples=300).comparisons
    assert (found.examples, found.left_out) == (19, 21 + 11)
    zero, five = ({p.id: p.parsed["group"] == p.gold["group"] for p in read_predictions(o.folder)} for o in outcomes)
    common = [f"20ng/test/{i}" for i in range(21, 40)]
    counts = [np.array([[own[i], 1, 1] for i in common], np.int32) for own in (zero, five)]
    assert found.difference.value == pytest.approx(compare_runs(*(own[:, None] for own in counts), True).value)
    apart = [write_cell(tmp_path / "apart", cells[1], scored=examples("20ng", 10, start=100))]
    (none,) = build_table([outcomes[0], *apart]).comparisons
    assert (none.examples, none.left_out, none.difference) == (0, 50, None)
