"""Labels of a class field that are several: `data.check` says so."""

from __future__ import annotations

import pytest

from data.example import Example
from data.findings import facts_of, findings
from data.tasks import ClassField, Task


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["x", "y", "x; y"],
            "the topics label 'x; y' seems to be several labels with ';' between them: "
            'set type = "multi" and separator = ";" in the field.',
        ),
        (["x", "y", "x, y", "x, z", "y, z"], "3 topics labels: 'x, y', 'x, z', 'y, z' seem to be several"),
        (
            ["['x']", "['x', 'y']", "z"],
            "2 topics labels: \"['x', 'y']\", \"['x']\" seem to be several labels: set type = \"multi\" in the field.",
        ),
        (['["x"]', "z"], "seems to be several labels: set type"),
        (["a/x", "a/y", "b/x", "b/y"], None),  # no part is a label
        (["a", "a/x", "a/y", "b/x", "b/y"], None),  # one of four is
        (["1", "2", "5", "1,5", "2,5", "1/2"], None),
        (["x", "y", "x;z", "[x", "x]"], None),
    ],
)
def test_class_labels_that_are_several(labels: list[str], said: str | None) -> None:
    task = Task("t", "custom", (ClassField("topics", tuple(labels)),))
    examples = [Example(f"train/{n}", f"text {n}", {"topics": label}, {}) for n, label in enumerate(labels * 5)]
    found = findings([facts_of("train", examples, task)], task)
    texts = [finding.text for finding in found]
    assert (not texts) if said is None else (len(texts) == 1 and said in texts[0])
    assert not any(finding.is_error for finding in found)
