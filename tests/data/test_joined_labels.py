"""Labels that are several, of a class field or with another separator than the field's: `data.check` says so."""

from __future__ import annotations

import pytest

from data.example import Example
from data.findings import facts_of, findings
from data.tasks import ClassField, MultiField, Task


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
        (["{'x', 'y'}", "set()", "z"], "2 topics labels: 'set()', \"{'x', 'y'}\" seem to be several labels: set type"),
        (["#x", "#x #y", "#z #y"], "2 topics labels: '#x #y', '#z #y' seem to be several labels with ' ' between them"),
        (["x", "y", "x y"], 'with \' \' between them: set type = "multi" and separator = " " in the field.'),
        (["New York", "New", "Bonn"], None),
        (["very good", "good", "very bad", "bad"], None),
        (["#x y", "#x #y"], None),
        (['["x"]', "z"], "seems to be several labels: set type"),
        (["a/x", "a/y", "b/x", "b/y"], None),  # no part is a label
        (["a", "a/x", "a/y", "b/x", "b/y"], None),  # one of four is
        (["1", "2", "5", "1,5", "2,5", "1/2"], None),
        (["0", "2", "5", "0,2", "0,2,5"], "2 topics labels: '0,2', '0,2,5' seem to be several labels with ','"),
        (["0", "2", "5", "0/2", "0/2/5"], "seem to be several labels with '/'"),
        (["0", "1", "2", "0,1", "0,2", "1,2"], "3 topics labels: '0,1', '0,2', '1,2' seem to be several"),
        (["0", "1", "2", "0,1", "1,2"], None),  # too few to tell
        (["1", "2", "3", "4", "5", "1,5", "2,5", "3,5", "4,5"], None),  # half stars
        ([*"123456789", "3,5", "4,5", "5,5", "6,5", "7,5", "8,5"], None),
        ([*"123456", "1,3", "1,5", "2,3", "2,5", "3,2", "4,1"], None),  # marks
        (["1", "2", "3", "1,0", "2,0", "1,3", "2,3"], None),
        (["1", "2", "1,234,567", "2,345,678"], None),
        (["1", "10", "1,000", "10,000", "1,000,000"], None),
        (["0", "1", "0,1", "1,2", "0,2"], None),  # 2 is no label by itself
        (["1", "2", "5", "1;5", "2;5"], "2 topics labels: '1;5', '2;5' seem to be several labels with ';'"),
        (["x", "y", "x;z", "[x", "x]"], None),
        (
            ["x", '{"choices": ["x", "y"]}'],
            'seems to be several labels: set type = "multi" and choices = true in the field.',
        ),
        (
            ["x", '["x", "y"]', '{"choices": ["x", "y"]}'],
            '2 topics labels: \'["x", "y"]\', \'{"choices": ["x", "y"]}\'',
        ),
        (["x", "{'y': 1}"], "the topics label \"{'y': 1}\" is a JSON object: write the labels"),
    ],
)
def test_class_labels_that_are_several(labels: list[str], said: str | None) -> None:
    task = Task("t", "custom", (ClassField("topics", tuple(labels)),))
    examples = [Example(f"train/{n}", f"text {n}", {"topics": label}, {}) for n, label in enumerate(labels * 5)]
    found = findings([facts_of("train", examples, task)], task)
    texts = [finding.text for finding in found]
    assert (not texts) if said is None else (len(texts) == 1 and said in texts[0])
    assert not any(finding.is_error for finding in found)


def test_choices_beside_other_objects() -> None:
    """Each is said to be what it is."""
    labels = ("x", '{"choices": ["x", "y"]}', '{"y": 1}')
    task = Task("t", "custom", (ClassField("topics", labels),))
    examples = [Example(f"train/{n}", f"text {n}", {"topics": label}, {}) for n, label in enumerate(labels * 5)]
    texts = sorted(finding.text for finding in findings([facts_of("train", examples, task)], task))
    assert len(texts) == 2
    assert texts[0].startswith('the topics label \'{"choices": ["x", "y"]}\' seems to be several labels')
    assert texts[1].startswith("the topics label '{\"y\": 1}' is a JSON object")


def multi(labels: str, separator: str | None = "|") -> list[str]:
    """What is said of labels that seem to be several; each text has one of the labels, which have spaces between."""
    known = tuple(labels.split(" "))
    task = Task("t", "custom", (MultiField("topics", known, separator),))
    examples = [Example(f"train/{n}", f"text {n}", {"topics": (label,)}, {}) for n, label in enumerate(known * 5)]
    return [f.text for f in findings([facts_of("train", examples, task)], task) if not f.is_error]


@pytest.mark.parametrize(
    ("labels", "separator", "said"),
    [
        (
            "x y x;y",
            "|",
            "the topics label 'x;y' seems to be several labels with ';' between them: set separator = \";\"",
        ),
        ("x;y y;z z;x", "|", "3 topics labels: 'x;y', 'y;z', 'z;x' seem to be several labels with ';'"),
        ("x y x|y y|x", ";", "with '|' between them: set separator = \"|\" in the field."),
        ("x y x/y", ";", 'set separator = "/"'),
        ("x y x,y", ";", 'set separator = ","'),
        ("x y x\ty", ";", 'set separator = "\\t" in the field.'),
        ("x y x;y x;z", "|", "the topics label 'x;y' seems"),  # z is nowhere else
    ],
)
def test_labels_with_another_separator(labels: str, separator: str, said: str) -> None:
    (found,) = multi(labels, separator)
    assert said in found


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        ("x y z", "|"),
        ("x y x;z", "|"),  # a label with a semicolon in it
        ("comp/graphics comp/windows rec/autos", "|"),
        ("x y x;x x; ;y", "|"),
        ("x y x;y", None),  # lists
    ],
)
def test_labels_that_have_a_separator_in_them(labels: str, separator: str | None) -> None:
    assert multi(labels, separator) == []
