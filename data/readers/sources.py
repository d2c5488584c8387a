"""Where the examples of each split of a user's own task are, if they are in a data set that ``datasets`` knows.

dataset = "owner/name"                  # of the Hugging Face hub, or a folder that save_to_disk wrote
dataset_config = "en"                   # if it has several configurations
revision = "v2"                         # a branch, tag or commit; default: the newest
splits = { train = "train", test = "validation" }   # what the data set calls them; default: train and test. Of the hub
                                                    # also parts: "train[:90%]"
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data.errors import UserError, nearest
from data.files.documents import readable
from data.files.paths import expand
from data.readers.columnar import STATE_FILE, saved_splits
from data.readers.hub import NAME, HubSplit, open_hub
from data.readers.records import Table
from data.readers.tables import ENDINGS, Dialect, ending_of, open_table

Source = Path | HubSplit
"""Where examples are: a file, a folder that ``datasets`` saved, or a split of a data set of the hub."""

DEFAULT_SPLITS = {"train": "train", "test": "test"}
IN_BOTH = "its examples are in both splits, and scores on them say nothing."

log = logging.getLogger("data")


def dataset_splits(
    dataset: str, config: str | None, revision: str | None, splits: dict[str, str], path: Path
) -> dict[str, tuple[Source, ...]]:
    """By split of the task, where the data set has it. Of the hub nothing is asked yet.

    Args:
        dataset, config, revision, splits: the keys of the task file.
        path: the task file.

    Raises:
        UserError: neither a folder nor a name of the hub; a folder without the splits; a configuration or a revision of
            a folder.
    """
    named: dict[str, str] = {}  # their split -> ours
    for split, theirs in splits.items():
        if (other := named.setdefault(theirs, split)) != split:
            log.warning("%s: the data set's split %r is the %s split and the %s split: %s", path, theirs, other, split,
                        IN_BOTH)  # fmt: skip
    try:
        name = expand(dataset, path.resolve().parent)
    except UserError as error:
        raise UserError(f"{path}: dataset {error}") from error
    folder = path.resolve().parent / name
    with readable(folder):
        there = folder.exists()
    if not there:
        if not NAME.fullmatch(name):
            raise UserError(
                f"{path}: dataset {dataset!r} is neither a folder ({folder} does not exist) nor the name of a data set "
                'of the hub, such as "owner/name".'
            )
        return {split: (HubSplit(name, config, revision, theirs),) for split, theirs in splits.items()}
    for key, value in (("dataset_config", config), ("revision", revision)):
        if value is not None:
            raise UserError(f"{path}: {key} is for data sets of the hub; dataset {dataset!r} is the folder {folder}.")
    known = saved_splits(folder) if folder.is_dir() else None
    if known is None:
        what = "which save_to_disk of `datasets` wrote with its splits"
        is_split = (folder / STATE_FILE).exists()
        advice = ' It is one split: name it in [files], such as train = "FOLDER".' if is_split else ""
        raise UserError(f"{path}: dataset {dataset!r} must be a folder {what}; {folder} is not.{advice}")
    for split, theirs in splits.items():
        if theirs not in known and set("[+") & set(theirs):  # the library's notation; here nothing counts the rows
            raise UserError(
                f"{path}: splits has {theirs!r} (for {split}), but parts and sums are for data sets of the hub: of the "
                f"folder {folder} whole splits are read ({', '.join(known)}). Name one of them for train, and let a "
                "[split] table cut test or dev from it, such as test = 0.1."
            )
        if theirs not in known:
            raise UserError(f"{path}: {folder} has no split {theirs!r} (for {split}).{nearest(theirs, known)}")
    return {split: (folder / theirs,) for split, theirs in splits.items()}


@contextmanager
def open_source(source: Source, dialect: Dialect, wanted: Collection[str]) -> Iterator[Table]:
    """Open a file, a folder or a split; see `data.readers.tables.open_table` and `data.readers.hub.open_hub`.

    Args:
        wanted: the columns that are needed.
    """
    if isinstance(source, HubSplit):
        with open_hub(source, wanted) as table:
            yield table
    else:
        with open_table(source, format_of(source, dialect), dialect=dialect, wanted=wanted) as table:
            yield table


def format_of(source: Source, dialect: Dialect) -> str:
    """The format of a source, a key of `data.readers.tables.FORMATS`; a split of the hub is "arrow"."""
    if isinstance(source, HubSplit) or source.is_dir():
        return "arrow"
    return dialect.format or ENDINGS[ending_of(source)]


def name_of(sources: Sequence[Source]) -> str:
    """What messages about all sources of a split call them."""
    return str(sources[0]) if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"
