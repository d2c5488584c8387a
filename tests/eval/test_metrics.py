"""Metrics against scikit-learn, seqeval and an entity counter written from the definition, random inputs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import seqeval.metrics
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score

from data.example import Example
from data.tasks import ClassField, TokenField
from eval.metrics import (
    class_metrics,
    compute_metrics,
    fit,
    main_figures,
    selection_metric,
    to_tags,
    token_metrics,
)

TYPES = ["date", "time", "place_name", "e-mail", "-dash", "B", "I-x", "O"]


@dataclass
class Answer:
    labels: dict
    bio: dict = field(default_factory=dict)


@dataclass
class Fields:
    fields: tuple


def entities(types, other="Other"):
    """(start, end, type) of every maximal run of one type: the definition, without tags."""
    found, start = set(), 0
    for i in range(1, len(types) + 1):
        if i == len(types) or types[i] != types[start]:
            if types[start] != other:
                found.add((start, i, types[start]))
            start = i
    return found


def bracket_entities(tags):
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and not tag.startswith("I-"):
            found.add((start, i, tags[start][2:]))
            start = None
        if tag.startswith("B-"):
            start = i
    return found


def count_f1(gold, predicted):
    n_right = sum(len(g & p) for g, p in zip(gold, predicted, strict=True))
    n_gold, n_predicted = sum(map(len, gold)), sum(map(len, predicted))
    return 2 * n_right / (n_gold + n_predicted) if n_gold + n_predicted else 0.0


def random_types(rng, n_words):
    types = []
    while len(types) < n_words:
        types += [rng.choice([*TYPES, "Other", "Other", "Other"])] * rng.randint(1, 3)
    return tuple(types[:n_words])


def random_bio(rng, types):
    """Brackets for these types that split some runs of one type into adjacent entities."""
    tags, previous = [], "Other"
    for kind in types:
        inside = kind == previous and rng.random() < 0.7
        tags.append("O" if kind == "Other" else ("I-" if inside else "B-") + kind)
        previous = kind
    return tuple(tags)


def disturbed(rng, types):
    """A typical model's answer: some words wrong, too short, too long, or unparsed."""
    if rng.random() < 0.1:
        return None
    answer = [rng.choice([*TYPES, "Other"]) if rng.random() < 0.2 else kind for kind in types]
    if rng.random() < 0.2:
        answer = answer[: rng.randint(0, len(answer))]
    elif rng.random() < 0.2:
        answer += rng.choices(TYPES, k=3)
    return tuple(answer)


@pytest.mark.parametrize("seed", range(20))
def test_slot_f1_equals_the_definition(seed):
    rng = random.Random(seed)
    gold = [random_types(rng, rng.randint(1, 12)) for _ in range(60)]
    bio = [random_bio(rng, types) for types in gold]
    predicted = [disturbed(rng, types) for types in gold]
    got = token_metrics(gold, predicted, "Other", bio)

    filled = [fit(p or (), len(g), "Other") for g, p in zip(gold, predicted, strict=True)]
    of_gold, of_predicted = [entities(g) for g in gold], [entities(p) for p in filled]
    of_brackets = [bracket_entities(tags) for tags in bio]
    assert of_brackets != of_gold, "no two neighbouring entities of one type: nothing for the strict figure to show"
    assert None in predicted
    assert any(p and len(p) > len(g) for g, p in zip(gold, predicted, strict=True))
    assert got["f1"] == pytest.approx(count_f1(of_gold, of_predicted))
    assert got["strict_f1"] == pytest.approx(count_f1(of_brackets, of_predicted))
    assert got["n_unparsed"] == sum(p is None for p in predicted)
    words = [(a, b) for g, p in zip(gold, filled, strict=True) for a, b in zip(g, p, strict=True)]
    assert got["word_accuracy"] == pytest.approx(sum(a == b for a, b in words) / len(words))


@pytest.mark.parametrize("seed", range(10))
def test_slot_f1_equals_seqeval_on_ordinary_names(seed):
    """For names that seqeval does not change, tags with the names themselves give the same scores."""
    rng = random.Random(seed)
    names = ["date", "time", "place_name", "person"]

    def draw(n):
        return tuple(rng.choice([*names, "Other", "Other"]) for _ in range(n))

    gold = [draw(rng.randint(1, 9)) for _ in range(50)]
    predicted = [tuple(g if rng.random() < 0.6 else rng.choice(names) for g in types) for types in gold]
    bio = [random_bio(rng, types) for types in gold]

    def named(types):
        return [
            "O" if kind == "Other" else f"{'I' if i and types[i - 1] == kind else 'B'}-{kind}"
            for i, kind in enumerate(types)
        ]

    got = token_metrics(gold, predicted, "Other", bio)
    tags, predicted_tags = [named(t) for t in gold], [named(t) for t in predicted]
    assert got["f1"] == pytest.approx(seqeval.metrics.f1_score(tags, predicted_tags))
    assert got["precision"] == pytest.approx(seqeval.metrics.precision_score(tags, predicted_tags))
    assert got["recall"] == pytest.approx(seqeval.metrics.recall_score(tags, predicted_tags))
    strict = seqeval.metrics.f1_score([list(t) for t in bio], predicted_tags, mode="strict", scheme=IOB2)
    assert got["strict_f1"] == pytest.approx(strict)


@pytest.mark.filterwarnings("ignore")
def test_names_that_seqeval_mangles_are_kept_apart():
    """Bare labels lose their first letter in seqeval ("date" = "late"); its strict reader strips hyphens."""
    gold, predicted = [("late", "Other")], [("date", "Other")]
    assert seqeval.metrics.f1_score([["late", "O"]], [["date", "O"]]) == 1.0, "the trap this test is about is gone"
    bare = token_metrics(gold, predicted, "Other", [("B-late", "O")])
    assert bare["f1"] == 0.0 and bare["strict_f1"] == 0.0
    hyphens = token_metrics([("-x", "Other")], [("x", "Other")], "Other", [("B--x", "O")])
    assert seqeval.metrics.f1_score([["B--x"]], [["B-x"]], mode="strict", scheme=IOB2) == 1.0
    assert hyphens["f1"] == 0.0 and hyphens["strict_f1"] == 0.0


def test_tags_of_equal_neighbours():
    numbers = {}
    assert to_tags(("date", "date", "Other", "time", "date"), "Other", numbers) == [
        "B-0",
        "I-0",
        "O",
        "B-1",
        "B-0",
    ]
    assert to_tags((), "Other", numbers) == []


def test_two_brackets_of_one_type_count_once_in_the_main_figure_and_twice_in_the_strict_one():
    gold, bio = [("song", "song", "song")], [("B-song", "B-song", "I-song")]
    got = token_metrics(gold, gold, "Other", bio)
    assert got["f1"] == 1.0
    assert got["strict_f1"] == 0.0  # one entity was written where there are two
    assert token_metrics(gold, gold, "Other", [None])["strict_f1"] is None


@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_prediction_with_boundaries_has_a_perfect_strict_score(seed):
    rng = random.Random(seed)
    gold = [random_types(rng, 9) for _ in range(40)]
    bio = [random_bio(rng, types) for types in gold]
    assert token_metrics(gold, gold, "Other", bio)["strict_f1"] < 1.0, "no neighbouring entities of one type"
    got = token_metrics(gold, gold, "Other", bio, bio)
    assert got["f1"] == got["strict_f1"] == got["strict_precision"] == got["strict_recall"] == 1.0


def test_boundaries_count_in_the_strict_score_alone_and_only_where_an_answer_has_them():
    task = Fields((TokenField("slots", ("song",)),))
    examples = [Example("a", "x y", {"slots": ("song", "song")}, {"slots": ("B-song", "I-song")})] * 2
    answers = [
        Answer({"slots": ("song", "song")}, {"slots": ("B-song", "B-song")}),
        Answer({"slots": ("song", "song")}),
    ]
    slots = compute_metrics(task, examples, answers)["fields"]["slots"]
    assert slots["f1"] == 1.0 and slots["strict_recall"] == 1 / 2 and slots["strict_precision"] == 1 / 3


def test_an_unparsed_answer_is_all_other_and_never_correct():
    nothing = token_metrics([("Other", "Other")], [None], "Other", [("O", "O")])
    assert nothing["word_accuracy"] == 1.0 and nothing["accuracy"] == 0.0 and nothing["n_unparsed"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_class_metrics_equal_scikit_learn(seed):
    rng = random.Random(seed)
    names = [f"label {i}" for i in range(8)]
    gold = [rng.choice(names[:6]) for _ in range(80)]
    predicted = [g if rng.random() < 0.5 else rng.choice(names) for g in gold]
    got = class_metrics(gold, predicted)
    assert got["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    assert got["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))
    unread = [None if rng.random() < 0.3 else p for p in predicted]
    got = class_metrics(gold, unread)
    labels = sorted(set(gold) | set(unread) - {None})
    expected = f1_score(gold, [p or "?" for p in unread], average="macro", labels=labels, zero_division=0)
    assert got["macro_f1"] == pytest.approx(expected)
    assert got["accuracy"] == pytest.approx(accuracy_score(gold, [p or "?" for p in unread]))
    assert got["n_unparsed"] == unread.count(None) > 0


def test_joint_metrics_and_exact_match():
    task = Fields((ClassField("intent", ("a", "b")), TokenField("slots", ("date", "time"))))
    examples = [
        Example(str(i), "x y", {"intent": "a", "slots": ("date", "Other")}, {"slots": ("B-date", "O")})
        for i in range(5)
    ]
    answers = [
        Answer({"intent": "a", "slots": ("date", "Other")}),
        Answer({"intent": "a", "slots": ("date",)}),  # the missing word is Other, as in the gold
        Answer({"intent": "b", "slots": ("date", "Other")}),
        Answer({"intent": "a", "slots": None}),
        Answer({"intent": None, "slots": None}),
    ]
    got = compute_metrics(task, examples, answers)
    assert got["exact_match"] == 2 / 5
    assert got["fields"]["intent"] == {"accuracy": 3 / 5, "macro_f1": pytest.approx(0.375), "n_unparsed": 1}
    assert got["fields"]["slots"]["accuracy"] == 3 / 5
    assert got["fields"]["slots"]["recall"] == 3 / 5 and got["fields"]["slots"]["precision"] == 1.0
    assert got["n_unparsed"] == 2 and got["fields"]["slots"]["n_unparsed"] == 2
    figures = main_figures(task, got)
    assert list(figures) == ["intent accuracy", "slots f1", "exact match"]
    assert selection_metric(task, got) == pytest.approx((3 / 5 + 0.75) / 2)


def test_as_many_right_answers_are_the_same_score():
    """In fp64 (66/80 + 53/80) / 2 is smaller than (65/80 + 54/80) / 2, by its last bit."""
    task = Fields((ClassField("queue", ("a", "b")), ClassField("urgency", ("a", "b"))))

    def score(*right: int) -> float:
        fields = {field.name: {"accuracy": n / 80} for field, n in zip(task.fields, right, strict=True)}
        return selection_metric(task, {"fields": fields, "exact_match": 0.5})

    assert len({score(n, 119 - n) for n in range(39, 81)}) == 1
    assert score(66, 54) > score(66, 53)


def test_no_examples_at_all():
    task = Fields((ClassField("intent", ("a",)), TokenField("slots", ("date",))))
    assert compute_metrics(task, [], [])["exact_match"] == 0.0


def test_a_full_test_set_is_scored_in_a_moment():
    import time

    rng = random.Random(0)
    gold = [random_types(rng, 8) for _ in range(2974)]
    bio = [random_bio(rng, types) for types in gold]
    start = time.perf_counter()
    token_metrics(gold, [disturbed(rng, types) for types in gold], "Other", bio)
    assert time.perf_counter() - start < 10
