"""Checks on the hand-written help-desk sample in data/sample/tickets."""

from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import combinations

import pytest

from data.source import load_examples
from data.tasks import get_task
from tests.launching import ROOT

SAMPLE = ROOT / "data" / "sample" / "tickets"
MAX_IN_COMMON = 1 / 3

Rows = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    found = {}
    for split in ("train", "test"):
        with (SAMPLE / f"{split}.csv").open(encoding="utf-8", newline="") as handle:
            found[split] = list(csv.DictReader(handle, strict=True))
    return found


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))


def in_common(a: set[str], b: set[str]) -> float:
    """The share of the words of either that are in both (Jaccard's index)."""
    return len(a & b) / len(a | b)


def test_the_readmes_table_counts_the_rows(rows: Rows) -> None:
    table = re.findall(
        r"^\| (train|test) +\| (\w+) +\| +(\d+) \| +(\d+) \| +(\d+) \|$", (SAMPLE / "README.md").read_text(), re.M
    )
    said = {}
    for split, queue, low, high, total in table:
        said |= {(split, queue, "low"): int(low), (split, queue, "high"): int(high)}
        assert int(low) + int(high) == int(total)
    assert said == Counter((split, row["queue"], row["urgency"]) for split in rows for row in rows[split])
    assert {split: len(rows[split]) for split in rows} == {"train": 400, "test": 100}


def test_the_task_reads_every_row(rows: Rows) -> None:
    task = get_task(SAMPLE / "tickets.toml")
    for split in rows:
        examples = load_examples(task, split)
        assert [(example.text, dict(example.labels)) for example in examples] == [
            (row["text"], {"queue": row["queue"], "urgency": row["urgency"]}) for row in rows[split]
        ]


def test_files_are_plain(rows: Rows) -> None:
    for split in rows:
        content = (SAMPLE / f"{split}.csv").read_bytes()
        assert b"\r" not in content and content.endswith(b"\n")
        assert all(row["text"] == " ".join(row["text"].split()) != "" for row in rows[split])


def test_no_two_texts_are_near_copies(rows: Rows) -> None:
    assert in_common(words("Where is my parcel?"), words("where's my parcel")) > MAX_IN_COMMON
    texts = [words(row["text"]) for split in rows for row in rows[split]]
    assert [pair for pair in combinations(texts, 2) if in_common(*pair) > MAX_IN_COMMON] == []
