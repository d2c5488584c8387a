"""Shares with their uncertainty, as pages show them."""

from __future__ import annotations

LEVEL = 0.95


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share: of the shares with which this count is not surprising. (0, 1) without any."""
    from scipy.stats import binomtest  # takes a second to import

    if not n:
        return 0.0, 1.0
    found = binomtest(n_right, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def between(n_right: int, n: int) -> str:
    """The interval in words; empty without examples."""
    if not n:
        return ""
    low, high = wilson(n_right, n)
    return f"{low:.1%} to {high:.1%}"
