"""A task on a small table of one class field, for the tests of the tables that it is read from."""

from __future__ import annotations

from pathlib import Path

from data.example import Example
from data.readers.custom import CustomSpec, read_custom_spec
from data.readers.custom_examples import read_custom

TABLE = "text,queue\na b,sales\nc,billing\n"


def spec_of(folder: Path, top: str = "", files: str = 'train = "train.csv"', labels: str = "") -> CustomSpec:
    labels = labels or 'labels = ["billing", "sales"]'
    field = f'[[fields]]\nname = "queue"\ntype = "class"\n{labels}\n'
    (folder / "task.toml").write_text(f'name = "t"\n{top}\n[files]\n{files}\n{field}', encoding="utf-8")
    return read_custom_spec(folder / "task.toml")


def train(folder: Path, *args: str, **options: str) -> list[Example]:
    return read_custom(spec_of(folder, *args, **options), "train")


def labels_of(folder: Path, **options: str) -> list[str]:
    return [example.class_label("queue") for example in train(folder, **options)]
