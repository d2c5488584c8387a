"""Wilson's interval, against its formula."""

from __future__ import annotations

import math

import pytest

from eval.page.intervals import between, wilson

Z = 1.959963984540054  # of 95%


@pytest.mark.parametrize("k, n", [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (812, 1000), (999_999, 1_000_000)])
def test_wilson(k, n):
    p = k / n
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    expected = [(middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)]
    assert wilson(k, n) == pytest.approx(expected, abs=1e-12)


def test_in_words():
    assert wilson(0, 0) == (0.0, 1.0) and between(0, 0) == ""
    assert between(812, 1000) == "78.7% to 83.5%"
