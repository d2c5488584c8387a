"""JSON documents with a list of records: on one line or many, of any size, and what is wrong with them."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from data.errors import UserError
from data.files import limits
from data.readers import json_array
from data.readers.records import Record
from data.readers.tables import open_table

ROWS: list[dict[str, Any]] = [{"text": "é\n日", "queue": 1}, {"text": "[{", "n": [1.5, None, {"a": True}]}, {}]


def read(content: bytes | str) -> list[Record]:
    with open_table(io.BytesIO(content.encode() if isinstance(content, str) else content), "json", "t") as table:
        assert table.columns is None
        return list(table.records)


def values(content: bytes | str) -> list[dict[str, Any]]:
    found = read(content)
    assert not [record.error for record in found if record.error]
    return [record.values for record in found]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 14])
def test_every_way_to_write_a_list(indent: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    for ascii_only in (False, True):
        written = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
        for document in (written, f"\ufeff \r\n{written}\n\n", f'{{"version": 1.25, "x": [[]], "data": {written}}}',
                         f'{{"data": {written}, "version": "1"}}'):  # fmt: skip
            assert values(document) == ROWS
    assert values("[]") == values(' {"data" : [ ] } ') == values("") == values("\n") == []


def test_places() -> None:
    found = read('[\n{"a": 1},\n\n{"a":\n2}, {"a": 3}]')
    assert [(record.where, record.line) for record in found] == [
        ("t, record 1 (line 2)", 1),
        ("t, record 2 (line 4)", 2),
        ("t, record 3 (line 5)", 3),
    ]


def test_random_documents_are_read_as_python_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "CHUNK", 5)
    rng = random.Random(0)

    def some(depth: int) -> Any:
        kind = rng.randrange(7 if depth else 5)
        if kind == 5:
            return [some(depth - 1) for _ in range(rng.randrange(4))]
        if kind == 6:
            return {f"k{rng.randrange(9)}": some(depth - 1) for _ in range(rng.randrange(4))}
        return [None, True, rng.randrange(-(10**6), 10**6), rng.random() * 1e5, rng.choice('"\\é\n[]{},:') * 3][kind]

    for _ in range(200):
        rows = [{"a": some(3)} for _ in range(rng.randrange(5))]
        assert values(json.dumps(rows, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)) == rows


def test_records_that_are_no_objects_and_the_next_ones() -> None:
    deep = "[" * 70 + "]" * 70
    found = read(f'[3, {{"a": 1}}, {{"a": {deep}}}, null,\n{{"a": 2}}]')
    assert [record.values for record in found] == [{}, {"a": 1}, {}, {}, {"a": 2}]
    assert [record.error for record in found if record.error] == [
        "t, record 1 (line 1): the document must be an object; it is 3",
        "t, record 3 (line 1): nested more than 64 levels deep.",
        "t, record 4 (line 1): the document must be an object; it is None",
    ]
    latin1, good = read('[{"a": "café"},{"a": "b"}]'.encode("latin-1"))
    assert latin1.error.startswith('t, record 1 (line 1): not UTF-8 (byte 0xe9). It reads \'{"a": "café"}\' in windows')
    assert good.values == {"a": "b"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('[{"a": 1}', "^t, line 1: it ends where ']' is expected; it is incomplete"),
        ('[{"a": 1},\n{"a": "x', "^t, line 2: not JSON .Unterminated string"),
        ('[\n{"a": 1,\n"b" 2}]', "^t, line 3: not JSON .Expecting ':' delimiter"),
        ('[{"a": 1}\n{"a": 2}]', r"^t, line 2: ']' is expected, found '{'"),
        ('[{"a": 1},\n]', "^t, line 2: not JSON .Expecting value"),
        (
            '{"text": "a"}\n{"text": "b"}\n',
            "^t, line 2: one object follows the other, as in JSON lines",
        ),
        ('{"text": "a", "label": "b"}', "^t: an object with the keys text, label. Records are expected in a list"),
        ('{"data": {"text": ["a"]}}', "^t: an object with the keys data. Records"),
        ("{}", r"^t: an object with the keys \(none\)"),
        ('{"data": [{}]', "^t, line 1: it ends where '}' is expected"),
        ("{3: []}", "^t, line 1: a key in quotation marks is expected|not JSON"),
        ('[{"a": 1}]\n[', r"^t, line 2: its end is expected, found '\['"),
        ("text,label\na,b\n", "^t, line 1: a list of records is expected"),
        ("[" * 200_000, "^t, line 1: nested more than 64 levels deep"),
        ("[" + "9" * 5000 + "]", "^t, line 1: a number with more than 64 digits"),
        ('[{"a": "x\ny"}]', "^t, line 2: not JSON .Invalid control character"),
    ],
)
def test_a_wrong_document(document: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        values(document)


@pytest.mark.parametrize("mistake", ['{"a": x}', '{"a" 2}', '{"a": 1,}', '{"a": "\\q"}', "", "nul"])
def test_a_mistake_far_from_the_end_is_found_where_it_is(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORD_CHARACTERS", 1000)
    monkeypatch.setattr(json_array, "CHUNK", 100)
    with pytest.raises(UserError, match="^t, line 2: not JSON"):
        read('[{"a": 1},\n' + mistake + ',\n{"a": 1}' * 1000 + "]")


@pytest.mark.parametrize("value", ["-Infinity", "NaN", "-1.25e-07", '"\\ud83d\\ude00"', "false"])
def test_values_that_are_cut_anywhere(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document = '[{"a": ' + value + "}]"
    for chunk in range(1, len(document)):
        monkeypatch.setattr(json_array, "CHUNK", chunk)
        (row,) = values(document)
        assert repr(row["a"]) == repr(json.loads(value))


def test_other_encodings() -> None:
    with pytest.raises(UserError, match="^t: this is UTF-16, .* iconv"):
        read('[{"a": 1}]'.encode("utf-16"))


def test_a_record_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORD_CHARACTERS", 1000)
    assert len(values('[{"a": "' + "x" * 900 + '"}]')) == 1
    for document in ('[{"a": "' + "x" * 100_000, '[{"a": "' + "x" * 1100 + '"}]'):
        with pytest.raises(UserError, match="t, line 1: a value with more than 1,000 characters, the limit"):
            read(document)
