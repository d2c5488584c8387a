"""--class_weights: what its words may say, and the weights that come of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from data.class_weights import describe_weights, read_weights, resolve_weights
from data.errors import UserError
from data.example import Example
from data.tasks import ClassField, MultiField, Task, TokenField

AREA = ClassField("area", ("billing", "a=b", "other", "never"))
TONE = ClassField("tone", ("calm", "other"))
TASK = Task("two", "custom", (AREA, TokenField("slots", ("time",)), TONE, MultiField("marks", ("x", "y"))))
ONE = Task("one", "custom", (AREA,))


def examples(*labels: tuple[str, str]) -> list[Example]:
    return [Example(str(i), "x", {"area": area, "tone": tone}) for i, (area, tone) in enumerate(labels)]


def read(*words: str, task: Task = TASK) -> dict:
    problems: list[str] = []
    found = read_weights(words, task, problems)
    assert not problems
    return found


def test_words_name_fields_or_labels() -> None:
    assert read() == {}
    assert read("balanced") == {"area": "balanced", "tone": "balanced"}
    assert read("tone=balanced", "a=b=3", "area:other=0", "billing=0.5") == {
        "tone": "balanced",
        "area": {"a=b": 3.0, "other": 0.0, "billing": 0.5},
    }
    assert read("other=2", task=ONE) == {"area": {"other": 2.0}}


def test_a_field_before_the_colon_comes_before_a_label_with_one() -> None:
    task = dataclasses.replace(ONE, fields=(ClassField("q", ("a", "q:a")), ClassField("z", ("a", "q:a"))))
    assert read("q:a=2", "z:a=4", task=task) == {"q": {"a": 2.0}, "z": {"a": 4.0}}
    assert read("q:q:a=3", "z:q:a=5", task=task) == {"q": {"q:a": 3.0}, "z": {"q:a": 5.0}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biling=2"], "there is no label 'biling'. Did you mean 'billing'?"),
        (["area:biling=2"], "there is no label 'area:biling'."),
        (["tones=balanced"], "'tones' is no field. Did you mean 'tone'?"),
        (["slots=balanced"], "'slots' has one label for every word"),
        (["marks=balanced"], "'marks' has any number of labels for the text, not one."),
        (["x=2"], "'x' is a label of 'marks', which has any number of labels for the text, not one."),
        (["marks:x=2"], "'x' is a label of 'marks', which has any number of labels for the text, not one."),
        (["time=2"], "'time' is a label of 'slots', which has one label for every word, not for the text."),
        (["other=2"], "several fields have the label 'other': write area:other or tone:other"),
        (["ballanced"], "expected balanced, FIELD=balanced, LABEL=WEIGHT or FIELD:LABEL=WEIGHT. Did you mean 'bal"),
        (["arae"], "Did you mean 'area'?"),
        (["biling"], "Did you mean 'billing'?"),
        (["area"], "class_weights = 'area': the weight is missing. Write area=balanced."),
        (["billing"], "the weight is missing. Write billing=2.5."),
        (["area:billing"], "Write area:billing=2.5."),
        (["other"], "Write area:other=2.5 or tone:other=2.5."),
        (["marks"], "'marks' has any number of labels for the text, not one. Known: area, tone."),
        (["billing=-1"], "the weight '-1' must be 0, or a number from 1e-06 to 1,000,000"),
        (["billing=nan"], "the weight 'nan' must be"),
        (["billing=inf"], "the weight 'inf' must be"),
        (["billing=1e-30"], "the weight '1e-30' must be"),
        (["billing=much"], "the weight 'much' must be"),
        (["billing="], "the weight '' must be"),
        (["billing=2", "area:billing=2"], "field 'area' has weights already"),
        (["balanced", "billing=2"], "field 'area' has weights already"),
        (["billing=2", "area=balanced"], "field 'area' has weights already"),
        (["balanced", "balanced"], "field 'area' has weights already"),
    ],
)
def test_wrong_words_are_named(words: list[str], message: str) -> None:
    problems: list[str] = []
    read_weights(words, TASK, problems)
    assert len(problems) == 1 and problems[0].startswith("class_weights = ") and message in problems[0]


def test_a_word_that_is_a_field_and_its_label() -> None:
    problems: list[str] = []
    read_weights(["u"], Task("one", "custom", (ClassField("u", ("u", "v")),)), problems)
    assert problems == ["class_weights = 'u': the weight is missing. Write u=balanced or u=2.5."]


def test_every_wrong_word_is_reported_and_a_task_without_a_label_a_text_has_no_weights() -> None:
    problems: list[str] = []
    read_weights(["x=1", "billing=-1"], TASK, problems)
    assert len(problems) == 2
    problems.clear()
    read_weights(["balanced"], Task("slots", "custom", (TokenField("slots", ("time",)),)), problems)
    assert problems == ["class_weights: task slots has no field with one label for the text. Omit the option."]


def test_balanced_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(AREA.labels[:3], 200, p=[0.9, 0.08, 0.02]).tolist()
    found = resolve_weights(read("area=balanced"), examples(*((label, "calm") for label in labels)))
    classes = np.unique(labels)
    expected = compute_class_weight("balanced", classes=classes, y=labels)
    assert found["area"] == pytest.approx(dict(zip(classes.tolist(), expected.tolist(), strict=True)))
    assert len(classes) == 3 and expected.max() / expected.min() > 10
    assert sum(found["area"][label] for label in labels) / 200 == pytest.approx(1), "an example weighs 1 on average"


def test_a_label_without_examples_has_no_weight_and_is_named() -> None:
    some = examples(("billing", "calm"), ("billing", "calm"), ("other", "calm"))
    weights = resolve_weights(read("area:other=3", "tone=balanced", "never=9"), some)
    assert weights == {"area": {"billing": 1.0, "other": 3.0}, "tone": {"calm": 1.0}}
    assert describe_weights(weights, TASK).splitlines() == [
        "class weights in the loss of area: other 3, billing 1; no training examples, so no weight: a=b, never",
        "class weights in the loss of tone: calm 1; no training examples, so no weight: other",
    ]


def test_something_must_be_left_to_learn() -> None:
    some = examples(("billing", "calm"), ("other", "calm"))
    assert resolve_weights(read("billing=0"), some) == {"area": {"billing": 0.0, "other": 1.0}}
    with pytest.raises(UserError, match="every training example weighs 0 in field 'area'"):
        resolve_weights(read("billing=0", "area:other=0"), some)
