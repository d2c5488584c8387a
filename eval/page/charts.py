"""Pictures as SVG inside a page, drawn by matplotlib, in the page's colours: light, dark and on paper.

Their only texts are numbers and our own words. Names of users, which may be in any script, are in the page's HTML.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.page.html import Html, tag
from eval.page.style import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 5.0, 3.3  # inches; at this size text is large enough on a phone
# matplotlib knows no CSS variables: it draws in colours that nothing else has, which are replaced by the variables.
_NAMES = ("--ink", "--line", "--quiet", *SERIES)
_COLOURS = {name: f"#0{number}f0e{number}" for number, name in enumerate(_NAMES)}
INK, LINE, QUIET = (_COLOURS[name] for name in _NAMES[:3])
BLUE = _COLOURS[SERIES[0]]
_SETTINGS: Any = {
    "svg.fonttype": "none",  # texts are texts, in the page's font
    "svg.hashsalt": "page",  # the same picture has the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def colour(series: int) -> str:
    """The colour of the lines of a series, whose CSS variable is ``SERIES[series]``."""
    return _COLOURS[SERIES[series % len(SERIES)]]


def _new(rows: Sequence[int] = (1,), size: tuple[float, float] = SIZE) -> tuple[Figure, list[Axes]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=rows)
    found = list(axes[:, 0])
    for own in found:
        own.grid(True)
        own.set_axisbelow(True)
    return figure, found


def _svg(figure: Figure, described: str, caption: str) -> Html:
    """A finished picture in a page.

    Args:
        described: what it shows, for those who do not see it.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context(_SETTINGS):
        figure.savefig(stream, format="svg", transparent=True, metadata=_NO_METADATA)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :].rstrip()
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    own = hashlib.sha256(drawn.encode()).hexdigest()[:8]  # a page has several pictures, and each name once
    drawn = re.sub(r'( id="|"#|url\(#)', rf"\g<1>c{own}-", drawn)
    for name, value in _COLOURS.items():
        drawn = drawn.replace(value, f"var({name})")
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{described}"', 1)
    return tag("figure", Html(drawn), tag("figcaption", caption))


def _percent(axis: Axes, which: str = "y") -> None:
    from matplotlib.ticker import PercentFormatter

    (axis.yaxis if which == "y" else axis.xaxis).set_major_formatter(PercentFormatter(1.0, symbol="%"))


def reliability(
    probabilities: Sequence[float],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    counts: Sequence[int],
    edges: Sequence[float],
) -> Html:
    """The accuracy of answers by their probability, with the number of answers below.

    Args:
        probabilities, accuracies, intervals: of the bins that have answers.
        counts: of all bins, whose bounds are ``edges``.
    """
    figure, (top, below) = _new((3, 1), (SIZE[0], 3.9))
    top.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--")
    low = [a - bounds[0] for a, bounds in zip(accuracies, intervals, strict=True)]
    high = [bounds[1] - a for a, bounds in zip(accuracies, intervals, strict=True)]
    top.errorbar(probabilities, accuracies, yerr=[low, high], fmt="o-", color=BLUE, markersize=4, linewidth=1.2)
    top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    widths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    below.bar(edges[:-1], counts, width=widths, align="edge", color=BLUE, alpha=0.6, linewidth=0)
    below.set(ylabel="answers", xlabel="probability of the label")
    for axes, which in ((top, "y"), (below, "x")):
        _percent(axes, which)
    caption = "Accuracy by probability, with 95% intervals. On the dashed line both are equal."
    return _svg(figure, "reliability diagram", caption)


def coverage(coverages: Sequence[float], accuracies: Sequence[float]) -> Html:
    """The accuracy of the surest answers by their share of all."""
    figure, (axes,) = _new()
    axes.plot(coverages, accuracies, "o-", color=BLUE, markersize=3.5, linewidth=1.2)
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, min(accuracies) - 0.05), 1.005), xlabel="answers given", ylabel="accuracy")
    for which in "xy":
        _percent(axes, which)
    return _svg(figure, "accuracy by coverage", "Accuracy if only the surest answers are given.")


def curves(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    caption: str,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    percent: bool = False,
) -> Html:
    """Lines over training steps.

    Args:
        lines: x and y of each; its colour is that of its place in `SERIES`.
        band: the lowest and highest values around the first line.
    """
    figure, (axes,) = _new()
    for i, (x, y) in enumerate(lines):
        axes.plot(x, y, "o-" if len(x) <= 40 else "-", color=colour(i), markersize=3, linewidth=1.4)
    if band is not None:
        axes.fill_between(lines[0][0], *band, color=colour(0), alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel=ylabel)
    if percent:
        _percent(axes)
    return _svg(figure, f"{ylabel} by step", caption)


def by_bin(
    names: Sequence[str],
    series: Sequence[Sequence[tuple[float, float, float]]],
    xlabel: str,
    caption: str,
) -> Html:
    """Shares with their intervals, bin by bin.

    Args:
        names: of the bins; numbers.
        series: of each series and bin the share, and its lowest and highest values.
    """
    figure, (axes,) = _new()
    for i, points in enumerate(series):
        shift = 0.12 * (i - (len(series) - 1) / 2)
        shares = [share for share, _, _ in points]
        bars = [[share - low for share, low, _ in points], [high - share for share, _, high in points]]
        places = [k + shift for k in range(len(points))]
        axes.errorbar(places, shares, yerr=bars, fmt="o-", color=colour(i), markersize=4, linewidth=1.2)
    slanted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 5 else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    lowest = min(low for points in series for _, low, _ in points)
    axes.set(xlabel=xlabel, ylabel="right answers", ylim=(max(0.0, lowest - 0.03), 1.01))
    _percent(axes)
    return _svg(figure, f"right answers by {xlabel}", caption)
