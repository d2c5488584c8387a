"""The head of a report: what was scored, its figures with their uncertainty, and all settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from data.json_text import to_json
from eval.metrics import main_figure
from eval.page.html import (
    Html,
    details,
    foreign,
    further,
    joined,
    label,
    meter,
    note,
    omitted,
    section,
    table,
    tag,
    visible,
)
from eval.page.intervals import between
from eval.report import figure_name, lenient_figures, show_figure
from eval.report import figures as main_figures_of
from eval.results import TRAINED_ON, Results

PROMPT_CHARACTERS = 20_000
LABELS_SHOWN = 300
_COUNTED = (("truncated", "documents cut"), ("not_stopped", "answers cut off"), (TRAINED_ON, "texts trained on"))
# Figures that are a share of the examples, so that there is an interval.
OF_EXAMPLES = ("accuracy", "subset_accuracy", "exact_match")


def facts(results: Results) -> Html:
    """Cards with the main figures, and a line that says what was scored."""
    n = results.metrics["n_examples"]
    cards = []
    for name, value in main_figures_of(results).items():
        is_share = name.endswith((" accuracy", "exact match"))
        around = between(round(value * n), n) if is_share and n else ""
        cards.append(_card(f"{value:.1%}", re.sub(r"\bf1$", "F1", name), around))
    cards.append(_card(f"{n:,}", "examples"))
    cards.append(_card(f"{results.metrics['n_unparsed']:,}", "unparsed answers"))
    for key, what in _COUNTED:
        if results.counts.get(key):
            cards.append(_card(f"{results.counts[key]:,}", what))
    if results.cost.get("seconds_per_example"):
        cards.append(_card(f"{results.cost['seconds_per_example']:.3g} s", "an example"))
    shots = "" if results.prompt is None and not results.shots else f"{results.shots} shots"
    about = {
        "task": results.task,
        "data": f"{results.data}, {results.split}",
        "model": results.model,
        "checkpoint": results.checkpoint,
        "prompt": shots,
    }
    parts = []
    for name, text in about.items():
        if text:
            parts.append(tag("span", tag("b", f"{name} "), foreign(text, 200)))
    return joined(tag("p", *parts, class_="facts"), tag("div", *cards, class_="cards"))


def _card(value: str, name: str, more: str = "") -> Html:
    rest = [tag("span", more, class_="quiet")] if more else []
    return tag("div", tag("b", value), tag("span", foreign(name, 100)), *rest, class_="card")


def figures_section(results: Results) -> Html:
    """All figures by field, with 95% Wilson intervals of those that are shares of the examples."""
    n, rows = results.metrics["n_examples"], []
    for name, own in results.metrics["fields"].items():
        kind = results.fields.get(name)
        scalars = {key: value for key, value in own.items() if not isinstance(value, dict)}
        for i, (key, value) in enumerate(scalars.items()):
            is_main = kind is not None and key == main_figure(kind)
            what = "texts with all words right" if kind == "token" and key == "accuracy" else _name(key)
            rows.append((label(name) if i == 0 else "", *_cells(what, key, value, n, is_main)))
    if len(results.fields) > 1:
        rows.append(("all fields", *_cells("exact match", "exact_match", results.metrics["exact_match"], n, True)))
    for name, value in lenient_figures(results).items():
        if value != main_figures_of(results)[name]:
            rows.append(("read leniently", foreign(name, 100), f"{value:.2%}", ""))
    return section(
        "Figures",
        table(("field", "figure", "value", "95% interval"), rows, left=(0, 1)),
        note("The interval is Wilson's, and says how much the figure depends on the choice of these examples."),
        details("Settings", *_settings(results)),
    )


def _name(key: str) -> str:
    return "unparsed answers" if key == "n_unparsed" else re.sub(r"\bf1\b", "F1", figure_name(key))


def _cells(what: str, key: str, value: float | int | None, n: int, is_main: bool) -> tuple[str, str, str]:
    """Name, value and interval of a figure."""
    has_interval = key in OF_EXAMPLES and value is not None
    interval = between(round((value or 0) * n), n) if has_interval else ""
    shown = show_figure(key, value)
    return tag("b", what) if is_main else what, tag("b", shown) if is_main else shown, interval


def _settings(results: Results) -> Iterator[Html]:
    groups: dict[str, Mapping[str, Any]] = {
        "Settings": results.settings,
        "Counts": results.counts,
        "Cost": results.cost,
        "Versions": results.versions,
        "Hashes": {"weights": results.weights, "examples": results.examples, "predictions": results.predictions},
    }
    for title, values in groups.items():
        rows = [(label(key), foreign(_written(value), 600)) for key, value in values.items() if value not in (None, "")]
        if rows:
            yield tag("h3", title)
            yield table(("", ""), rows, left=(0, 1))
    if results.prompt is not None:
        text = to_json(results.prompt, indent=2)
        yield tag("h3", "Prompt")
        yield tag("pre", visible(text, PROMPT_CHARACTERS), class_="raw")


def _written(value: object) -> str:
    return value if isinstance(value, str) else to_json(value)


def multi_section(name: str, results: Results, key: str = "") -> Html:
    """The figures of each label of a multi field, the lowest F1 first."""
    title, found = f"Labels: {name}", results.metrics["fields"][name].get("per_label")
    if not found:
        return omitted(title, "The run has no figures of each label. Score again.", key)

    def order(text: str) -> tuple[float, float, str]:
        return found[text].get("f1") or 0.0, -(found[text].get("support") or 0), text

    rows = []
    for text in sorted(found, key=order)[:LABELS_SHOWN]:
        f1, precision, recall = (found[text].get(name) or 0.0 for name in ("f1", "precision", "recall"))
        n_gold = found[text].get("support") or 0
        rows.append((label(text), meter(f1), f"{precision:.1%}", f"{recall:.1%}", f"{n_gold:,}"))
    more = len(found) - LABELS_SHOWN
    return section(
        title,
        table(("label", "F1", "precision", "recall", "examples"), rows),
        note(f"Not shown: {further(more, 'label')}.") if more > 0 else Html(),
        key=key,
    )
