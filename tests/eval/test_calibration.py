"""Temperature, calibration error and coverage against scipy, scikit-learn and plain counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve

from data.tasks import ClassField
from eval.calibration import (
    COLDEST,
    HOTTEST,
    N_BINS,
    calibration_error,
    coverage_curve,
    fit_temperature,
    scaled,
)
from eval.probabilities import probability_figures
from eval.results import Prediction


def draw(n, n_labels, temperature, seed=0, size=3.0):
    """Logits, and gold labels that were drawn with these logits at a temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, n_labels)) * size
    p = np.exp(log_softmax(logits / temperature, axis=-1))
    return logits, [int(random.choice(n_labels, p=own)) for own in p]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 100.0])
def test_scaled_is_the_log_softmax_of_scipy(temperature):
    logits = np.random.default_rng(1).normal(size=(7, 5)) * 30
    assert scaled(logits, temperature) == pytest.approx(log_softmax(logits / temperature, axis=-1), abs=1e-12)
    assert scaled(log_softmax(logits, axis=-1), temperature) == pytest.approx(scaled(logits, temperature), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_with_which_labels_were_drawn_is_found(temperature):
    logits, gold = draw(20_000, 6, temperature)
    assert fit_temperature(logits, gold) == pytest.approx(temperature, rel=0.03)
    # log-probabilities are logits; twice the logits need twice the temperature
    assert fit_temperature(log_softmax(logits, axis=-1), gold) == pytest.approx(fit_temperature(logits, gold), rel=1e-9)
    assert fit_temperature(2 * logits, gold) == pytest.approx(2 * fit_temperature(logits, gold), rel=1e-3)


@pytest.mark.parametrize("n", [1, 3, 30, 300])
def test_the_temperature_is_the_minimum_that_scipy_finds(n):
    logits, gold = draw(n, 4, 1.7, seed=n)

    def loss(inverse):
        of_gold = log_softmax(logits * inverse, axis=-1)[np.arange(n), gold]
        return -of_gold.sum() + inverse - 1 - np.log(inverse)

    best = minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, gold) == pytest.approx(1 / best.x, rel=1e-4)


def test_few_examples_hardly_move_it_and_none_do_not():
    assert fit_temperature(np.zeros((0, 3)), []) == 1.0
    right = np.array([[2.0, 0.0, 0.0]])
    assert 0.6 < fit_temperature(right, [0]) < 1 < fit_temperature(right, [1]) < 4
    # all right: surer with every example, never as if no mistake were possible
    found = [fit_temperature(np.repeat(right, n, axis=0), [0] * n) for n in (1, 10, 100, 1000)]
    assert found == sorted(found, reverse=True) and found[-1] > 0.15
    assert 0.001 < 1000 * (1 - np.exp(scaled(right, found[-1]).max())) < 1
    # all wrong: the labels say nothing, which the largest temperature says
    assert fit_temperature(np.repeat(right, 1000, axis=0), [1] * 1000) == HOTTEST
    assert fit_temperature(np.repeat(right / 100, 100_000, axis=0), [0] * 100_000) == COLDEST
    assert fit_temperature(np.zeros((5, 3)), [0] * 5) == pytest.approx(1.0)  # nothing to scale


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 40, 5000])
def test_calibration_error_is_that_of_scikit_learns_bins(n, seed):
    random = np.random.default_rng(seed)
    p = random.uniform(size=n).round(2) if seed % 2 else random.beta(5, 1, size=n)  # on the bounds of bins, too
    correct = random.uniform(size=n) < p**2
    accuracy, mean = calibration_curve(correct, p, n_bins=N_BINS, strategy="uniform")
    counts = [sum(1 for x in p if (x > low or low == 0) and x <= high) for low, high in bounds()]
    shares = np.array([c for c in counts if c]) / n
    assert calibration_error(p, correct) == pytest.approx(float(np.abs(accuracy - mean) @ shares), abs=1e-12)


def bounds():
    edges = np.linspace(0, 1, N_BINS + 1)
    return zip(edges[:-1], edges[1:], strict=True)


def test_calibration_error_by_hand():
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    assert calibration_error([0.9, 0.9, 0.2, 0.2], [True, True, False, True]) == pytest.approx((0.2 + 0.6) / 4)
    # 0.2 is the upper bound of a bin, and 0.25 is in the next one
    assert calibration_error([0.2, 0.2, 0.25], [True, True, False]) == pytest.approx((1.6 + 0.25) / 3)
    assert calibration_error([], []) == 0.0


@pytest.mark.parametrize("n", [1, 7, 20, 333])
def test_the_coverage_curve_is_what_counting_gives(n):
    random = np.random.default_rng(n)
    p = random.uniform(size=n).round(1 if n == 333 else 6)  # with many equal ones
    correct = random.uniform(size=n) < p
    curve = coverage_curve(p, correct)
    assert 1 <= len(curve) <= 20 and (n < 20 or n == 333 or len(curve) == 20)
    for point in curve:
        given = [ok for x, ok in zip(p, correct, strict=True) if x >= point["threshold"]]
        assert point["coverage"] == len(given) / n
        assert point["accuracy"] == pytest.approx(sum(given) / len(given))
    shares = [point["coverage"] for point in curve]
    assert shares == sorted(set(shares)) and shares[-1] == 1.0
    for k in range(1, 21):
        assert any(k / 20 - 1e-9 <= share for share in shares)
        strict = min(share for share in shares if share >= k / 20 - 1e-9)
        fewer = [point["threshold"] for point in curve if point["coverage"] == strict]
        assert sum(x > fewer[0] for x in p) < -(-k * n // 20), "a larger threshold would do"
    assert coverage_curve([], []) == []


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_the_accuracies_of_the_surest_80_and_90_percent(temperature):
    field = ClassField("m", ("x", "y"))
    confidences = [0.99, 0.95, 0.93, 0.9, 0.87, 0.85, 0.8, 0.75, 0.7, 0.6]
    right = [True, True, False, True, True, True, True, True, False, True]  # 7 of the first 8, 7 of 9, 8 of 10
    order = [7, 2, 9, 0, 5, 1, 8, 3, 6, 4]  # predictions are not sorted
    predictions, gold = [], []
    for i in order:
        p = confidences[i]
        logits = np.log([p, 1 - p]).tolist()
        predictions.append(Prediction(str(i), {}, "", {"m": "x"}, log_probs={"m": logits}, top={"m": [["x", p]]}))
        gold.append("x" if right[i] else "y")
    figures, curve = probability_figures(field, gold, predictions, temperature)
    assert figures["accuracy_at_80"] == pytest.approx(7 / 8) and figures["accuracy_at_90"] == pytest.approx(7 / 9)
    assert curve[-1] == {"threshold": 0.6, "coverage": 1.0, "accuracy": pytest.approx(8 / 10)}
