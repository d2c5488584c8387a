"""How many answers are right, by the length of the document."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from eval.page import charts
from eval.page.html import Html, details, foreign, legend, omitted, section, table
from eval.page.intervals import wilson
from eval.page.style import SERIES
from eval.results import Results

TITLE = "Accuracy by length"
BINS = 10
SMALLEST = 20  # examples of a bin
FIELDS_IN_LENGTHS = len(SERIES) - 1  # lines of a picture, with one of all fields


@dataclass
class LengthCounts:
    """The length of every document, and which answers are right.

    Attributes:
        tokens: of each prompt, or of an encoder's document; of runs that were joined, the sum (0 of a baseline).
        words: of each text; fewer than ``tokens`` if texts are not known.
        right: by field, 1 for each right answer; "all fields" if there are several.
    """

    tokens: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("q"))
    right: dict[str, array[int]] = field(default_factory=dict)

    def add(self, n_tokens: int, n_words: int | None, right: Mapping[str, bool]) -> None:
        self.tokens.append(n_tokens)
        if n_words is not None:
            self.words.append(n_words)
        for name, value in right.items():
            if name not in self.right:
                self.right[name] = array("b")
            self.right[name].append(value)


def quantile_bins(lengths: np.ndarray, n_bins: int) -> list[np.ndarray]:
    """The indices of up to ``n_bins`` parts of about the same size; equal lengths are in one part."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, n_bins + 1)[1:-1], method="inverted_cdf"))
    numbers = np.searchsorted(edges, lengths, side="left")  # a part has its upper bound
    return [np.flatnonzero(numbers == k) for k in np.unique(numbers)]


def lengths_section(counts: LengthCounts, results: Results) -> Html:
    """Right answers of each field, by quantiles of the lengths."""
    tokens = np.asarray(counts.tokens)
    if len(tokens) and tokens.min() > 0:
        what = "the prompt" if results.prompt else "the document"
        if "combined" in results.settings:  # a baseline has no tokens, so the sum is that of the other run
            what = "both inputs" if "prompt_tokens" in results.cost else "the model's input"
        lengths, unit = tokens, f"tokens of {what}"
    elif len(counts.words) == len(tokens):
        lengths, unit = np.asarray(counts.words), "words of the text"
    else:
        return omitted(TITLE, "The predictions have no numbers of tokens, and the texts are not known.")
    n_bins = min(BINS, len(lengths) // SMALLEST)
    parts = quantile_bins(lengths, n_bins) if n_bins > 1 else []
    if len(parts) < 2:
        few = f"There are fewer than {2 * SMALLEST} examples."
        return omitted(TITLE, few if n_bins < 2 else "Nearly all documents have the same length.")
    bounds = [(int(lengths[own].min()), int(lengths[own].max())) for own in parts]
    names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in bounds]
    series, rows = [], []
    for right in counts.right.values():
        values = np.asarray(right)
        sums = [(int(values[own].sum()), len(own)) for own in parts]
        series.append([(k / n, *wilson(k, n)) for k, n in sums])
    for i, name in enumerate(names):
        shares = (f"{share:.1%} ({low:.1%} to {high:.1%})" for share, low, high in (own[i] for own in series))
        rows.append((name, f"{len(parts[i]):,}", *shares))
    caption = "Quantiles of the lengths, so each point has about as many examples; with 95% intervals."
    chart = charts.by_bin(names, series, unit, caption)
    colours = dict(zip(SERIES, counts.right, strict=False))
    return section(
        TITLE,
        legend(colours) if len(counts.right) > 1 else Html(),
        chart,
        details("The numbers", table((unit, "examples", *map(foreign, counts.right)), rows)),
    )
