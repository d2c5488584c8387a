"""Rows of Prodigy's exports that an annotator has not accepted. What they have as labels is wrong or unfinished.

Prodigy itself trains on accepted rows. Its exports have all of them, with what was pressed in the column `ANSWER`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

ANSWER = "answer"
HASHES = ("_input_hash", "_task_hash")  # columns that no other tool writes
NOT_ACCEPTED = ("reject", "ignore")


def is_export(columns: Collection[str]) -> bool:
    """Whether a table with these columns, or a record with these keys, is of Prodigy."""
    return ANSWER in columns and any(name in columns for name in HASHES)


def not_accepted(values: Mapping[str, Any]) -> str:
    """The answer of a record that was not accepted; empty if it was, or is not of Prodigy."""
    answer = values.get(ANSWER)
    return answer if answer in NOT_ACCEPTED and is_export(values) else ""


def note(left_out: Counter[str]) -> str:
    """What is said about the records that are left out, by answer; empty if there are none."""
    if not left_out:
        return ""
    counts = " or ".join(f"{answer} ({n:,})" for answer, n in left_out.most_common())
    return (
        f"{left_out.total():,} records with Prodigy's answer {counts} are left out: their labels were not accepted. "
        f'If the answers are the labels, write column = "{ANSWER}" in the field.'
    )
