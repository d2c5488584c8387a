"""The bins of the reliability diagram are those of the calibration error."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data.errors import UserError
from eval.calibration import N_BINS, calibration_error
from eval.page.probabilities import SureCounts, sure_parts
from eval.results import Prediction, Results
from tests.eval.page.runs import Read

METRICS = {"n_examples": 4, "n_unparsed": 0, "exact_match": 0.5, "fields": {"m": {"accuracy": 0.5, "ece": 0.125}}}


def prediction(p: float, right: bool) -> Prediction:
    return Prediction("a", {"m": "x"}, "", {"m": "x"}, top={"m": [["x" if right else "y", p], ["z", 0.0]]})


def counted(found: list[tuple[float, bool]]) -> SureCounts:
    counts = SureCounts("m")
    for p, right in found:
        counts.add(prediction(p, right))
    return counts


@pytest.mark.parametrize("edges", [False, True])
def test_bins_are_those_of_the_calibration_error(edges):
    draw = random.Random(0)
    found = [(draw.choice(np.linspace(0, 1, N_BINS + 1).tolist()) if edges else draw.random(), draw.random() < 0.7)
             for _ in range(700)]  # fmt: skip
    counts = counted(found)
    excess = sum(abs(right - total) for right, total in zip(counts.right, counts.total, strict=True))
    expected = calibration_error([p for p, _ in found], [right for _, right in found])
    assert excess / len(found) == pytest.approx(expected, abs=1e-12) and sum(counts.n) == len(found)
    bins = np.digitize([p for p, _ in found], np.linspace(0, 1, N_BINS + 1)[1:-1], right=True)
    assert counts.n == np.bincount(bins, minlength=N_BINS).tolist() and min(counts.n) > 0


def test_pictures_and_numbers():
    curve = [{"threshold": 0.9, "coverage": 0.5, "accuracy": 1.0}, {"threshold": 0.1, "coverage": 1.0, "accuracy": 0.5}]
    fields = {"m": {"answered": 0.5, "accuracy": 1.0}}
    more = {"coverage": {"m": curve}, "abstaining": {"below": 0.995, "answered": 0.5, "fields": fields}}
    results = Results("s", "t", {"m": "class"}, "d", "test", METRICS | more)
    results.settings["temperature"] = {"m": 1.5}
    counts = counted([(0.95, True), (0.97, True), (0.5, False), (0.52, False)])
    read = Read(sure_parts(counts, results))
    assert len(read.named("svg")) == 2 and not read.problems
    assert "Expected calibration error 12.50%, temperature 1.500." in read.texts
    assert "from a probability of 0.995 on, 50.0% of the answers are given; 100.0% of them are right" in read.text
    row = read.texts.index("93.3% to 100.0%")
    assert [text for text in read.texts[row:] if text][1:4] == ["2", "96.0%", "100.0%"]
    results.metrics = METRICS
    assert len(Read(sure_parts(counts, results)).named("svg")) == 1, "no curve, no abstaining"


@pytest.mark.parametrize("change", [{"coverage": {"m": [{"coverage": "1"}]}}, {"coverage": 3}, {"abstaining": []}])
def test_damaged_curves_are_named(change):
    results = Results("s", "t", {"m": "class"}, "d", "test", METRICS | change)
    with pytest.raises(UserError, match=f"results.json: metrics.{next(iter(change))}"):
        sure_parts(counted([(0.9, True)]), results)


def test_answers_without_probabilities_are_counted():
    counts = SureCounts("m")
    counts.add(Prediction("a", {"m": "x"}, "", {"m": "x"}))
    assert counts.n_without == 1 and sum(counts.n) == 0
