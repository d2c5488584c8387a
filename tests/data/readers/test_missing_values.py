"""Values that a table lacks, and rows with other cells than the header."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import load_custom
from tests.own_tables import labels_of, spec_of, train

GAPS = "text,queue\na,sales\n ,sales\nb,billing\nc,\nd\ne,sales\n"


def test_missing_values_are_named_or_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.csv").write_text(GAPS)
    with pytest.raises(UserError) as caught:
        train(folder)
    for part in (
        "line 3: 'text' is empty; ",
        "line 5: 'queue' is empty; ",
        "line 6: 1 cells, but",
        'missing = "skip" in',
    ):
        assert part in str(caught.value)
    found = load_custom(spec_of(folder, 'missing = "skip"'), "train")
    assert [example.text for example in found] == ["a", "b", "e"]
    assert [example.id for example in found] == ["t/train/2", "t/train/4", "t/train/7"]
    counts = "1 in 'text', 1 in 'queue', 1 in a line with too few cells"
    many = "These are 50% of all: are these the right columns?"
    assert caplog.messages[0].endswith(f"3 of 6 records have no value in a column and are skipped: {counts}. {many}")


def test_gaps_of_a_table_that_is_cut_are_those_of_the_table(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Six of sixty, a tenth: not six of each split, which would be nearly half of test."""
    rows = (f"{'' if i < 6 else f'text {i}'},{('sales', 'billing')[i % 2]}" for i in range(60))
    (folder / "train.csv").write_text("\n".join(["text,queue", *rows]))
    spec = spec_of(folder, 'missing = "skip"', 'train = "train.csv"\n[split]\ntest = 0.2')
    for split in ("train", "test"):
        caplog.clear()
        assert load_custom(spec, split)
        said = "t, the table that is cut: 6 of 60 records have no value in a column and are skipped: 6 in 'text'."
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]


def test_of_many_missing_values_the_first_are_named(folder: Path) -> None:
    (folder / "train.csv").write_text("text,queue\n" + ",sales\n" * 30)
    with pytest.raises(UserError, match=r"line 6: 'text' is empty; ... \(30 examples of the train split have no value"):
        train(folder)
    with pytest.raises(UserError, match="no examples in it. All were skipped: .*line 2: 'text' is empty"):
        train(folder, 'missing = "skip"')


def test_missing_values_in_json_lines(folder: Path) -> None:
    rows = ['{"text": "a", "queue": "sales"}', '{"text": null, "queue": "sales"}', '{"text": "b", "queue": NaN}']
    (folder / "train.jsonl").write_text("\n".join([*rows, '{"text": "c", "queue": "billing"}']))
    files = 'train = "train.jsonl"'
    with pytest.raises(UserError, match="line 2: 'text' is null; .*line 3: 'queue' is empty. Fill them in"):
        train(folder, files=files)
    assert [example.text for example in train(folder, 'missing = "skip"', files)] == ["a", "c"]
    # A key that is not there is more likely another name, unless missing values are expected.
    (folder / "train.jsonl").write_text(
        "\n".join([*rows[:1], '{"text": "b", "queu": "sales"}', '{"text": "c", "queue": "billing"}'])
    )
    with pytest.raises(UserError, match="line 2: no column 'queue'. Did you mean 'queu'.* write missing = .skip"):
        train(folder, files=files)
    assert [example.text for example in train(folder, 'missing = "skip"', files)] == ["a", "c"]
    assert labels_of(folder, top='missing = "skip"', files=files, labels='labels_from = "train"') == [
        "sales",
        "billing",
    ]


@pytest.mark.parametrize(
    ("name", "table", "top", "advice"),
    [
        ("train.csv", "text,queue\nsome words 0;sales\nmore words;billing\n", "",
         "Separated by ';' it has 2. If all rows are written so, write the header with ';' as well, and write "
         "delimiter = \";\" in the task's file, or give --delimiter ';' to predict.py"),
        ("train.csv", "text,queue\nsome\tsales\n", "", 'and write delimiter = "\\t" in the task'),
        ("train.csv", "text;queue\nsome,sales\nmore,billing\n", 'delimiter = ";"',
         "If all rows are written so, write the header with ',' as well, and omit delimiter"),
        ("train.tsv", "text\tqueue\nsome|sales\n", "",
         'write the header with \'|\' as well, and give the file the ending .csv, and write delimiter = "|" in'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("labels", ['labels = ["billing", "sales"]', 'labels_from = "train"'])
def test_rows_with_another_delimiter_than_the_header(
    folder: Path, name: str, table: str, top: str, advice: str, labels: str
) -> None:
    (folder / name).write_text(table)
    with pytest.raises(UserError) as caught:
        train(folder, top, f'train = "{name}"', labels)
    message = str(caught.value)
    assert f"{name}, line 2: 1 cells, but the header names 2 columns. Separated by" in message and advice in message
    assert message.count("Separated by") == 1


def test_short_rows_that_no_delimiter_explains(folder: Path) -> None:
    for row in ("a", "a;b;c", '"a;b\nc"'):
        (folder / "train.csv").write_text(f"text,queue\n{row}\nb,sales\n")
        with pytest.raises(UserError, match=r"1 cells, but the header names 2 columns\. Fill") as caught:
            train(folder)
        assert "Separated by" not in str(caught.value)


@pytest.mark.parametrize("top", ["", 'missing = "skip"'])
@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("train.csv", "text,queue\na\nb\n", r"train.csv, line 2: 1 cells, but the header names 2 columns\.$"),
        ("train.csv", "text,queue\n", r"train.csv: no examples in it\.$"),
        ("train.csv", "", r"train.csv: no examples in it\.$"),
        ("train.csv", "text,queue\na,\nb, \n",
         r"train.csv: 'queue' is empty in all 2 examples \(\S*train.csv, line 2; \S*train.csv, line 3\)\.$"),
        ("train.csv", "text,queue\n" + "a,\n" * 30, r"'queue' is empty in all 30 examples .*line 4; \.\.\.\)\.$"),
        ("train.jsonl", '{"text": "a", "queue": null}\n', r"'queue' is empty in the only example \(\S*, line 1\)\.$"),
        ("train.jsonl", '{"text": "a", "queu": "x"}\n', "train.jsonl, line 1: no column 'queue'. Did you mean 'queu'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["class", "token", "multi"])
def test_why_there_is_no_label(folder: Path, kind: str, name: str, table: str, message: str, top: str) -> None:
    (folder / name).write_text(table)
    field = f'[[fields]]\nname = "queue"\ntype = "{kind}"\nlabels_from = "train"\n'
    (folder / "task.toml").write_text(f'name = "t"\n{top}\n[files]\ntrain = "{name}"\n{field}')
    with pytest.raises(UserError, match=message):
        read_custom_spec(folder / "task.toml")


def test_too_many_cells_are_never_skipped(folder: Path) -> None:
    (folder / "train.csv").write_text("text,queue\na,sales\nb, c,billing\n")
    with pytest.raises(UserError, match="line 3: 3 cells, but the header names 2 columns"):
        train(folder, 'missing = "skip"')


def test_an_id_that_is_missing(folder: Path) -> None:
    (folder / "train.csv").write_text("id,text,queue\n,a,sales\n2,b,billing\n")
    with pytest.raises(UserError, match="line 2: 'id' is empty"):
        train(folder, 'id_column = "id"')
