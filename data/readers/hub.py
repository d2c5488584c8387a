"""A split of a data set of the Hugging Face hub, read through the library ``datasets``.

The library downloads the data set once, into its own cache (below ``HF_HOME``), and maps it into memory from there.
Only formats that hold data and nothing else are read; code or pickles of a repository never run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from data.errors import UserError, nearest
from data.readers.columnar import BATCH_ROWS, Rows, first_line
from data.readers.records import Table
from data.terminal import is_terminal

NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
HOST = "hf://datasets/"  # before a name: never a folder that has the name
BUILDERS = ("arrow", "conll", "csv", "json", "parquet", "text")
CONVERTED = "refs/convert/parquet"  # the hub's own conversion
CACHE = "cache"  # what the library calls its own copies, which it takes where the hub cannot be reached
CONFIG_MISSING = "Config name is missing"
OFFLINE = {"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException", "LocalEntryNotFoundError"}
BY_HAND = (
    "On a machine with a network, save it with load_dataset(...).save_to_disk(FOLDER) and copy the folder here, then "
    'write dataset = "FOLDER"; or copy the cache, the folder HF_HOME.'
)


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set of the hub.

    Attributes:
        name: ``"owner/name"``.
        config: one of its configurations; None: its only or default one.
        revision: a branch, tag or commit; None: the newest.
        split: as the data set calls it, or a part of it in the library's notation: ``"train[:90%]"``.
    """

    name: str
    config: str | None
    revision: str | None
    split: str

    def __str__(self) -> str:
        more = "".join(f", {part}" for part in (self.config, self.revision) if part)
        return f"{self.name}{more}, {self.split}"


@contextmanager
def open_hub(source: HubSplit, wanted: Collection[str] | None = None) -> Iterator[Table]:
    """Open a split; it is downloaded if it is not in the cache.

    Args:
        wanted: the columns that records have, of those of the split; None: all.

    Raises:
        UserError: no network and no copy in the cache, no such data set, configuration, revision or split, no access,
            a format that is not read.
    """
    data = _load(source)
    rows, n_rows = Rows(str(source), data.data.schema, wanted), len(data)
    tables = data.with_format("arrow", columns=rows.wanted).iter(BATCH_ROWS)
    records = rows.records(batch for table in tables for batch in table.to_batches())
    yield Table(rows.columns, records, lambda: rows.n_read / n_rows if n_rows else None)


def _load(source: HubSplit) -> Any:
    import datasets  # here: it is slow to import

    if not is_terminal("stderr"):
        datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(HOST + source.name, source.config, revision=source.revision)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind == CACHE:
            _check_revision(source, builder.hash)
        elif kind not in BUILDERS:
            raise UserError(
                f"dataset {source.name}: its files are of the kind {kind!r}; {', '.join(BUILDERS)} are read. The hub "
                f'may have converted it: revision = "{CONVERTED}".'
            )
        builder.download_and_prepare()
        return builder.as_dataset(source.split)
    except UserError:
        raise
    except Exception as error:  # datasets and its clients raise some twenty unrelated types
        raise _explained(source, error) from error


def _check_revision(source: HubSplit, commit: str) -> None:
    """A UserError if a copy from the cache is of another revision than was asked for; the library does not look."""
    if source.revision is not None and source.revision != commit:
        raise UserError(
            f"dataset {source.name}: the hub cannot be reached, and the copy in the cache is of the commit {commit}, "
            f'which may not be {source.revision!r}. To use it, write revision = "{commit}".'
        )


def _explained(source: HubSplit, error: Exception) -> UserError:
    """What is wrong, in one sentence, and what to do."""
    what, told = f"dataset {source.name}", first_line(error)
    if CONFIG_MISSING in str(error) or (match := re.match(r"BuilderConfig .* not found", told)):
        known = re.findall(r"'([^']+)'", str(error).partition("[")[2].partition("]")[0])
        if CONFIG_MISSING in str(error):
            advice = f'Choose one, such as dataset_config = "{known[0]}".'
            return UserError(f"{what} has several configurations: {', '.join(known)}. {advice}")
        return UserError(f"{what}: no configuration {source.config!r}.{nearest(str(source.config), known)}")
    if match := re.search(r"""Unknown split ["'](.*?)["']\. Should be one of (.*)""", told):
        known = re.findall(r"'([^']+)'", match[2])
        return UserError(f"{what}: no split {match[1]!r}.{nearest(match[1], known)}")
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    if "RevisionNotFoundError" in kinds:
        return UserError(f"{what}: no revision {source.revision!r}. Its page on the hub lists branches and commits.")
    if "GatedRepoError" in kinds or "is a gated dataset" in told:
        return UserError(
            f"{what} is gated. Ask for access on its page of the hub, then log in (hf auth login) or set HF_TOKEN."
        )
    if kinds & OFFLINE:
        return UserError(f"{what}: the hub cannot be reached, and the cache has no copy of it. {BY_HAND}")
    if "DataFilesNotFoundError" in kinds or "EmptyDatasetError" in kinds:
        return UserError(f"{what}: it has no files of the kinds that are read ({', '.join(BUILDERS)}).")
    if "DatasetNotFoundError" in kinds:
        return UserError(
            f"{what}: the hub has none of this name, or it is private. Check the name; for a private one log in "
            "(hf auth login) or set HF_TOKEN."
        )
    if "scripts are no longer supported" in told:
        return UserError(
            f"{what}: a script of its owner makes its examples, and scripts are not run. The hub may have converted "
            f'it: revision = "{CONVERTED}".'
        )
    return UserError(f"{what}: it cannot be read ({told}).")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
