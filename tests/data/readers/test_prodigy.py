"""Exports of Prodigy, with rows that the annotator did not accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from tests.own_tables import spec_of, train

ANSWERS = ("accept", "accept", "reject", "ignore", "accept")
LEFT_OUT = "2 records with Prodigy's answer reject (1) or ignore (1) are left out: their labels were not accepted."


def exported(**without: Any) -> list[dict[str, Any]]:
    """Rows with a class, whose label is wrong if it was not accepted."""
    labels = ("sales", "billing", "wrong", "none", "sales")
    rows = ({"text": f"t{n}", "_input_hash": n, "_task_hash": -n, "queue": labels[n], "answer": ANSWERS[n]}
            for n in range(5))  # fmt: skip
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return f'train = "{path.name}"'


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
@pytest.mark.parametrize("without", ["", "_task_hash", "_input_hash"])
def test_rows_that_were_not_accepted(folder: Path, caplog: pytest.LogCaptureFixture, name: str, without: str) -> None:
    """They are in no split, and give no labels."""
    files = write(folder / name, exported(**{without: ""}))
    found = train(folder, files=files, labels='labels_from = "train"')
    assert [(example.text, example.class_label("queue")) for example in found] == [
        ("t0", "sales"),
        ("t1", "billing"),
        ("t4", "sales"),
    ]
    assert found[-1].id.endswith(("/5", "/6")), "places in the file do not change"
    (said,) = caplog.messages
    assert said.startswith(f"t train: {LEFT_OUT}")
    assert spec_of(folder, files=files, labels='labels_from = "train"').fields[0].labels == ("billing", "sales")


def test_spans_that_were_rejected_are_not_checked(folder: Path) -> None:
    spans: list[list[dict[str, Any]]] = [
        [{"start": 0, "end": 2, "label": "city"}],
        [],
        [{"start": 9, "end": 11}],
        [],
        [],
    ]
    rows = [row | {"spans": own} for row, own in zip(exported(queue=""), spans, strict=True)]
    write(folder / "t.jsonl", rows)
    field = '[[fields]]\nname = "spans"\ntype = "token"\ntags = "spans"\nlabels_from = "train"\n'
    (folder / "task.toml").write_text(f'name = "t"\n[files]\ntrain = "t.jsonl"\n{field}')
    found = read_custom(read_custom_spec(folder / "task.toml"), "train")
    assert [example.word_labels("spans") for example in found] == [("city",), ("Other",), ("Other",)]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_answers_that_are_the_labels(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    files = write(folder / name, exported())
    found = train(folder, files=files, labels='column = "answer"\nlabels_from = "train"')
    assert tuple(example.class_label("queue") for example in found) == ANSWERS and not caplog.messages


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_a_column_of_answers_of_another_tool(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    files = write(folder / name, exported(_input_hash="", _task_hash=""))
    found = train(folder, files=files, labels='labels_from = "train"')
    assert len(found) == 5 and not caplog.messages


def test_no_row_that_was_accepted(folder: Path) -> None:
    files = write(folder / "t.jsonl", [row | {"answer": "reject"} for row in exported()])
    for labels in ("", 'labels_from = "train"'):
        with pytest.raises(
            UserError, match=r"t.jsonl: no examples in it. 5 records with Prodigy's answer reject \(5\) "
        ):
            train(folder, files=files, labels=labels)


def test_rows_that_are_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The notice counts those of the table, and answers do not move others to another split."""
    accepted = [row for row in exported() if row["answer"] == "accept"] * 4
    files = write(folder / "t.jsonl", [row | {"text": f"t{n}"} for n, row in enumerate(accepted)] + exported()[2:4])
    spec = spec_of(folder, files=f"{files}\n[split]\ntest = 0.25")
    assert len(read_custom(spec, "test")) == 3 and len(read_custom(spec, "train")) == 9
    assert [text for text in caplog.messages if "Prodigy" in text] == [
        f"t, the table that is cut: {LEFT_OUT} If the answers are the labels, write column = \"answer\" in the field."
    ] * 2  # fmt: skip
