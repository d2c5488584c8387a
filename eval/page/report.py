"""The report of one scored run: reads its predictions once, line by line, and puts the sections together.

Of a prediction only counts and a few examples are kept, so a run of millions takes little memory. What the predictions
say must agree with ``results.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from data.errors import UserError
from data.example import Example
from data.progress import TRACKED_FROM, Rate, Regular
from data.tasks import FieldKind, TokenField
from eval.metrics import fit, ratio
from eval.page.classes import ClassCounts, class_parts
from eval.page.head import facts, figures_section, multi_section
from eval.page.html import Html, omitted, page, section
from eval.page.lengths import FIELDS_IN_LENGTHS, LengthCounts, lengths_section
from eval.page.probabilities import SureCounts, sure_parts
from eval.page.slots import TokenCounts, token_parts
from eval.page.texts import Texts, open_texts
from eval.page.training import find_log, training_section
from eval.page.unread import UnreadCounts, unread_section
from eval.results import PREDICTIONS, RESULTS, Prediction, Results, each_prediction, read_results

PROGRAM = "python -m eval.page"
FIELDS_SHOWN = 12  # of a task with more, the first: a page has at most some megabytes
PROGRESS_LINES = 1000  # between two advances of the bar
TOLERANCE = 1e-9

log = logging.getLogger("eval")


@dataclass
class Counts:
    """What is kept of the predictions of a run.

    Attributes:
        kinds: the run's fields, as far as they are shown.
        others: see `eval.results.Results`.
        exact: examples with all fields right.
        writes_text: some answer is not empty.
    """

    kinds: dict[str, FieldKind]
    classes: dict[str, ClassCounts]
    tokens: dict[str, TokenCounts]
    sure: dict[str, SureCounts]
    unread: UnreadCounts
    others: dict[str, str]
    lengths: LengthCounts = field(default_factory=LengthCounts)
    right: dict[str, int] = field(default_factory=dict)
    n: int = 0
    exact: int = 0
    writes_text: bool = False

    @classmethod
    def of(cls, results: Results) -> Counts:
        """Empty ones for the fields of a run."""
        fields, others = results.fields, results.others
        shown = dict(list(fields.items())[:FIELDS_SHOWN])
        classes = [name for name, kind in shown.items() if kind == "class"]
        tokens = [name for name, kind in shown.items() if kind == "token"]
        alone = list(fields.values()).count("token") == 1
        return cls(
            kinds=fields,
            classes={name: ClassCounts(name) for name in classes},
            tokens={name: TokenCounts(name, others.get(name, TokenField.other), alone) for name in tokens},
            sure={name: SureCounts(name) for name in classes},
            unread=UnreadCounts(fields),
            others=others,
        )

    def add(self, prediction: Prediction, example: Example | None) -> None:
        """Count a prediction.

        Args:
            example: its example; None if texts are not known.
        """
        self.n += 1
        self.writes_text |= bool(prediction.raw)
        right = {name: self._is_right(prediction, name) for name in self.kinds}
        for name, own in self.classes.items():
            answer = prediction.parsed.get(name)
            own.add(prediction.id, str(prediction.gold[name]), None if answer is None else str(answer))
            self.sure[name].add(prediction)
        for tokens in self.tokens.values():
            tokens.add(prediction)
        self.unread.add(prediction)
        is_exact = all(right.values())
        self.exact += is_exact
        for name, value in right.items():
            self.right[name] = self.right.get(name, 0) + value
        n_tokens, n_words = prediction.n_prompt_tokens, None if example is None else len(example.words)
        several = {"all fields": is_exact} if len(right) > 1 else {}
        self.lengths.add(n_tokens, n_words, dict(list(right.items())[:FIELDS_IN_LENGTHS]) | several)

    def _is_right(self, prediction: Prediction, name: str) -> bool:
        """As `eval.metrics.compute_metrics` has it for exact match."""
        kind, gold, answer = self.kinds[name], prediction.gold[name], prediction.parsed.get(name)
        if answer is None or kind == "class":
            return answer == gold
        if kind == "multi":
            return set(answer) == set(gold)
        other = self.others.get(name, TokenField.other)
        assert not isinstance(answer, str) and not isinstance(gold, str), name
        return fit(answer, len(gold), other) == tuple(gold)


def read_run(folder: Path, data: str | None = None, task: str | None = None) -> tuple[Results, Counts, Texts]:
    """Read a scored run and the texts of its examples.

    Args:
        folder: of ``results.json`` and ``predictions.jsonl``.
        data, task: as of `open_texts`.

    Raises:
        UserError: no scored run, one whose two files do not agree, or see `open_texts`.
    """
    results = read_results(folder)
    texts = open_texts(results, data, task)
    counts = Counts.of(results)
    for prediction in _shown_progress(each_prediction(folder, results), results.metrics["n_examples"]):
        counts.add(prediction, texts.check(prediction))
    _check(results, counts)
    return results, counts, texts


def _shown_progress(predictions: Iterator[Prediction], n: int) -> Iterator[Prediction]:
    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Regular("reading", n, n >= TRACKED_FROM, *columns) as progress:
        for i, prediction in enumerate(predictions, 1):
            yield prediction
            if i % PROGRESS_LINES == 0:
                progress.advance(PROGRESS_LINES)


def _check(results: Results, counts: Counts) -> None:
    """Refuse figures that are not those of the predictions."""
    metrics, fields = results.metrics, results.metrics["fields"]
    expected: dict[str, tuple[float | None, float]] = {"n_examples": (metrics["n_examples"], counts.n)}
    for name, kind in results.fields.items():
        key = {"class": "accuracy", "multi": "subset_accuracy", "token": "f1"}[kind]
        if kind == "token" and name not in counts.tokens:
            continue
        found = counts.tokens[name].f1 if kind == "token" else ratio(counts.right.get(name, 0), counts.n)
        expected[f"fields.{name}.{key}"] = fields[name].get(key), found
    expected["exact_match"] = metrics["exact_match"], ratio(counts.exact, counts.n)
    for name, (stored, found) in expected.items():
        if stored is not None and abs(stored - found) > TOLERANCE:
            raise UserError(
                f"{RESULTS}: metrics.{name} is {stored:g}, and the answers in {PREDICTIONS} give {found:g}. One of the "
                "two files was changed. Score again."
            )


def run_sections(results: Results, counts: Counts, texts: Texts, folder: Path, train: Path | None = None) -> list[Html]:
    """The sections of a report, as markup.

    Args:
        folder: of the scored run.
        train: the folder of its training run; None: it is looked for.

    Raises:
        UserError: see `training_section`.
    """
    parts = [figures_section(results)]
    if not counts.n:
        return [*parts, omitted("Answers", "No example was scored.")]
    labels = {own.name: own.labels for task in texts.tasks for own in task.fields} | results.labels
    for i, (name, kind) in enumerate(list(results.fields.items())[:FIELDS_SHOWN], 1):
        key = f"field-{i}"
        if kind == "class":
            shown = class_parts(counts.classes[name], texts, labels.get(name, ()))
            parts.append(section(f"Labels: {name}", shown, key=key))
        elif kind == "token":
            parts.append(section(f"Entities: {name}", token_parts(counts.tokens[name], texts), key=key))
        else:
            parts.append(multi_section(name, results, key))
    if (more := len(results.fields) - FIELDS_SHOWN) > 0:
        parts.append(omitted("Other fields", f"{more:,} more fields have their figures above and in {RESULTS}."))
    parts += _sure_sections(results, counts)
    parts.append(unread_section(counts.unread, results, counts.writes_text))
    parts.append(lengths_section(counts.lengths, results))
    parts.append(training_section(results, folder, train))
    return parts


def _sure_sections(results: Results, counts: Counts) -> list[Html]:
    title = "Probabilities"
    shown = [name for name, own in counts.sure.items() if own.n_without < counts.n]
    if not counts.sure:
        return [omitted(title, "Only class fields have probabilities.")]
    if not shown:
        return [
            omitted(title, "The answers have none: they come from encoders, and from decoders with --decode labels.")
        ]
    return [
        section(f"{title}: {name}", sure_parts(counts.sure[name], results), key=f"probabilities-{i}")
        for i, name in enumerate(shown, 1)
    ]


def report(folder: Path, data: str | None = None, train: Path | None = None, task: str | None = None) -> str:
    """The report of a scored run, as an HTML page.

    Args:
        folder: of ``results.json`` and ``predictions.jsonl``.
        data, task: as of `open_texts`.
        train: the folder of the training run; None: it is looked for.

    Raises:
        UserError: see `read_run` and `training_section`.
    """
    if train is not None:
        find_log(folder, train)  # before the predictions are read
    results, counts, texts = read_run(folder, data, task)
    sections = run_sections(results, counts, texts, folder, train)
    return page(results.system, sections, PROGRAM, top=facts(results) + texts.remark())
