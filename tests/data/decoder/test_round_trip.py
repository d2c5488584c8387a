"""Every label comes back from every tokenizer that can write it; one that does not is named before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.decoder.prompts import build_prompt
from data.decoder.round_trip import check_labels
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.errors import UserError
from data.tasks import TASKS, ClassField, Task, TokenField


def task_of(*labels: str, answer: str = "") -> Task:
    field = TokenField("kind", labels, answer=answer) if answer else ClassField("kind", labels)
    return Task("drinks", "custom", (field,))


def check(task: Task, tokenizer: Tokenizer) -> None:
    check_labels(task, build_prompt(task, "plain"), tokenizer)


@pytest.fixture
def normalizing(tiny_folder: dict[str, Path], tmp_path: Path) -> Tokenizer:
    """A tokenizer that composes letters and makes them small."""
    folder = Path(shutil.copytree(tiny_folder["json"], tmp_path / "normalizing"))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", TASKS)
def test_the_labels_of_the_paper_come_back(tiny_tokenizer: Tokenizer, name: str) -> None:
    check(TASKS[name], tiny_tokenizer)
    if "slots" in [field.name for field in TASKS[name].fields]:
        for answer in ("bio", "spans"):
            check(TASKS[name].with_slot_answer(answer), tiny_tokenizer)


@pytest.mark.parametrize("answer", ["", "list", "bio", "spans"])
def test_odd_labels_come_back(tiny_tokenizer: Tokenizer, answer: str) -> None:
    check(
        task_of("a  b", "naïve", "cafe\u0301", "日本", '"x"', "{a}", "[b]", "<|im_end|>", "B-x", "a\\b", answer=answer),
        tiny_tokenizer,
    )


@pytest.mark.parametrize("answer", ["", "list", "spans"])
@pytest.mark.parametrize(("label", "found"), [("cafe\u0301", r"caf\\xe9"), ("Tea", "tea")])
def test_a_label_that_does_not_come_back_is_named(normalizing: Tokenizer, answer: str, label: str, found: str) -> None:
    def task(label: str) -> Task:
        labels = ("milk", label)
        return Task(
            "drinks", "custom", (TokenField("kind", labels, "none", answer) if answer else ClassField("kind", labels),)
        )

    check(task("caf\u00e9"), normalizing)
    with pytest.raises(
        UserError, match=f"label {label!r} of field 'kind' does not come back .*{found}.* Rename the label"
    ):
        check(task(label), normalizing)


def test_a_field_of_a_joint_task_is_named(normalizing: Tokenizer) -> None:
    fields = (ClassField("a", ("x", "y")), ClassField("b", ("z", "Z")))
    with pytest.raises(UserError, match="label 'Z' of field 'b'"):
        check(Task("two", "custom", fields), normalizing)


def test_thousands_of_labels_take_one_pass(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = tiny_tokenizer.decode
    monkeypatch.setattr(tiny_tokenizer, "decode", lambda ids: decoded.append(ids) or decode(ids))
    check(task_of(*(f"label {i}" for i in range(5000))), tiny_tokenizer)
    assert len(decoded) == 5000
