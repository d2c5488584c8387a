"""Weights of labels in the training loss: ``--class_weights``, for data in which some labels are rare.

Each word of the option is one of these; a field that none of them names has no weights, and neither has a token field::

    balanced             every class field: a label weighs n / (k * n_label)
    FIELD=balanced       this field
    LABEL=2.5            this label; the field's other labels weigh 1
    FIELD:LABEL=2.5      the same, if several fields have the label

n training examples, k labels that have any, n_label examples of this label: all labels weigh as much together, and an
example 1 on average. It is what ``compute_class_weight("balanced", ...)`` of scikit-learn gives. A label without
examples has no weight: no example's loss would have it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from data.errors import UserError, nearest
from data.example import Example
from data.tasks import ClassField, Field, Task

BALANCED = "balanced"
LEAST, MOST = 1e-6, 1e6  # of weights above 0: far from what fp32 cannot add up
LISTED = 20  # labels in the log and on the model card

# By field: BALANCED, or the weights that are given, by label.
Given = dict[str, str | dict[str, float]]
ClassWeights = dict[str, dict[str, float]]  # by field: the weight of each label that has examples


def read_weights(words: Sequence[str], task: Task, problems: list[str]) -> Given:
    """What the option's words say of the task's fields; what is wrong with them is added to ``problems``."""
    fields = {field.name: field for field in task.fields if isinstance(field, ClassField)}
    found: Given = {}
    if words and not fields:
        problems.append(f"class_weights: task {task.name} has no field with one label for the text. Omit the option.")
        return found
    for word in words:
        try:
            for name, value in _read_word(word, task, fields):
                before = found.setdefault(name, {})
                if value == BALANCED and not before:
                    found[name] = BALANCED
                elif isinstance(value, dict) and isinstance(before, dict) and not before.keys() & value.keys():
                    before |= value
                else:
                    raise UserError(f"field {name!r} has weights already: name each label once, or the field alone.")
        except UserError as error:
            problems.append(f"class_weights = {word!r}: {error}")
    return found


def _read_word(word: str, task: Task, fields: Mapping[str, ClassField]) -> list[tuple[str, str | dict[str, float]]]:
    name, equals, value = word.rpartition("=")
    if word == BALANCED:
        return [(field, BALANCED) for field in fields]
    if not equals:
        raise UserError(_without_weight(word, task, fields))
    if value == BALANCED:
        if name not in fields:
            raise UserError(f"{name!r} {_WHY[_kind(name, task)]}{nearest(name, fields)}")
        return [(name, BALANCED)]
    places = _places(name, fields)
    if not places:
        for field, label in _places(name, {field.name: field for field in task.fields}):
            raise UserError(f"{label!r} is a label of {field!r}, which {_WHY[_kind(field, task)]}")
        raise UserError(f"there is no label {name!r}.{nearest(name, _labels(fields))}")
    if len(places) > 1:
        listed = " or ".join(f"{field}:{label}" for field, label in places)
        raise UserError(f"several fields have the label {name!r}: write {listed}.")
    (field, label) = places[0]
    return [(field, {label: _weight(value)})]


def _places(name: str, fields: Mapping[str, Field]) -> list[tuple[str, str]]:
    """The fields and labels that LABEL or FIELD:LABEL means. A name that may be both is FIELD:LABEL."""
    labels = [(field.name, label) for field in fields.values() for label in field.labels]
    named = [(field, label) for field, label in labels if name == f"{field}:{label}"]
    return named or [(field, label) for field, label in labels if name == label]


def _without_weight(word: str, task: Task, fields: Mapping[str, ClassField]) -> str:
    """What is wrong with a word that has no equals sign."""
    places = _places(word, fields)
    labels = [word] if len(places) == 1 else [f"{field}:{label}" for field, label in places]
    ways = [f"{word}={BALANCED}"] * (word in fields) + [f"{label}=2.5" for label in labels]
    if ways:
        return f"the weight is missing. Write {' or '.join(ways)}."
    if (kind := _kind(word, task)) != "none":
        return f"{word!r} {_WHY[kind]}{nearest(word, fields)}"
    known = dict.fromkeys([BALANCED, *fields, *_labels(fields)])
    return f"expected balanced, FIELD=balanced, LABEL=WEIGHT or FIELD:LABEL=WEIGHT.{nearest(word, known)}"


def _kind(name: str, task: Task) -> str:
    return next((field.kind for field in task.fields if field.name == name), "none")


_WHY = {
    "multi": "has any number of labels for the text, not one.",
    "token": "has one label for every word, not for the text.",
    "none": "is no field.",
}


def _labels(fields: Mapping[str, ClassField]) -> list[str]:
    return list(dict.fromkeys(label for field in fields.values() for label in field.labels))


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if weight == 0 or LEAST <= weight <= MOST:
        return weight
    raise UserError(f"the weight {text!r} must be 0, or a number from {LEAST:g} to {MOST:,.0f}; or balanced.")


def resolve_weights(given: Given, examples: Sequence[Example]) -> ClassWeights:
    """The weights of the labels that these training examples have, in the order of ``given``.

    Raises:
        UserError: all examples weigh 0, so there is nothing to learn.
    """
    found: ClassWeights = {}
    for name, value in given.items():
        counts = Counter(example.class_label(name) for example in examples)
        n, k = len(examples), len(counts)
        if isinstance(value, dict):
            weights = {label: value.get(label, 1.0) for label in sorted(counts)}
        else:
            weights = {label: n / (k * count) for label, count in sorted(counts.items())}
        if examples and not any(weights.values()):
            raise UserError(f"class_weights: every training example weighs 0 in field {name!r}. Omit that field.")
        found[name] = weights
    return found


def describe_weights(weights: ClassWeights, task: Task) -> str:
    """The weights for the log, a line for each field."""
    lines = []
    for field in task.fields:
        if (found := weights.get(field.name)) is None:
            continue
        without = [label for label in field.labels if label not in found]
        more = f"; no training examples, so no weight: {_listed(without)}" if without else ""
        lines.append(f"class weights in the loss of {field.name}: {listed_weights(found)}{more}")
    return "\n".join(lines)


def listed_weights(weights: Mapping[str, float]) -> str:
    """Labels with their weights, the largest first."""
    return _listed([f"{label} {weights[label]:.4g}" for label in sorted(weights, key=lambda label: -weights[label])])


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - LISTED:,} more" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + more
