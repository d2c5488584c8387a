"""The table of the wording benchmark: a row for each figure of each run, strict beside lenient."""

from __future__ import annotations

from pathlib import Path

from benchmarks.wording import Options, report
from eval.results import Results


def run(task: str, accuracy: float, lenient: float) -> Results:
    field = {"20ng_7": "root", "massive_intent": "intent"}[task]
    both = [
        {"n_examples": 10, "n_unparsed": n, "exact_match": a, "fields": {field: {"accuracy": a}}}
        for a, n in ((accuracy, 4), (lenient, 1))
    ]
    return Results(task, task, {field: "class"}, "", "", both[0] | {"lenient": both[1]})


def test_every_figure_has_a_row() -> None:
    runs = {
        ("massive_intent", "clean", "never"): run("massive_intent", 0.1, 0.2),
        ("20ng_7", "paper", "yes"): run("20ng_7", 0.5, 0.6),
        ("20ng_7", "clean", "never"): run("20ng_7", 0.3, 0.3),
    }
    text = report(runs, Options(checkpoint=Path("x"), news="sample", massive="sample", limit=10))
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows[1:] == [
        "| 20ng_7 | never | clean | root accuracy | 30.0% | 30.0% | 4 | 1 |",
        "| 20ng_7 | yes | paper | root accuracy | 50.0% | 60.0% | 4 | 1 |",
        "| massive_intent | never | clean | intent accuracy | 10.0% | 20.0% | 4 | 1 |",
    ]
