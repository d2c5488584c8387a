"""The groups of a user's examples: those that have the same value in a column, such as the texts of one customer."""

from __future__ import annotations

from collections.abc import Mapping

from data.characters import appearance
from data.errors import UserError
from data.readers.cells import no_column, records
from data.readers.records import Record
from data.readers.sources import Source
from data.readers.tables import Dialect
from data.template import is_missing, scalar_text


def group_of(row: Record, column: str) -> str:
    """The value of a column that names a group; values that look the same are one.

    Raises:
        UserError: a list or an object.
    """
    written = scalar_text(row.values[column])
    if written is None:
        raise UserError(f"{row.where}: {column!r} must be a text or a number: it names the example's group.")
    return appearance(written)


def check_groups(files: Mapping[str, tuple[Source, ...]], column: str, dialect: Dialect) -> None:
    """Raise a UserError if a group is in the files of two splits; reads only this column.

    Args:
        files: by split.
    """
    if len(files) < 2:
        return
    first: dict[str, tuple[str, str]] = {}  # by group: a split that has it, and where
    shared: dict[str, str] = {}
    for split, own in files.items():
        for file in own:
            for row in records(file, dialect, [column]):
                if row.error:
                    continue  # reported or skipped when the split is read
                if column not in row.values:
                    raise no_column(row, column)
                if is_missing(row.values[column]):
                    continue
                group = group_of(row, column)
                its_split, where = first.setdefault(group, (split, row.where))
                if its_split != split:
                    shared.setdefault(group, f"in {its_split} ({where}) and in {split} ({row.where})")
    if shared:
        group, where = next(iter(shared.items()))
        more = f" {len(shared):,} groups are in two splits." if len(shared) > 1 else ""
        raise UserError(f"group {group!r} of {column!r} is {where}.{more} Move each to one split, or give the train "
                        "files alone and let [split] cut them.")  # fmt: skip
