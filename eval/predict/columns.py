"""The columns that predict.py adds to a row.

predicted_queue                 the label of a class field, or None
predicted_queue_probability     its probability; not with --decode free
predicted_queue_unsure          with --abstain_below: the most probable label, if it is not probable enough to be given
predicted_queue_next            the next most probable labels, [{"label": ..., "probability": ...}, ...]; likewise
predicted_slots                 a token field: [{"type": ..., "text": ..., "start": ..., "end": ...}, ...], or None
predicted_truncated             the text was cut
predicted_error                 why there is no label, or None
"""

from __future__ import annotations

from typing import Any

from data.tasks import ClassField, Task
from eval.predict.classifier import Label, Result


def columns_of(task: Task, prefix: str, with_probabilities: bool, abstains: bool) -> tuple[str, ...]:
    """The names of the new columns, the same for every row."""
    names = []
    for field in task.fields:
        names.append(prefix + field.name)
        if with_probabilities and isinstance(field, ClassField):
            unsure = [f"{prefix}{field.name}_unsure"] if abstains else []
            names += [f"{prefix}{field.name}_probability", *unsure, f"{prefix}{field.name}_next"]
    return (*names, f"{prefix}truncated", f"{prefix}error")


def to_columns(result: Result, task: Task, prefix: str, with_probabilities: bool, abstains: bool) -> dict[str, Any]:
    """The values of the new columns, in the order of `columns_of`."""
    found: dict[str, Any] = {}
    for field in task.fields:
        value, name = result[field.name], prefix + field.name
        if not isinstance(field, ClassField):
            found[name] = [vars(entity) for entity in value] if isinstance(value, tuple) else None
            continue
        given = value if isinstance(value, Label) else None
        label = result.unsure.get(field.name, given)
        found[name] = given.label if given else None
        if with_probabilities:
            found[f"{name}_probability"] = label.probability if label else None
            if abstains:
                found[f"{name}_unsure"] = label.label if label and not given else None
            next_best = [{"label": other, "probability": p} for other, p in label.next_best] if label else None
            found[f"{name}_next"] = next_best
    found[f"{prefix}truncated"] = result.truncated
    found[f"{prefix}error"] = result.error or None
    return found
