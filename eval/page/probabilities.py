"""How sure the answers to a class field are: calibration, and what abstaining gains."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from data.files.documents import shaped
from eval.calibration import N_BINS
from eval.metrics import ratio
from eval.page import charts
from eval.page.html import Html, details, joined, note, table, tag
from eval.page.intervals import wilson
from eval.probabilities import confidence
from eval.results import RESULTS, Prediction, Results

EDGES = np.linspace(0, 1, N_BINS + 1)


class _Point(msgspec.Struct):
    coverage: float
    accuracy: float


class _Answered(msgspec.Struct):
    answered: float
    accuracy: float | None


class _Abstaining(msgspec.Struct):
    below: float
    fields: dict[str, _Answered]


@dataclass
class SureCounts:
    """Answers to a class field by the probability of their label, in the bins of `calibration_error`.

    Attributes:
        n, right: answers and right ones in each bin.
        total: the sum of the probabilities in each bin.
        n_without: answers without a probability.
    """

    name: str
    n: list[int] = field(default_factory=lambda: [0] * N_BINS)
    right: list[int] = field(default_factory=lambda: [0] * N_BINS)
    total: list[float] = field(default_factory=lambda: [0.0] * N_BINS)
    n_without: int = 0

    def add(self, prediction: Prediction) -> None:
        if not prediction.top.get(self.name):
            self.n_without += 1
            return
        p = confidence(prediction, self.name)
        # A bin has its upper bound, not its lower one.
        at = min(max(int(np.searchsorted(EDGES, p, side="left")) - 1, 0), N_BINS - 1)
        self.n[at] += 1
        self.total[at] += p
        self.right[at] += prediction.top[self.name][0][0] == prediction.gold[self.name]


def sure_parts(counts: SureCounts, results: Results) -> Html:
    """The reliability diagram and the coverage curve of a field whose answers have probabilities."""
    parts, figures = [_reliability(counts)], results.metrics["fields"][counts.name]
    curves: dict[str, list[_Point]] = shaped(
        results.metrics.get("coverage", {}), f"{RESULTS}: metrics.coverage", dict[str, list[_Point]]
    )
    if points := curves.get(counts.name):
        parts.append(charts.coverage([point.coverage for point in points], [point.accuracy for point in points]))
    text = [f"Expected calibration error {figures['ece']:.2%}"] if isinstance(figures.get("ece"), float) else []
    if counts.name in results.temperatures:
        text.append(f"temperature {results.temperatures[counts.name]:.3f}")
        if isinstance(figures.get("ece_uncalibrated"), float):
            text.append(f"without it {figures['ece_uncalibrated']:.2%}")
    rows = [
        (f"{EDGES[i]:.1%} to {EDGES[i + 1]:.1%}", f"{n:,}", f"{counts.total[i] / n:.1%}", f"{counts.right[i] / n:.1%}")
        for i, n in enumerate(counts.n) if n
    ]  # fmt: skip
    head = ("probability", "answers", "mean probability", "accuracy")
    return joined(
        tag("p", ", ".join(text) + ".") if text else Html(),
        tag("div", *parts, class_="charts"),
        note(f"{counts.n_without:,} answers have no probability and are not counted here.")
        if counts.n_without
        else Html(),
        _abstaining(counts.name, results),
        details("The numbers", table(head, rows)),
    )


def _reliability(counts: SureCounts) -> Html:
    filled = [i for i, n in enumerate(counts.n) if n]
    return charts.reliability(
        [counts.total[i] / counts.n[i] for i in filled],
        [ratio(counts.right[i], counts.n[i]) for i in filled],
        [wilson(counts.right[i], counts.n[i]) for i in filled],
        counts.n,
        EDGES.tolist(),
    )


def _abstaining(name: str, results: Results) -> Html:
    if "abstaining" not in results.metrics:
        return Html()
    found: _Abstaining = shaped(results.metrics["abstaining"], f"{RESULTS}: metrics.abstaining", _Abstaining)
    own = found.fields.get(name)
    if own is None:
        return Html()
    right = "" if own.accuracy is None else f"; {own.accuracy:.1%} of them are right"
    return note(
        f"With labels given from a probability of {found.below} on, {own.answered:.1%} of the answers are given{right}."
    )
