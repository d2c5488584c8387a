"""Tables of every format: what is read, what is skipped, what is refused."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.characters import is_text
from data.errors import UserError
from data.files import limits
from data.readers.columnar import BATCH_ROWS
from data.readers.records import Record
from data.readers.tables import COLUMNAR, FORMATS, Dialect, open_table

TEXT_FORMATS = tuple(format for format in FORMATS if format not in COLUMNAR)


def read(content: bytes, format: str) -> list[Record]:
    with open_table(io.BytesIO(content), format, "t") as table:
        return list(table.records)


def values(content: bytes, format: str) -> list[dict[str, Any]]:
    records = read(content, format)
    assert not [record.error for record in records if record.error]
    return [record.values for record in records]


def read_parquet(path: Path, **columns: Any) -> list[Record]:
    pq.write_table(pa.table(columns), path)
    with open_table(path, "parquet") as table:
        return list(table.records)


# --------------------------------------------------------------------------------------------------- what is read


def test_csv() -> None:
    content = b'\xef\xbb\xbftext,n\r\n"a, ""b""\r\nc",1\r\n\r\n\xc3\xa9,2'
    with open_table(io.BytesIO(content), "csv", "t") as table:
        assert table.columns == ("text", "n")  # known before the first record
        assert list(table.records) == [
            Record("t, line 3", 3, {"text": 'a, "b"\r\nc', "n": "1"}),
            Record("t, line 5", 5, {"text": "é", "n": "2"}),
        ]


def test_tsv_and_lines_that_end_in_cr_alone() -> None:
    assert values(b"a\tb\n1,2\t3\n", "tsv") == [{"a": "1,2", "b": "3"}]
    assert values(b"a,b\r1,2\r3,4\r", "csv") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_quotation_marks_in_tsv_are_characters() -> None:
    content = b'text\tn\n"He said\t1\nand left"\t2\na "b" c\t3\n""\t4\n'
    assert [row["text"] for row in values(content, "tsv")] == ['"He said', 'and left"', 'a "b" c', '""']


def test_quotation_marks_in_tsv_as_in_csv_if_asked_for() -> None:
    content = b'"text"\t"n"\n"a\t""b""\nc"\t1\n'
    with open_table(io.BytesIO(content), "tsv", "t", Dialect(tsv_quoting=True)) as table:
        assert [record.values for record in table.records] == [{"text": 'a\t"b"\nc', "n": "1"}]


def test_tsv_that_is_quoted_as_csv_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        UserError, match="^t: the header's columns are in quotation marks.* tsv_quoting = true .*predict"
    ):
        read(b'"text"\t"n"\n"a"\t1\n', "tsv")
    (record,) = read(b'text\tn\n"a\tb"\t1\n', "tsv")
    assert record.error.startswith("t, line 2: 3 cells, but the header names 2 columns. A cell begins with a quotation")
    assert len(values(b'text\tn\n"a" and "b"\t1\n"c"\t2\n', "tsv")) == 2 and not caplog.records
    values(b'text\tn\n"say ""a"""\t1\n"say ""b"""\t2\n', "tsv")
    assert [record.getMessage()[:52] for record in caplog.records] == [
        "t, line 2: a cell with doubled quotation marks, as i"
    ]


@pytest.mark.parametrize("content", [b'text\n"first\nsecond"\n', b'text\tn\nab\t"x\ny"\n'])
def test_a_line_break_in_a_quoted_cell_of_tsv_is_noticed(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas and Excel write it: only the cells that need quotation marks have them."""
    last = read(content, "tsv")[-1]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("t, line 2: a quotation mark begins the last cell and is not closed, as in CSV")
    assert "tsv_quoting = true" in said
    assert not last.error or "A cell ends with a quotation mark." in last.error


def test_blank_lines_before_the_header() -> None:
    assert values(b"\n\r\na\n1\n", "csv") == [{"a": "1"}]


def test_json_lines() -> None:
    content = b'\xef\xbb\xbf{"text": "a\\nb", "k": [1, null]}\r\n\n  \n{"other": "\xe2\x80\xa8\\r"}'
    with open_table(io.BytesIO(content), "jsonl", "t") as table:
        assert table.columns is None
        assert list(table.records) == [
            Record("t, line 1", 1, {"text": "a\nb", "k": [1, None]}),
            Record("t, line 4", 4, {"other": "\u2028\r"}),  # str.splitlines would part the line there
        ]


def test_plain_lines_keep_blank_ones() -> None:
    content = b"\xef\xbb\xbfa\r\n\n b\x0b\xc2\x85\r \nlast"
    with open_table(io.BytesIO(content), "lines", "t") as table:
        assert table.columns == ("text",)
        assert [record.values["text"] for record in table.records] == ["a", "", " b\x0b\x85\r ", "last"]


@pytest.mark.parametrize("format", TEXT_FORMATS)
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_input(content: bytes, format: str) -> None:
    assert read(content, format) == []


def test_parquet(tmp_path: Path) -> None:
    n = BATCH_ROWS + 1
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(n)], "n": list(range(n))}), path, row_group_size=100)
    with open_table(path, "parquet", "t") as table:
        assert table.columns == ("text", "n")
        records = list(table.records)
    assert records[-1] == Record(f"t, row {n}", n, {"text": f"text {n - 1}", "n": n - 1})
    assert [record.line for record in records] == list(range(1, n + 1))


def test_values_from_parquet_can_be_written_as_json(tmp_path: Path) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 120_000, tzinfo=UTC)
    (record,) = read_parquet(
        tmp_path / "t.parquet",
        text=["é"],
        missing=pa.array([None], pa.string()),
        truth=[True],
        number=[1.5],
        nan=[float("nan")],
        infinite=[float("inf")],
        decimal=[Decimal("1.10")],
        moment=[moment],
        nanoseconds=pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        day=[date(2024, 5, 6)],
        time=[time_of_day(7, 8, 9)],
        duration=[timedelta(hours=1)],
        text_as_bytes=["é".encode()],
        bytes=[b"a\xff"],
        category=pa.array(["x"]).dictionary_encode(),
        nested=[{"list": [Decimal("2"), None], "deeper": {"day": date(2024, 1, 2)}}],
        map=pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    )
    assert json.loads(json.dumps(record.values, allow_nan=False)) == {
        "text": "é",
        "missing": None,
        "truth": True,
        "number": 1.5,
        "nan": None,
        "infinite": "inf",
        "decimal": "1.10",
        "moment": "2024-05-06T07:08:09.120000+00:00",
        "nanoseconds": "2023-11-14T22:13:20.123456789",
        "day": "2024-05-06",
        "time": "07:08:09",
        "duration": "1:00:00",
        "text_as_bytes": "é",
        "bytes": "a\udcff",
        "category": "x",
        "nested": {"list": ["2", None], "deeper": {"day": "2024-01-02"}},
        "map": [["a", 1]],
    }
    assert not is_text(record.values["bytes"])


# ------------------------------------------------------------------- records that cannot be read, and the next ones


CUT = "The input ends in this line without a line break; it may be cut off."


@pytest.mark.parametrize(
    ("format", "content", "errors"),
    [
        ("jsonl", b'{"a": 1\n{"a": 2}\n', {1: "t, line 1: not JSON (Expecting ',' delimiter at character 8)."}),
        ("jsonl", b'3\n\n{"a": 2}', {1: "t, line 1: the document must be an object; it is 3"}),
        ("jsonl", b'{"a": 1}\nnull\n', {2: "t, line 2: the document must be an object; it is None"}),
        ("jsonl", b'{"a": "\xe9"}\n{"a": 2}\n', {1: 't, line 1: not UTF-8 (byte 0xe9). It reads \'{"a": "é"}\' in'}),
        ("jsonl", b'{"a": 1}\n{"a": "x', {2: CUT}),
        ("jsonl", b'{"a": 1}\n{"a": "\xc3', {2: CUT}),
        ("jsonl", b'{"a": 1}\n{"a": 2}', {}),  # complete, only its line break is missing
        ("jsonl", b'["a"]', {1: CUT}),  # a list, but not of records
        ("lines", b"a\nb \xff\nc\n", {2: "t, line 2: not UTF-8 (byte 0xff)"}),
        ("lines", b"a\nb \xed\xa0\x80\nc\n", {2: "t, line 2: not UTF-8 (byte 0xed)"}),  # half a character in UTF-8
        ("lines", b"a\nb \xe2\x82", {2: CUT}),
        ("csv", b"a,b\n1\n2,3\n4,5,6\n", {2: "t, line 2: 1 cells, but the header names 2 columns.", 4: "3 cells"}),
        ("csv", b'a,b\n"1\n2"\n2,3\n', {3: "t, line 3: 1 cells"}),
        ("tsv", b"a\tb\n1\t2\n3", {3: "t, line 3: 1 cells"}),
    ],
)
def test_a_record_that_cannot_be_read(format: str, content: bytes, errors: dict[int, str]) -> None:
    records = read(content, format)
    assert {record.line for record in records if record.error} == set(errors)
    for record in records:
        assert record.where == f"t, line {record.line}" and bool(record.values) != bool(record.error)
        if record.error:
            assert errors[record.line] in record.error and record.error.startswith(f"{record.where}: ")


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": 2}]', '\n [\n{"a": 1},\n{"a": 2}\n]\n', '[{"a": 1},\n{"a": 2}]'])
def test_a_document_of_json_is_no_json_lines(content: str) -> None:
    (broken,) = (record.error for record in read(b'{"a": 1}\n[\n', "jsonl") if record.error)
    assert "document with a list" not in broken, "the first line is a record"
    first, *others = (record.error for record in read(content.encode(), "jsonl"))
    assert first.endswith(
        ". It seems to be one JSON document with a list: read it as JSON, by the ending .json or --format json."
    )
    assert not any(".json " in error for error in others) and [r.values for r in read(content.encode(), "json")]


def test_a_row_of_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    latin1 = pa.array([b"good", b"caf\xe9", b"good too"]).view(pa.string())  # not checked by Arrow
    records = read_parquet(tmp_path / "t.parquet", text=latin1)
    assert [record.values for record in records] == [{"text": "good"}, {}, {"text": "good too"}]
    assert records[1].error.startswith(f"{tmp_path}/t.parquet, row 2: cannot be read ('utf-8' codec")
    far = pa.array([2**62], pa.timestamp("us"))
    (record,) = read_parquet(tmp_path / "t.parquet", time=far)
    assert "row 1: cannot be read" in record.error


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("csv", b"a,b\n1,2\ncaf\xe9,3\n", r"^t, line 3: not UTF-8 \(byte 0xe9\)\. It reads 'café,3' in windows-1252; "),
        ("csv", b"a,b\n1,\xc3", r"^t, line 2: not UTF-8 \(byte 0xc3\)"),
        ("csv", b'a,b\n1,2\n"x"y,2\n', "^t, line 3: not CSV .*expected after"),
        ("csv", b'a,b\n1,2\n"x,2\n3,4\n5', r"^t, line 5: not CSV \(unexpected end of data\)\. .* begins in line 3\.$"),
        ("csv", b"\na,b,a\n", "^t, line 2: column 'a' is in the header twice"),
        ("tsv", b"a\ta\n", "^t, line 1: column 'a' is in the header twice"),
        ("csv", "a,b".encode("utf-16"), "^t: this is UTF-16, .* iconv -f utf-16 -t utf-8"),
        ("lines", "a,b".encode("utf-16"), "^t: this is UTF-16"),
        ("jsonl", b"\xfe\xff\0{", "^t: this is UTF-16"),
        ("parquet", b"PAR1", "^t: Parquet cannot be read from a stream. Save it as a file"),
        ("arrow", b"ARROW1", "^t: Arrow cannot be read from a stream. Save it as a file"),
    ],
)
def test_what_cannot_be_skipped(format: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(content, format)


def test_several_columns_without_a_name() -> None:
    """Nobody can name them, so they are an error only where all columns are needed."""
    for wanted in (None, ("a", "")):
        with pytest.raises(UserError, match="column '' is in the header twice. Name the columns, or delete the empty"):
            with open_table(io.BytesIO(b"a,,\n1,2,3\n"), "csv", "t", wanted=wanted):
                pass
    with open_table(io.BytesIO(b"a,, , \n1,2,3,4\n"), "csv", "t", wanted=("a",)) as table:
        assert next(table.records).values["a"] == "1"
    with pytest.raises(UserError, match="column 'a' is in the header twice"):
        with open_table(io.BytesIO(b"a,b,a\n"), "csv", "t", wanted=("b",)):
            pass


def test_records_before_the_damage_are_read() -> None:
    with open_table(io.BytesIO(b'a,b\n1,2\n"x,2\n'), "csv", "t") as table:
        assert next(table.records).values == {"a": "1", "b": "2"}
        with pytest.raises(UserError, match="line 3: not CSV"):
            next(table.records)


def test_an_open_quote_does_not_collect_the_rest_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORD_CHARACTERS", 1000)
    with pytest.raises(UserError, match=r"t, line 101: .*more than 1,000 characters.* begins in line 2\."):
        read(b'a\n"x' + b"123456789\n" * 500, "csv")
    with pytest.raises(UserError, match=r"t, line 2001: .*more than 1,000 characters.* begins in line 2000\."):
        read(b"a,b\n" + b"1,2\n" * 1998 + b'"' + b"1" * 600 + b'\n","' + b"2" * 600, "csv")
    monkeypatch.undo()
    assert len(values(b"a\n" + b"x" * 200_000 + b"\n", "csv")[0]["a"]) == 200_000  # the csv module's limit is 131,072


@pytest.mark.parametrize("format", ["lines", "jsonl", "csv", "tsv"])
def test_a_line_without_an_end(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    monkeypatch.setattr(limits, "RECORD_CHARACTERS", 1000)
    with pytest.raises(UserError, match=r"t, line 1: a record with more than 1,000 characters"):
        read(b"x" * 1001, format)


def test_too_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COLUMNS", 2)
    with pytest.raises(UserError, match="t, line 1: 3 columns; the limit is 2"):
        read(b"a,b,c\n", "csv")


def test_parquet_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(3000)]}), path, row_group_size=1000)
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:-1],
        b"",
        b"text\na\n",
        content[:-9] + b"\xff" + content[-8:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"t\.parquet: not Parquet, damaged or incomplete \(.*[^.]\)\.$"):
            with open_table(path, "parquet"):
                pass
    middle = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(content[:middle] + b"\xff" * 40 + content[middle + 40 :])
    with open_table(path, "parquet") as table, pytest.raises(UserError, match=r"t\.parquet, after row \d+: damaged"):
        records = []
        for record in table.records:
            records.append(record)
    assert 0 < len(records) <= 1000 and records[0].values == {"text": "text 0"}


def test_parquet_with_a_repeated_column(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column 'a' is in the header twice"):
        with open_table(tmp_path / "t.parquet", "parquet"):
            pass


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_opened(tmp_path: Path, format: str) -> None:
    wrong = [(tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")]
    for path, reason in wrong[:1] if format == "arrow" else wrong:  # a folder may be one that `datasets` saved
        with pytest.raises(UserError, match=f"^cannot read {path}: {reason}\\.$"):
            with open_table(path, format):
                pass
