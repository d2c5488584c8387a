"""Multi fields in scores: the figures are scikit-learn's, in results, tables, combined runs and baselines."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from data.answers import Parsed
from data.errors import UserError
from data.example import Example
from data.tasks import ClassField, MultiField, Task
from eval.baselines import majority, tfidf_lr
from eval.combine import combine
from eval.metrics import compute_metrics, main_figures, multi_metrics, selection_metric
from eval.report import details_table
from eval.results import Prediction, Results, field_kinds, read_predictions, read_results, write_run

LABELS = ("billing", "refund", "late", "never")
TOPICS = MultiField("topics", LABELS)
ONE, JOINT = Task("mail", "custom", (TOPICS,)), Task("mail", "custom", (ClassField("queue", ("a", "b")), TOPICS))
Sets = list[tuple[str, ...]]


def some_sets(n: int, rng: random.Random, rate: float = 0.4) -> Sets:
    return [tuple(label for label in LABELS[:3] if rng.random() < rate) for _ in range(n)]


def as_flags(sets: Sets, labels: list[str]) -> np.ndarray:
    return np.array([[label in own for label in labels] for own in sets], dtype=int)


@pytest.mark.parametrize("seed", range(20))
def test_the_figures_are_those_of_scikit_learn(seed: int) -> None:
    rng = random.Random(seed)
    gold, predicted = some_sets(30, rng), some_sets(30, rng, rng.choice([0.0, 0.2, 0.9]))
    found = multi_metrics(gold, [tuple(rng.sample(own, len(own))) for own in predicted])
    labels = sorted({label for own in gold + predicted for label in own})
    flags = as_flags(gold, labels), as_flags(predicted, labels)
    for average in ("micro", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(*flags, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(f1)
        if average == "micro":
            assert (found["micro_precision"], found["micro_recall"]) == pytest.approx((precision, recall))
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(*flags))
    each = precision_recall_fscore_support(*flags, average=None, zero_division=0)
    assert list(found["per_label"]) == labels
    for label, *values in zip(labels, *each, strict=True):
        own = found["per_label"][label]
        assert [own["precision"], own["recall"], own["f1"], own["support"]] == pytest.approx(values)


def test_an_unparsed_answer_has_no_labels_and_is_never_right() -> None:
    gold = [("billing",), (), ()]
    found = multi_metrics(gold, [None, None, ()])
    assert found["n_unparsed"] == 2 and found["subset_accuracy"] == pytest.approx(1 / 3)
    assert found["per_label"] == {"billing": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}}
    assert multi_metrics([], [])["micro_f1"] == multi_metrics([()], [()])["macro_f1"] == 0.0
    assert multi_metrics([()], [()])["subset_accuracy"] == 1.0


def test_figures_of_a_joint_task() -> None:
    examples = [Example(str(i), "x", {"queue": "a", "topics": topics}) for i, topics in enumerate([("late",), ()])]
    answers = [Parsed({"queue": "a", "topics": ("late",)}, ()), Parsed({"queue": "a", "topics": ("late",)}, ())]
    metrics = compute_metrics(JOINT, examples, answers)
    assert metrics["exact_match"] == 0.5 and metrics["fields"]["topics"]["subset_accuracy"] == 0.5
    figures = main_figures(JOINT, metrics)
    assert figures == {"queue accuracy": 1.0, "topics micro f1": pytest.approx(2 / 3), "exact match": 0.5}
    assert selection_metric(JOINT, metrics) == pytest.approx((1 + 2 / 3) / 2)


def write(folder: Path, task: Task, gold: dict[str, list], parsed: dict[str, list]) -> Results:
    predictions = [
        Prediction(
            str(i),
            {name: values[i] for name, values in gold.items()},
            "",
            {name: values[i] for name, values in parsed.items()},
            multi_top={"topics": [["late", 0.9]]} if "topics" in gold else {},
        )
        for i in range(len(next(iter(gold.values()))))
    ]
    metrics = compute_metrics(task, [p.example for p in predictions], predictions)
    results = Results(str(folder.name), task.name, field_kinds(task), "own", "test", metrics)
    write_run(folder, results, predictions)
    assert read_results(folder) == results and read_predictions(folder, results) == predictions
    return results


def test_results_come_back_and_can_be_combined(tmp_path: Path) -> None:
    gold = [("billing", "late"), (), ("late",)]
    parsed = [("late", "billing"), (), None]
    write(tmp_path / "topics", ONE, {"topics": gold}, {"topics": parsed})
    queue = Task("queue", "custom", JOINT.fields[:1])
    write(tmp_path / "queue", queue, {"queue": ["a", "b", "a"]}, {"queue": ["a", "a", "a"]})
    both = combine(tmp_path / "queue", tmp_path / "topics", tmp_path / "both")
    assert both.fields == {"queue": "class", "topics": "multi"}
    assert both.metrics["exact_match"] == pytest.approx(1 / 3)
    assert both.metrics["fields"]["topics"] == read_results(tmp_path / "topics").metrics["fields"]["topics"]
    assert read_predictions(tmp_path / "both")[0].multi_top == {"topics": [["late", 0.9]]}


def test_predictions_of_another_kind_are_refused(tmp_path: Path) -> None:
    results = write(tmp_path, ONE, {"topics": [("late",)]}, {"topics": [("late",)]})
    with pytest.raises(UserError, match="gold and parsed must have a label of 'topics'"):
        read_predictions(tmp_path, replace(results, fields={"topics": "class"}))
    file = tmp_path / "predictions.jsonl"
    file.write_text(file.read_text().replace('"parsed": {"topics": ["late"]}', '"parsed": {"topics": "late"}'))
    with pytest.raises(UserError, match="gold and parsed must have a list of labels of 'topics'"):
        read_predictions(tmp_path, results)


def test_the_table_has_the_figures_of_each_label(tmp_path: Path) -> None:
    results = write(tmp_path, ONE, {"topics": [("late", "billing")] * 2}, {"topics": [("late",)] * 2})
    console = Console(width=200, record=True, file=(tmp_path / "screen").open("w"))
    console.print(details_table(results))
    shown = console.export_text()
    assert "f1 100.00%, precision 100.00%, recall 100.00%, support 2" in shown and "subset accuracy" in shown
    many = Task("mail", "custom", (MultiField("topics", tuple(f"l{i:02}" for i in range(40))),))
    results = write(tmp_path, many, {"topics": [many.fields[0].labels]}, {"topics": [()]})
    console.print(details_table(results))
    assert "10 more" in console.export_text()


TEXTS = ["the bill is wrong", "money back please", "the parcel is late", "hello there"]


def test_baselines() -> None:
    rng = random.Random(0)
    examples = []
    for i, topics in enumerate(some_sets(80, rng)):
        words = [TEXTS[3], *(TEXTS[LABELS.index(label)] for label in topics)]
        examples.append(Example(str(i), " ".join(rng.sample(words, len(words))), {"topics": topics, "queue": "a"}))
    train, test = examples[:60], examples[60:]
    most_frequent = max({e.labels["topics"] for e in train}, key=[e.labels["topics"] for e in train].count)
    assert {answer["topics"] for answer in majority(JOINT, train, test)} == {most_frequent}
    answers = tfidf_lr(JOINT, train, test)
    found = multi_metrics([e.label_set("topics") for e in test], [answer["topics"] for answer in answers])
    assert found["micro_f1"] > 0.95 and "never" not in found["per_label"]
    assert {answer["queue"] for answer in answers} == {"a"}
    always = [Example(str(i), text, {"topics": ("late",)}) for i, text in enumerate(TEXTS)]
    assert tfidf_lr(ONE, always, always) == [{"topics": ("late",)}] * 4, "no label has both kinds of examples"
