"""Confusion matrices and the figures of labels, against scikit-learn on every single answer."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from data.example import Example
from eval.metrics import class_metrics
from eval.page import classes
from eval.page.classes import ClassCounts, confused, label_scores, matrix, occurring, scores_table
from eval.page.texts import Texts
from tests.eval.page.runs import Read


def answers(n_labels: int, n: int, seed: int = 0) -> list[tuple[str, str | None]]:
    draw = random.Random(seed)
    labels = [f"label {i}" for i in range(n_labels)]
    found: list[tuple[str, str | None]] = []
    for _ in range(n):
        gold = draw.choice(labels)
        found.append((gold, None if draw.random() < 0.1 else gold if draw.random() < 0.6 else draw.choice(labels)))
    return found


def counted(pairs: list[tuple[str, str | None]]) -> ClassCounts:
    counts = ClassCounts("mood")
    for i, (gold, answer) in enumerate(pairs):
        counts.add(f"example {i}", gold, answer)
    return counts


@pytest.mark.parametrize("n_labels", [1, 2, 7, 60])
def test_figures_are_those_of_scikit_learn(n_labels):
    pairs = [*answers(n_labels, 900), ("only gold", "label 0"), ("label 0", "only answered")]
    counts, labels = counted(pairs), occurring(Counter(pairs))
    scores = label_scores(counts.pairs, labels)
    gold, given = [g for g, _ in pairs], ["\0" if p is None else p for _, p in pairs]
    expected = precision_recall_fscore_support(gold, given, labels=labels, zero_division=0)
    found = [[own.precision, own.recall, own.f1, own.n_gold] for own in scores]
    assert np.array(found) == pytest.approx(np.array(expected).T, abs=1e-12)
    assert sum(own.n_predicted for own in scores) == sum(p is not None for _, p in pairs)
    metrics = class_metrics(gold, [p for _, p in pairs])
    assert np.mean([own.f1 for own in scores]) == pytest.approx(metrics["macro_f1"], abs=1e-12)
    assert counts.n_right / len(pairs) == metrics["accuracy"]


def cells_of(shown: str) -> tuple[list[str], list[str], np.ndarray]:
    """Columns, rows and numbers of a matrix, from the titles of its cells; the last column is the row's total."""
    head, *body = re.findall(r"<tr>(.*?)</tr>", shown)
    columns, names, rows = Read(head).texts[1:], [], []
    for line in body:
        name, *cells = re.split(r"(?=<td)", line)
        names.append(Read(name).text)
        titles = [re.search(r'title="([\d,]+):', cell) for cell in cells[:-1]]
        numbers = [int(title[1].replace(",", "")) if title else 0 for title in titles]
        rows.append([*numbers, int(Read(cells[-1]).text.replace(",", ""))])
    return columns, names, np.array(rows)


@pytest.mark.parametrize("n_labels", [3, 20, 60])
def test_a_matrix_has_every_answer(n_labels):
    pairs = answers(n_labels, 3000)
    labels = sorted({g for g, _ in pairs})
    shown = matrix(counted(pairs).pairs, labels)
    columns, names, numbers = cells_of(shown)
    assert columns == [*labels, "unparsed"] and names == labels
    given = ["unparsed" if p is None else p for _, p in pairs]
    expected = confusion_matrix([g for g, _ in pairs], given, labels=columns)[:-1]
    assert (numbers[:, :-1] == expected).all() and (numbers[:, -1] == expected.sum(axis=1)).all()
    has_numbers = bool(re.search(r'<td class="[re]\d+" title="[^"]*">\d', shown))
    assert has_numbers == (n_labels <= classes.COUNTED_LABELS)


def test_colours_are_shares_of_the_row():
    counts = counted([("a", "a")] * 96 + [("a", "b")] * 4 + [("b", "a")] * 10)
    shown = matrix(counts.pairs, ["a", "b"])
    assert re.findall(r'<td class="([re]\d+)" title="([^"]*)"', shown) == [
        ("r10", "96: 96.0%"), ("e2", "4: 4.0%"), ("e10", "10: 100.0%"),
    ]  # fmt: skip
    assert "unparsed" not in shown


def test_of_many_labels_the_matrix_has_those_with_errors():
    pairs = [(f"label {i:03}", f"label {i:03}") for i in range(500)] * 2
    pairs += [("label 007", "label 300"), ("label 400", None), ("label 007", "label 007")]
    columns, names, numbers = cells_of(matrix(counted(pairs).pairs, sorted({g for g, _ in pairs})))
    assert names == ["label 007", "label 300", "label 400", "497 others"] and columns == [*names, "unparsed"]
    assert numbers.tolist() == [[3, 1, 0, 0, 0, 4], [0, 2, 0, 0, 0, 2], [0, 0, 2, 0, 1, 3], [0, 0, 0, 994, 0, 994]]
    pairs = [(f"label {i:03}", None if i else "label 000") for i in range(classes.MATRIX_LABELS + 1)]
    shown = matrix(counted(pairs).pairs, sorted({g for g, _ in pairs}))
    assert cells_of(shown)[1] == sorted({g for g, _ in pairs}) and "share a row" not in shown, "one is not pooled"
    pairs = answers(100, 5000)
    columns, names, numbers = cells_of(matrix(counted(pairs).pairs, sorted({g for g, _ in pairs})))
    assert len(names) == classes.MATRIX_LABELS + 1 and columns[-2:] == ["20 others", "unparsed"]
    assert (numbers[:, :-1].sum(axis=1) == numbers[:, -1]).all() and numbers[:, -1].sum() == 5000


def test_the_order_of_labels():
    pairs = Counter({("b", "a"): 1, ("z", None): 1, ("c", "b"): 2})
    assert occurring(pairs, ["c", "x", "b", "a"]) == ["c", "b", "a", "z"]
    rows = re.findall(r"<th><bdi[^>]*>(.*?)</bdi>", scores_table(label_scores(pairs, ["a", "b", "c", "z"])))
    assert rows == ["c", "b", "z", "a"], "all have an F1 of 0: the most frequent first"


def test_the_most_confused_pairs_have_texts():
    pairs = [("a", "b")] * 3 + [("b", "a")] * 5 + [("c", "a"), ("a", "a"), ("c", None)]
    counts = counted(pairs)
    texts = Texts({f"example {i}": Example(f"example {i}", f"text {i} " + "x" * 900, {}) for i in range(len(pairs))})
    read = Read(confused(counts, texts))
    assert re.findall(r"([abc]) → ([abc])  (\d) of (\d)", read.text) == [
        ("b", "a", "5", "5"), ("a", "b", "3", "4"), ("c", "a", "1", "2"),
    ]  # fmt: skip
    assert [word for word in re.findall(r"text (\d+)", read.text)] == ["3", "4", "0", "1", "8"]
    assert "(907 characters)" in read.text and "x" * 300 not in read.text
    assert "example" not in Read(confused(counts, Texts(why_not="no data"))).text
    assert "No label was taken" in confused(counted([("a", "a"), ("a", None)]), texts)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(classes, "PAIRS_WITH_TEXTS", 5)
    counts = counted([("a", f"b{i}") for i in range(50)] + [("a", "b0")] * 9)
    assert len(counts.ids) == 5 and len(counts.ids["a", "b0"]) == 2 and counts.pairs["a", "b0"] == 10
