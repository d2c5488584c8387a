"""Splits that are cut from the train files: sizes, labels, groups, and that a cut is always the same."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from data.errors import UserError
from data.example import Example
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from data.readers.cut import Cut, divide
from data.source import splits_of
from data.tasks import get_task
from tests.cut_tables import QUEUE, SIZES, by_label, read, rows, spec_of, write
from tests.launching import ROOT

TASK = Path("task.toml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, rows())
    return tmp_path


def texts(examples: list[Example]) -> set[str]:
    return {example.text for example in examples}


# ---------------------------------------------------------------------------------------------------------------- sizes


def test_two_lines_of_toml(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    spec = spec_of(folder, "test = 0.2\ndev = 0.1", top="")
    found = read(spec)
    assert {split: len(own) for split, own in found.items()} == {"train": 70, "dev": 10, "test": 20}
    assert len(texts(found["train"]) | texts(found["dev"]) | texts(found["test"])) == 100
    for split, own in found.items():
        numbers = [int(example.id.removeprefix(f"t/{split}/")) for example in own]
        assert numbers == sorted(numbers), "ids name the split and the line, examples are in the file's order"
    assert by_label(found["test"]) == {"sales": 10, "help": 6, "spam": 2, "other": 1, "rare": 1}
    assert set(by_label(found["train"])) == set(SIZES)
    assert (
        "t: 100 examples cut into 20 for test, 10 for dev, 70 for train "
        "(test 0.2, dev 0.1, stratified by queue, seed 0)" in caplog.text
    )
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_sizes_are_rounded_to_the_nearest_number(folder: Path) -> None:
    write(folder, rows({"a": 30, "b": 27}))
    found = read(spec_of(folder, "test = 0.25\ndev = 0.15"))  # 14.25, 8.55
    assert (len(found["test"]), len(found["dev"]), len(found["train"])) == (14, 9, 34)


def test_sizes_of_labels_are_those_of_scikit_learn() -> None:
    draw, compared = random.Random(3), 0
    for seed in range(60):
        labels = draw.choices("abcdef", [draw.random() ** 2 + 0.05 for _ in range(6)], k=draw.randint(60, 400))
        wanted, sizes = round(0.2 * len(labels)), Counter(labels)
        found, _, absent = divide([str(i) for i in range(len(labels))], labels, [], cut(test=0.2, seed=seed), TASK)
        own = Counter(label for label, split in zip(labels, found, strict=True) if split == "test")
        assert own.total() == wanted and not absent
        assert all(own[label] and own[label] < n for label, n in sizes.items() if n > 1)
        if min(sizes.values()) < 5:
            continue  # scikit-learn gives a small label none of the test examples
        test = train_test_split(labels, test_size=wanted, stratify=labels, random_state=seed)[1]
        assert all(abs(own[label] - Counter(test)[label]) <= 1 for label in sizes)
        compared += 1
    assert compared > 30


def cut(test: float = 0.0, dev: float = 0.0, seed: int = 0, group: str | None = None, required: bool = False) -> Cut:
    fractions = {split: fraction for split, fraction in (("test", test), ("dev", dev)) if fraction}
    return Cut(fractions, seed, "queue", required, group)


def test_a_label_with_one_example_is_for_training(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, rows(SIZES | {"once": 1}))
    found = read(spec_of(folder, "test = 0.2\ndev = 0.1"))
    assert by_label(found["train"])["once"] == 1 and len(found["test"]) == 20 and len(found["dev"]) == 10
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_fewer_test_examples_than_labels(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read(spec_of(folder, "test = 0.03"), ("train", "test"))
    assert by_label(found["test"]) == {"sales": 2, "help": 1}
    assert "t: the cut has no examples in train and test of every label of queue: not of 'other', 'rare', 'spam'" in (
        caplog.text
    )


def test_random_without_a_class_field(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stratified = read(spec_of(folder, "test = 0.2"), ("test",))["test"]
    found = read(spec_of(folder, "test = 0.2\nstratify = false"), ("test",))["test"]
    assert len(found) == 20 and by_label(found) != by_label(stratified)
    assert "(test 0.2, at random, seed 0)" in caplog.text
    token = '[[fields]]\nname = "queue"\ntype = "token"\nlabels_from = "train"\n'
    write(folder, [f"{i},word,x,c" for i in range(10)])
    assert len(read(spec_of(folder, "test = 0.2", fields=token), ("test",))["test"]) == 2


def test_another_field_to_stratify_by(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fields = QUEUE + QUEUE.replace("queue", "customer")
    found = read(spec_of(folder, 'test = 0.2\nstratify = "customer"', fields=fields), ("test",))["test"]
    assert set(Counter(example.labels["customer"] for example in found).values()) == {2}
    assert "stratified by customer" in caplog.text


def test_only_dev_is_cut_and_test_is_a_file(folder: Path) -> None:
    write(folder, rows({"sales": 5, "help": 5}), "test.csv")
    found = read(spec_of(folder, "dev = 0.2", files='train = "all.csv"\ntest = "test.csv"'))
    assert {split: len(own) for split, own in found.items()} == {"train": 80, "dev": 20, "test": 10}


def test_what_is_skipped_is_not_counted(folder: Path) -> None:
    write(folder, [*rows(), *(f"x{i},,sales,c" for i in range(50))])
    spec = spec_of(folder, "test = 0.2", top='id_column = "id"\nmissing = "skip"')
    assert {split: len(own) for split, own in read(spec, ("train", "test")).items()} == {"train": 80, "test": 20}


def test_a_data_set(tmp_path: Path) -> None:
    table = {"text": [str(i) for i in range(10)], "queue": ["a", "b"] * 5}
    DatasetDict({"train": Dataset.from_dict(table)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "task.toml").write_text(f'name = "t"\ndataset = "saved"\n[split]\ntest = 0.2\n{QUEUE}')
    found = read(read_custom_spec(tmp_path / "task.toml"), ("train", "test"))
    assert by_label(found["test"]) == {"a": 1, "b": 1} and len(found["train"]) == 8


# ------------------------------------------------------------------------------------------------------ always the same


def test_a_cut_depends_on_ids_and_seed_alone(folder: Path) -> None:
    lines = rows()
    found = read(spec_of(folder, "test = 0.2\ndev = 0.1"))
    write(folder, random.Random(1).sample(lines, len(lines)))
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace('"t"', '"renamed"'))
    again = read(read_custom_spec(folder / "task.toml"))
    assert {split: texts(own) for split, own in found.items()} == {split: texts(own) for split, own in again.items()}
    other = read(spec_of(folder, "test = 0.2\ndev = 0.1\nseed = 1"))
    assert texts(other["test"]) != texts(found["test"])
    assert texts(read(spec_of(folder, "test = 0.2\ndev = 0.3"))["test"]) == texts(found["test"])


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], "train train dev train dev test test train"),
        (list("xyzxyzwv"), "dev train test dev train test train train"),
    ],
)
def test_a_cut_is_that_of_other_processes_and_of_earlier_versions(groups: list[str], expected: str) -> None:
    """Trained models are scored by later versions; hashes of texts differ from process to process."""
    keys, labels = list("abcdefgh"), list("mmmnnnmn")
    code = (
        "from pathlib import Path; from data.readers.cut import Cut, divide;"
        f"c = Cut({{'test': 0.25, 'dev': 0.25}}, 0, 'q', False, None);"
        f"print(*divide({keys}, {labels}, {groups}, c, Path('t'))[0])"
    )
    for hash_seed in "12":
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == expected.split()


def test_a_multi_field(folder: Path) -> None:
    """It is not stratified by; what is said of its labels is of the part that is read."""
    write(folder, [f"{i},{i},{'a|b' if i % 20 == 0 else 'a'},c" for i in range(20)])
    fields = '[[fields]]\nname = "queue"\ntype = "multi"\nlabels = ["a", "b"]\nseparator = "|"\n'
    with pytest.raises(UserError, match="stratify = 'queue' is a field of type 'multi'"):
        spec_of(folder, 'test = 0.2\nstratify = "queue"', fields=fields)
    apart = 0
    for seed in range(20):
        spec = spec_of(folder, f"test = 0.2\nseed = {seed}", fields=fields)
        if any(len(example.labels["queue"]) > 1 for example in read(spec, ("test",))["test"]):
            apart += 1
            with pytest.raises(UserError, match="every example has the same labels of 'queue'"):
                read_custom(spec, "train")
    assert apart


def test_the_cut_is_part_of_the_task(folder: Path) -> None:
    spec_of(folder, "test = 0.20\ndev = 0.1\nseed = 3")
    assert get_task(folder / "task.toml").split == "test 0.2, dev 0.1, stratified by queue, seed 3"
    assert splits_of(get_task(folder / "task.toml")) == ("train", "test", "dev")  # for `data.check`
    spec_of(folder, 'test = 0.2\ngroup = "customer"\nstratify = false')
    assert get_task(folder / "task.toml").split == "test 0.2, at random, groups of customer, seed 0"
    write(folder, ["a,b,help,x"], "test.csv")
    spec_of(folder, 'group = "customer"', files='train = "all.csv"\ntest = "test.csv"')
    assert get_task(folder / "task.toml").split == ""  # nothing is cut


# --------------------------------------------------------------------------------------------------------------- groups


def test_groups_are_not_divided(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = read(spec_of(folder, 'test = 0.2\ndev = 0.1\ngroup = "customer"'))
    customers = {line.split(",")[1]: line.split(",")[3] for line in rows()}
    by_split = {split: {customers[text] for text in texts(own)} for split, own in found.items()}
    assert [len(by_split[split]) for split in ("test", "dev", "train")] == [2, 1, 7]
    assert len(set().union(*by_split.values())) == 10
    assert "100 examples in 10 groups of customer cut into 20 for test, 10 for dev, 70 for train" in caplog.text


def test_groups_that_look_the_same_are_one(folder: Path) -> None:
    names = ("Café", "Cafe\u0301 ")
    write(folder, [f"{i},{i},{'ab'[i % 2]},{names[i // 2 % 2]}" for i in range(40)])
    with pytest.raises(UserError, match="test would have no example: 40 examples in 1 group of customer"):
        read_custom(spec_of(folder, 'test = 0.3\ngroup = "customer"'), "train")


def test_labels_of_groups_are_shared_out_as_well_as_by_scikit_learn() -> None:
    ours, theirs = 0.0, 0.0
    for seed in range(10):
        draw = random.Random(seed)
        groups = draw.choices([f"g{i}" for i in range(80)], [draw.random() ** 2 for _ in range(80)], k=800)
        bias = {group: [draw.random() ** 3 + 0.02 for _ in range(5)] for group in sorted(set(groups))}
        labels = [draw.choices("abcde", bias[group])[0] for group in groups]
        found, _, absent = divide(
            [str(i) for i in range(800)], labels, groups, cut(test=0.2, seed=seed, group="g"), TASK
        )
        test = [i for i, split in enumerate(found) if split == "test"]
        assert not absent and not {groups[i] for i in test} & {groups[i] for i in range(800) if found[i] != "test"}
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        reference = next(folds.split(np.zeros(800), labels, groups))[1]
        ours += worst_share(labels, test)
        theirs += worst_share(labels, list(reference))
    assert ours / 10 < 0.02 and ours <= theirs


def worst_share(labels: list[str], part: list[int]) -> float:
    """The largest difference between 0.2 and the part's share of a label."""
    sizes, own = Counter(labels), Counter(labels[i] for i in part)
    return max(abs(own[label] / n - 0.2) for label, n in sizes.items())


def test_a_label_in_two_groups_is_in_train_and_test() -> None:
    groups = ["a"] * 40 + ["b"] * 30 + ["c"] * 10 + ["d"] * 10 + ["e", "f"]
    labels = ["x", "y"] * 45 + ["z", "z"]
    for seed in range(5):
        found, _, absent = divide(list(map(str, range(92))), labels, groups, cut(test=0.1, seed=seed, group="g"), TASK)
        assert sorted(found[-2:]) == ["test", "train"] and not absent
