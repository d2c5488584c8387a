"""From answers read back to figures: accuracy, macro-F1, slot F1 two ways, exact match, and what went unread.

Every system is scored by these functions: decoders, encoders and baselines, fine-tuned or not. They know
nothing of models or text; :mod:`eval.decoder.parse` has already turned each answer into labels.

One scheme for slots (the paper's section 5.8): a type per word, missing words are Other, extra ones are cut,
an answer that could not be read is all Other, and neighbouring words of one type form one entity, on gold and
predictions alike:

    words        wake me up at  nine am   on   friday
    types        Other ...      time time Other date
    tags         O  O  O  O     B-   I-   O    B-

seqeval drops the first letter of a bare label, splits it at hyphens, and its strict reader strips hyphens from
a name's ends, so types are numbered before seqeval sees them and nothing in a name can matter.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_precision_recall_fscore_support
from seqeval.scheme import IOB2
from sklearn.metrics import f1_score

from data.example import Example
from data.tasks import ClassField, TokenField

Labels = dict[str, str | tuple[str, ...] | None]


class HasFields(Protocol):
    """What of a task the metrics look at; :class:`data.tasks.Task` is one."""

    @property
    def fields(self) -> Sequence[ClassField | TokenField]: ...


class HasLabels(Protocol):
    """What of a parsed answer the metrics look at; :class:`eval.decoder.parse.Parsed` is one."""

    @property
    def labels(self) -> Labels: ...


def compute_metrics(task: HasFields, examples: Sequence[Example], parsed: Sequence[HasLabels]) -> dict[str, Any]:
    """Score the answers read back against the gold labels.

    Args:
        task: names the fields; nothing else of it is used.
        examples: gold, N of them; ``labels`` and, for the strict slot figure, ``bio``.
        parsed: N answers in the same order; ``labels[field]`` is None where the field could not be read.

    Returns:
        ``{"n_examples", "n_unparsed" (examples with any unread field), "exact_match", "fields": {name:
        figures}}``. A class field has ``accuracy``, ``macro_f1`` and ``n_unparsed``; a token field ``f1``,
        ``precision``, ``recall``, the same with ``strict_`` before (None when a gold example has no
        brackets), ``word_accuracy``, ``accuracy`` (all words of an example right) and ``n_unparsed``. All
        figures lie in [0, 1].
    """
    assert len(examples) == len(parsed), f"{len(examples)} examples but {len(parsed)} answers"
    right = [True] * len(examples)
    unread = [False] * len(examples)
    fields: dict[str, dict[str, Any]] = {}
    for field in task.fields:
        answers: Sequence[Any] = [answer.labels.get(field.name) for answer in parsed]
        if isinstance(field, TokenField):
            types = [example.word_labels(field.name) for example in examples]
            bio = [example.bio.get(field.name) for example in examples]
            fields[field.name] = token_metrics(types, answers, field.other, bio)
            same = [
                a is not None and fit(a, len(g), field.other) == tuple(g) for g, a in zip(types, answers, strict=True)
            ]
        else:
            labels = [example.class_label(field.name) for example in examples]
            fields[field.name] = class_metrics(labels, answers)
            same = [a == g for g, a in zip(labels, answers, strict=True)]
        for i, (is_right, a) in enumerate(zip(same, answers, strict=True)):
            right[i] &= is_right
            unread[i] |= a is None
    return {
        "n_examples": len(examples),
        "n_unparsed": sum(unread),
        "exact_match": ratio(sum(right), len(right)),
        "fields": fields,
    }


def class_metrics(gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, Any]:
    """Accuracy and macro-F1 of one class field; None is an answer that could not be read.

    Macro-F1 is scikit-learn's: the mean over the labels that occur in gold or predictions. An unread answer
    is a miss of its gold label and no label of its own, so it adds no class to the mean.
    """
    labels = sorted(set(gold) | {label for label in predicted if label is not None})
    unread = "\0unparsed"
    macro_f1 = 0.0
    if labels:
        filled = [unread if label is None else label for label in predicted]
        macro_f1 = float(f1_score(gold, filled, labels=labels, average="macro", zero_division=0))
    return {
        "accuracy": ratio(sum(g == p for g, p in zip(gold, predicted, strict=True)), len(gold)),
        "macro_f1": macro_f1,
        "n_unparsed": sum(p is None for p in predicted),
    }


def token_metrics(
    gold: Sequence[tuple[str, ...]],
    predicted: Sequence[tuple[str, ...] | None],
    other: str,
    bio: Sequence[tuple[str, ...] | None],
) -> dict[str, Any]:
    """Entity F1 of one token field, the main way and the strict way, and word accuracy.

    Args:
        gold: one type per word, per example.
        predicted: the same; None (unread) counts as all Other, too short is padded with Other, too long is
        cut. other: the type that is no entity.
        bio: the gold brackets' own ``O``/``B-x``/``I-x`` per word. Where two brackets of one type touch, they
            are two entities here and one in ``gold``; predictions, which have no brackets, join equal
            neighbours both times.
    """
    filled = [
        fit(p, len(g), other) if p is not None else (other,) * len(g) for g, p in zip(gold, predicted, strict=True)
    ]
    numbers: dict[str, int] = {}
    gold_tags = [to_tags(types, other, numbers) for types in gold]
    predicted_tags = [to_tags(types, other, numbers) for types in filled]
    precision, recall, f1 = entity_scores(gold_tags, predicted_tags)
    strict: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    if all(tags is not None for tags in bio):
        bracket_tags = [number_tags(tags, numbers) for tags in bio if tags is not None]
        strict = entity_scores(bracket_tags, predicted_tags, strict=True)
    n_words = sum(len(types) for types in gold)
    n_right = sum(a == b for g, p in zip(gold, filled, strict=True) for a, b in zip(g, p, strict=True))
    all_right = [p is not None and tuple(g) == tuple(f) for g, p, f in zip(gold, predicted, filled, strict=True)]
    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "strict_f1": strict[2],
        "strict_precision": strict[0],
        "strict_recall": strict[1],
        "word_accuracy": ratio(n_right, n_words),
        "accuracy": ratio(sum(all_right), len(gold)),
        "n_unparsed": sum(p is None for p in predicted),
    }


def fit(types: Sequence[str], n_words: int, other: str) -> tuple[str, ...]:
    """Make ``types`` one per word: cut what is too many, add ``other`` for what is missing."""
    return tuple(types[:n_words]) + (other,) * (n_words - len(types))


def to_tags(types: Sequence[str], other: str, numbers: dict[str, int]) -> list[str]:
    """Write one type per word as explicit IOB2 tags, equal neighbours as one entity.

    ``("date", "date", "Other", "time")`` becomes ``["B-0", "I-0", "O", "B-1"]``; ``numbers`` gives each type
    its number and grows by the types it has not seen.
    """
    tags, previous = [], other
    for kind in types:
        if kind == other:
            tags.append("O")
        else:
            tags.append(f"{'I' if kind == previous else 'B'}-{numbers.setdefault(kind, len(numbers))}")
        previous = kind
    return tags


def number_tags(tags: Sequence[str], numbers: dict[str, int]) -> list[str]:
    """Replace the type in ``O``/``B-x``/``I-x`` tags by its number, boundaries as they are."""
    return [tag if tag == "O" else f"{tag[0]}-{numbers.setdefault(tag[2:], len(numbers))}" for tag in tags]


def entity_scores(
    gold: list[list[str]], predicted: list[list[str]], strict: bool = False
) -> tuple[float, float, float]:
    """Micro-averaged precision, recall and F1 over entities, by seqeval; 0 where undefined."""
    if not gold:
        return 0.0, 0.0, 0.0
    with warnings.catch_warnings():  # seqeval calls it ill-defined when nobody found or has an entity; 0 is our answer
        warnings.simplefilter("ignore")
        if strict:
            p, r, f, _ = strict_precision_recall_fscore_support(
                gold, predicted, average="micro", zero_division=0, scheme=IOB2
            )
        else:
            p, r, f, _ = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    return float(p), float(r), float(f)


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def main_figures(task: HasFields, metrics: dict[str, Any]) -> dict[str, float]:
    """The figures that stand for a run in tables, by column name, in the task's order.

    Accuracy for a class field, F1 for a token field (as in the paper's Table 3), and exact match for a joint
    task.
    """
    figures = {}
    for field in task.fields:
        name = "f1" if isinstance(field, TokenField) else "accuracy"
        figures[f"{field.name} {name}"] = metrics["fields"][field.name][name]
    if len(task.fields) > 1:
        figures["exact match"] = metrics["exact_match"]
    return figures


def selection_metric(task: HasFields, metrics: dict[str, Any]) -> float:
    """The one number by which the best checkpoint is chosen: the mean of the main figures but exact match.

    Exact match alone would ignore every gain on the easier field of an example whose other field is still
    wrong.
    """
    figures = main_figures(task, metrics)
    figures.pop("exact match", None)
    return sum(figures.values()) / len(figures)
