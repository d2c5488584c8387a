"""Documents are read within limits, and a wrong type is named by its path."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from data.errors import UserError
from data.files import limits
from data.files.documents import parse_json, parse_line, parse_toml, read_json


class Scaling(msgspec.Struct):
    factor: float


class Config(msgspec.Struct):
    rope_scaling: Scaling | None = None
    layers: Annotated[int, msgspec.Meta(ge=1)] = 1
    ids: int | list[int] | None = None
    vocab: dict[str, int] = {}


def message(text: str | bytes, shape: Any = Config, parse: Any = parse_json) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, "config.json", shape)
    return str(caught.value)


def test_a_document_of_the_right_shape():
    found = parse_json(
        b'{"rope_scaling": {"factor": 8}, "ids": [1, 2], "other": NaN}'.replace(b"NaN", b"0"), "x", Config
    )
    assert found == Config(Scaling(8.0), ids=[1, 2])


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"rope_scaling": {"factor": "x"}}', "config.json: rope_scaling.factor must be a number; it is 'x'"),
        ('{"ids": [1, "a"]}', "config.json: ids[1] must be a whole number; it is 'a'"),
        ('{"vocab": {"a": "b"}}', "config.json: vocab[...] must be a whole number, not a text"),
        ('{"rope_scaling": {}}', "config.json: rope_scaling.factor is missing"),
        ('{"layers": true}', "config.json: layers must be a whole number; it is True"),
        ('{"layers": 0}', "config.json: layers must be a whole number, at least 1; it is 0"),
        ("[]", "config.json: the document must be an object; it is []"),
    ],
)
def test_wrong_types_are_named_by_path(text: str, expected: str):
    assert message(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "Expecting value, line 1, column 1"),
        ('{\n "a": 1,\n "b" 2}', "Expecting ':' delimiter, line 3, column 6"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('"\\ud800"', "half of a surrogate pair"),
        (b'"\xff"', "byte 2 is not UTF-8"),
        ("{} 1", "Extra data"),
        (b"\xef\xbb\xbf{}", "it begins with a byte order mark; save it as UTF-8 without one)."),
    ],
)
def test_not_json(text: str | bytes, expected: str):
    assert expected in message(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * (limits.DEPTH + 2) + "]" * (limits.DEPTH + 2),
        '{"a":' * 500 + "1" + "}" * 500,
    ],
)
def test_deep_nesting_is_refused(text: str):
    assert f"nested more than {limits.DEPTH} levels deep" in message(text, Any)


def test_the_deepest_allowed_document():
    parse_json("[" * limits.DEPTH + "]" * limits.DEPTH, "x")


def test_long_numbers_and_texts_are_refused(monkeypatch: pytest.MonkeyPatch):
    assert parse_json("9" * limits.DIGITS, "x") == 10**limits.DIGITS - 1
    assert f"more than {limits.DIGITS} digits" in message("1" + "0" * limits.DIGITS, Any)
    assert f"more than {limits.DIGITS} digits" in message("9" * 5000, Any)
    monkeypatch.setattr(limits, "TEXT_CHARACTERS", 10)
    assert "a text with more than 10 characters" in message(f'["{"a" * 11}"]', Any)


def test_large_documents_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(limits, "DOCUMENT_VALUES", 100)
    assert "about 101 values" in message("[" + "0," * 100 + "0]", Any)
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 100)
    assert "101 bytes; the limit for a document is 100" in message("[" + " " * 99 + "]", Any)


def test_half_of_a_surrogate_pair_in_a_name():
    with pytest.raises(UserError, match="x: a name or text has half of a surrogate pair"):
        parse_line('{"\\ud800": 1}', "x", Config, as_python=True)


def test_files(tmp_path: Path):
    file = tmp_path / "config.json"
    with pytest.raises(UserError, match="cannot read .*config.json: No such file"):
        read_json(file)
    file.write_text("[1]")
    with pytest.raises(UserError, match=r"config.json: the document must be an object; it is \[1\]"):
        read_json(file)
    assert read_json(file, list[int]) == [1]
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('layers = "x"', "config.json: layers must be a whole number; it is 'x'"),
        ("a = " + "[" * 5000, f"nested more than {limits.DEPTH} levels deep"),
        ("a = " + "9" * 5000, f"a number with more than {limits.DIGITS} digits"),
        ("a = ", "not TOML (Invalid value"),
        (".".join("a" * 50_000) + " = 1", f"nested more than {limits.DEPTH} levels deep"),
        ("x = 1\n[" + " . ".join(["'a b'", '"c"'] * 50_000) + "]", f"nested more than {limits.DEPTH} levels deep"),
        ("x = {y = 1, " + ".".join("a" * 50_000) + " = 1}", f"nested more than {limits.DEPTH} levels deep"),
        ("x = '" + "a" * limits.TOML_BYTES + "'", "the limit for a document is 2,097,152"),
    ],
)
def test_toml(text: str, expected: str):
    assert expected in message(text, Config, parse_toml)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"layers": "x"}', "config.json: layers must be a whole number; it is 'x'"),
        ('{"a": 1', "config.json: not JSON (Expecting ',' delimiter at character 8)."),
        ('{"a": NaN}', "config.json: not JSON (it has NaN"),
        ("[" * 5000, f"nested more than {limits.DEPTH} levels deep"),
        ("[" * 70, f"nested more than {limits.DEPTH} levels deep"),
        ('{"a": "' + "[" * 70 + '\\"["', "config.json: not JSON (Expecting ',' delimiter at character 82)."),
        ('{"a": "' + "[" * 70 + '\\x"}', "config.json: not JSON (Invalid \\escape at character 78)."),
        ('{"a": "' + "[" * 70 + "\t" + '"}', "config.json: not JSON (Invalid control character at character 78)."),
        ("[" + '{"a": 1},' * 100 + '{"a" 1}]', "config.json: not JSON (Expecting ':' delimiter"),
        ("9" * 5000, f"a number with more than {limits.DIGITS} digits"),
    ],
)
def test_lines(text: str, expected: str):
    assert expected in message(text, Config, parse_line)
    if "NaN" not in text:
        assert expected in message(text, Config, partial(parse_line, as_python=True))


def test_lines_as_python_writes_them():
    found = parse_line('{"a": [NaN, Infinity], "b": "\\ud800"}', "x", as_python=True)
    assert str(found["a"]) == "[nan, inf]" and found["b"] == "\ud800"


def test_a_toml_text_with_many_dots():
    text = "I am one. I am two. " * 100
    assert parse_toml(f'a = "{text}"\nb = """\n{text}"""\n', "x") == {"a": text, "b": text}
