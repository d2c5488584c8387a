"""Intervals of figures, and tests between two runs, from what was right in each example.

Every main figure is the F1 of three counts that are summed over the examples: what is right, what was given, and what
is wanted. Of a token field these are entities, of a multi field pairs of an example and a label. A class field has one
label given and one wanted in every example, so the F1 is the accuracy.

The bootstrap draws as many examples as there are, with replacement. The figure depends on their sums only, so examples
with equal counts need not be told apart: how often each kind of example is drawn is one multinomial draw. This is the
same distribution, and a million examples take no longer than a few thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from seqeval.metrics.sequence_labeling import get_entities

from data.tasks import Field, MultiField, TokenField
from eval.metrics import fit, to_tags
from eval.page.intervals import LEVEL, wilson

RESAMPLES = 2000
TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # percentiles
DRAWN_AT_ONCE = 4_000_000  # numbers of the resamples that are in memory together (8 bytes each)

# N examples, S runs of the same examples (seeds), 3 counts: right, given, wanted.
Counts = NDArray[np.int32]


@dataclass(frozen=True)
class Interval:
    """Both ends of a 95% interval, as parts of 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much larger the figure of a second run is than that of a first one.

    Attributes:
        value: the difference of the figures, in [-1, 1].
        interval: of the difference, from the bootstrap.
        p: two-sided, for the hypothesis that there is no difference.
        test: how ``p`` was found.
    """

    value: float
    interval: Interval
    p: float
    test: str


# --- counts of one example --------------------------------------------------------------------------------------------


def example_counts(field: Field, gold: Any, answer: Any) -> tuple[int, int, int]:
    """What is right, given and wanted in one example. Sums over examples have the F1 of `eval.metrics`.

    Args:
        field: of a token field, ``other`` is the type of words outside entities.
        gold: the label of a class field, the labels of a multi field, or one type per word.
        answer: the same, or None if it is unparsed: then nothing is right. Nothing was given either, except for a class
            field, whose accuracy counts every example.
    """
    if isinstance(field, TokenField):
        types = (field.other,) * len(gold) if answer is None else fit(answer, len(gold), field.other)
        numbers = dict[str, int]()
        wanted, given = (set(get_entities(to_tags(own, field.other, numbers))) for own in (gold, types))
        return len(wanted & given), len(given), len(wanted)
    if isinstance(field, MultiField):
        labels, own = set(gold), set(answer or ())
        return len(labels & own), len(own), len(labels)
    return int(answer == gold), 1, 1


# --- figures and their intervals --------------------------------------------------------------------------------------


def f1(sums: NDArray[Any]) -> NDArray[np.float64]:
    """F1 of sums of counts, [..., 3]; 0 where nothing was given and nothing wanted."""
    total = sums[..., 1] + sums[..., 2]
    return np.divide(2 * sums[..., 0], total, out=np.zeros(total.shape), where=total > 0)


def wilson_interval(n_right: int, n_examples: int) -> Interval:
    """Wilson's 95% interval of an accuracy. Without examples nothing is known: 0 to 1."""
    return Interval(*wilson(n_right, n_examples))


def bootstrap_interval(counts: Counts, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The 95% percentile interval of the mean of the runs' F1, by drawing examples.

    Args:
        counts: [N, S, 3]. In each resample all runs have the same examples. An example that a run did not answer has
            only zeros there.
    """
    n, s, _ = counts.shape
    sums = _resampled_sums(counts.reshape(n, 3 * s), resamples, seed)
    drawn = [f1(own.reshape(-1, s, 3)).mean(1) for own in sums]
    return _percentiles(np.concatenate(drawn))


def _percentiles(drawn: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(drawn, TAILS)
    return Interval(float(low), float(high))


def _resampled_sums(rows: NDArray[Any], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Sums of the columns over N drawn rows, [R, C] for some of the resamples at a time."""
    kinds, n_of_kind = np.unique(rows, axis=0, return_counts=True)  # [K, C], [K]
    n, rng = int(n_of_kind.sum()), np.random.default_rng(seed)
    if n == 0:
        yield np.zeros((resamples, rows.shape[1]))
        return
    step = max(1, DRAWN_AT_ONCE // len(kinds))
    for start in range(0, resamples, step):
        drawn = rng.multinomial(n, n_of_kind / n, size=min(step, resamples - start))  # [R, K]
        yield drawn.astype(float) @ kinds.astype(float)  # whole numbers below 2^53: exact


# --- runs of the same examples ----------------------------------------------------------------------------------------


def compare_runs(
    first: Counts, second: Counts, is_accuracy: bool, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two runs of the same examples, or as many runs with one setting as with another.

    Args:
        first, second: [N, S, 3], the same example in the same row. The difference is the mean of those of S pairs.
        is_accuracy: of a class field. Then ``p`` of one pair is that of McNemar's exact test. Else it is of the paired
            bootstrap, in each of whose resamples all runs have the same examples.
    """
    n, s, _ = first.shape

    def difference(sums: NDArray[Any]) -> NDArray[np.float64]:
        values = f1(sums.reshape(-1, 2, s, 3))
        return (values[:, 1] - values[:, 0]).mean(-1)

    both = np.concatenate([first, second], axis=1).reshape(n, 6 * s)
    drawn = np.concatenate([difference(sums) for sums in _resampled_sums(both, resamples, seed)])
    exact = is_accuracy and s == 1
    p = mcnemar(first[:, 0, 0] > 0, second[:, 0, 0] > 0) if exact else bootstrap_p(drawn)
    value = float(difference(both.sum(0, dtype=np.int64))[0])
    return Difference(value, _percentiles(drawn), p, "McNemar" if exact else "bootstrap")


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """The p of McNemar's exact test: of the examples that one run alone has right, whether each has one half.

    Args:
        first, second: whether a run has an example right, [N].
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def bootstrap_p(drawn: NDArray[np.float64]) -> float:
    """The two-sided p of a difference from its resamples: twice the smaller part of them on one side of zero.

    The difference itself counts as one more resample on both sides, so that p is never 0.
    """
    smaller = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(drawn) + 1))


# --- examples of several runs -----------------------------------------------------------------------------------------


def aligned(keys: Sequence[NDArray[np.uint64]], counts: Sequence[Counts]) -> Counts:
    """The counts of several runs, with one row for each example that any of them answered.

    Args:
        keys: of the examples of each run, without repetition.
        counts: [N, 3] of each run.

    Returns:
        [N of all, S, 3], zeros where a run did not answer an example.
    """
    every = np.unique(np.concatenate(keys))
    found = np.zeros((len(every), len(keys), 3), np.int32)
    for i, (own, values) in enumerate(zip(keys, counts, strict=True)):
        found[np.searchsorted(every, own), i] = values
    return found


def common(keys: Sequence[NDArray[np.uint64]], counts: Sequence[Counts]) -> tuple[Counts, int]:
    """The counts of the examples that all runs answered.

    Args:
        keys, counts: see `aligned`.

    Returns:
        [N of all, S, 3]; the number of examples that only some runs have.
    """
    every, n_runs = np.unique(np.concatenate(keys), return_counts=True)
    in_all = n_runs == len(keys)
    return aligned(keys, counts)[in_all], int((~in_all).sum())
