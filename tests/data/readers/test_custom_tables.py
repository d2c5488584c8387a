"""Tables as people have them: several files, packed, delimiters, encodings, codes, missing values, templates."""

from __future__ import annotations

import codecs
import gzip
import logging
from pathlib import Path

import pytest

from data.errors import UserError
from data.example import Example
from data.readers.custom import CustomSpec, read_custom_spec
from data.readers.custom_examples import load_custom, read_custom

TABLE = "text,queue\na b,sales\nc,billing\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TABLE)
    return tmp_path


def spec_of(folder: Path, top: str = "", files: str = 'train = "train.csv"', labels: str = "") -> CustomSpec:
    labels = labels or 'labels = ["billing", "sales"]'
    field = f'[[fields]]\nname = "queue"\ntype = "class"\n{labels}\n'
    (folder / "task.toml").write_text(f'name = "t"\n{top}\n[files]\n{files}\n{field}', encoding="utf-8")
    return read_custom_spec(folder / "task.toml")


def train(folder: Path, *args: str, **options: str) -> list[Example]:
    return read_custom(spec_of(folder, *args, **options), "train")[0]


def labels_of(folder: Path, **options: str) -> list[str]:
    return [example.class_label("queue") for example in train(folder, **options)]


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
    assert [example.text for example in read_custom(spec, "train")[0]] == ["part-b.csv", "c", "x"]


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
        ('train = "train.csv.xz"', "must end in one of .csv, .tsv, .jsonl, .* also with .gz"),
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
    found = [example.id for split in ("train", "test") for example in read_custom(spec, split)[0]]
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


# ------------------------------------------------------------------------------------------ delimiters and encodings


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


WESTERN = "text,queue\n“Café” – 3 €,sales\ncrème,billing\n"


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("UTF-16LE", "utf-16"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
        ("windows-1252", "cp1252"),
        ("cp1252", "cp1252"),
        ("utf-8", "utf-8-sig"),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_named_encodings(folder: Path, named: str, written: str, ending: str) -> None:
    content = WESTERN.replace("crème", '"crème\nbrûlée"').replace("billing", "none").replace("\n", ending)
    (folder / "train.csv").write_bytes(content.encode(written))
    with pytest.raises(UserError, match="train.csv, line 4: 'queue' is 'none'"):
        train(folder, f'encoding = "{named}"')
    (folder / "train.csv").write_bytes(content.replace("none", "billing").encode(written))
    found = [example.text for example in train(folder, f'encoding = "{named}"')]
    assert found == ["“Café” – 3 €", f"crème{ending}brûlée"]


def test_other_letters_than_western_ones(folder: Path) -> None:
    for text, encoding in (("привет мир", "windows-1251"), ("日本語です", "shift_jis"), ("你好", "gb18030")):
        (folder / "train.csv").write_bytes(TABLE.replace("a b", text).encode(encoding))
        assert train(folder, f'encoding = "{encoding}"')[0].text == text


@pytest.mark.parametrize(
    ("encoding", "content", "message"),
    [
        ("windows-1252", WESTERN.encode(), r"line 2: not windows-1252 \(byte 0x9d\). It reads '.*“Café” .* in UTF-8"),
        ("windows-1252", "text,queue\n3 é,a".encode(), "line 2: encoding = 'windows-1252' reads '3 Ã©,a', UTF-8 reads"),
        ("windows-1252", codecs.BOM_UTF8 + TABLE.encode(), "but this looks like utf-8. Omit encoding"),
        ("windows-1252", WESTERN.encode("utf-16"), 'looks like utf-16. Write encoding = "utf-16" in the task'),
        ("windows-1252", b"text,queue\na,sales\nb \x81,billing\n", r"line 3: not windows-1252 \(byte 0x81\). It reads"),
        ("gb18030", ("你好世界你好世界你" + WESTERN).encode(), "UTF-8"),
        (
            "utf-16",
            TABLE.encode(),
            "encoding = 'utf-16', but this looks like utf-8. Omit encoding: UTF-8 is the default",
        ),
        ("utf-16", WESTERN.encode("cp1252"), 'looks like windows-1252. Write encoding = "windows-1252"'),
        ("utf-16", TABLE.encode("utf-16-le"), "looks like utf-16le"),
        ("utf-16-be", TABLE.encode("utf-16"), 'looks like utf-16. Write encoding = "utf-16"'),
        (
            "utf-16",
            "text,queue\na\udc00b,sales\n".encode("utf-16", "surrogatepass"),
            "line 2: not utf-16 .byte 0x00.: the",
        ),
        ("ascii", WESTERN.encode(), r"line 2: not ascii \(byte 0xe2\). It reads '“Café.* in UTF-8. Omit encoding"),
        ("shift_jis", gzip.compress(b"a", mtime=0), "this is no text, but compressed with gzip"),
    ],
)
def test_an_encoding_that_does_not_fit(folder: Path, encoding: str, content: bytes, message: str) -> None:
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        train(folder, f'encoding = "{encoding}"')


SHORT = {
    "the same line": "Grüße aus München und Zürich,sales\n" * 10,
    "other lines": "".join(f"café {word},sales\n" for word in ("über", "à tout", "été", "déjà", "öde", "où", "île")),
    "Chinese": "你好,sales\n世界,sales\n下午,billing\n春天,billing\n",
}


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "cp932", "big5"])
@pytest.mark.parametrize("rows", SHORT.values(), ids=SHORT)
def test_utf8_in_lines_that_are_too_short_to_tell(folder: Path, encoding: str, rows: str) -> None:
    (folder / "train.csv").write_bytes(b"text,queue\n" + rows.encode())
    with pytest.raises(UserError, match=r"train.csv, line \d+: .*UTF-8"):
        train(folder, f'encoding = "{encoding}"')


@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("gb18030", ["学习"] * 20),  # the same characters again and again, such as a label
        ("gb18030", ["学习", "plain"] * 20),
        ("gb18030", ["学习", "你好"] * 9),
        ("shift_jis", ["ﾃｼ"] * 20),
    ],
)
def test_short_lines_that_are_utf8_by_chance(folder: Path, encoding: str, rows: list[str]) -> None:
    content = "text,queue\n" + "".join(f"{text},sales\n{text} {n},billing\n" for n, text in enumerate(rows))
    first = content.encode(encoding).splitlines()[1]
    assert len(first.decode()) < len(first), "it is also UTF-8"
    (folder / "train.csv").write_bytes(content.encode(encoding))
    found = train(folder, f'encoding = "{encoding}"')
    assert [example.text for example in found[::2]] == rows


def test_characters_that_nobody_writes_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.csv").write_bytes(WESTERN.replace("crème", "4 €").encode("cp1252"))
    train(folder, 'encoding = "latin-1"')
    (said,) = [record.getMessage() for record in caplog.records]
    assert "line 2: control character U+0093 in latin-1. This is probably windows-1252. Write encoding" in said


def test_json_lines_that_end_in_cr_alone(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(b'{"text": "a", "queue": "sales"}\r\r{"text": "b", "queue": "none"}\r')
    with pytest.raises(UserError, match="train.jsonl, line 3: 'queue' is 'none'"):
        train(folder, files='train = "train.jsonl"')


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


def test_one_label_only(folder: Path) -> None:
    (folder / "train.csv").write_text("text,queue\na,sales\nb,sales\n")
    with pytest.raises(UserError, match="needs at least 2 labels, found only 'sales', so there is nothing to learn"):
        spec_of(folder, labels='labels_from = "train"')
    with pytest.raises(UserError, match="every example has the label 'sales' in 'queue', so there is nothing to learn"):
        train(folder)
    spec = spec_of(folder, files='train = "train.csv"\ntest = "train.csv"')
    assert len(read_custom(spec, "test")[0]) == 2  # it can be scored


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


# ---------------------------------------------------------------------------------------------------- missing values

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
    said = (
        "3 more have no value in a column and are skipped: 1 in 'text', 1 in 'queue', 1 in a line with too few cells."
    )
    assert said in caplog.text


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
