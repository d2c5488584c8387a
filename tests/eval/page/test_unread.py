"""Why answers could not be read; every case is one that `Task.read` does not read."""

from __future__ import annotations

import pytest

from data.example import Example
from data.tasks import TASKS, ClassField, MultiField, Task, TokenField
from eval.page import unread
from eval.page.unread import BROKEN, CUT, NOTHING, OTHER, SHAPE, UNKNOWN, UnreadCounts, cause, unread_section
from eval.results import Prediction, Results, field_kinds
from tests.eval.page.runs import Read, predicted

ONE = Task("t", "custom", (ClassField("m", ("glad", "sad")),))
LIST = Task("t", "custom", (MultiField("m", ("glad", "sad")),))
WORDS = Task("t", "custom", (TokenField("s", ("date",)),))
JOINT = TASKS["massive_joint"]


@pytest.mark.parametrize(
    "task, text, expected",
    [
        (ONE, "", [NOTHING]),
        (ONE, " \n\t", [NOTHING]),
        (ONE, "Glad", [UNKNOWN]),
        (ONE, "```\nhappy\n```", [UNKNOWN]),
        (ONE, "x" * 101, [OTHER]),
        (ONE, "glad\nor sad", [OTHER]),
        (LIST, '["glad"', [BROKEN]),
        (LIST, '{"a": 1}', [SHAPE]),
        (LIST, "glad", [OTHER]),
        (WORDS, '["date", "Other"', [BROKEN]),
        (WORDS, "date", [OTHER]),
        (WORDS, '{"task1": []}', [SHAPE]),
        (JOINT, '{"task1": "alarm", "task2": ["Other"]}', [UNKNOWN]),
        (JOINT, '{"task1": 3, "task2": "Other"}', [SHAPE, SHAPE]),
        (JOINT, '{"task1": "alarm_set"}', [SHAPE]),
        (JOINT, '["alarm_set", ["Other"]]', [SHAPE, SHAPE]),
        (JOINT, '{"task1": "alarm_set", ', [BROKEN, BROKEN]),
        (JOINT, 'It is {"task1": "alarm_set", "task2": ["Other"]}', [OTHER, OTHER]),
        (JOINT, "alarm_set", [OTHER, OTHER]),
    ],
)
def test_the_causes(task, text, expected):
    example = Example("a", "hello", {field.name: "x" for field in task.fields})
    prediction = predicted(task, example, text)
    assert len(prediction.unparsed) == len(expected), "the case is one that is not read"
    counts = UnreadCounts(field_kinds(task))
    counts.add(prediction)
    found = [why for (_, why), n in counts.causes.items() for _ in range(n)]
    assert found == expected and counts.n == 1
    prediction.stopped = False
    counts.add(prediction)
    assert (CUT in {why for _, why in counts.causes}) == bool(text.strip())


def test_answers_that_are_read_do_not_count():
    counts = UnreadCounts(field_kinds(ONE))
    counts.add(predicted(ONE, Example("a", "x", {"m": "glad"}), "glad"))
    assert not counts.n and not counts.causes


def test_unknown_labels_are_counted():
    counts = UnreadCounts(field_kinds(ONE))
    for i, text in enumerate(["happy"] * 5 + ["Glad"] * 2 + ["", "x y z"]):
        counts.add(predicted(ONE, Example(str(i), "x", {"m": "glad"}), text))
    results = Results("s", "t", {"m": "class"}, "d", "test", {"n_examples": 20})
    read = Read(unread_section(counts, results, True))
    assert "Of 9 of 20 answers" in read.text
    rows = unread_section(counts, results, True).rsplit("<tbody>", 1)[1].split("<tr>")[1:]
    assert [Read(row).texts for row in rows] == [["happy", "m", "5"], ["Glad", "m", "2"], ["x y z", "m", "1"]]
    assert cause('{"task1": "' + "y" * 500 + '"}', True, "class", "task1")[1] == "y" * 101


def test_examples_are_a_sample_of_all():
    seen = set()
    for start in range(40):
        counts = UnreadCounts(field_kinds(ONE))
        for i in range(1000):
            counts.add(predicted(ONE, Example(f"{start}/{i}", "x", {"m": "glad"}), f"answer {start} {i}"))
        own = counts.examples[UNKNOWN]
        assert len(own) == unread.EXAMPLES
        seen |= {int(example_id.split("/")[1]) for example_id, _ in own}
    assert max(seen) > 400, "not the first ones alone"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(unread, "DIFFERENT", 3)
    counts = UnreadCounts(field_kinds(ONE))
    for i in (*range(10), 0):
        counts.add(predicted(ONE, Example("a", "x", {"m": "glad"}), f"answer {i}"))
    assert len(counts.unknown) == 3 and counts.unknown["m", "answer 0"] == 2
    counts.add(Prediction("a", {"m": "glad"}, "x" * 10**6, {"m": None}))
    assert max(len(text) for own in counts.examples.values() for _, text in own) == unread.EXAMPLE_CHARACTERS


def test_it_is_omitted_with_a_reason():
    results, counts = Results("s", "t", {"m": "class"}, "d", "test", {"n_examples": 2}), UnreadCounts({"m": "class"})
    assert "Every answer was read." in unread_section(counts, results, True)
    assert "writes no text" in unread_section(counts, results, False)
    results.settings["combined"] = []
    assert "two runs that were joined" in unread_section(counts, results, True)
