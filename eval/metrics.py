"""Metrics of parsed answers: accuracy, F1 of labels, two kinds of slot F1, exact match, the number of unparsed answers.

Every system is scored by these functions: decoders, encoders and baselines, fine-tuned or not. They do not
depend on models or text: :meth:`data.tasks.Task.read` has already read each answer into labels.

Slots are scored as in the paper's section 5.8. There is one type per word; missing labels are Other, extra ones
are cut, and an unparsed answer is all Other. Adjacent words of one type form one entity, in gold and predictions:

    words        wake me up at  nine am   on   friday
    types        Other ...      time time Other date
    tags         O  O  O  O     B-   I-   O    B-

seqeval drops the first letter of a bare label and splits it at hyphens, and its strict mode strips hyphens from
the ends of a name. So types are replaced by numbers before seqeval sees them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from data.example import Example
from data.tasks import Field, FieldKind, MultiField, TokenField

Labels = dict[str, str | tuple[str, ...] | None]


class HasFields(Protocol):
    """The part of a task that the metrics need; :class:`data.tasks.Task` has it."""

    @property
    def fields(self) -> Sequence[Field]: ...


class HasLabels(Protocol):
    """The part of a parsed answer that the metrics need; :class:`data.answers.Parsed` has it."""

    @property
    def labels(self) -> Labels: ...

    @property
    def bio(self) -> Mapping[str, tuple[str, ...]]: ...


def compute_metrics(task: HasFields, examples: Sequence[Example], parsed: Sequence[HasLabels]) -> dict[str, Any]:
    """Score parsed answers against the gold labels.

    Args:
        task: gives the fields; nothing else of it is used.
        examples: N gold examples, with ``labels`` and, for the strict slot score, ``bio``.
        parsed: N answers in the same order; ``labels[field]`` is None if the field is unparsed. ``bio`` has the
            boundaries of the entities, for the strict slot score; a field that is not in it has none.

    Returns:
        ``{"n_examples", "n_unparsed" (examples with any unparsed field), "exact_match", "fields": {name:
        figures}}``. A class field has ``accuracy``, ``macro_f1`` and ``n_unparsed``. A multi field has those of
        `multi_metrics`. A token field has ``f1``, ``precision``, ``recall``, the same three with the prefix ``strict_``
        (None if a gold example has no brackets), ``word_accuracy``, ``accuracy`` (all words of an example correct) and
        ``n_unparsed``. All figures but the counts are in [0, 1].
    """
    assert len(examples) == len(parsed), f"{len(examples)} examples but {len(parsed)} answers"
    correct = [True] * len(examples)
    unparsed = [False] * len(examples)
    fields: dict[str, dict[str, Any]] = {}
    for field in task.fields:
        answers: Sequence[Any] = [answer.labels.get(field.name) for answer in parsed]
        if isinstance(field, TokenField):
            gold: Sequence[Any] = [example.word_labels(field.name) for example in examples]
            bio = [example.bio.get(field.name) for example in examples]
            boundaries = [answer.bio.get(field.name) for answer in parsed]
            fields[field.name] = token_metrics(gold, answers, field.other, bio, boundaries)
        elif isinstance(field, MultiField):
            gold = [example.label_set(field.name) for example in examples]
            fields[field.name] = multi_metrics(gold, answers)
        else:
            gold = [example.class_label(field.name) for example in examples]
            fields[field.name] = class_metrics(gold, answers)
        for i, (wanted, answer) in enumerate(zip(gold, answers, strict=True)):
            correct[i] &= is_right(field, wanted, answer)
            unparsed[i] |= answer is None
    return {
        "n_examples": len(examples),
        "n_unparsed": sum(unparsed),
        "exact_match": ratio(sum(correct), len(correct)),
        "fields": fields,
    }


def is_right(field: Field, gold: Any, answer: Any) -> bool:
    """Whether a parsed answer of a field, None if unparsed, is the gold one: all words, or all labels of a set."""
    if answer is None:
        return False
    if isinstance(field, TokenField):
        return bool(fit(answer, len(gold), field.other) == tuple(gold))
    return bool(set(answer) == set(gold) if isinstance(field, MultiField) else answer == gold)


def class_metrics(gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, Any]:
    """Accuracy and macro-F1 of one class field; None is an unparsed answer.

    Macro-F1 is scikit-learn's: the mean over the labels that occur in gold or predictions. An unparsed answer
    counts as a miss of its gold label and adds no class to the mean.
    """
    from sklearn.metrics import f1_score  # takes a second to import

    labels = sorted(set(gold) | {label for label in predicted if label is not None})
    unparsed = "\0unparsed"
    macro_f1 = 0.0
    if labels:
        filled = [unparsed if label is None else label for label in predicted]
        macro_f1 = float(f1_score(gold, filled, labels=labels, average="macro", zero_division=0))
    return {
        "accuracy": ratio(sum(g == p for g, p in zip(gold, predicted, strict=True)), len(gold)),
        "macro_f1": macro_f1,
        "n_unparsed": sum(p is None for p in predicted),
    }


def multi_metrics(gold: Sequence[tuple[str, ...]], predicted: Sequence[tuple[str, ...] | None]) -> dict[str, Any]:
    """Precision, recall and F1 of the labels of one multi field, and how often all labels of an example are right.

    An unparsed answer (None) has no labels, and is never right. The labels are those that occur in gold or predictions.

    Returns:
        ``micro_f1``, ``micro_precision``, ``micro_recall``: of all pairs of an example and a label. ``macro_f1``: the
        mean of the labels' F1. ``subset_accuracy``: the part of the examples with exactly the gold labels.
        ``n_unparsed``. ``per_label``: by label ``precision``, ``recall``, ``f1`` and ``support``, the number of
        examples that have it. What is undefined is 0, as in scikit-learn with ``zero_division=0``.
    """
    both, given, wanted = Counter[str](), Counter[str](), Counter[str]()
    for g, p in zip(gold, predicted, strict=True):
        given.update(set(p or ()))
        wanted.update(set(g))
        both.update(set(p or ()) & set(g))
    per_label = {
        label: _label_scores(both[label], given[label], wanted[label]) | {"support": wanted[label]}
        for label in sorted(given.keys() | wanted.keys())
    }
    micro = _label_scores(both.total(), given.total(), wanted.total())
    right = sum(p is not None and set(p) == set(g) for g, p in zip(gold, predicted, strict=True))
    return {
        **{f"micro_{name}": value for name, value in micro.items()},
        "macro_f1": sum(own["f1"] for own in per_label.values()) / max(1, len(per_label)),
        "subset_accuracy": ratio(right, len(gold)),
        "n_unparsed": sum(p is None for p in predicted),
        "per_label": per_label,
    }


def _label_scores(n_right: int, n_given: int, n_wanted: int) -> dict[str, float]:
    return {
        "f1": ratio(2 * n_right, n_given + n_wanted),
        "precision": ratio(n_right, n_given),
        "recall": ratio(n_right, n_wanted),
    }


def token_metrics(
    gold: Sequence[tuple[str, ...]],
    predicted: Sequence[tuple[str, ...] | None],
    other: str,
    bio: Sequence[tuple[str, ...] | None],
    predicted_bio: Sequence[tuple[str, ...] | None] | None = None,
) -> dict[str, Any]:
    """Entity F1 of one token field (main and strict) and word accuracy.

    Args:
        gold: one type per word, per example.
        predicted: the same. None (unparsed) counts as all Other; short lists are padded with Other, long ones cut.
        other: the type of words outside entities.
        bio: the gold brackets as ``O``/``B-x``/``I-x`` per word, for the strict score. Two adjacent brackets of
            one type are two entities here, but one in ``gold``.
        predicted_bio: the same of the predictions, one tag per word, for the strict score. None, also of a single
            example: there are no boundaries (an answer of one type per word), so equal neighbours are one entity.
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
        strict_tags = [
            tags if own is None else number_tags(own, numbers)
            for tags, own in zip(predicted_tags, predicted_bio or [None] * len(gold), strict=True)
        ]
        strict = entity_scores(bracket_tags, strict_tags, strict=True)
    n_words = sum(len(types) for types in gold)
    n_correct = sum(a == b for g, p in zip(gold, filled, strict=True) for a, b in zip(g, p, strict=True))
    all_correct = [p is not None and tuple(g) == tuple(f) for g, p, f in zip(gold, predicted, filled, strict=True)]
    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "strict_f1": strict[2],
        "strict_precision": strict[0],
        "strict_recall": strict[1],
        "word_accuracy": ratio(n_correct, n_words),
        "accuracy": ratio(sum(all_correct), len(gold)),
        "n_unparsed": sum(p is None for p in predicted),
    }


def fit(types: Sequence[str], n_words: int, other: str) -> tuple[str, ...]:
    """Make ``types`` one per word: cut extra ones, add ``other`` for missing ones."""
    return tuple(types[:n_words]) + (other,) * (n_words - len(types))


def to_tags(types: Sequence[str], other: str, numbers: dict[str, int]) -> list[str]:
    """Convert one type per word to IOB2 tags; equal neighbours are one entity.

    ``("date", "date", "Other", "time")`` becomes ``["B-0", "I-0", "O", "B-1"]``; ``numbers`` has the number of
    each type; new types are added.
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
    """Replace the type in ``O``/``B-x``/``I-x`` tags by its number."""
    return [tag if tag == "O" else f"{tag[0]}-{numbers.setdefault(tag[2:], len(numbers))}" for tag in tags]


def entity_scores(
    gold: list[list[str]], predicted: list[list[str]], strict: bool = False
) -> tuple[float, float, float]:
    """Micro-averaged precision, recall and F1 over entities, from seqeval; 0 if undefined."""
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
    from seqeval.metrics.v1 import precision_recall_fscore_support as strict_precision_recall_fscore_support
    from seqeval.scheme import IOB2

    if not gold:
        return 0.0, 0.0, 0.0
    with warnings.catch_warnings():  # seqeval warns if there are no entities; we return 0
        warnings.simplefilter("ignore")
        if strict:
            p, r, f, _ = strict_precision_recall_fscore_support(
                gold, predicted, average="micro", zero_division=0, scheme=IOB2
            )
        else:
            p, r, f, _ = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    return float(p), float(r), float(f)


def ratio(part: int, total: int) -> float:
    """``part / total``, 0 if ``total`` is 0."""
    return part / total if total else 0.0


def main_figure(kind: FieldKind) -> str:
    """The figure of a field of a kind that stands for it in tables."""
    return {"class": "accuracy", "multi": "micro_f1", "token": "f1"}[kind]


def main_figures(task: HasFields, metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of a run in tables, by column name, in the task's order.

    Accuracy for a class field, F1 for a token field (as in the paper's Table 3), micro-F1 for a multi field, exact
    match for a joint task.
    """
    figures = {}
    for field in task.fields:
        name = main_figure(field.kind)
        figures[f"{field.name} {name.replace('_', ' ')}"] = metrics["fields"][field.name][name]
    if len(task.fields) > 1:
        figures["exact match"] = metrics["exact_match"]
    return figures


def selection_metric(task: HasFields, metrics: dict[str, Any]) -> float:
    """The figure by which the best checkpoint is chosen: the mean of the main figures without exact match.

    Exact match ignores an improvement in one field of an example as long as another field is wrong. Rounded, so that
    as many right answers are the same score however they are spread over the fields, and not better by a last bit.
    """
    figures = main_figures(task, metrics)
    figures.pop("exact match", None)
    return round(sum(figures.values()) / len(figures), 12)
