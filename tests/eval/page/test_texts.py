"""Texts are shown if the data is what was scored, and with a reason if not."""

from __future__ import annotations

import dataclasses

import pytest

from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS, get_task
from eval.page.texts import open_texts
from eval.results import Prediction, Results, field_kinds
from tests.launching import TICKETS

INTENT = TASKS["massive_intent"]


def about(task=INTENT, **more) -> Results:
    known = {"data": "sample", "split": "test"} | more
    return Results("s", task.name, field_kinds(task), metrics={}, **known)


def test_the_sample():
    examples = load_examples(INTENT, "test", "sample")
    texts = open_texts(about())
    for example in examples:
        own = Prediction(example.id, {"intent": example.labels["intent"]}, "", {"intent": "x"})
        assert texts.check(own) == example == texts.of(example.id)
    assert not texts.why_not and not texts.remark() and texts.tasks == [INTENT]
    assert examples[0].text in texts.quote(examples[0].id) and "blockquote" not in texts.quote("another")


@pytest.mark.parametrize("split", ["train", "train, held out", "dev"])
def test_splits(split):
    wanted = {example.id for example in load_examples(INTENT, split.split(",")[0], "sample")}
    assert open_texts(about(split=split)).by_id.keys() == wanted


@pytest.mark.parametrize("change", [{"id": "x"}, {"gold": {"intent": "qa_maths"}}, {"gold": {"other": "alarm_set"}}])
def test_other_data_is_noticed(change, caplog):
    first, second, *_ = load_examples(INTENT, "test", "sample")
    texts = open_texts(about())
    good = Prediction(first.id, {"intent": first.labels["intent"]}, "", {"intent": "x"})
    bad = dataclasses.replace(good, **change)
    assert texts.check(good) and first.labels["intent"] == "alarm_set"
    assert texts.check(bad) is None and texts.check(good) is None and texts.of(first.id) is None
    assert "Give --data the data that was scored" in texts.remark() and "texts are not shown" in caplog.text


def test_where_they_are_not_found_the_page_says_why(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("data.source.DOWNLOAD_DIR", tmp_path / "none")
    for results, why in {
        "no data": about(data="massive"),
        "task of your own": about(dataclasses.replace(INTENT, name="mine")),
        "no split &#x27;best&#x27;": about(split="best"),
    }.items():
        assert results in open_texts(why).remark()
    assert caplog.text.count("texts are not shown") == 3


def test_what_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        open_texts(about(), data=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="is task 'massive_slots', and the run is of 'massive_intent'"):
        open_texts(about(), task="massive_slots")
    with pytest.raises(UserError, match="nothing.toml"):
        open_texts(about(), task=str(tmp_path / "nothing.toml"))


def test_a_task_of_ones_own():
    task = get_task(TICKETS)
    texts = open_texts(about(task, data="custom"), task=str(TICKETS))
    assert len(texts.by_id) == 8 and texts.tasks[0].name == "tickets"


def test_two_runs_that_were_joined():
    joint = Results("s", "massive_intent+massive_slots", {"intent": "class", "slots": "token"}, "sample", "test", {})
    texts = open_texts(joint)
    example = load_examples(TASKS["massive_joint"], "test", "sample")[0]
    assert texts.check(Prediction(example.id, dict(example.labels), "", {})) is not None
    assert [task.name for task in texts.tasks] == ["massive_intent", "massive_slots"]
