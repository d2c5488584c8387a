"""Load the examples of a task and a split, from a release or from a user's files.

Formats are read in `data.readers`; releases are fetched by `data.download`.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError, nearest
from data.example import Example
from data.quotas import quotas
from data.readers.custom_examples import load_custom
from data.readers.massive import load_massive
from data.readers.newsgroups import SAMPLE_DIR, load_newsgroups
from data.tasks import Task

DOWNLOAD_DIR = Path(__file__).resolve().parent.parent / "datasets"
"""The folder to which ``python -m data.download`` writes releases; the default of ``path`` below."""


@dataclass(frozen=True)
class DataSet:
    """A data set of built-in tasks.

    Attributes:
        load: (file or folder, split) → examples of the split.
        splits: names of the splits that it has.
        n_test: number of test examples in the release.
    """

    load: Callable[[Path, str], list[Example]]
    splits: tuple[str, ...]
    n_test: int


DATA_SETS = {
    "20ng": DataSet(load_newsgroups, ("train", "test"), n_test=7532),
    "massive": DataSet(load_massive, ("train", "dev", "test"), n_test=2974),
}

log = logging.getLogger("data")


def load_examples(dataset: str | Task, split: str, path: str | Path | None = None) -> list[Example]:
    """Load one split, in an order that depends only on the data.

    Args:
        dataset: ``"20ng"`` or ``"massive"``, or a task, which names its data set.
        split: ``"train"``, ``"dev"`` (not in 20ng) or ``"test"``.
        path: a file or folder of the release; ``"sample"`` for the small data set that comes with this
            repository; None for the files that ``python -m data.download`` fetched. Must be None for a user's own
            task: its TOML file names its files.

    Raises:
        UserError: no data there (the message says how to get it), or data that cannot be read (it says where).
    """
    if isinstance(dataset, Task) and dataset.dataset == "custom":
        assert dataset.custom is not None
        if path is not None:
            raise UserError(
                f"task {dataset.name} reads the files that {dataset.custom.path} names; {str(path)!r} would be "
                "ignored. Omit --data, or change [files] there."
            )
        examples = load_custom(dataset.custom, split)
    else:
        name = dataset.dataset if isinstance(dataset, Task) else dataset
        if name not in DATA_SETS:
            raise UserError(f"no data set {name!r}.{nearest(name, DATA_SETS)}")
        examples = DATA_SETS[name].load(_locate(name, path), split)
    if isinstance(dataset, Task):
        for example in examples:
            dataset.check(example)
    return examples


def splits_of(task: Task) -> tuple[str, ...]:
    """The splits that `load_examples` has of a task."""
    return task.custom.splits if task.custom is not None else DATA_SETS[task.dataset].splits


def nothing_to_score(task: Task) -> str:
    """What a task without test and dev examples leads to, and what to do before training; else empty."""
    if task.custom is None or {"test", "dev"} & set(splits_of(task)):
        return ""
    return (
        "no test examples: there will be nothing to score the model on. Before training, write test = 0.2 below "
        f"[split] in {task.custom.path}."
    )


def _locate(name: str, path: str | Path | None) -> Path:
    if path is not None:
        return SAMPLE_DIR if str(path) == "sample" else Path(path)
    if not DOWNLOAD_DIR.is_dir():
        raise UserError(
            f"no data: {DOWNLOAD_DIR} does not exist. Fetch it with python -m data.download {name}, point --data "
            "at a copy of the release, or give --data sample for the small data set in this repository."
        )
    return DOWNLOAD_DIR


def draw_to_train(examples: list[Example], n: int, seed: int) -> list[Example]:
    """Draw n examples, as ``train.py --limit`` does; the draw depends on their ids, not on their order."""
    return random.Random(seed).sample(sorted(examples, key=lambda e: e.id), n)


def draw_to_score(examples: list[Example], n: int, seed: int) -> list[Example]:
    """Draw n examples, as ``eval.py --limit`` does; they keep their order."""
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), n))]


def holdout(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out a part of the training examples for scoring during training.

    The part is stratified by the first class field of the examples' labels (random if there is none). Of a label with n
    examples, ``n * fraction`` are held out, rounded so that the total is right, but never all. The draw depends on the
    examples' ids and the seed, not on their order. Both parts keep the given order.

    Returns:
        The examples to train on, and those held out: ``round(fraction * len(examples))``, or fewer if every label would
        lose its last training example.

    Raises:
        UserError: a fraction outside (0, 1), or one that leaves either part empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"holdout {fraction}: must be between 0 and 1, such as 0.1.")
    wanted = round(fraction * len(examples))
    strata: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: example.id):
        strata[next((label for label in example.labels.values() if isinstance(label, str)), "")].append(example)

    shares = {label: len(members) * fraction for label, members in strata.items()}
    sizes = quotas(shares, {label: len(members) - 1 for label, members in strata.items()}, wanted)
    held_ids: set[str] = set()
    for label, members in strata.items():
        held_ids |= {example.id for example in random.Random(f"{seed}/{label}").sample(members, sizes[label])}

    train = [example for example in examples if example.id not in held_ids]
    held = [example for example in examples if example.id in held_ids]
    if not held or not train:
        raise UserError(
            f"holdout {fraction} of {len(examples)} examples leaves {len(train)} for training, {len(held)} held out."
        )
    field = next((name for name, label in examples[0].labels.items() if isinstance(label, str)), None)
    how = "at random" if field is None else f"stratified by the {len(strata)} labels of {field}"
    log.info("held out %d of %d training examples, %s", len(held), len(examples), how)
    return train, held
