"""The input of predict.py: its format and column, the text of each row, and every mistake that is reported."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from data.errors import UserError
from data.readers.tables import ENDINGS, Dialect
from data.template import TextTemplate
from eval.predict.inputs import LOOK_AHEAD, Row, open_input


def rows(path: Path | str, **options: Any) -> list[Row]:
    with open_input(path, **options) as found:
        return list(found.rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "new.csv").write_bytes(b"id,text\n1,a\n2,b\n")
    (tmp_path / "new.TSV").write_bytes(b"id\ttext\n1\ta\n2\tb\n")
    (tmp_path / "new.jsonl").write_bytes(b'{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}\n')
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["a", "b"]}), tmp_path / "new.parquet")
    (tmp_path / "new.txt").write_bytes(b"a\nb\n")
    return tmp_path


@pytest.mark.parametrize("name", ["new.csv", "new.TSV", "new.jsonl", "new.parquet", "new.txt"])
def test_the_format_by_the_ending(folder: Path, name: str) -> None:
    path = folder / name
    ids = ["1", "2"] if name != "new.txt" else []
    with open_input(path) as found:
        assert found.format == ENDINGS[path.suffix.lower()] and found.text_column == "text"
        assert found.columns == (("id", "text") if ids else ("text",)) and found.path == path
        read = list(found.rows)
        assert found.progress() == 1.0
    assert [row.text for row in read] == ["a", "b"] and not any(row.error for row in read)
    assert [row.columns.get("id") for row in read] == (ids or [None, None])
    first = {"new.csv": "line 2", "new.TSV": "line 2", "new.parquet": "row 1"}.get(name, "line 1")
    assert read[0].where == f"{path}, {first}"


def test_the_format_by_its_name(folder: Path) -> None:
    (folder / "new.csv").rename(folder / "new.data")
    assert [row.text for row in rows(folder / "new.data", format="csv")] == ["a", "b"]
    assert rows(folder / "new.data", format="lines")[1].text == "1,a"
    with pytest.raises(UserError, match="the ending '.data' is not one of .csv, .* Name the format: --format csv, tsv"):
        rows(folder / "new.data")
    (folder / "new.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="ending '.zip' is not one of .* Unpack it, .* Else name the format: --format"):
        rows(folder / "new.zip")


def test_quotation_marks_in_tsv(folder: Path) -> None:
    (folder / "new.TSV").write_text('text\tid\n"a\t1\nb"\t2\n')
    assert [row.text for row in rows(folder / "new.TSV")] == ['"a', 'b"']
    assert [row.text for row in rows(folder / "new.TSV", dialect=Dialect(tsv_quoting=True))] == ["a\t1\nb"]
    with pytest.raises(UserError, match="--tsv_quoting is for TSV; --input .*new.csv is read as csv"):
        rows(folder / "new.csv", dialect=Dialect(tsv_quoting=True))


def test_the_text_column(folder: Path) -> None:
    (folder / "new.csv").write_text("body,text,title\nb,t,h\n")
    assert rows(folder / "new.csv")[0].text == "t"
    assert rows(folder / "new.csv", default_columns=("body", "text"))[0].text == "b"
    assert rows(folder / "new.csv", default_columns=("none", "text"))[0].text == "t"
    (row,) = rows(folder / "new.csv", text_column="title")
    assert row == Row(f"{folder}/new.csv, line 2", {"body": "b", "text": "t", "title": "h"}, "h")


TEMPLATE = TextTemplate("{title}: {body}")


def test_a_template_makes_the_texts(folder: Path) -> None:
    (folder / "new.csv").write_text("title,body,text\nh,b,t\n,b,t\n")
    with open_input(folder / "new.csv", template=TEMPLATE) as found:
        assert found.text_column is None
        first, second = found.rows
    assert first.text == "h: b" and first.columns == {"title": "h", "body": "b", "text": "t"}
    assert second.text is None and second.error == "'title' is missing, of which the text is made"
    assert rows(folder / "new.csv", template=TEMPLATE, text_column="text")[0].text == "t"
    (folder / "new.jsonl").write_text('{"title": 3, "body": "b"}\n{"title": "h"}\n{"title": [], "body": "b"}\n')
    one, two, three = rows(folder / "new.jsonl", template=TEMPLATE)
    assert one.text == "3: b" and two.error.startswith("no column 'body'")
    assert three.error == "'title' must be a text or a number, found []."
    assert [row.unreadable for row in (second, one, two, three)] == [False, False, True, True]
    pq.write_table(pa.table({"title": [7], "body": ["b"]}), folder / "new.parquet")
    assert rows(folder / "new.parquet", template=TEMPLATE)[0].text == "7: b"


def test_an_input_without_the_columns_of_the_template(folder: Path) -> None:
    (folder / "new.csv").write_text("titel;body\na, b;c\n")
    with pytest.raises(
        UserError, match="no column 'title'. The task makes its texts of title, body.* delimiter = \";\""
    ):
        rows(folder / "new.csv", template=TEMPLATE)
    for name in ("new.txt", "new.jsonl", "new.parquet"):
        with pytest.raises(
            UserError, match="no column 'title'. The task makes .* Known: .*text.* name it: --text_column"
        ):
            rows(folder / name, template=TEMPLATE)
    assert rows(folder / "new.txt", template=TEMPLATE, text_column="text")[0].text == "a"


@pytest.mark.parametrize("quote", ["", '"'])
def test_another_delimiter(folder: Path, quote: str) -> None:
    lines = [["id", "text"], ["1", "a, b"], ["2", "c"]]
    (folder / "new.csv").write_text("".join(";".join(f"{quote}{c}{quote}" for c in line) + "\n" for line in lines))
    with pytest.raises(
        UserError, match="Its cells are separated by ';': write delimiter .* --delimiter ';' to predict.py"
    ):
        rows(folder / "new.csv")
    assert [row.text for row in rows(folder / "new.csv", dialect=Dialect(delimiter=";"))] == ["a, b", "c"]
    with pytest.raises(UserError, match="--delimiter is for CSV; --input .*new.jsonl is read as jsonl"):
        rows(folder / "new.jsonl", dialect=Dialect(delimiter=";"))


@pytest.mark.parametrize("name", ["new.csv", "new.TSV", "new.jsonl", "new.txt"])
def test_packed_and_in_another_encoding(folder: Path, name: str) -> None:
    content = (folder / name).read_text().replace("b", "é")
    (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode("utf-16")))
    found = rows(folder / f"{name}.gz", dialect=Dialect(encoding="utf-16"))
    assert [row.text for row in found] == ["a", "é"] and found[1].where.endswith(rows(folder / name)[1].where[-6:])
    with pytest.raises(UserError, match='this is UTF-16, .* encoding = "utf-16" .* --encoding utf-16 to predict'):
        rows(folder / f"{name}.gz")
    stream = io.BytesIO(content.encode("utf-16"))
    format = ENDINGS[(folder / name).suffix.lower()]
    assert [row.text for row in rows("-", format=format, stdin=stream, dialect=Dialect(encoding="utf-16"))] == [
        "a",
        "é",
    ]
    assert not stream.closed
    with pytest.raises(UserError, match="--encoding is for text; --input .*new.parquet is read as parquet"):
        rows(folder / "new.parquet", dialect=Dialect(encoding="utf-16"))


def test_standard_input() -> None:
    with open_input("-", stdin=io.BytesIO(b"a b\nc\n")) as found:
        assert (found.name, found.path, found.format, found.progress()) == ("standard input", None, "lines", None)
        assert list(found.rows)[1] == Row("standard input, line 2", {"text": "c"}, "c")
    assert rows("-", format="csv", stdin=io.BytesIO(b"text\na\n"))[0].text == "a"
    json = b'{"text": "a"}\n'
    with pytest.raises(UserError, match="looks like JSON lines. Give --format jsonl, or --format lines"):
        rows("-", stdin=io.BytesIO(json))
    assert rows("-", format="jsonl", stdin=io.BytesIO(json))[0].text == "a"
    assert rows("-", format="lines", stdin=io.BytesIO(json))[0].text == '{"text": "a"}'
    with pytest.raises(UserError, match="standard input: Parquet cannot be read from a stream"):
        rows("-", format="parquet", stdin=io.BytesIO(b"PAR1"))


def test_a_pipe_with_a_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a\nb\n",))
    writer.start()
    with open_input(tmp_path / "pipe", format="lines") as found:
        assert found.path is None and found.progress() is None
        assert [row.text for row in found.rows] == ["a", "b"]
    writer.join()


# ------------------------------------------------------------------------------------- mistakes of the whole input


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "--input .*t.csv: it has no records"),
        ("t.csv", b"text\n\n", "it has no records"),
        ("t.tsv", b"\xef\xbb\xbf", "it has no records"),
        ("t.jsonl", b"\n \n", "it has no records"),
        ("t.txt", b"", "it has no records"),
        ("t.csv", b"id,txt\n1,a\n", "t.csv: no column 'text'. Did you mean 'txt'. Known: id, txt. .* --text_column"),
        ("t.csv", b"id,txt\n1\n", "t.csv: no column 'text'"),  # also if no record can be read
        ("t.jsonl", b'3\n{"txt": "a"}\n', "t.jsonl, line 2: no column 'text'. Did you mean 'txt'"),
        ("t.jsonl", b"a,b\nc,d\n", "none of the first 2 records .* as jsonl.*--format.*t.jsonl, line 1: not JSON"),
        pytest.param("t.jsonl", b"3\n" * (LOOK_AHEAD + 1), f"none of the first {LOOK_AHEAD} records", id="long"),
    ],
)
def test_a_wrong_input(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name)


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="it has no records"):
        rows(tmp_path / "t.parquet")


def test_a_wrong_path(folder: Path) -> None:
    with pytest.raises(UserError, match=f"--input {folder}: this is a folder; give one file"):
        rows(folder)
    with pytest.raises(UserError, match=f"--input {folder}/mew.csv: no such file. Did you mean {folder}/new.csv"):
        rows(folder / "mew.csv")
    with pytest.raises(UserError, match=f"--input {folder}/qqqq: no such file.$"):
        rows(folder / "qqqq")
    with pytest.raises(UserError, match="--input .*/none/new.csv: no such file.$"):
        rows(folder / "none" / "new.csv")


def test_a_wrong_text_column(folder: Path) -> None:
    with pytest.raises(UserError, match="no column 'txet'. Did you mean 'text'. Known: id, text."):
        rows(folder / "new.csv", text_column="txet")
    with pytest.raises(UserError, match="no column 'title'. Known: text"):
        rows(folder / "new.txt", text_column="title")
    with pytest.raises(UserError, match="no column 'body' or 'title'"):
        rows(folder / "new.csv", default_columns=("body", "title"))


# --------------------------------------------------------------------------------------------- rows with an error


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"text": 3}', "the text is not a string, but 3"),
        (b'{"text": {"a": "' + b"a" * 100 + b'"}}', 'the text is not a string, but {"a": "' + "a" * 53 + "..."),
        (b'{"text": null}', "the text is missing (null)"),
        (b'{"txt": "a"}', "no column 'text'. Did you mean 'txt'? Known: txt."),
        (b'{"text": ""}', "the text is empty"),
        (b'{"text": " \\n\\u00a0"}', "the text is empty"),
        (b'{"text": "a \\ud800"}', "the text holds half a character (an unpaired surrogate), or bytes that are not"),
        (b'{"text": "a', "not JSON (Unterminated string"),
        (b"[]", "the document must be an object; it is []"),
    ],
)
def test_a_row_with_an_error(tmp_path: Path, line: bytes, error: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    first, wrong, last = rows(tmp_path / "t.jsonl")
    assert (first.text, last.text, wrong.text) == ("a", "b", None) and not first.error and not last.error
    assert wrong.error.startswith(error) and wrong.where == f"{tmp_path}/t.jsonl, line 2"
    assert wrong.unreadable == (error not in ("the text is empty", "the text is missing (null)"))


def test_columns_without_a_name_are_not_lost(tmp_path: Path) -> None:
    """The output has all columns of the input, and would have the last of these in the place of each."""
    (tmp_path / "t.csv").write_bytes(b"text,,\na,x,y\n")
    with pytest.raises(UserError, match="line 1: column '' is in the header twice. Name the columns, or delete the"):
        rows(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"text,\na,x\n")
    assert rows(tmp_path / "t.csv")[0].columns == {"text": "a", "": "x"}


def test_unreadable_records_before_the_first(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'3\n4\n{"text": "a", "k": 1}\n{"text": "b"}\n')
    with open_input(tmp_path / "t.jsonl") as found:
        assert found.columns == ("text", "k")
        assert [row.text for row in found.rows] == [None, None, "a", "b"]


def test_rows_with_an_error_in_other_formats(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'text,n\n,1\n" ",2\na\nb,4\n')
    found = rows(tmp_path / "t.csv")
    assert [row.error for row in found[:2]] == ["the text is empty"] * 2
    assert found[2].error == "1 cells, but the header names 2 columns." and found[3].text == "b"
    assert found[0].columns == {"text": "", "n": "1"} and found[2].columns == {}
    (tmp_path / "t.txt").write_bytes(b"a\n\nc\xff\nd")
    errors = [row.error for row in rows(tmp_path / "t.txt")]
    assert errors[0] == errors[3] == "" and errors[1] == "the text is empty" and errors[2].startswith("not UTF-8")
    pq.write_table(pa.table({"text": pa.array([b"a", None, b"\xff"]), "n": [1, 2, 3]}), tmp_path / "t.parquet")
    found = rows(tmp_path / "t.parquet")
    assert found[0].text == "a" and found[1].error == "the text is missing (null)"
    assert found[2].error.startswith("the text holds") and found[2].columns["n"] == 3


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252"])
def test_a_wrong_line_before_lines_of_utf_8(tmp_path: Path, encoding: str) -> None:
    content = "".join(f'{{"text": "schön {n}"}}\n' for n in range(5)).encode().replace(b"\xc3\xb6", b"\xf6", 1)
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "a"}\n' + content)
    _, first, *others = rows(tmp_path / "t.jsonl", dialect=Dialect(encoding=encoding))
    assert first.error.startswith("not UTF-8 (byte 0xf6), but other characters of the file are: correct this line.")
    if encoding == "utf-8":
        assert [row.text for row in others] == [f"schön {n}" for n in range(1, 5)]
    else:
        assert all(row.error.endswith("Omit encoding: UTF-8 is the default.") for row in (first, *others))


def test_a_wrong_line_before_lines_of_utf_8_that_can_be_read_once(caplog: pytest.LogCaptureFixture) -> None:
    content = b"sch\xf6n\n" + "schön\n".encode() * 3
    first, *others = rows("-", stdin=io.BytesIO(content))
    assert [row.text for row in others] == ["schön"] * 3
    assert "It reads 'schön' in windows-1252; if that is right and no line after it is UTF-8, write enc" in first.error
    found = rows("-", stdin=io.BytesIO(content), dialect=Dialect(encoding="windows-1252"))
    assert [row.text for row in found] == ["schön", "schÃ¶n", None, None], "as soon as most lines are UTF-8"
    assert "encoding = 'windows-1252' reads 'schÃ¶n', UTF-8 reads 'schön'. Omit encoding" in found[-1].error
    assert "line 2: encoding = 'windows-1252' reads 'schÃ¶n', UTF-8 reads 'schön', but other lines" in caplog.text


# ----------------------------------------------------------------------------------------- words, saved data sets


def test_lists_of_words_in_tables_of_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'tokens,text\n"[""to"", ""Rome""]",a\nto Rome,b\n"[urgent] to Rome",c\n"[1]",d\n"[""to"", Rome",e\n'
        "\"['to', 'Rome']\",f\n['to' 'Rome'],g\n"
    )
    found = rows(tmp_path / "t.csv", text_column="tokens", words_column="tokens")
    assert [row.text for row in found] == ["to Rome", "to Rome", "[urgent] to Rome", None, None, "to Rome", None]
    assert [row.unreadable for row in found] == [row.text is None for row in found]
    assert found[0].columns["tokens"] == '["to", "Rome"]'
    assert found[3].error.startswith("'tokens' must be a list of") and found[4].error.startswith("'tokens': not JSON")
    assert found[6].error.startswith("'tokens' has no comma between texts, as NumPy writes lists")
    (row, *_) = rows(tmp_path / "t.csv", text_column="tokens")
    assert row.text == '["to", "Rome"]', "a text of a task whose texts are no lists"
    (tmp_path / "t.jsonl").write_text(
        '{"tokens": ["to", "Rome"]}\n{"tokens": "[\\"to\\", \\"Rome\\"]"}\n{"tokens": "[a] b"}\n'
    )
    found = rows(tmp_path / "t.jsonl", text_column="tokens", words_column="tokens")
    assert [row.text for row in found] == ["to Rome", "to Rome", "[a] b"], "tables that were CSV have lists in texts"


def test_names_of_the_columns_of_conll(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("1 to O\n2 Rome B-city\n")
    ours = {"conll_columns": ("id", "tokens", "ner")}
    (row,) = rows(tmp_path / "t.conll", **ours)
    assert (row.text, list(row.columns)) == ("to Rome", ["id", "tokens", "ner"])
    (row,) = rows(tmp_path / "t.conll", **ours, dialect=Dialect(conll_columns=("tokens", "b", "c")))
    assert row.text == "1 2", "what the user says for this file"
    (tmp_path / "t.conll").write_text("to\nRome\n")
    with pytest.raises(UserError, match="line 1: 1 columns, but 3 are expected: id, tokens, ner. .* --conll_columns"):
        rows(tmp_path / "t.conll", **ours)
    (tmp_path / "t.txt").write_text("to Rome\n")
    assert rows(tmp_path / "t.txt", **ours)[0].text == "to Rome"
    with pytest.raises(UserError, match="--conll_columns is for CoNLL; --input .*t.txt is read as lines"):
        rows(tmp_path / "t.txt", dialect=Dialect(conll_columns=("tokens",)))


def test_words_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("to O\nRome B-city\n\nok O\n")
    assert [row.text for row in rows(tmp_path / "t.conll")] == ["to Rome", "ok"]
    assert rows(tmp_path / "t.conll")[0].columns == {"tokens": ["to", "Rome"], "tags": ["O", "B-city"]}
    (tmp_path / "t.conll").write_bytes(b"to O\nRome B-city\n\nto O\nRome\n\n\xff O\n\nto O\n\xff O\n")
    _, short, wrong, inside = rows(tmp_path / "t.conll")
    assert short.error == "line 5: 1 columns, parted by spaces, but the first token has 2."
    assert short.where == f"{tmp_path}/t.conll, lines 4 to 5"
    assert wrong.error.startswith("not UTF-8") and inside.error.startswith("line 10: not UTF-8")
    (tmp_path / "t.conllu").write_text("1\tgo" + "\t_" * 8 + "\n")
    assert rows(tmp_path / "t.conllu")[0].text == "go"
    (tmp_path / "t.json").write_text('[{"text": "a"}, {"text": ["b", "c"]}, {"text": ["b c"]}]')
    a, words, wrong = rows(tmp_path / "t.json")
    assert (a.text, words.text, wrong.text) == ("a", "b c", None)
    assert wrong.error.startswith("'text' has 'b c' as word 1 of 1, which has a space within")
    Dataset.from_dict({"tokens": [["a", "b"]]}).save_to_disk(tmp_path / "saved")
    with open_input(tmp_path / "saved", text_column="tokens") as found:
        assert (found.format, found.path) == ("arrow", tmp_path / "saved")
        assert [row.text for row in found.rows] == ["a b"]
    with pytest.raises(UserError, match="--encoding is for text; --input .* is read as arrow"):
        rows(tmp_path / "saved", dialect=Dialect(encoding="utf-16"))
    with pytest.raises(UserError, match="this is a folder; give one file"):
        rows(tmp_path)
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match="both: it has the splits train. Name one of these folders"):
        rows(tmp_path / "both")
