"""The lenient reading: what it accepts, and that it never turns one label into another."""

from __future__ import annotations

import itertools
import json

import pytest

from data.lenient import read_leniently
from data.tasks import TASKS, ClassField, Task, TokenField, get_task

FIELDS = [TASKS["20ng_20"].fields[0], TASKS["20ng_7"].fields[0], TASKS["massive_intent"].fields[0],
          ClassField("slot", TASKS["massive_slots"].fields[0].labels)]  # fmt: skip
# Labels that a careless rule would confuse.
HARD = [
    ("date", "date_time", "date time", "time"),
    ("US", "us", "bus"),
    ("a", "a.", "A..", "'a'", "b"),
    ("spam", "not spam", "is spam", "no"),
    ("x", "label: x", "the topic is x", "Label: the topic is x"),
    ("Straße", "STRASSE", "strasse."),
    ("*", "**", '"', "..", " is"),
    ("yes", "yes: no", "no"),
    ("no", "answer: no", "positive", "result is positive", "0", "label: 0"),
]
FIELDS += [ClassField("label", labels) for labels in HARD]

AROUND = [
    "{}", " {}\n", "{}.", "'{}'", '"{}"', "`{}`", "**{}**", "“{}”", "```\n{}\n```", "Label: {}", "label:{}",
    "Label: {}.",
    "The topic is {}.", "The topic is: {}", "It is {}.", "The correct label is '{}'.", "Answer: The topic is {}.",
    'The label for this news text is "{}".', "Topic: **{}**", "The intent of the utterance is {}", "Output: {}\n",
]  # fmt: skip


def one(field: ClassField) -> Task:
    return Task("mine", "custom", (field,))


def read(field: ClassField, text: str) -> object:
    return read_leniently(one(field), text, ()).labels[field.name]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.labels[0])
def test_no_label_becomes_another_one(field: ClassField) -> None:
    """What is written around a label, in any case, is read as this label or as none.

    The exceptions are texts that are another label by themselves: "us" for "US", and "a." for "a" and a full stop.
    """
    n_read = 0
    for label, around in itertools.product(field.labels, AROUND):
        for written in {label, label.upper(), label.lower(), label.title()}:
            found, text = read(field, around.format(written)), around.format(written)
            longer = isinstance(found, str) and len(found) > len(label) and found.casefold() in text.casefold()
            assert found in (label, None) or found == written or longer, (text, found)
            n_read += found == label
    assert n_read >= len(field.labels)


@pytest.mark.parametrize("name", ["20ng_20", "20ng_7", "massive_intent"])
def test_every_label_of_every_task_is_read_in_every_form(name: str) -> None:
    field = TASKS[name].fields[0]
    for label, around in itertools.product(field.labels, AROUND):
        for written in (label, label.upper(), label.title()):
            assert read(field, around.format(written)) == label, around.format(written)


@pytest.mark.parametrize(
    "text",
    ["rec.auto", "rec.autos, I think", "rec.autos rec.motorcycles", "rec autos", "not rec.autos", "It is not rec.autos",
     "The topic is not rec.autos.", "rec.autos is the label", "I think: rec.autos", "The topic isrec.autos", "", ".",
     "Label:", "rec.autos\n\nThe text is about cars.", "rec.autos/", "labels: rec.autos",
     "Label: rec.autos or sci.med"],
)  # fmt: skip
def test_anything_else_is_no_label(text: str) -> None:
    assert read(TASKS["20ng_20"].fields[0], text) is None


def test_labels_that_could_be_confused() -> None:
    dates, cases, dots, *_ = (ClassField("label", labels) for labels in HARD)
    assert read(dates, "Label: date_time") == "date_time" and read(dates, "The label is date.") == "date"
    assert read(dates, "date_") is None and read(dates, "Date Time.") == "date time"
    assert read(cases, "The label is us.") == "us" and read(cases, "Us") is None and read(cases, "BUS") == "bus"
    assert read(dots, "a.") == "a." and read(dots, "Label: a.") == "a." and read(dots, "'a'") == "'a'"
    lead = ClassField("label", HARD[4])
    assert read(lead, "The topic is x.") == "the topic is x" and read(lead, "Topic: x") is None
    assert read(lead, "LABEL: X") == "label: x"


def test_the_fields_own_name_leads_in() -> None:
    field = ClassField("queue", ("billing", "delivery"))
    assert read(field, "Queue: billing") == "billing" and read(field, "The queue is Delivery.") == "delivery"
    assert read(field, "Row: billing") is None


def test_json_inside_other_text() -> None:
    task, words = TASKS["massive_joint"], ("wake", "me")
    answer = {"task1": "Alarm_Set.", "task2": ["Other", "TIME"]}
    for text in (f"Here you are: {json.dumps(answer)} I hope", f"Output:\n```json\n{json.dumps(answer)}\n```\nDone."):
        assert task.read(text, words).unparsed == ("intent", "slots")
        found = read_leniently(task, text, words)
        assert found.labels == {"intent": "alarm_set", "slots": ("Other", "time")} and not found.unparsed
    two = f"{json.dumps(answer)} or {json.dumps(answer)}"
    assert read_leniently(task, two, words).unparsed == ("intent", "slots")
    slots = TASKS["massive_slots"]
    assert read_leniently(slots, "Slots: ['other', 'Time.']", words).labels == {"slots": ("Other", "time")}
    assert read_leniently(slots, "Slots: Other, time", words).labels == {"slots": None}


def test_a_field_that_is_read_strictly_keeps_its_label() -> None:
    task = Task("own", "custom", (ClassField("a", ("X", "x")), ClassField("b", ("y", "z"))))
    assert read_leniently(task, '{"task1": "x", "task2": "Y"}', ()).labels == {"a": "x", "b": "y"}


@pytest.mark.parametrize("answer", ["spans", "bio"])
def test_case_in_spans_and_tags(answer: str) -> None:
    task = Task("t", "custom", (TokenField("t", ("time", "time zone"), answer=answer),))
    words = ("Nine", "AM", "CET", "nine")
    text = {"spans": '["Time: nine am", "TIME ZONE: cet", "tim: x"]', "bio": '["b-TIME", "I-time", "B-Time Zone"]'}
    found = read_leniently(task, text[answer], words)
    assert found.labels == {"t": ("time", "time", "time zone", "Other")}
    exact = {"spans": '["time: nine", "Time zone: cet"]', "bio": '["O", "O", "B-Time zone", "B-time"]'}
    assert read_leniently(task, exact[answer], words).labels == {"t": ("Other", "Other", "time zone", "time")}


def test_what_is_read_strictly_is_read_alike() -> None:
    for task in [*TASKS.values(), get_task("massive_joint", slot_answer="spans"), get_task("20ng_joint", "section")]:
        words = ("wake", "me", "at", "nine")
        for i in range(60):
            labels = {
                f.name: tuple((*f.labels, f.other)[(i * 7 + k * 3) % 56] for k in range(4))
                if isinstance(f, TokenField)
                else f.labels[i % len(f.labels)]
                for f in task.fields
            }
            text = task.write(labels, words)
            assert read_leniently(task, text, words) == task.read(text, words)


def test_nothing_raises_or_hangs() -> None:
    for text in ("." * 100_000, "'" * 100_000, "label:" * 20_000, "[" * 100_000, "{" * 1000 + "}" * 1000, "*" * 9):
        for task in TASKS.values():
            read_leniently(task, text, ("a",))


def test_lead_ins_that_labels_have_themselves_are_not_removed() -> None:
    field = ClassField("sentiment", ("positive", "result is positive", "other"))
    assert read(field, "The result is positive") is None and read(field, "positive.") == "positive"
    assert read(field, "result is positive.") == "result is positive" and read(field, "The topic is other") == "other"


def test_json_that_is_the_whole_answer_but_of_another_kind() -> None:
    """The same as with text around it."""
    slots, joint = TASKS["massive_slots"], TASKS["massive_joint"]
    words = ("wake", "seven")
    for text in (
        '{"slots": ["Other", "time"]}',
        'Slots: {"slots": ["Other", "time"]}',
        '"Slots: [\\"Other\\", \\"time\\"]"',
    ):
        expected = None if text.startswith('"') else ("Other", "time")
        assert read_leniently(slots, text, words).labels["slots"] == expected, text
    key_intent, key_slots = joint.keys
    inner = json.dumps({key_intent: "alarm_set", key_slots: ["Other", "time"]})
    for text in (f"[{inner}]", f"x [{inner}]"):
        assert read_leniently(joint, text, words).labels == {"intent": "alarm_set", "slots": ("Other", "time")}, text
