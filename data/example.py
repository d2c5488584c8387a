"""The type that every data source produces and every task consumes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.json_text import to_json


@dataclass(frozen=True)
class Example:
    """One document with its gold labels.

    Attributes:
        id: stable and unique in a data set, e.g. ``"massive/test/6878"`` or ``"20ng/train/rec.autos/101551"``.
        text: the document, exactly as the model sees it.
        labels: by field name; a string for a class field, any number of labels for a multi field, in the order of its
            label set, one type per word (``text.split()``) for a token field.
        bio: by token-field name, the gold entity boundaries: ``"O"``, ``"B-type"`` or ``"I-type"`` per word. With
            ``labels`` alone, two adjacent entities of one type look like one.
    """

    id: str
    text: str
    labels: dict[str, str | tuple[str, ...]]
    bio: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def class_label(self, field: str) -> str:
        """The label of a class field."""
        label = self.labels[field]
        assert isinstance(label, str), f"{field} has not one label"
        return label

    def label_set(self, field: str) -> tuple[str, ...]:
        """The labels of a multi field."""
        labels = self.labels[field]
        assert not isinstance(labels, str), f"{field} has one label"
        return labels

    def word_labels(self, field: str) -> tuple[str, ...]:
        """The labels of a token field, one per word."""
        labels = self.labels[field]
        assert not isinstance(labels, str), f"{field} has one label"
        return labels

    @property
    def words(self) -> list[str]:
        return self.text.split()


def hash_examples(examples: Sequence[Example]) -> str:
    """A hash of what is scored: the examples in their order, with texts and gold labels."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(to_json(dataclasses.asdict(example), ascii_only=True).encode() + b"\n")
    return digest.hexdigest()
