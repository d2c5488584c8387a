"""The probabilities in answers: their figures, and answers that are not given because the model is not sure enough.

`eval.calibration` computes; this file knows fields and predictions. Class fields alone have probabilities, and only
from encoders and from decoders that write valid answers (``--decode labels``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from data.example import Example
from data.tasks import ClassField, Field
from eval.calibration import calibration_error, coverage_curve, scaled
from eval.metrics import HasFields, HasLabels, compute_metrics, ratio

N_TOP = 5  # most probable labels, stored with their probabilities
DIGITS = 6  # of a probability as it is stored, shown and compared with a threshold
SUMMARY = {"accuracy_at_80": 0.8, "accuracy_at_90": 0.9}  # figure → coverage

Top = list[list[str | float]]


class Answer(HasLabels, Protocol):
    """The part of `eval.results.Prediction` that is needed here."""

    log_probs: dict[str, list[float]]
    top: dict[str, Top]
    abstained: tuple[str, ...]


def most_probable(field: ClassField, log_probs: ArrayLike) -> Top:
    """The `N_TOP` most probable labels of one answer with their probabilities: ``[[label, p], ...]``.

    Args:
        log_probs: [L], of the field's labels, or logits.
    """
    found, order = np.exp(scaled(log_probs, 1.0)), np.argsort(-np.asarray(log_probs), kind="stable")
    return [[field.labels[i], round(float(found[i]), DIGITS)] for i in order[:N_TOP]]


def as_stored(log_probs: ArrayLike) -> list[float]:
    """Log-probabilities as predictions have them: without temperature, normalized."""
    return [round(value, DIGITS) for value in scaled(log_probs, 1.0).tolist()]


def set_temperatures(fields: Sequence[Field], answers: Sequence[Answer], temperatures: Mapping[str, float]) -> None:
    """Compute the probabilities in ``top`` anew, at these temperatures by class field; those of other fields are kept.

    They are computed from ``log_probs`` as they are stored, so that an answer that was read from a file gets the same.
    The order of the labels is that of the model's own, unrounded numbers.
    """
    for field in (field for field in fields if isinstance(field, ClassField) and field.name in temperatures):
        numbers = {label: i for i, label in enumerate(field.labels)}
        for answer in (answer for answer in answers if field.name in answer.top):
            found = np.exp(scaled(answer.log_probs[field.name], temperatures[field.name]))
            answer.top[field.name] = [
                [label, round(float(found[numbers[str(label)]]), DIGITS)] for label, _ in answer.top[field.name]
            ]


def with_probabilities(fields: Sequence[Field], predictions: Sequence[Answer]) -> list[ClassField]:
    """The class fields of whose labels every answer has the probabilities."""
    classes = [field for field in fields if isinstance(field, ClassField) and field.labels]
    return [field for field in classes if predictions and all(field.name in p.log_probs for p in predictions)]


def confidence(prediction: Answer, field: str) -> float:
    """The probability of the label that was given, as it is stored."""
    return float(prediction.top[field][0][1])


def gold_indices(field: ClassField, gold: Sequence[str]) -> list[int]:
    """The indices of gold labels among the field's labels."""
    numbers = {label: i for i, label in enumerate(field.labels)}
    return [numbers[label] for label in gold]


def probability_figures(
    field: ClassField, gold: Sequence[str], predictions: Sequence[Answer], temperature: float | None
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """How well the probabilities of a field are calibrated, and what not giving unsure answers gains.

    Args:
        gold: labels of N examples, N at least 1.
        temperature: with which ``top`` was computed; None: there is none.

    Returns:
        figures: ``ece`` (`eval.calibration.calibration_error`); ``nll``, the mean of -log p(gold) in nats; both also
            with the suffix ``_uncalibrated``, if there is a temperature; and those of `SUMMARY`, accuracies at a
            coverage.
        the coverage curve (`eval.calibration.coverage_curve`).
    """
    scores, own = np.array([p.log_probs[field.name] for p in predictions]), gold_indices(field, gold)
    best = [p.top[field.name][0] for p in predictions]
    correct = [label == right for (label, _), right in zip(best, gold, strict=True)]
    found = dict[str, float]()
    for suffix, value in {"": temperature or 1.0, "_uncalibrated": 1.0}.items():
        if suffix and temperature is None:
            continue
        at = scaled(scores, value)
        found[f"ece{suffix}"] = calibration_error(np.exp(at.max(axis=-1)), correct)
        found[f"nll{suffix}"] = float(-at[np.arange(len(at)), own].mean())
    curve = coverage_curve([float(p) for _, p in best], correct)
    for name, share in SUMMARY.items():
        found[name] = next(point["accuracy"] for point in curve if point["coverage"] >= share)
    return found, curve


def unsure_of(prediction: Answer, below: float) -> tuple[str, ...]:
    """The class fields whose label has a probability below ``below``."""
    return tuple(name for name in prediction.top if confidence(prediction, name) < below)


def answered_figures(
    task: HasFields, examples: Sequence[Example], answers: Sequence[Answer], fields: Sequence[ClassField]
) -> dict[str, Any]:
    """What is left if the unsure answers, those in ``abstained``, are not given.

    Args:
        answers: to the examples, in their order.
        fields: the class fields with probabilities.

    Returns:
        ``{"answered", "exact_match", "fields": {name: {"answered", "accuracy"}}}``: the share of the examples of which
        all these fields are answered, or this one; and the share of right ones among these, None if there is none.
    """

    def of(is_given: list[bool]) -> tuple[float, dict[str, Any] | None]:
        kept = [i for i, given in enumerate(is_given) if given]
        metrics = compute_metrics(task, [examples[i] for i in kept], [answers[i] for i in kept])
        return ratio(len(kept), len(examples)), metrics if kept else None

    own = {}
    for name in (field.name for field in fields):
        share, metrics = of([name not in answer.abstained for answer in answers])
        own[name] = {"answered": share, "accuracy": metrics and metrics["fields"][name]["accuracy"]}
    share, metrics = of([not answer.abstained for answer in answers])
    return {"answered": share, "exact_match": metrics and metrics["exact_match"], "fields": own}
