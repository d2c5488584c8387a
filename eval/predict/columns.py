"""The columns that predict.py adds to a row.

predicted_queue                 the label of a class field, or None
predicted_queue_probability     its probability; not with --decode free
predicted_queue_unsure          with --abstain_below: the most probable label, if it is not probable enough to be given
predicted_queue_next            the next most probable labels, [{"label": ..., "probability": ...}, ...]; likewise
predicted_topics                the labels of a multi field, [...], in CSV as in a cell of the task's tables; or None
predicted_topics_probability    encoders: the probability of each of them
predicted_topics_next           encoders: the most probable other labels
predicted_slots                 a token field: [{"type": ..., "text": ..., "start": ..., "end": ...}, ...], or None
predicted_truncated             the text was cut
predicted_error                 why there is no label, or None
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from data.errors import UserError
from data.tasks import ClassField, MultiField, Task, TokenField
from eval.predict.classifier import Label, LabelSet, Result


def columns_of(task: Task, prefix: str, with_probabilities: Collection[str], abstains: bool) -> tuple[str, ...]:
    """The names of the new columns, the same for every row.

    Args:
        with_probabilities: the fields whose labels have them.
        abstains: labels of class fields that are not probable enough are not given.

    Raises:
        UserError: two of them have the same name.
    """
    names = []
    for field in task.fields:
        names.append(prefix + field.name)
        if field.name in with_probabilities:
            unsure = [f"{prefix}{field.name}_unsure"] if abstains and isinstance(field, ClassField) else []
            names += [f"{prefix}{field.name}_probability", *unsure, f"{prefix}{field.name}_next"]
    names += [f"{prefix}truncated", f"{prefix}error"]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"the output would have two columns {twice!r}: of a field of this name, and of what predict.py "
                        "says of the labels. Classifier, in Python, can use this checkpoint.")  # fmt: skip
    return tuple(names)


def to_columns(
    result: Result, task: Task, prefix: str, with_probabilities: Collection[str], abstains: bool, is_csv: bool = False
) -> dict[str, Any]:
    """The values of the new columns, in the order of `columns_of`.

    Args:
        is_csv: they are cells, in which the labels of a multi field may have a separator.
    """
    found: dict[str, Any] = {}
    for field in task.fields:
        value, name = result[field.name], prefix + field.name
        if isinstance(field, TokenField):
            found[name] = [vars(entity) for entity in value] if isinstance(value, tuple) else None
            continue
        assert value is None or isinstance(value, Label | LabelSet)
        known = result.unsure.get(field.name, value)
        probability: float | list[float] | None = None
        if isinstance(value, LabelSet):
            found[name], probability = list(value.labels), list(value.probabilities)
            if is_csv and isinstance(field, MultiField) and field.separator is not None:
                found[name] = field.separator.join(value.labels)
        else:
            found[name] = value.label if value else None
            probability = known.probability if isinstance(known, Label) else None
        if field.name in with_probabilities:
            found[f"{name}_probability"] = probability
            if abstains and isinstance(field, ClassField):
                found[f"{name}_unsure"] = known.label if isinstance(known, Label) and not value else None
            next_best = [{"label": other, "probability": p} for other, p in known.next_best] if known else None
            found[f"{name}_next"] = next_best
    found[f"{prefix}truncated"] = result.truncated
    found[f"{prefix}error"] = result.error or None
    return found
