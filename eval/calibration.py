"""Does a probability mean what it says? Temperature, calibration error, and what abstaining gains. Numbers only.

Letters: N examples, L labels of a class field.

    temperature   p_T = softmax(log p / T). T above 1 makes every answer less sure, T below 1 surer; none changes
    error         |share of right answers - mean probability|, averaged over answers of about the same probability
    coverage      answers below a threshold are not given: how many are left, and how many of these are right
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

N_BINS = 15  # of the calibration error; as in Guo et al., "On Calibration of Modern Neural Networks" (2017)
N_POINTS = 20  # of the coverage curve
COLDEST, HOTTEST = 0.05, 20.0  # temperatures
HALVINGS = 60  # of the interval of log(1 / T): less than a float's precision is left


def scaled(log_probs: ArrayLike, temperature: float) -> Floats:
    """The log-probabilities at a temperature; the last dimension is the labels. Any logits will do."""
    scores = np.asarray(log_probs, dtype=np.float64) / temperature
    scores = scores - scores.max(axis=-1, keepdims=True)
    found: Floats = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return found


def fit_temperature(log_probs: ArrayLike, gold: Sequence[int]) -> float:
    """The temperature with which the gold labels are most probable.

    With b = 1 / T it is the minimum of

        sum over examples of -log p_T(gold)   +   b - 1 - log(b)

    The second part says that T is 1, as strongly as one example can. With many examples it does not matter. Without it
    the minimum would be T = 0 if every answer is right. Both parts are convex in b, so there is one minimum.

    Args:
        log_probs: [N, L], or logits.
        gold: [N] indices.

    Returns:
        a value in [COLDEST, HOTTEST]; 1.0 without examples.
    """
    scores = np.asarray(log_probs, dtype=np.float64)
    if not len(scores):
        return 1.0
    own = scores[np.arange(len(scores)), np.asarray(gold)]

    def slope(inverse: float) -> float:
        expected = (np.exp(scaled(scores, 1 / inverse)) * scores).sum(axis=-1)
        return float((expected - own).sum() + 1 - 1 / inverse)

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(np.exp(middle)) > 0 else (middle, high)
    return float(np.clip(np.exp(-(low + high) / 2), COLDEST, HOTTEST))


def calibration_error(probabilities: ArrayLike, correct: ArrayLike) -> float:
    """The expected calibration error of the most probable labels.

    Answers are sorted into `N_BINS` bins of equal width by the probability of their label; a bin has its upper bound,
    not its lower one. The error is the mean over answers of |accuracy - mean probability| of their bin.

    Args:
        probabilities: [N], of the most probable label of each example.
        correct: [N], whether this label is right.
    """
    p, right = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    bins = np.digitize(p, np.linspace(0, 1, N_BINS + 1)[1:-1], right=True)
    excess = np.bincount(bins, weights=right - p, minlength=N_BINS)
    return float(np.abs(excess).sum() / max(len(p), 1))


def coverage_curve(probabilities: ArrayLike, correct: ArrayLike) -> list[dict[str, float]]:
    """How many answers are given, and how many of them are right, for thresholds from strict to none.

    Args: see `calibration_error`.

    Returns:
        up to `N_POINTS` points ``{"threshold", "coverage", "accuracy"}``: the answers whose probability is at least the
        threshold, as a share of all, and the share of right ones among them. The thresholds are the largest with which
        at least 5%, 10%, ... 100% are answered. Equal probabilities are answered together, so there may be fewer
        points, and more may be answered.
    """
    p, right = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    order = np.argsort(-p, kind="stable")
    sorted_p, right_until = p[order], right[order].cumsum()
    points = dict[int, dict[str, float]]()
    for k in range(1, N_POINTS + 1 if len(p) else 1):
        threshold = sorted_p[-(-k * len(p) // N_POINTS) - 1]
        n = int(np.searchsorted(-sorted_p, -threshold, side="right"))
        points[n] = {"threshold": float(threshold), "coverage": n / len(p), "accuracy": float(right_until[n - 1] / n)}
    return list(points.values())
