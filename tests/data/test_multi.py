"""Multi fields, several labels or none: how an answer is written, asked for and read, and what ``task.json`` has."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from data.decoder.fewshot import PromptSpec, choose_shots, cut_shots
from data.decoder.prompts import build_prompt, build_turn
from data.decoder.round_trip import check_labels
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.errors import UserError
from data.example import Example
from data.lenient import read_leniently
from data.task_file import TASK_FILE, read_task, save_task, task_changes
from data.tasks import ClassField, MultiField, Task

LABELS = ("billing", "refund", "late, again", 'the "app"', "naïve")
TOPICS = MultiField("topics", LABELS)
ONE = Task("mail", "custom", (TOPICS,), document_name="Mail", document_noun="mail")
JOINT = Task("mail", "custom", (ClassField("queue", ("a", "b")), TOPICS), document_name="Mail", document_noun="mail")


def every_answer() -> list[tuple[str, ...]]:
    return [chosen for k in range(len(LABELS) + 1) for chosen in itertools.combinations(LABELS, k)]


@pytest.mark.parametrize("chosen", every_answer(), ids=len)
def test_every_set_of_labels_is_written_and_read_back(chosen: tuple[str, ...]) -> None:
    assert json.loads(ONE.write({"topics": chosen[::-1]})) == list(chosen), "in the order of the set"
    for task in (ONE, JOINT):
        labels = {field.name: chosen if field is TOPICS else "b" for field in task.fields}
        for text in (task.write(labels), f"```json\n{json.dumps(json.loads(task.write(labels)), indent=2)}\n```"):
            parsed = task.read(text, ())
            assert parsed.labels == labels and parsed.unparsed == () and parsed.n_unknown == 0


@pytest.mark.parametrize(
    ("text", "labels", "n_unknown"),
    [
        ('["refund", "billing"]', ("billing", "refund"), 0),
        ('["refund", "refund"]', ("refund",), 0),
        ("['refund', 'naïve']", ("refund", "naïve"), 0),
        ('["refund", "Billing", 3, null, ["billing"]]', ("refund",), 4),
        ('["nothing"]', (), 1),
        ("[]", (), 0),
        ("refund", None, 0),
        ('{"refund": true}', None, 0),
        ("", None, 0),
        ('["refund"', None, 0),
    ],
)
def test_other_answers(text: str, labels: tuple[str, ...] | None, n_unknown: int) -> None:
    parsed = ONE.read(text, ())
    assert (parsed.labels["topics"], parsed.n_unknown) == (labels, n_unknown)
    assert parsed.unparsed == (("topics",) if labels is None else ())


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('The labels are ["Refund", "**billing**"].', ("billing", "refund")),
        ('["refund", "nothing"]', ("refund",)),
        ("Topics: refund.", ("refund",)),
        ("refund and billing", None),
        ("no refund", None),
        ("", None),
        ("none: []", ()),
    ],
)
def test_the_lenient_reading(text: str, labels: tuple[str, ...] | None) -> None:
    parsed = read_leniently(ONE, text, ())
    assert parsed.labels["topics"] == labels and parsed.unparsed == (("topics",) if labels is None else ())
    joint = read_leniently(JOINT, json.dumps({"task1": "b", "task2": text}), ())
    assert joint.labels["queue"] == "b"


def test_a_joint_answer_read_leniently() -> None:
    parsed = read_leniently(JOINT, 'It is {"task1": "A", "task2": ["refund."]}', ())
    assert parsed.labels == {"queue": "a", "topics": ("refund",)}
    assert read_leniently(JOINT, '{"task1": "a", "task2": "refund"}', ()).labels["topics"] == ("refund",)
    assert read_leniently(JOINT, '{"task1": "a"}', ()).unparsed == ("topics",)


def test_the_longest_answer_has_all_labels() -> None:
    longest = ONE.longest_forms((), len)
    for chosen in every_answer():
        written, indented, *fenced = ONE.longest_forms((), len)
        text = ONE.write({"topics": chosen})
        assert len(text) <= len(written) and len(json.dumps(list(chosen), indent=2, ensure_ascii=False)) <= len(
            indented
        )
    assert json.loads(longest[0]) == list(LABELS) and len(fenced) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "no label. The example has: none"),
        ({"topics": "refund"}, "a list of labels is needed, found 'refund'"),
        ({"topics": ("refund", "bill")}, "label 'bill' is not in the label set"),
    ],
)
def test_examples_are_checked(labels: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ONE.check(Example("e", "text", labels))
    ONE.check(Example("e", "text", {"topics": ()}))


def test_the_prompt_says_that_several_or_none_are_possible() -> None:
    turn = build_turn(ONE, [Example("s", "a shot", {"topics": ("refund",)}), Example("s", "two", {"topics": ()})])
    assert "find all the labels in the list ['billing', 'refund', 'late, again', 'the \"app\"', 'naïve']" in turn.before
    assert "There can be several, or none." in turn.before and "If there are none, the list is empty." in turn.before
    assert "Output the list of labels only" in turn.before and turn.after.endswith("Labels:")
    assert 'Labels: ["refund"]' in turn.before and "Labels: []" in turn.before
    joint = build_turn(JOINT).before
    assert "There can be several, or none." in joint and "change task2_label to the list of the correct labels" in joint
    assert "billing" not in build_turn(ONE, list_labels=False).before


def test_labels_that_do_not_come_back_are_named(tiny_folder: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder["json"])
    check_labels(JOINT, build_prompt(JOINT, "plain"), tokenizer)
    spec = json.loads((tiny_folder["json"] / "tokenizer.json").read_text(encoding="utf-8"))
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": "naïve"}, "content": "naive"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    for name in ("tokenizer_config.json", "config.json"):
        if (tiny_folder["json"] / name).exists():
            (tmp_path / name).write_bytes((tiny_folder["json"] / name).read_bytes())
    with pytest.raises(UserError, match="label 'naïve' of field 'topics' does not come back"):
        check_labels(ONE, build_prompt(ONE, "plain"), load_tokenizer(tmp_path))


def test_balanced_shots_show_new_labels_and_an_empty_list() -> None:
    pool = [Example(f"{i}", f"text {i}", {"topics": (LABELS[i],)}) for i in range(5)]
    pool += [Example(f"x{i}", f"text {i}", {"topics": ("billing",)}) for i in range(40)]
    pool += [Example("none", "text", {"topics": ()})]
    for seed in range(20):
        shown = [shot.labels["topics"] for shot in choose_shots(pool, ONE, 6, seed)]
        assert sorted(shown) == sorted([(label,) for label in LABELS] + [()])


def test_texts_of_shots_are_cut(tiny_tokenizer: Tokenizer) -> None:
    shot = Example("s", "a long text " * 50, {"topics": ("refund", "billing")})
    (cut,) = cut_shots([shot], ONE, tiny_tokenizer, 10)
    assert len(tiny_tokenizer.encode(cut.text)) <= 10 and cut.labels == shot.labels


def test_shots_come_back_from_the_record(tmp_path: Path) -> None:
    spec = PromptSpec("mail", "plain", shots=(Example("s", "text", {"topics": ("refund",)}),)).signed(ONE)
    spec.save(tmp_path)
    assert PromptSpec.load(tmp_path) == spec
    other = Task("mail", "custom", (MultiField("topics", LABELS, "|"),), document_name="Mail", document_noun="mail")
    assert PromptSpec.load(tmp_path).build(other) == spec.build(ONE), "the model has not seen how tables are written"


def test_the_task_comes_back_from_its_file(tmp_path: Path) -> None:
    for separator in (None, "|", " "):
        task = Task("mail", "custom", (ClassField("queue", ("a", "b")), MultiField("topics", LABELS, separator)))
        save_task(task, tmp_path)
        assert read_task(tmp_path) == task
    assert json.loads((tmp_path / TASK_FILE).read_text())["format"] == 2, (
        "versions without multi fields ask for a newer"
    )
    one = Task("mail", "custom", (ClassField("topics", LABELS),))
    save_task(one, tmp_path)
    assert json.loads((tmp_path / TASK_FILE).read_text())["format"] == 1
    with_separator = Task("mail", "custom", (MultiField("topics", LABELS, "|"),))
    assert task_changes(one, with_separator, ("A", "B")) == [
        "task field topics, type: A has 'class', B has 'multi'",
        "task field topics, separator: A has None, B has '|'",
    ]
