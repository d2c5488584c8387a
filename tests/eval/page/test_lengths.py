"""Accuracy by length: parts of about the same size, and what is in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eval.page.intervals import wilson
from eval.page.lengths import LengthCounts, lengths_section, quantile_bins
from eval.results import Results
from tests.eval.page.runs import Read

RESULTS = Results("s", "t", {"m": "class"}, "d", "test", {})
JOINED = Results("s", "t+u", {"m": "class"}, "d", "test", {}, cost={"prompt_tokens": 9.0}, settings={"combined": []})
PROMPTED = Results("s", "t", {"m": "class"}, "d", "test", {}, prompt={"task": "t"})


@pytest.mark.parametrize("n_bins", [2, 7, 10])
def test_parts_have_the_same_size_and_no_length_in_common(n_bins):
    draw = np.random.default_rng(0)
    lengths = draw.permutation(5000)
    sizes = [len(own) for own in quantile_bins(lengths, n_bins)]
    assert len(sizes) == n_bins and max(sizes) - min(sizes) <= 2
    lengths = draw.geometric(0.2, 5000)  # many equal ones
    parts = quantile_bins(lengths, n_bins)
    assert sorted(np.concatenate(parts).tolist()) == list(range(5000))
    bounds = [(lengths[own].min(), lengths[own].max()) for own in parts]
    assert all(before[1] < after[0] for before, after in zip(bounds, bounds[1:], strict=False))
    assert [len(own) for own in quantile_bins(np.full(100, 3), n_bins)] == [100]


def counted(tokens, words=None, **right) -> LengthCounts:
    counts = LengthCounts()
    for i, n in enumerate(tokens):
        counts.add(n, None if words is None else words[i], {name: own[i] for name, own in right.items()})
    return counts


def rows(shown: str) -> list[list[str]]:
    body = shown[shown.rindex("<tbody>") :].split("<tr>")[1:]
    return [Read(row.replace("</th>", "</th>|").replace("</td>", "</td>|")).text.split("|")[:-1] for row in body]


def test_the_shares_are_counted():
    tokens = [10] * 30 + [20] * 30 + [30] * 30
    m = [i % 3 > 0 for i in range(90)]
    shown = lengths_section(counted(tokens, m=m, s=[i < 45 for i in range(90)]), PROMPTED)
    low, high = wilson(20, 30)
    assert [row[:3] for row in rows(shown)] == [
        [n, "30", f"66.7% ({low:.1%} to {high:.1%})"] for n in ("10", "20", "30")
    ]
    assert [row[3].split()[0] for row in rows(shown)] == ["100.0%", "50.0%", "0.0%"]
    read = Read(shown)
    assert len(read.named("svg")) == 1 and "tokens of the prompt" in read.texts and {"m", "s"} <= set(read.texts)


def test_words_where_there_are_no_tokens():
    right = [True] * 100
    assert "tokens of the document" in lengths_section(counted(range(1, 101), m=right), RESULTS)
    joined = lengths_section(counted(range(1, 101), m=right), JOINED)
    assert "tokens of both inputs" in joined and "document" not in joined, "the sum of two inputs"
    joined = lengths_section(counted(range(1, 101), m=right), replace(JOINED, cost={}))
    assert "tokens of the model&#x27;s input" in joined, "the other run is a baseline, which has none"
    shown = lengths_section(counted([0] * 100, range(100), m=right), RESULTS)
    assert "words of the text" in shown and rows(shown)[0][0] == "0–19"


@pytest.mark.parametrize(
    "tokens, words, why",
    [
        ([0] * 100, None, "no numbers of tokens"),
        ([0] * 100, [5] * 99 + [None], "no numbers of tokens"),
        (range(1, 31), None, ">There are fewer than 40 examples.<"),
        ([7] * 100, None, ">Nearly all documents have the same length.<"),
    ],
)
def test_it_is_omitted_with_a_reason(tokens, words, why):
    shown = lengths_section(counted(tokens, words, m=[True] * 100), RESULTS)
    assert "Not shown: " in shown and why in shown and "<svg" not in shown
