"""A task on a table whose train file is cut into splits, for the tests of cuts."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from data.example import Example
from data.readers.custom import CustomSpec, read_custom_spec
from data.readers.custom_examples import read_custom

QUEUE = '[[fields]]\nname = "queue"\ntype = "class"\nlabels_from = "train"\n'
SIZES = {"sales": 50, "help": 31, "spam": 13, "other": 4, "rare": 2}
SPLITS = ("train", "dev", "test")


def rows(sizes: dict[str, int] = SIZES) -> list[str]:
    """Lines of CSV: an id, a text, a label, and one of ten customers."""
    labels = [label for label, n in sizes.items() for _ in range(n)]
    random.Random(0).shuffle(labels)
    return [f"id{i},text {i},{label},c{i * 7 % 10}" for i, label in enumerate(labels)]


def write(folder: Path, lines: list[str], name: str = "all.csv") -> None:
    (folder / name).write_text("\n".join(["id,text,queue,customer", *lines]) + "\n")


def spec_of(
    folder: Path, split: str, top: str = 'id_column = "id"', files: str = 'train = "all.csv"', fields: str = QUEUE
) -> CustomSpec:
    split = f"[split]\n{split}\n" if split else ""
    (folder / "task.toml").write_text(f'name = "t"\n{top}\n[files]\n{files}\n{split}{fields}')
    return read_custom_spec(folder / "task.toml")


def read(spec: CustomSpec, splits: tuple[str, ...] = SPLITS) -> dict[str, list[Example]]:
    return {split: read_custom(spec, split) for split in splits}


def by_label(examples: list[Example]) -> Counter[str]:
    return Counter(example.class_label("queue") for example in examples)
