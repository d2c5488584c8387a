"""Tasks: label sets, how answers are written, labels outside the set, unknown names, a user's own task."""

from __future__ import annotations

import json

import pytest

from data.errors import UserError
from data.example import Example
from data.tasks import TASKS, ClassField, Task, TokenField, get_task

POST = Example("20ng/train/rec.autos/1", "From: a\n", {"group": "rec.autos", "root": "rec"})
UTTERANCE = Example(
    "massive/train/1",
    "wake me at nine am",
    {"intent": "alarm_set", "slots": ("Other", "Other", "Other", "time", "time")},
)


def test_the_six_tasks_have_the_papers_label_sets():
    sizes = {name: {field.name: len(field.labels) for field in task.fields} for name, task in TASKS.items()}
    assert sizes == {
        "20ng_20": {"group": 20},
        "20ng_7": {"root": 7},
        "20ng_joint": {"root": 7, "group": 20},
        "massive_intent": {"intent": 60},
        "massive_slots": {"slots": 55},
        "massive_joint": {"intent": 60, "slots": 55},
    }
    for task in TASKS.values():
        for field in task.fields:
            assert len(set(field.labels)) == len(field.labels)
            assert isinstance(field, TokenField) == (field.name == "slots")
            assert "Other" not in field.labels


@pytest.mark.parametrize(
    ("name", "example", "answer"),
    [
        ("20ng_20", POST, "rec.autos"),
        ("20ng_7", POST, "rec"),
        ("20ng_joint", POST, '{"task1": "rec", "task2": "rec.autos"}'),
        ("massive_intent", UTTERANCE, "alarm_set"),
        ("massive_slots", UTTERANCE, '["Other", "Other", "Other", "time", "time"]'),
        (
            "massive_joint",
            UTTERANCE,
            '{"task1": "alarm_set", "task2": ["Other", "Other", "Other", "time", "time"]}',
        ),
    ],
)
def test_answers_are_written_as_the_paper_writes_them(name, example, answer):
    assert TASKS[name].write(example.labels) == answer


def test_section_order_swaps_the_joint_newsgroup_task_only():
    task = get_task("20ng_joint", "section")
    assert [field.name for field in task.fields] == ["group", "root"]
    assert task.write(POST.labels) == '{"task1": "rec.autos", "task2": "rec"}'
    assert get_task("20ng_joint") == TASKS["20ng_joint"]
    with pytest.raises(UserError, match="for 20ng_joint only; task massive_joint"):
        get_task("massive_joint", "section")
    with pytest.raises(UserError, match="Unknown joint_order 'sections'. Did you mean 'section'"):
        get_task("20ng_joint", "sections")


@pytest.mark.parametrize(("name", "meant"), [("20ng_21", "20ng_20"), ("massive-slots", "massive_slots")])
def test_an_unknown_name_gets_the_nearest_one(name, meant):
    with pytest.raises(UserError, match=rf"Unknown task '{name}'\. Did you mean '{meant}'\?.*\.toml"):
        get_task(name)


def test_labels_in_the_set_are_accepted():
    for name in ("20ng_20", "20ng_7", "20ng_joint"):
        TASKS[name].check(POST)
    for name in ("massive_intent", "massive_slots", "massive_joint"):
        TASKS[name].check(UTTERANCE)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (
            "20ng_20",
            {"group": "rec.auto"},
            r"20ng_20: label 'rec.auto' is not in the label set. Did you mean 'rec.autos'",
        ),
        ("20ng_7", {"root": "Rec"}, "label 'Rec' is not in the label set"),
        ("20ng_7", {"group": "rec.autos"}, "field 'root' of task 20ng_7: no label. The example has: group"),
        ("massive_slots", {"slots": ("Other", "time")}, "3 words need one label each, found 2 labels"),
        ("massive_slots", {"slots": "time"}, "3 words need one label each, found 'time'"),
        ("massive_slots", {"slots": ("Other", "times", "Other")}, "label 'times' is not.*Did you mean 'time'"),
        ("massive_intent", {"intent": ("alarm_set",)}, "is not in the label set"),
    ],
)
def test_a_label_outside_the_set_is_named_with_its_example(task, labels, message):
    with pytest.raises(UserError, match=message) as raised:
        TASKS[task].check(Example("some/id/7", "one two three", labels))
    assert "some/id/7" in str(raised.value)


def test_a_users_task_from_toml(tmp_path):
    (tmp_path / "train.csv").write_text("text,queue,parts\nbroken since monday,billing,product Other date\n")
    (tmp_path / "tickets.toml").write_text("""
name = "tickets"
document_name = "Ticket"
instruction = "Sort the ticket."
[files]
train = "train.csv"
[[fields]]
name = "queue"
type = "class"
labels = ["billing", "Verkauf (süd)"]
[[fields]]
name = "parts"
type = "token"
labels = ["product", "date"]
other = "none"
""")
    task = get_task(str(tmp_path / "tickets.toml"))
    assert task.name == "tickets" and task.dataset == "custom" and task.custom is not None
    assert task.fields == (
        ClassField("queue", ("billing", "Verkauf (süd)")),
        TokenField("parts", ("product", "date"), other="none", answer="spans"),
    )
    labels = {"queue": "Verkauf (süd)", "parts": ("product", "none")}
    answer = task.write(labels, ["Röhre", "kaputt"])
    assert answer == '{"task1": "Verkauf (süd)", "task2": ["product: Röhre"]}'
    assert task.read(answer, ["Röhre", "kaputt"]).labels == labels
    assert json.loads(task.with_slot_answer("list").write(labels))["task2"] == ["product", "none"]
    with pytest.raises(UserError, match="no task file"):
        get_task(tmp_path / "ticket.toml")


def test_more_than_two_fields_are_numbered():
    fields = tuple(ClassField(name, ("a", "b")) for name in "xyz")
    task = Task("three", "custom", fields)
    assert task.write({"x": "a", "y": "b", "z": "a"}) == '{"task1": "a", "task2": "b", "task3": "a"}'
