"""Rows whose labels are wrong: one message names several, and says how many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from data.readers.row_errors import MOST

TYPES = {
    "spans": 'type = "token"\ntags = "spans"\nlabels = ["city"]',
    "tags": 'type = "token"\nlabels = ["city"]',
    "queue": 'type = "class"\nlabels = ["sales", "help"]',
    "codes": 'type = "class"\nnames = { 0 = "sales", 1 = "help" }',
    "topics": 'type = "multi"\nlabels = ["sales", "help"]',
}
RIGHT = {"spans": [[3, 7, "city"]], "tags": ["O", "city"], "queue": "sales", "codes": 0, "topics": ["help"]}


def message(folder: Path, field: str, *values: Any) -> str:
    """What is said of rows of which the others have a correct label before and after."""
    rows = [{"text": "to Rome", field: value} for value in (RIGHT[field], *values, RIGHT[field])]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.toml").write_text(
        f'name = "t"\n[files]\ntest = "t.jsonl"\n[[fields]]\nname = "{field}"\n{TYPES[field]}'
    )
    with pytest.raises(UserError) as found:
        read_custom(read_custom_spec(folder / "t.toml"), "test")
    return str(found.value).replace(f"{folder / 't.jsonl'}, ", "")


@pytest.mark.parametrize(
    ("field", "value", "problem", "advice"),
    [
        (
            "spans",
            [[0, 9, "city"]],
            "has the span 0 to 9 ('city'), which is out of range: the text has 7 characters, 'to Rome'.",
            "Offsets count characters from 0, and the end is behind the last one.",
        ),
        ("spans", [[0, 4, "city"]], "has 'to R' (0 to 4, 'city'), which cuts 'to Rome'.", "Words are parted by spaces"),
        (
            "spans",
            [[0, 2, "city"], [0, 7, "city"]],
            "has spans that overlap: 'to' (0 to 2, 'city') and 'to Rome' (0 to 7, 'city').",
            "",
        ),
        ("tags", ["O"], "has 1 labels for 2 words.", "Words are separated by spaces"),
        ("tags", ["O", "citty"], "is 'citty', which is not one of its labels. Did you mean 'city'?", "Known: city"),
        ("queue", "hepl", "is 'hepl', which is not one of its labels. Did you mean 'help'?", "Known: sales, help."),
        ("codes", 3, "is '3', which is not one of its codes: names has no name for it.", "Known: 0, 1."),
        (
            "codes",
            "1.0",
            "is '1.0', which is not one of its codes: names has no name for it. Did you mean '1'?",
            "Known: 0, 1. In files of text 1 and 1.0 are two labels: write one",
        ),
        ("topics", ["hepl"], "has 'hepl', which is not one of its labels. Did you mean 'help'?", "Known: sales, help."),
        ("topics", ["sales;help"], "has 'sales;help', which is not one of its labels.", "It is labels of the set with"),
    ],
)
def test_several_rows_are_named(tmp_path: Path, field: str, value: Any, problem: str, advice: str) -> None:
    one, two, many = (message(tmp_path, field, *[value] * n) for n in (1, 2, 29))
    assert one.startswith(f"line 2: {field!r} {problem} {advice}".rstrip()) and "\n" not in one
    lines = [f"line {n}: {field!r} {problem}" for n in range(2, 7)]
    assert two.splitlines()[:2] == lines[:2] and two.splitlines()[2:] == many.splitlines()[6:]
    assert many.splitlines()[:6] == [*lines, "... (29 examples of the test split have such mistakes)"]
    assert "".join(many.splitlines()[6:]).startswith(advice) and len(many.splitlines()) == 6 + bool(advice)


def test_each_advice_is_given_once(tmp_path: Path) -> None:
    said = message(tmp_path, "spans", [[0, 4, "city"]], [[0, 9, "city"]], [[0, 4, "city"]])
    assert len(said.splitlines()) == 4 and said.count("Words are parted") == said.count("Offsets count") == 1


def test_numbers_with_a_point_beside_other_mistakes(tmp_path: Path) -> None:
    said = message(tmp_path, "codes", "x", "1.0", "0.0", "01")
    assert len(said.splitlines()) == 5 and said.count("Known: 0, 1.") == said.count("are two labels") == 1


def test_gaps_are_said_as_well(tmp_path: Path) -> None:
    said = message(tmp_path, "tags", None, ["O"], ["city"])
    first, *others = said.splitlines()
    assert first.startswith("line 2: 'tags' is null. Fill them in") and 'missing = "skip"' in first
    assert [line.split(":")[0] for line in others[:2]] == ["line 3", "line 4"]


def test_where_all_rows_are_wrong_reading_ends(tmp_path: Path) -> None:
    said = message(tmp_path, "tags", *[["O"]] * (MOST + 5), {"no": "labels"})
    assert "... (1,000 or more examples of the test split have such mistakes)" in said
    assert f"... ({MOST - 1} examples" in message(tmp_path, "tags", *[["O"]] * (MOST - 1))
