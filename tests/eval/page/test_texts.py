"""Texts are shown if the data is what was scored, and with a reason if not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS, get_task
from eval.baselines import BaselineConfig, run_baselines
from eval.combine import combine
from eval.page.report import read_run, report
from eval.page.texts import open_texts
from eval.results import Prediction, Results, field_kinds, read_results
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


FILES = 'text_column = "text"\n[files]\ntrain = "rows.csv"\ntest = "rows.csv"\n'
MOOD = '[[fields]]\nname = "mood"\ntype = "class"\nlabels = ["good", "bad"]\n'
TOPICS = '[[fields]]\nname = "topics"\ntype = "multi"\nlabels = ["p", "q"]\nseparator = "|"\n'


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """Runs of two tasks of one's own on the same files, joined."""
    rows = "".join(f"the text {i},{('bad,p', 'good,p|q', 'good,q')[i % 3]}\n" for i in range(12))
    (tmp_path / "rows.csv").write_text(f"text,mood,topics\n{rows}")
    for name, fields in (("my_c", MOOD), ("my_m", TOPICS), ("my_joint", MOOD + TOPICS)):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n{FILES}{fields}')
    for name in ("my_c", "my_m"):
        run_baselines(BaselineConfig(str(tmp_path / f"{name}.toml"), output=tmp_path / name))
    combine(tmp_path / "my_c" / "majority", tmp_path / "my_m" / "majority", tmp_path / "dual")
    return tmp_path


@pytest.mark.parametrize("name", ["my_c", "my_m"])
def test_either_task_of_ones_own_has_the_texts_of_joined_runs(joined, name):
    task = joined / f"{name}.toml"
    _, counts, texts = read_run(joined / "dual", task=str(task))
    assert counts.n == 12 and not texts.why_not
    assert texts.of("my_c/test/2").text == "the text 0", "the first run's ids, whichever task is read"
    page = report(joined / "dual", task=str(task))
    assert "Texts are not shown" not in page and "the text 0" in page, "a wrong answer has its text"
    rows = (joined / "rows.csv").read_text()
    (joined / "rows.csv").write_text(rows.replace("bad,p\n", "good,q\n"))
    _, _, texts = read_run(joined / "dual", task=str(task))
    assert "has other gold labels" in texts.why_not and f"The files of task {name} are not" in texts.why_not
    (joined / "rows.csv").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    _, _, texts = read_run(joined / "dual", task=str(task))
    assert "the data has no example" in texts.why_not and "--data" not in texts.why_not


def test_a_joint_task_is_none_of_the_two_that_were_joined(joined):
    with pytest.raises(UserError, match="'my_c.my_m'.* two runs that were joined: give the task of one, my_c or my_m"):
        open_texts(read_results(joined / "dual"), task=str(joined / "my_joint.toml"))
    assert "Give --task its .toml file" in open_texts(read_results(joined / "dual")).why_not
