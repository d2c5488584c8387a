"""Loading examples, and the part that is held out of training."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

import data.source
from data.download import RELEASES
from data.errors import UserError
from data.example import Example
from data.source import DATA_SETS, holdout, load_examples
from data.tasks import TASKS
from train.config import ENCODER_EPOCHS


@pytest.mark.parametrize("name", TASKS)
def test_the_sample_serves_every_task(name: str) -> None:
    task = TASKS[name]
    for split in ("train", "test"):
        by_task = load_examples(task, split, "sample")
        assert by_task and by_task == load_examples(task.dataset, split, "sample")


def test_the_download_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.source, "DOWNLOAD_DIR", tmp_path / "datasets")
    with pytest.raises(UserError, match="data.download massive.*--data sample"):
        load_examples("massive", "train")
    (tmp_path / "datasets").mkdir()
    with pytest.raises(UserError, match="data.download 20ng"):
        load_examples("20ng", "train")
    post = tmp_path / "datasets" / "20news-bydate-train" / "sci.med" / "1"
    post.parent.mkdir(parents=True)
    post.write_text("x")
    assert [example.id for example in load_examples("20ng", "train")] == ["20ng/train/sci.med/1"]


def test_every_table_has_the_data_set_of_every_task() -> None:
    """A task without an entry would fail after hours: when it is scored, or its run's next command is printed."""
    for table in (DATA_SETS, RELEASES, ENCODER_EPOCHS):
        assert table.keys() == {task.dataset for task in TASKS.values()}


def test_an_unknown_data_set() -> None:
    with pytest.raises(UserError, match="no data set 'massiv'. Did you mean 'massive'"):
        load_examples("massiv", "train", "sample")


def make(*counts: int) -> list[Example]:
    labels = [f"label{i}" for i, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(labels)
    return [Example(id=f"x/{i}", text=str(i), labels={"y": label}) for i, label in enumerate(labels)]


def by_label(examples: list[Example]) -> Counter[str]:
    return Counter(example.labels["y"] for example in examples)


def test_holdout_is_stratified_exact_and_disjoint() -> None:
    examples = make(70, 20, 9, 1)
    train, held = holdout(examples, 0.1, seed=3)
    assert len(held) == 10 and len(train) == 90
    assert {example.id for example in train}.isdisjoint(example.id for example in held)
    assert by_label(held) == {"label0": 7, "label1": 2, "label2": 1}
    assert by_label(train)["label3"] == 1  # a label's only example is trained on
    assert train == [example for example in examples if example not in held]  # the order is kept


def test_holdout_says_how_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    holdout(make(5, 5), 0.2, seed=0)
    holdout([Example(str(i), "x", {"marks": ("a",)}) for i in range(10)], 0.2, seed=0)
    said = ["held out 2 of 10 training examples, stratified by the 2 labels of y",
            "held out 2 of 10 training examples, at random"]  # fmt: skip
    assert caplog.messages == said


def test_holdout_never_takes_all_examples_of_a_label() -> None:
    train, held = holdout(make(10, 1, 1, 1), 0.9, seed=0)
    assert by_label(held) == {"label0": 9} and by_label(train) == {f"label{i}": 1 for i in range(4)}


def test_holdout_depends_only_on_ids_and_seed() -> None:
    examples = make(50, 50)
    shuffled = random.Random(1).sample(examples, len(examples))
    ids = {example.id for example in holdout(examples, 0.2, seed=1)[1]}
    assert ids == {example.id for example in holdout(shuffled, 0.2, seed=1)[1]}
    assert ids != {example.id for example in holdout(examples, 0.2, seed=2)[1]}


def test_holdout_without_a_class_field() -> None:
    examples = [Example(id=str(i), text="a", labels={"slots": ("Other",)}) for i in range(20)]
    train, held = holdout(examples, 0.25, seed=0)
    assert (len(train), len(held)) == (15, 5)


@pytest.mark.parametrize(
    ("fraction", "message"), [(0.0, "between 0 and 1"), (1.0, "between"), (0.01, "leaves 5 for training, 0 held out")]
)
def test_holdout_of_nothing(fraction: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        holdout(make(5), fraction, seed=0)
