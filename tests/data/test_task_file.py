"""``task.json``: every task comes back from it, and a damaged file is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.task_file import TASK_FILE, read_task, save_task, task_changes, task_hash
from data.tasks import TASKS, Task, get_task

TOML = """
name = "mail"
document_name = "Mail"
instruction = "Sort it."
text_column = "body"
[files]
train = "train.csv"
[[fields]]
name = "queue"
type = "class"
labels = ["b", "ü"]
[[fields]]
name = "parts"
type = "token"
labels = ["product"]
other = "none"
"""


@pytest.mark.parametrize("name", TASKS)
def test_every_built_in_task_comes_back(tmp_path: Path, name: str) -> None:
    task = get_task(name)
    save_task(task, tmp_path)
    assert read_task(tmp_path) == task


def test_other_orders_and_answers_come_back(tmp_path: Path) -> None:
    for task in (get_task("20ng_joint", "section"), get_task("massive_joint", slot_answer="spans")):
        save_task(task, tmp_path)
        assert read_task(tmp_path) == task


def test_a_users_task_comes_back_with_its_toml_and_without_paths(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("body,queue,parts\nx,b,none\n")
    (tmp_path / "mail.toml").write_text(TOML)
    task = get_task(tmp_path / "mail.toml")
    (tmp_path / "mail.toml").write_text("changed = during the run")
    save_task(task, tmp_path)
    assert read_task(tmp_path) == dataclasses.replace(task, custom=None)
    written = (tmp_path / TASK_FILE).read_text()
    assert json.loads(written)["toml"] == TOML and str(tmp_path) not in written


def test_a_template_of_the_text_is_part_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("body,title,queue,parts\nx,y,b,none\n")
    (tmp_path / "mail.toml").write_text(TOML)
    without = get_task(tmp_path / "mail.toml")
    save_task(without, tmp_path)
    old = json.loads((tmp_path / TASK_FILE).read_text())
    assert old["format"] == 1 and "text_template" not in old  # as it was before: hashes are the same, old code reads it
    (tmp_path / "mail.toml").write_text(TOML.replace('text_column = "body"', 'text = "{title}\\n{body}"'))
    task = get_task(tmp_path / "mail.toml")
    save_task(task, tmp_path)
    assert json.loads((tmp_path / TASK_FILE).read_text())["format"] == 2  # old code would take another text
    found = read_task(tmp_path)
    assert found == dataclasses.replace(task, custom=None) and found.text_template == "{title}\n{body}"
    assert "task text_template: A has '', B has '{title}\\n{body}'" in changes(without, task)


def test_how_words_are_written_is_part_of_the_task(tmp_path: Path) -> None:
    toml = 'name = "t"\n{}[files]\ntrain = "{}"\n[[fields]]\nname = "ner"\ntype = "token"\nlabels = ["city"]\n'
    (tmp_path / "t.conll").write_text("1 to O\n")
    (tmp_path / "t.jsonl").write_text("")
    tasks = []
    for head, name in (("", "t.jsonl"), ('tokens_column = "text"\n', "t.jsonl"),
                       ('conll_columns = ["id", "text", "ner"]\ntokens_column = "text"\n', "t.conll")):  # fmt: skip
        (tmp_path / "t.toml").write_text(toml.format(head, name))
        tasks.append(get_task(tmp_path / "t.toml"))
        save_task(tasks[-1], tmp_path)
        assert read_task(tmp_path) == dataclasses.replace(tasks[-1], custom=None)
    assert (
        tasks[2].conll_columns == ("id", "text", "ner")
        and json.loads((tmp_path / TASK_FILE).read_text())["format"] == 2
    )
    assert changes(tasks[0], tasks[1]) == ["task has_words: A has '', B has True"]
    assert changes(tasks[1], tasks[2]) == ["task conll_columns: A has '', B has ('id', 'text', 'ner')"]


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert read_task(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has format 3.*newer version"),
        ({"format": None}, "format must be a whole number; it is None"),
        ({"format": "1"}, "format must be a whole number; it is '1'"),
        ({"name": 1}, "name must be a text; it is 1"),
        ({"document_noun": ""}, "document_noun: .* length >= 1"),
        ({"opening_is_system": 1}, "opening_is_system must be true or false; it is 1"),
        ({"fields": [{"name": "x"}]}, r"fields\[0\].type is missing"),
        (
            {"fields": [{"name": "x", "type": "class", "labels": ["a", "b", 3]}]},
            r"fields\[0\].labels\[2\] must be a text",
        ),
        ({"fields": [{"name": "x", "type": "class", "labels": []}]}, r"fields\[0\].labels: .* length >= 1"),
        ({"fields": [{"name": "x", "type": "class", "labels": ["a", "a"]}]}, "must be different texts"),
        ({"fields": [{"name": "x", "type": "klass", "labels": ["a"]}]}, r"fields\[0\].type: .*'klass'"),
        (
            {"fields": [{"name": "x", "type": "token", "labels": ["a"], "other": "O", "answer": "tags"}]},
            r"fields\[0\].answer: .*'tags'",
        ),
        ({"fields": []}, "fields: .* length >= 1"),
        ({"fields": {}}, "fields must be a list"),
        ({"text_template": "{a"}, "text_template: text = '{a': a single"),
        ({"text_template": 3}, "text_template must be a text"),
        ({"has_words": "no"}, "has_words must be true or false"),
        ({"conll_columns": "id"}, "conll_columns must be a list"),
        ({"toml": 10**99}, "a number with more than 64 digits"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict, message: str) -> None:
    save_task(TASKS["massive_joint"], tmp_path)
    record = json.loads((tmp_path / TASK_FILE).read_text())
    (tmp_path / TASK_FILE).write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=message) as error:
        read_task(tmp_path)
    assert str(tmp_path / TASK_FILE) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 1000, "9" * 5000, '{"a": "\\ud800"}'])
def test_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / TASK_FILE).write_text(text)
    with pytest.raises(UserError, match=r"task\.json: "):
        read_task(tmp_path)


def changes(one: Task, other: Task) -> list[str]:
    found = task_changes(one, other, ("A", "B"))
    assert (task_hash(one) == task_hash(other)) is (not found)
    return found


def test_a_task_is_its_content(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("body,queue,parts\nx,b,none\n")
    (tmp_path / "here/mail.toml").write_text(TOML)
    absolute = TOML.replace('"train.csv"', f'"{tmp_path}/there/train.csv"')
    (tmp_path / "there/post.toml").write_text(f"# a comment\n{absolute}")
    one, other = get_task(tmp_path / "here/mail.toml"), get_task(tmp_path / "there/post.toml")
    assert one != other and changes(one, other) == []
    save_task(one, tmp_path)
    stored = read_task(tmp_path)
    assert stored is not None and changes(stored, other) == []


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"Sort it."', '"Sort."', "task instruction: A has 'Sort it.', B has 'Sort.'"),
        ('["b", "ü"]', '["b", "ü", "c"]', "task field queue, labels: only B has 'c'"),
        ('["b", "ü"]', '["b", "u"]', "task field queue, labels: only A has 'ü', only B has 'u'"),
        ('["b", "ü"]', '["ü", "b"]', "task field queue, labels: their order differs"),
        ('name = "parts"', 'name = "pieces"', "task fields: A has 'queue, parts', B has 'queue, pieces'"),
        ('other = "none"', 'other = "no"', "task field parts, other: A has 'none', B has 'no'"),
        ('other = "none"', 'answer = "list"\nother = "none"', "task field parts, answer: A has 'spans', B has 'list'"),
        ('name = "mail"', 'name = "post"', "task name: A has 'mail', B has 'post'"),
    ],
)
def test_every_change_of_a_task_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    (tmp_path / "train.csv").write_text("body,queue,parts\nx,b,none\n")
    (tmp_path / "mail.toml").write_text(TOML)
    one = get_task(tmp_path / "mail.toml")
    assert old in TOML
    (tmp_path / "mail.toml").write_text(TOML.replace(old, new))
    assert changes(one, get_task(tmp_path / "mail.toml")) == [named]


def test_of_many_labels_the_first_are_named() -> None:
    field = dataclasses.replace(get_task("20ng_20").fields[0], labels=tuple(map(str, range(20))))
    (found,) = changes(get_task("20ng_20"), dataclasses.replace(get_task("20ng_20"), fields=(field,)))
    assert found.endswith("and 15 more, only B has '0', '1', '2', '3', '4' and 15 more")
