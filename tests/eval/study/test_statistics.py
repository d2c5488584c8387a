"""Intervals and tests against scipy, against exact distributions, and by hand; counts against `eval.metrics`."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats

from data.tasks import ClassField, MultiField, TokenField
from eval.metrics import class_metrics, multi_metrics, token_metrics
from eval.study import statistics
from eval.study.statistics import (
    aligned,
    bootstrap_interval,
    bootstrap_p,
    common,
    compare_runs,
    example_counts,
    f1,
    mcnemar,
    wilson_interval,
)

TYPES = ["date", "time", "place_name", "e-mail", "-dash", "B", "I-x", "O"]


def random_types(rng, n_words):
    types = []
    while len(types) < n_words:
        types += [rng.choice([*TYPES, "Other", "Other", "Other"])] * rng.randint(1, 3)
    return tuple(types[:n_words])


def random_counts(n, seed, part_right=0.7):
    rng = np.random.default_rng(seed)
    wanted, given = rng.integers(0, 5, n), rng.integers(0, 5, n)
    right = rng.binomial(np.minimum(wanted, given), part_right)
    return np.stack([right, given, wanted], axis=1).astype(np.int32)


def accuracy_counts(right):
    return np.stack([right, np.ones_like(right), np.ones_like(right)], axis=-1).astype(np.int32)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["Other", "O"])
def test_counts_of_token_fields_sum_to_the_main_f1(other):
    rng = random.Random(0)
    gold = [random_types(rng, rng.randint(1, 9)) for _ in range(500)]
    answers: list = []
    for types in gold:
        changed = [kind if rng.random() < 0.8 else rng.choice(TYPES) for kind in types]
        cut = rng.choice([len(types), len(types), len(types) - 1, len(types) + 2])
        answers.append(None if rng.random() < 0.1 else (*changed, "date", "date")[:cut])
    assert any(a is not None and len(a) < len(g) for a, g in zip(answers, gold, strict=True))
    assert any(a is not None and len(a) > len(g) for a, g in zip(answers, gold, strict=True))
    field = TokenField("slots", tuple(TYPES), other)
    sums = np.array([example_counts(field, g, a) for g, a in zip(gold, answers, strict=True)]).sum(0)
    scored = token_metrics(gold, answers, other, [None] * len(gold))
    assert f1(sums) == pytest.approx(scored["f1"], abs=1e-12) and 0.3 < scored["f1"] < 0.9
    assert sums[0] / sums[1] == pytest.approx(scored["precision"], abs=1e-12)
    assert sums[0] / sums[2] == pytest.approx(scored["recall"], abs=1e-12)


def test_equal_neighbours_are_one_entity_and_an_unparsed_answer_has_none():
    field = TokenField("slots", ("time", "date"))
    gold = ("time", "time", "Other", "date")
    assert example_counts(field, gold, ("time", "time", "Other", "date")) == (2, 2, 2)
    assert example_counts(field, gold, ("time", "Other", "Other", "date")) == (1, 2, 2)
    assert example_counts(field, gold, ("time", "time")) == (1, 1, 2)
    assert example_counts(field, gold, None) == (0, 0, 2)
    assert example_counts(field, (), None) == (0, 0, 0)


def test_counts_of_multi_fields_sum_to_micro_f1():
    rng = random.Random(1)
    labels = ("a", "b", "c", "d")
    gold = [tuple(x for x in labels if rng.random() < 0.4) for _ in range(300)]
    answers = [None if rng.random() < 0.1 else tuple(x for x in labels if rng.random() < 0.4) for _ in range(300)]
    field = MultiField("topics", labels)
    sums = np.array([example_counts(field, g, a) for g, a in zip(gold, answers, strict=True)]).sum(0)
    assert f1(sums) == pytest.approx(multi_metrics(gold, answers)["micro_f1"], abs=1e-12)


def test_the_f1_of_a_class_field_is_its_accuracy():
    rng = random.Random(2)
    gold = [rng.choice("abc") for _ in range(300)]
    answers = [rng.choice(["a", "b", "c", None]) for _ in gold]
    sums = np.array([example_counts(ClassField("x", tuple("abc")), *pair) for pair in zip(gold, answers, strict=True)])
    assert f1(sums.sum(0)) == pytest.approx(class_metrics(gold, answers)["accuracy"], abs=1e-12)


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    [  # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_known_wilson_intervals(n_right, n, low, high):
    found = wilson_interval(n_right, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_without_examples_nothing_is_known():
    assert wilson_interval(0, 0) == statistics.Interval(0.0, 1.0)
    found = bootstrap_interval(np.zeros((0, 2, 3), np.int32))
    assert (found.low, found.high) == (0.0, 0.0)


@pytest.mark.parametrize("drawn_at_once", [4_000_000, 5000])
def test_the_bootstrap_of_f1_is_that_of_scipy(drawn_at_once, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", drawn_at_once)
    counts = random_counts(400, 0)

    def statistic(right, given, wanted, axis):
        return 2 * right.sum(axis) / (given.sum(axis) + wanted.sum(axis))

    theirs = scipy.stats.bootstrap(
        tuple(counts.T), statistic, paired=True, vectorized=True, method="percentile", n_resamples=20_000, batch=1000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = bootstrap_interval(counts[:, None], resamples=20_000)
    width = theirs.high - theirs.low
    assert 0.03 < width < 0.2
    assert ours.low == pytest.approx(theirs.low, abs=width / 50)
    assert ours.high == pytest.approx(theirs.high, abs=width / 50)


def test_the_bootstrap_of_seeds_is_that_of_the_means_of_examples():
    """The mean over seeds of the accuracy is the mean over examples of the part of seeds that are right."""
    rng = np.random.default_rng(3)
    hard = rng.random(300)[:, None]
    right = (rng.random((300, 3)) > hard).astype(int)
    theirs = scipy.stats.bootstrap(
        (right.mean(1),), np.mean, vectorized=True, method="percentile", n_resamples=20_000, batch=1000, rng=rng
    ).confidence_interval
    ours = bootstrap_interval(accuracy_counts(right), resamples=20_000)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=width / 50)
    assert ours.high == pytest.approx(theirs.high, abs=width / 50)
    apart = bootstrap_interval(accuracy_counts(right.ravel())[:, None], resamples=20_000)
    assert apart.high - apart.low < 0.95 * width  # 900 examples that are independent would be surer


def test_the_bootstrap_of_an_accuracy_is_binomial():
    right = np.arange(1000) < 800
    found = bootstrap_interval(accuracy_counts(right.astype(int))[:, None], resamples=50_000)
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 1000, 0.8) / 1000
    assert (found.low, found.high) == pytest.approx((low, high), abs=1.5e-3)


def test_a_seed_gives_the_same_interval_again_and_a_million_examples_are_possible():
    counts = random_counts(1000, 5)[:, None]
    first = bootstrap_interval(counts)
    assert first == bootstrap_interval(counts) != bootstrap_interval(counts, seed=1)
    many = bootstrap_interval(np.tile(counts, (1000, 1, 1)))
    narrower = (first.high - first.low) / (many.high - many.low)
    assert narrower == pytest.approx(1000**0.5, rel=0.1)


# --- paired tests -----------------------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    """Of 8 examples that one run alone has right, the second has 7: p = 2 (1 + 8) / 2^8."""
    first = np.array([True] * 5 + [True] + [False] * 7 + [False] * 4)
    second = np.array([True] * 5 + [False] + [True] * 7 + [False] * 4)
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 8) / 2**8, rel=1e-12)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0


def one(counts):
    """The counts of one run as those of several."""
    return counts[:, None]


def test_compared_accuracies():
    first, second = np.arange(200) % 4 > 0, np.arange(200) % 5 > 0
    found = compare_runs(one(accuracy_counts(first.astype(int))), one(accuracy_counts(second.astype(int))), True)
    assert found.value == pytest.approx(0.8 - 0.75) and found.test == "McNemar"
    assert found.p == mcnemar(first, second)
    spread = np.std(second.astype(float) - first.astype(float)) / np.sqrt(200)
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (0.05 - 1.96 * spread, 0.05 + 1.96 * spread), abs=0.01
    )


def test_the_paired_bootstrap_of_f1_is_that_of_scipy():
    first = random_counts(500, 6, 0.7)
    second = first.copy()
    better = np.random.default_rng(7).random(500) < 0.1
    second[better, 0] = np.minimum(second[better, 1], second[better, 2])
    worse = np.random.default_rng(8).random(500) < 0.06
    second[worse, 0] = 0

    def statistic(a, b, c, d, e, f, axis):
        return 2 * d.sum(axis) / (e.sum(axis) + f.sum(axis)) - 2 * a.sum(axis) / (b.sum(axis) + c.sum(axis))

    theirs = scipy.stats.bootstrap(
        tuple(np.concatenate([first, second], 1).T), statistic, paired=True, vectorized=True, method="percentile",
        n_resamples=20_000, batch=1000, rng=np.random.default_rng(9),
    )  # fmt: skip
    ours = compare_runs(one(first), one(second), False, resamples=20_000)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.interval.low == pytest.approx(theirs.confidence_interval.low, abs=width / 50)
    assert ours.interval.high == pytest.approx(theirs.confidence_interval.high, abs=width / 50)
    assert ours.value == pytest.approx(f1(second.sum(0)) - f1(first.sum(0))) and ours.test == "bootstrap"
    drawn = theirs.bootstrap_distribution
    assert ours.p == pytest.approx(2 * min((drawn <= 0).mean(), (drawn >= 0).mean()), abs=0.01)
    normal = 2 * scipy.stats.norm.sf(abs(ours.value) / theirs.standard_error)
    assert 0.02 < normal < 0.5 and ours.p == pytest.approx(normal, abs=0.03)
    back = compare_runs(one(second), one(first), False, resamples=20_000)
    assert back.value == -ours.value and back.p == pytest.approx(ours.p, abs=0.03)


def test_the_mean_difference_of_seeds_is_that_of_scipy():
    """Of accuracies it is a mean of examples, whatever the number of seeds."""
    right = np.random.default_rng(5).random((400, 6)) < np.array([0.6, 0.7, 0.65, 0.66, 0.72, 0.7])
    counts = np.stack([accuracy_counts(column.astype(int)) for column in right.T], axis=1)  # [N, 6, 3]
    ours = compare_runs(counts[:, :3], counts[:, 3:], True, resamples=20_000)
    gains = right[:, 3:].mean(1) - right[:, :3].mean(1)
    theirs = scipy.stats.bootstrap(
        (gains,), np.mean, vectorized=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(6)
    ).confidence_interval
    assert ours.value == pytest.approx(gains.mean()) and ours.test == "bootstrap"
    assert (ours.interval.low, ours.interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.001)


def test_p_of_the_bootstrap():
    assert bootstrap_p(np.zeros(99)) == 1.0
    assert bootstrap_p(np.ones(99)) == 2 / 100
    assert bootstrap_p(np.array([-1.0] * 4 + [1.0] * 95)) == pytest.approx(2 * 5 / 100)


def test_a_run_against_itself_has_no_difference():
    counts = random_counts(100, 10)
    for is_accuracy in (False, True):
        found = compare_runs(one(counts), one(counts), is_accuracy)
        assert (found.value, found.interval, found.p) == (0.0, statistics.Interval(0.0, 0.0), 1.0)


def test_examples_of_runs_are_brought_together_by_their_keys():
    a, b = np.array([5, 3, 9], np.uint64), np.array([9, 7, 5], np.uint64)
    of_a, of_b = np.arange(9, dtype=np.int32).reshape(3, 3), np.arange(10, 19, dtype=np.int32).reshape(3, 3)
    both, left_out = common([a, b], [of_a, of_b])
    assert both[:, 0].tolist() == [of_a[0].tolist(), of_a[2].tolist()]
    assert both[:, 1].tolist() == [of_b[2].tolist(), of_b[0].tolist()] and left_out == 2
    found = aligned([a, b], [of_a, of_b])  # 3, 5, 7, 9
    assert found[:, 0].tolist() == [of_a[1].tolist(), of_a[0].tolist(), [0, 0, 0], of_a[2].tolist()]
    assert found[:, 1].tolist() == [[0, 0, 0], of_b[2].tolist(), of_b[1].tolist(), of_b[0].tolist()]


def test_seeds_with_other_examples_have_the_interval_of_their_own_means():
    """Each seed has its own half of the examples: the accuracies are those of the halves."""
    right = np.arange(200) % 4 > 0
    counts = accuracy_counts(right.astype(int))
    keys = np.arange(200, dtype=np.uint64)
    together = aligned([keys[:100], keys[100:]], [counts[:100], counts[100:]])
    found = bootstrap_interval(together, resamples=20_000)
    spread = np.sqrt(0.75 * 0.25 / 100 / 2)
    assert (found.low, found.high) == pytest.approx((0.75 - 1.96 * spread, 0.75 + 1.96 * spread), abs=0.005)
