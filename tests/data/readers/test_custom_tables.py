"""Tables as people have them: several files, packed, delimiters, codes, templates."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.custom_examples import load_custom, read_custom
from tests.own_tables import TABLE, labels_of, spec_of, train

# ----------------------------------------------------------------------------------------------- the files of a split


def test_several_files_and_patterns(folder: Path) -> None:
    for name in ("part-b.csv", "part-a.csv", "part-a.csv.bak"):
        (folder / name).write_text(TABLE.replace("a b", name))
    for files in ('train = "part-*.csv"', 'train = ["part-a.csv", "part-b.csv"]'):
        found = train(folder, files=files)
        assert [example.text for example in found] == ["part-a.csv", "c", "part-b.csv", "c"]
        assert [example.id for example in found[1:3]] == ["t/train/part-a.csv:3", "t/train/part-b.csv:2"]
    # In the order in which they are named; labels are collected from all of them.
    (folder / "more.jsonl").write_text('{"text": "x", "queue": "other"}\n')
    spec = spec_of(folder, files='train = ["part-b.csv", "more.jsonl"]', labels='labels_from = "train"')
    assert spec.fields[0].labels == ("billing", "other", "sales")
    assert [example.text for example in read_custom(spec, "train")] == ["part-b.csv", "c", "x"]


def test_files_of_the_same_name_have_other_ids(folder: Path) -> None:
    for name in ("2023", "2024"):
        (folder / name).mkdir()
        (folder / name / "train.csv").write_text(TABLE)
    found = train(folder, files='train = "20*/train.csv"')
    assert [example.id for example in found[1:3]] == ["t/train/2023/train.csv:3", "t/train/2024/train.csv:2"]


def test_a_name_with_the_characters_of_a_pattern(folder: Path) -> None:
    (folder / "train[1].csv").write_text(TABLE)
    (folder / "train1.csv").write_text("text,queue\nother,sales\n")
    assert train(folder, files='train = "train[1].csv"')[0].text == "a b"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ('train = "part-*.csv"', "no train file matches 'part-.*.csv' in "),
        ('train = ["train.csv", "t*.csv"]', "the train file train.csv is named twice, the second time by 't.*csv'"),
        ('train = ["train.csv", "./train.csv"]', "is named twice"),
        ('train = ["train.csv", "link.csv"]', "the train file link.csv is named twice"),
        ("train = []", "the list of train files is empty"),
        ('train = [""]', "this is a folder, and not one that save_to_disk"),
        ('train = ["train.csv", 3]', "files.* must be a text"),
        ('train = "*.csv"\ntest = "test.csv"', "test.csv is a train file and a test file. Write the pattern so"),
        (
            'train = "train.csv.xz"',
            "must end in one of .csv, .tsv, .jsonl, .* also with .gz. Unpack it, .* Else name the",
        ),
        ('train = "train.xlsx"', "with .gz. Save the sheet as CSV, in UTF-8. Else name the format of all files"),
        ('train = "train.txt.gz"', "with .gz. If it is CoNLL, name it .conll. .* Else name the format of all files"),
        ('train = "train.new"', "with .gz. Or name the format of all files"),
        ('train = ["train.csv", "none.csv"]', "no train file at .*none.csv"),
    ],
)
def test_wrong_files(folder: Path, files: str, message: str) -> None:
    (folder / "test.csv").write_text(TABLE)
    (folder / "link.csv").symlink_to(folder / "train.csv")
    if "*.csv" in files and "test" in files:
        (folder / "link.csv").unlink()
    with pytest.raises(UserError, match=message):
        spec_of(folder, files=files)


def test_one_file_for_two_splits_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec_of(folder, files='train = "train.csv"\ntest = "train.csv"')
    assert "train.csv is a train file and a test file: its examples are in both splits" in caplog.text


def test_an_id_used_in_two_files(folder: Path) -> None:
    (folder / "a.csv").write_text("id,text,queue\n1,a,sales\n2,b,billing\n")
    (folder / "b.csv").write_text("id,text,queue\n2,c,sales\n")
    with pytest.raises(UserError, match=r"b.csv, line 2: id '2' was already used in .*a.csv, line 3; ids must differ"):
        train(folder, 'id_column = "id"', 'train = "[ab].csv"')


def test_spaces_around_an_id_do_not_make_another(folder: Path) -> None:
    (folder / "train.csv").write_text("id,text,queue\n1,a,sales\n 2 ,b,billing\n1 ,c,sales\n")
    with pytest.raises(UserError, match="line 4: id '1' was already used in .*train.csv, line 2; ids must differ"):
        train(folder, 'id_column = "id"')
    (folder / "train.csv").write_text("id,text,queue\n1,a,sales\n 2 ,b,billing\n")
    assert [example.id for example in train(folder, 'id_column = "id"')] == ["t/train/1", "t/train/2"]


def test_ids_of_different_splits_are_not_compared(folder: Path) -> None:
    (folder / "train.csv").write_text("id,text,queue\n1,a,sales\n2,b,billing\n")
    spec = spec_of(folder, 'id_column = "id"', 'train = "train.csv"\ntest = "train.csv"')
    found = [example.id for split in ("train", "test") for example in read_custom(spec, split)]
    assert found == ["t/train/1", "t/train/2", "t/test/1", "t/test/2"]


# ------------------------------------------------------------------------------------------------------ packed files


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl"])
def test_packed_files(folder: Path, name: str) -> None:
    rows = {
        "train.csv": 'text,queue\n"a\nb",sales\nc,none\n',
        "train.tsv": "text\tqueue\n\na b\tsales\nc\tnone\n",
        "train.jsonl": '{"text": "a b", "queue": "sales"}\n\n\n{"text": "c", "queue": "none"}\n',
    }
    (folder / f"{name}.gz").write_bytes(gzip.compress(rows[name].encode()))
    with pytest.raises(UserError, match=f"{name}.gz, line 4: 'queue' is 'none'"):
        train(folder, files=f'train = "{name}.gz"')
    (folder / f"{name}.GZ").write_bytes(gzip.compress(rows[name].replace("none", "billing").encode()))
    assert [example.text.split() for example in train(folder, files=f'train = "{name}.GZ"')] == [["a", "b"], ["c"]]


def test_a_damaged_packed_file(folder: Path) -> None:
    rows = "".join(f"text {i} {i * i},{'sales' if i % 3 else 'billing'}\n" for i in range(20_000))
    packed = gzip.compress(("text,queue\n" + rows).encode())
    wrong_sum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for content in (packed[:-1], packed[: len(packed) // 2], packed + b"x", wrong_sum, packed[:100] + b"\xff" * 9):
        (folder / "train.csv.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"train.csv.gz: the compressed file is damaged or cut off (after line|at)"):
            train(folder, files='train = "train.csv.gz"')
    (folder / "train.csv.gz").write_text(TABLE)
    with pytest.raises(UserError, match=r"cut off at its start \(Not a gzipped file"):
        train(folder, files='train = "train.csv.gz"')
    (folder / "train.csv").write_bytes(packed)
    with pytest.raises(UserError, match="train.csv: this is no text, but compressed with gzip. Give .* ending .gz"):
        train(folder)


# ------------------------------------------------------------------------------------------ delimiters


@pytest.mark.parametrize("delimiter", [";", "\\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_another_delimiter_is_suggested_and_not_guessed(folder: Path, delimiter: str, quote: str) -> None:
    character = delimiter.replace("\\t", "\t")
    content = (
        f"id{character}text{character}queue\n1{character}a, b, c{character}sales\n2{character}d{character}billing\n"
    )
    if quote:
        content = "".join(
            character.join(f'"{c}"' for c in line.split(character)) + "\n" for line in content.splitlines()
        )
    (folder / "train.csv").write_text(content)
    with pytest.raises(UserError) as caught:
        train(folder)
    advice = f'delimiter = "{delimiter}"'
    assert f"write {advice} in the task's file, or give --delimiter '{delimiter}' to predict.py" in str(caught.value)
    assert [example.text for example in train(folder, advice)] == ["a, b, c", "d"]


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\r\n'])
def test_the_line_in_which_excel_names_the_delimiter_is_no_header(folder: Path, first: str) -> None:
    (folder / "train.csv").write_bytes(f"{first}text;queue\r\nsep=;sales\r\nb;billing\r\nc\r\n".encode())
    with pytest.raises(UserError, match="line 1: '.?sep=;.?'. Its cells .* write delimiter = \";\""):
        train(folder)
    with pytest.raises(UserError, match="line 5: 1 cells"):
        train(folder, 'delimiter = ";"')
    assert [e.text for e in train(folder, 'delimiter = ";"\nmissing = "skip"')] == ["sep=", "b"]


def test_no_other_delimiter_is_suggested_if_it_does_not_help(folder: Path) -> None:
    (folder / "train.csv").write_text("txt;x,label\na,sales\n")
    with pytest.raises(UserError, match=r"no column 'text'. Did you mean 'txt;x'\? Known: txt;x, label. Texts without"):
        train(folder)
    (folder / "train.csv").write_text(TABLE)
    with pytest.raises(UserError, match="no column 'text'.* Its cells are separated by ',': omit delimiter."):
        train(folder, 'delimiter = ";"')
    (folder / "train.tsv").write_text(TABLE)
    with pytest.raises(UserError, match="no column 'text'.* give the file the ending .csv."):
        train(folder, files='train = "train.tsv"')


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ('delimiter = ";;"', "delimiter must be one character, such as \";\".* it is ';;'"),
        ('delimiter = ""', "delimiter must be one character"),
        ('delimiter = "a"', "delimiter must be one character"),
        ("delimiter = '\"'", "delimiter must be one character"),
        (
            'encoding = "windows1252x"',
            "'windows1252x' is no encoding that tables are read in. Did you mean 'windows-12",
        ),
        ('encoding = "base64"', "no encoding that tables are read in"),
        ('encoding = "unicode_escape"', "no encoding that tables are read in"),
        ('missing = "skipp"', "unknown missing 'skipp'. Did you mean 'skip'"),
    ],
)
def test_wrong_keys(folder: Path, top: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of(folder, top)


def test_a_delimiter_is_for_csv(folder: Path) -> None:
    (folder / "train.tsv").write_text(TABLE.replace(",", "\t"))
    with pytest.raises(UserError, match="delimiter is for .csv files; .files. has none"):
        spec_of(folder, 'delimiter = ";"', 'train = "train.tsv"')


# ------------------------------------------------------------------------------------------------------------ labels


def test_numbers_and_truths_as_labels(folder: Path) -> None:
    values = ["true", "false", "1", "1.0", "2.5", "1e3", "-0.0"]
    (folder / "train.jsonl").write_text("".join(f'{{"text": "a", "queue": {value}}}\n' for value in values))
    files = 'train = "train.jsonl"'
    found = labels_of(folder, files=files, labels='labels_from = "train"')
    assert found == ["true", "false", "1", "1", "2.5", "1000", "0"]
    for value in ("Infinity", "[1]", "{}"):
        (folder / "train.jsonl").write_text(f'{{"text": "a", "queue": {value}}}\n')
        with pytest.raises(UserError, match="line 1: 'queue' must be a label, found"):
            labels_of(folder, files=files)


def test_no_number_in_csv_is_changed(folder: Path) -> None:
    (folder / "train.csv").write_text("text,queue\na,1.0\nb,1\nc,01\nd,True\ne,NaN\n")
    assert labels_of(folder, labels='labels_from = "train"') == ["1.0", "1", "01", "True", "NaN"]


NAMES = 'names = { 0 = "negative", 1 = "positive", 2 = "negative", 9 = "never" }'


def test_names_for_codes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.csv").write_text("text,queue\na,0\nb, 1\nc,2\n")
    assert spec_of(folder, labels=NAMES).fields[0].labels == ("negative", "positive", "never")
    with caplog.at_level(logging.INFO):
        found = load_custom(spec_of(folder, labels=NAMES), "train")
    assert [example.labels["queue"] for example in found] == ["negative", "positive", "negative"]
    assert "t train: no example has the queue label 'never'." in caplog.text
    (folder / "train.jsonl").write_text('{"text": "a", "queue": 0}\n{"text": "b", "queue": 1.0}\n')
    assert labels_of(folder, files='train = "train.jsonl"', labels=NAMES) == ["negative", "positive"]
    (folder / "train.csv").write_text("text,queue\na,0\nb,3\n")
    with pytest.raises(UserError, match="line 3: 'queue' is '3', which is not one of its codes: names has no name for"):
        labels_of(folder, labels=NAMES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (NAMES + '\nlabels = ["a", "b"]', "either labels .* or labels_from .* or names .* only one"),
        (NAMES + '\nlabels_from = "train"', "only one of them"),
        ("names = { 0 = 1 }", "names.* must be a text"),
        ("names = {}", "needs at least 2 labels, found none"),
        ('names = { 0 = "a", 1 = "a" }', "found only 'a', so there is nothing to learn"),
        ('names = { 0 = "a", " 0" = "b" }', "the code ' 0', which is empty, has spaces around it, or looks like"),
        ('names = { 0 = "a", 1 = " b" }', "label ' b' is empty, has spaces"),
    ],
)
def test_wrong_names(folder: Path, labels: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of(folder, labels=labels)


def test_labels_that_differ_only_in_case_or_spaces(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.csv").write_text("text,queue\na,Billing\nb,billing\nc,e mail\nd,Email\ne, billing \n")
    spec = spec_of(folder, labels='labels_from = "train"')
    assert spec.fields[0].labels == ("Billing", "Email", "billing", "e mail")
    said = [record.getMessage() for record in caplog.records]
    assert (
        len(said) == 2
        and "the labels 'Billing' and 'billing' differ only in case, spaces or form of characters" in said[0]
    )
    assert "'Email' and 'e mail' differ" in said[1] and "with names" in said[1]
    assert labels_of(folder, labels='names = {Billing = "b", billing = "b", Email = "e", "e mail" = "e"}') == list(
        "bbeeb"
    )


@pytest.mark.parametrize("labels", [("1", "\uff11"), ("fine", "\ufb01ne"), ("M\u00b2", "m2")])
def test_labels_that_differ_only_in_the_form_of_characters(
    folder: Path, labels: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "train.csv").write_text(f"text,queue\na,{labels[0]}\nb,{labels[1]}\n", encoding="utf-8")
    assert spec_of(folder, labels='labels_from = "train"').fields[0].labels == labels
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"the labels {labels[0]!r} and {labels[1]!r} differ only in case, spaces or form of characters" in said


def test_labels_that_differ_only_in_a_point(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas writes whole numbers of columns with gaps."""
    (folder / "train.csv").write_text("text,queue\na,1\nb,1.0\nc,1.5\nd,10\ne,v1.0\nf,v1\ng,-2.00\nh,-2\n")
    spec_of(folder, labels='labels_from = "train"')
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("differ only in the .0 of a number. If they are one label" in text for text in said)
    assert "the labels '-2' and '-2.00'" in said[0] and "the labels '1' and '1.0'" in said[1]


def test_one_label_only(folder: Path) -> None:
    (folder / "train.csv").write_text("text,queue\na,sales\nb,sales\n")
    with pytest.raises(UserError, match="needs at least 2 labels, found only 'sales', so there is nothing to learn"):
        spec_of(folder, labels='labels_from = "train"')
    with pytest.raises(UserError, match="every example has the label 'sales' in 'queue', so there is nothing to learn"):
        train(folder)
    spec = spec_of(folder, files='train = "train.csv"\ntest = "train.csv"')
    assert len(read_custom(spec, "test")) == 2  # it can be scored


def test_a_label_that_is_only_in_test(folder: Path) -> None:
    (folder / "test.csv").write_text("text,queue\na,sales\nb,legal\n")
    spec = spec_of(folder, files='train = "train.csv"\ntest = "test.csv"', labels='labels_from = "train"')
    with pytest.raises(UserError) as caught:
        read_custom(spec, "test")
    assert "test.csv, line 3: 'queue' is 'legal', which is not one of its labels" in str(caught.value)
    assert "add examples of it there, or leave this example out" in str(caught.value)
    with pytest.raises(UserError) as caught:  # the labels were listed, so the list may be wrong
        train(folder, labels='labels = ["sales", "legal"]')
    assert "leave this example out" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- templates


def test_a_text_of_several_columns(folder: Path) -> None:
    (folder / "train.csv").write_text("title,body text,queue\nHi,there,sales\nNo,where,billing\n")
    template = 'text = "{title}: {body text}\\n{{{title}}}"'
    assert [example.text for example in train(folder, template)] == ["Hi: there\n{Hi}", "No: where\n{No}"]
    (folder / "train.jsonl").write_text('{"title": "Hi", "year": 2024, "new": true, "queue": "sales"}\n'
                                        '{"title": "No", "year": 1.5, "new": false, "queue": "billing"}\n')  # fmt: skip
    found = train(folder, 'text = "{title} {year} {new}"', 'train = "train.jsonl"')
    assert [example.text for example in found] == ["Hi 2024 true", "No 1.5 false"]


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ('text = "{title}\\n{bdy}"', "no column 'bdy'. Did you mean 'body'"),
        ('text = "{title"', "a single '{'. Columns are written as {name}, braces as {{ and }}"),
        ('text = "{title}}"', "a single '}'"),
        ('text = "{}{title}"', "a column's name is missing between braces"),
        ('text = "title"', 'no column in braces.* write text_column = "title"'),
        ('text = "{{title}}"', "no column in braces"),
        ('text = "{title}"\ntext_column = "title"', "give either text_column .* or text .* not both"),
    ],
)
def test_a_wrong_template(folder: Path, top: str, message: str) -> None:
    (folder / "train.csv").write_text("title,body,queue\nHi,there,sales\nNo,where,billing\n")
    with pytest.raises(UserError, match=message):
        train(folder, top)


def test_a_missing_value_in_a_template(folder: Path) -> None:
    (folder / "train.csv").write_text("title,body,queue\nHi,there,sales\n,where,billing\nNo,where,billing\n")
    with pytest.raises(UserError, match="line 3: 'title' is empty"):
        train(folder, 'text = "{title} {body}"')
    assert len(train(folder, 'text = "{title} {body}"\nmissing = "skip"')) == 2
    (folder / "train.jsonl").write_text('{"title": ["a"], "queue": "sales"}\n')
    with pytest.raises(UserError, match=r"line 1: 'title' must be a text or a number, found \['a'\]"):
        train(folder, 'text = "{title}"', 'train = "train.jsonl"')
