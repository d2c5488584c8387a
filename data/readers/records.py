"""The types that every reader of tables produces: a record, and an open table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from data.files import limits


@dataclass(frozen=True)
class Record:
    """One record of a table.

    Attributes:
        where: its location, for messages: ``"FILE, line 12"``, in Parquet and Arrow ``"FILE, row 12"``.
        line: the number of its last line, in Parquet, Arrow and JSON documents its own number; from 1.
        values: by column; empty if it could not be read.
        error: why it could not be read, with its location; empty otherwise.
        is_short: it could not be read because its last cells are missing.
    """

    where: str
    line: int
    values: dict[str, Any]
    error: str = ""
    is_short: bool = False


@dataclass(frozen=True)
class Table:
    """An open table.

    Attributes:
        columns: the names of its columns; None in JSON, where each record has its own.
        records: in the order of the input; can be iterated once.
        progress: returns the part of the input that has been read, from 0 to 1; None if the size is not known.
    """

    columns: tuple[str, ...] | None
    records: Iterator[Record]
    progress: Callable[[], float | None]


def check_columns(columns: list[str], where: str, wanted: Collection[str] | None = None) -> None:
    """Raise a UserError if a table has too many columns, or two of one name; without a name only if they are wanted.

    Args:
        wanted: the columns that are needed; None: all.
    """
    if len(columns) > limits.COLUMNS:
        raise UserError(f"{where}: {len(columns):,} columns; the limit is {limits.COLUMNS:,}. Is it the right format?")
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    repeated = [column for column in repeated if column.strip() or wanted is None or column in wanted]
    if repeated:
        advice = "Rename one of them." if repeated[0].strip() else "Name the columns, or delete the empty ones."
        raise UserError(f"{where}: column {repeated[0]!r} is in the header twice. {advice}")
