"""What is wrong with a cut: its keys, its groups, and splits or labels that it would leave without examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import load_custom, read_custom
from tests.cut_tables import QUEUE, SIZES, by_label, read, rows, spec_of, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, rows())
    return tmp_path


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test = 0.5\ndev = 0.5", r"\[split\]: test = 0.5 \+ dev = 0.5 is 1, which leaves nothing for training"),
        ("test = 0.7\ndev = 0.4", "is 1.1, which leaves nothing"),
        ("test = 1", "test = 1 must be between 0 and 1, such as 0.2"),
        ("test = 0.0", "test = 0 must be between 0 and 1"),
        ("dev = -0.1", "dev = -0.1 must be between 0 and 1"),
        ("test = nan", "test = nan must be between 0 and 1"),
        ("train = 0.6\ntest = 0.3", r"0.6 \+ 0.3 is 0.9, not 1. Omit train"),
        ("train = 0.6", "train has no effect without a split to cut"),
        ("seed = 3", "seed has no effect without a split to cut, such as test = 0.2"),
        ('stratify = "queue"', "stratify has no effect"),
        ('group = "customer"', "group has no effect: there is one split"),
        ("", r"\[split\] is empty. Name a split to cut"),
        ("tests = 0.2", r"\[split\]: unknown key 'tests'. Did you mean 'test'"),
        ('test = "test.csv"', "split.test must be a number"),
        ("test = 0.2\nseed = 0.5", "split.seed must be a whole number"),
        ("test = 0.2\nstratify = true", "name a field of type .class., or write false. The task has queue"),
        ('test = 0.2\nstratify = "quue"', "stratify = 'quue' is not a field. Did you mean 'queue'"),
        (
            'test = 0.2\nstratify = "tags"',
            "stratify = 'tags' is a field of type 'token'; one of type .class. is needed",
        ),
        ('test = 0.2\nstratify = ""', "stratify is empty"),
        ('test = 0.2\ngroup = " "', "group is empty"),
    ],
)
def test_wrong_keys(folder: Path, split: str, message: str) -> None:
    tags = '[[fields]]\nname = "tags"\ntype = "token"\nlabels = ["x"]\n'
    with pytest.raises(UserError, match=message) as error:
        spec_of(folder, split or "# nothing", fields=QUEUE + tags)
    assert str(folder / "task.toml") in str(error.value)


def test_fractions_may_name_train(folder: Path) -> None:
    assert len(read(spec_of(folder, "train = 0.7\ntest = 0.2\ndev = 0.1"))["train"]) == 70


def test_a_split_that_is_given_and_cut(folder: Path) -> None:
    write(folder, rows(), "test.csv")
    with pytest.raises(UserError, match=r"test is given \(train, test\) and cut \(test = 0.2\). Remove one"):
        spec_of(folder, "test = 0.2", files='train = "all.csv"\ntest = "test.csv"')
    with pytest.raises(UserError, match=r"the train files are cut, and only test is given"):
        spec_of(folder, "dev = 0.2", files='test = "all.csv"', fields=QUEUE.replace('"train"', '"test"'))


def test_fractions_in_the_names_of_a_data_set(folder: Path) -> None:
    (folder / "task.toml").write_text(f'name = "t"\n[files]\ntrain = "all.csv"\n[splits]\ntest = 0.2\n{QUEUE}')
    with pytest.raises(UserError, match=r"splits has the dataset's names.* Write fractions in \[split\]"):
        read_custom_spec(folder / "task.toml")


def test_a_split_that_is_neither_given_nor_cut(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"no test file; \[files\] has only train. Cut it from .* test = 0.1 below \[split"
    ):
        read_custom(spec_of(folder, ""), "test")
    with pytest.raises(UserError, match=r"no dev file.*--holdout 0.1, or cut it from the train files"):
        read_custom(spec_of(folder, "test = 0.2"), "dev")


@pytest.mark.parametrize("end", ["csv", "jsonl"])
def test_a_group_column_that_does_not_exist(folder: Path, end: str) -> None:
    (folder / "all.jsonl").write_text('{"id": 1, "text": "a", "queue": "x", "customer": "c"}\n')
    fields = QUEUE.replace('labels_from = "train"', f"labels = {['x', *SIZES]}")
    spec = spec_of(folder, 'test = 0.2\ngroup = "custmer"', files=f'train = "all.{end}"', fields=fields)
    with pytest.raises(UserError, match=f"all.{end}.*: no column 'custmer'. Did you mean 'customer'"):
        read_custom(spec, "train")


def test_an_example_without_a_group(folder: Path) -> None:
    write(folder, [*rows(), "x,text,sales,"])
    with pytest.raises(UserError, match="line 102: 'customer' is empty. Fill them in"):
        read_custom(spec_of(folder, 'test = 0.2\ngroup = "customer"'), "test")
    (folder / "all.jsonl").write_text('{"id": 1, "text": "a", "queue": "x", "customer": ["c"]}\n')
    fields = QUEUE.replace('labels_from = "train"', 'labels = ["x", "y"]')
    spec = spec_of(folder, 'test = 0.2\ngroup = "customer"', files='train = "all.jsonl"', fields=fields)
    with pytest.raises(UserError, match="line 1: 'customer' must be a text or a number: it names the example's group"):
        read_custom(spec, "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_group_in_two_given_splits(folder: Path, split: str) -> None:
    write(folder, ["1,a,sales,c3", "2,b,help,new", "3,c,help,c4"], "test.csv")
    spec = spec_of(folder, 'group = "customer"', files='train = "all.csv"\ntest = "test.csv"')
    message = (
        r"group 'c3' of 'customer' is in train \(.*all.csv, line 11\) and in test \(.*test.csv, line 2\). 2 groups"
    )
    with pytest.raises(UserError, match=message):
        read_custom(spec, split)
    write(folder, ["2,b,help,new"], "test.csv")
    assert len(read(spec, (split,))[split]) == {"train": 100, "test": 1}[split]


def test_a_group_column_that_only_the_other_split_lacks(folder: Path) -> None:
    (folder / "test.jsonl").write_text('{"id": 1, "text": "a", "queue": "help"}\n')
    spec = spec_of(folder, 'group = "customer"', files='train = "all.csv"\ntest = "test.jsonl"')
    with pytest.raises(UserError, match="test.jsonl, line 1: no column 'customer'"):
        read_custom(spec, "train")


def test_too_few_examples_to_stratify(folder: Path) -> None:
    write(folder, rows(SIZES | {"once": 1}))
    with pytest.raises(
        UserError, match="queue 'once': only one example, which cannot be in two splits. Add more, or omit"
    ):
        read_custom(spec_of(folder, 'test = 0.2\nstratify = "queue"'), "train")
    write(folder, rows())
    with pytest.raises(UserError, match="test = 0.03 of 100 examples is 3, fewer than the 5 labels of queue"):
        read_custom(spec_of(folder, 'test = 0.03\nstratify = "queue"'), "train")
    lines = [f"{i},{i},{'abc'[i % 3]},{'only' if i % 3 == 0 else i}" for i in range(30)]
    write(folder, lines)
    with pytest.raises(UserError, match="queue 'a': only one group of 'customer'"):
        read_custom(spec_of(folder, 'test = 0.2\nstratify = "queue"\ngroup = "customer"'), "train")


@pytest.mark.parametrize(
    ("n", "split", "message"),
    [
        (20, "test = 0.01", r"test would have no example: 20 examples, cut into test 0.01, stratified"),
        (3, "test = 0.3\ndev = 0.3\nstratify = false", None),
        (2, "test = 0.5\ndev = 0.3\nstratify = false", "dev would have no example"),
        (20, 'test = 0.2\ngroup = "text"', None),
        (20, 'test = 0.2\ngroup = "customer"', "test would have no example: 20 examples in 1 group of customer"),
    ],
)
def test_an_empty_split(folder: Path, n: int, split: str, message: str | None) -> None:
    write(folder, [f"{i},text {i},{'ab'[i % 2]},same" for i in range(n)])
    spec = spec_of(folder, split)
    if message is None:
        assert read_custom(spec, "test")
        return
    with pytest.raises(UserError, match=message):
        read_custom(spec, "test")


def test_training_examples_that_all_have_one_label(folder: Path) -> None:
    """Reported for what is left after the cut, and labels without examples by split."""
    write(folder, rows({"sales": 9, "help": 1}))
    spec = spec_of(folder, "test = 0.1")
    assert by_label(read(spec, ("train",))["train"]) == {"sales": 8, "help": 1}
    write(folder, ["1,a,sales,p", "2,b,sales,p", "3,c,help,q", "4,d,help,q"])
    with pytest.raises(UserError, match="every example has the label"):
        read_custom(spec_of(folder, 'test = 0.4\ngroup = "customer"'), "train")


def test_labels_without_test_examples_are_named_for_the_part(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load_custom(spec_of(folder, "test = 0.03"), "test")
    assert "t test: no example has the queue label 'other', 'rare', 'spam'" in caplog.text
    assert "t test: 3 examples" in caplog.text
