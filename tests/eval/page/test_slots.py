"""Kinds of entity errors, by hand and by counting; the figures of types against seqeval."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from data.answers import entities
from data.example import Example
from data.tasks import Task, TokenField
from eval.decoder.score import read_answer
from eval.metrics import to_tags, token_metrics
from eval.page.report import Counts
from eval.page.slots import MEANINGS, TokenCounts, outcomes, token_parts, types_table
from eval.page.texts import Texts
from eval.results import Prediction, Results
from tests.eval.page.runs import Read, predicted

O = "Other"  # noqa: E741


def kinds(gold: str, answer: str) -> list[str]:
    """The outcomes of two lists of types: a letter for each word, a point for none."""
    wanted, given = (entities([O if c == "." else c for c in text], O) for text in (gold, answer))
    return sorted(kind for kind, _ in outcomes(wanted, given))


@pytest.mark.parametrize(
    "gold, answer, expected",
    [
        ("..aa.", "..aa.", ["right"]),
        ("..aa.", "..bb.", ["wrong type"]),
        ("..aa.", "..a..", ["wrong boundary"]),
        ("..aa.", ".bb..", ["wrong both"]),
        ("..aa.", ".....", ["missed"]),
        (".....", "..aa.", ["spurious"]),
        ("aa...", "...aa", ["missed", "spurious"]),
        ("aaaa.", "a..a.", ["spurious", "wrong boundary"]),  # one pair for each entity
        ("aabb.", "cccc.", ["missed", "wrong both"]),
        ("aabb.", ".bbb.", ["missed", "wrong boundary"]),  # the same type first, though the other comes first
        ("aabbb", "aaabb", ["wrong boundary", "wrong boundary"]),
        ("aaa..", "abbb.", ["spurious", "wrong boundary"]),
        ("a.b.c", "a.c.b", ["right", "wrong type", "wrong type"]),
        (".....", ".....", []),
    ],
)
def test_each_entity_has_one_outcome(gold, answer, expected):
    assert kinds(gold, answer) == expected


def test_the_longer_overlap_is_the_pair():
    ((_, (_, best)), *_) = outcomes([("a", 2, 8)], [("a", 0, 3), ("a", 4, 9)])
    assert best == ("a", 4, 9)


def test_outcomes_add_up():
    for gold, answer in product(product(".ab", repeat=4), repeat=2):
        wanted, given = (entities([O if c == "." else c for c in text], O) for text in (gold, answer))
        found = outcomes(wanted, given)
        assert sorted(g for _, (g, _) in found if g) == sorted(wanted)
        assert sorted(p for _, (_, p) in found if p) == sorted(given)
        assert sum(kind == "right" for kind, _ in found) == len(set(wanted) & set(given))
        left = [(g, p) for k, (g, _) in found if k == "missed" for j, (_, p) in found if j == "spurious"]
        assert not any(min(g[2], p[2]) > max(g[1], p[1]) for g, p in left), "what overlaps is a pair"
        for kind, (g, p) in found:
            if kind.startswith("wrong"):
                assert (g[0] == p[0]) == (kind == "wrong boundary") and (g[1:] == p[1:]) == (kind == "wrong type")


def predictions(n: int = 300, other: str = O) -> list[Prediction]:
    draw, found = random.Random(0), []
    for i in range(n):
        gold = tuple(draw.choices([other, "I-x", "time", "-"], [5, 2, 2, 1], k=draw.randrange(1, 12)))
        answer = tuple(g if draw.random() < 0.7 else draw.choice([other, "I-x", "time", "new"]) for g in gold)
        parsed = None if draw.random() < 0.1 else answer
        found.append(Prediction(str(i), {"s": gold}, "", {"s": parsed}))
    return found


def counted(found: list[Prediction], other: str = O) -> TokenCounts:
    counts = TokenCounts("s", other)
    for prediction in found:
        counts.add(prediction)
    return counts


@pytest.mark.parametrize("other", [O, "O"])
def test_figures_are_those_of_seqeval(other):
    found = predictions(other=other)
    counts, numbers = counted(found, other), dict[str, int]()
    gold = [p.gold["s"] for p in found]
    answers = [p.parsed["s"] or (other,) * len(p.gold["s"]) for p in found]
    tags = [[to_tags(types, other, numbers) for types in side] for side in (gold, answers)]
    names = sorted(numbers, key=lambda kind: str(numbers[kind]))  # seqeval's order
    precision, recall, f1, support = precision_recall_fscore_support(*tags, average=None, zero_division=0)
    for i, kind in enumerate(names):
        right, wanted, given = counts.n_right[kind], counts.n_gold[kind], counts.n_predicted[kind]
        assert (right / max(given, 1), right / max(wanted, 1), wanted) == (precision[i], recall[i], support[i])
        assert 2 * right / (wanted + given) == pytest.approx(f1[i], abs=1e-12)
    metrics = token_metrics(gold, [p.parsed["s"] for p in found], other, [None] * len(found))
    assert counts.f1 == pytest.approx(metrics["f1"], abs=1e-12)
    assert counts.kinds["unread"] == sum(len(entities(p.gold["s"], other)) for p in found if p.parsed["s"] is None) > 0
    assert counts.n_gold.total() == counts.kinds.total() - counts.kinds["spurious"]
    read = Read(types_table(counts))
    assert {"I-x", "time", "-", "new"} <= set(read.texts)


def test_examples_are_shown_with_and_without_texts():
    words = "wake me at nine am on friday".split()
    gold = (O, O, O, "time", "time", O, "date")
    answers = {"id 1": (O, O, O, "date", "date", O, "date"), "id 2": (O, O, "time", "time", "time", O, "date"),
               "id 3": (O, O, O, "time", "time", O, O), "id 4": None}  # fmt: skip
    found = [Prediction(name, {"s": gold}, "", {"s": answer}) for name, answer in answers.items()]
    counts = counted(found)
    assert counts.mixed == Counter({("time", "date"): 1})
    texts = Texts({name: Example(name, " ".join(words), {"s": gold}) for name in answers})
    read = Read(token_parts(counts, texts))
    assert ["nine am", "time"] in [read.texts[i : i + 2] for i in range(len(read.texts))]
    assert "at nine am" in read.texts
    shown = [kind for kind in MEANINGS if read.texts.count(kind) == 2]  # in the table, and over an example
    assert shown == ["wrong type", "wrong boundary", "missed", "unread"]
    bare = Read(token_parts(counts, Texts(why_not="no data"))).text
    assert "gold: time at words 4 to 5; answered: date at words 4 to 5" in bare and "nine" not in bare
    assert "answered: nothing" in bare and "gold: date at word 7" in bare


def test_answers_of_another_length():
    found = [
        Prediction("a", {"s": (O, "x")}, '["Other"]', {"s": (O, O)}, n_missing=1),
        Prediction("b", {"s": (O, "x")}, '["Other", "x", "x"]', {"s": (O, "x")}, n_extra=1),
        Prediction("c", {"s": (O, "x")}, '["x"]', {"s": ("x", O)}, n_missing=1),
    ]
    read = Read(token_parts(counted(found), Texts(why_not="x")))
    assert "2 answers have too few labels, 1 too many" in read.text
    assert '["Other"]' in read.texts and '["Other", "x", "x"]' in read.texts and '["x"]' not in read.texts
    assert "length than" not in token_parts(counted(predictions()), Texts(why_not="x"))


def test_no_entities():
    assert "no entities" in token_parts(counted([Prediction("a", {"s": (O,)}, "", {"s": (O,)})]), Texts(why_not="x"))


def sections_of_two(predictions: list[Prediction]) -> dict[str, str]:
    """What is said of the lengths of the answers to each of two token fields."""
    results = Results("s", "t", {"parts": "token", "marks": "token"}, "d", "test", {})
    counts = Counts.of(results)
    for prediction in predictions:
        counts.add(prediction, None)
    return {name: Read(token_parts(own, Texts(why_not="x"))).text for name, own in counts.tokens.items()}


def test_each_of_several_fields_has_its_own_lengths():
    """A list of the one field must not be counted or quoted as one of the other."""
    task = Task("t", "custom", (TokenField("parts", ("x",), answer="list"), TokenField("marks", ("y",), answer="list")))
    example = Example("e", "a b", {"parts": (O, "x"), "marks": ("y", O)})
    answers = ['{"task1": ["x"], "task2": ["y", "Other"]}', '{"task1": ["x", "x"], "task2": ["y", "y", "y"]}',
               '{"task1": ["x"], "task2": []}', '{"task1": ["x", "x", "x"], "task2": ["y"]}']  # fmt: skip
    found = [read_answer(task, replace(example, id=str(i)), raw, truncated=False, stopped=True, n_prompt_tokens=1,
                         n_new_tokens=1) for i, raw in enumerate(answers)]  # fmt: skip
    assert [p.n_labels for p in found] == [{"parts": 1}, {"marks": 3}, {"parts": 1, "marks": 0},
                                           {"parts": 3, "marks": 1}]  # fmt: skip
    shown = sections_of_two(found)
    assert "2 answers have too few labels, 1 too many" in shown["parts"]
    assert f"too short: {answers[0]}" in shown["parts"] and f"too long: {answers[3]}" in shown["parts"]
    assert "2 answers have too few labels, 1 too many" in shown["marks"]
    assert f"too short: {answers[2]}" in shown["marks"] and f"too long: {answers[1]}" in shown["marks"]
    old = sections_of_two([replace(p, n_labels={}) for p in found])
    assert all("4 answers have too few or too many labels" in text and "Score again" in text for text in old.values())
    assert all("length than" not in text for text in sections_of_two([predicted(task, example, task.write(
        example.labels, example.words))]).values())  # fmt: skip
