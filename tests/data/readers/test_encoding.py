"""Bytes that are not UTF-8: what they are, and that the advice converts them without damage."""

from __future__ import annotations

import gzip
import io
import json
import logging
import shlex
import subprocess
from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from data.readers.encoding import UTF8, decode_utf8, not_text, not_utf8
from data.readers.tables import Dialect, open_table
from eval.predict.inputs import open_input

TOML = 'name = "drinks"\n[files]\ntrain = "drinks.csv"\n'
TOML += '[[fields]]\nname = "kind"\ntype = "class"\nlabels = ["hot", "cold"]\n'
TEXT = "text,kind\n“Café” – 3 €,hot\ncrème,cold\n"


def follow(message: str, folder: Path) -> str:
    """Run the command that a message advises; the file that it writes replaces the original."""
    command = message[message.index("iconv") :]
    subprocess.run(command, shell=True, cwd=folder, check=True)
    *_, source, _, target = shlex.split(command)
    (folder / target).replace(folder / source)
    return command


@pytest.mark.parametrize(
    ("encoding", "advised"),
    [
        ("utf-16", "utf-16"),
        ("utf-16le", "utf-16le"),
        ("utf-16be", "utf-16be"),
        ("utf-32", "utf-32"),
        ("utf-32le", "utf-32le"),
        ("utf-32be", "utf-32be"),
        ("cp1252", "windows-1252"),
    ],
)
def test_the_advice_gives_the_text_back(tmp_path: Path, encoding: str, advised: str) -> None:
    (tmp_path / "drinks.csv").write_bytes(TEXT.encode(encoding))
    (tmp_path / "task.toml").write_text(TOML)
    spec = read_custom_spec(tmp_path / "task.toml")
    with pytest.raises(UserError) as caught:
        read_custom(spec, "train")
    assert f"iconv -f {advised} " in follow(str(caught.value), tmp_path)
    assert [example.text for example in read_custom(spec, "train")] == ["“Café” – 3 €", "crème"]


def test_the_advice_for_a_packed_file(tmp_path: Path) -> None:
    (tmp_path / "my drinks.csv.gz").write_bytes(gzip.compress(TEXT.encode("cp1252")))
    with pytest.raises(UserError) as caught, open_table(tmp_path / "my drinks.csv.gz", "csv") as table:
        list(table.records)
    command = str(caught.value)[str(caught.value).index("gunzip") :]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "my drinks.utf8.csv").read_text(encoding="utf-8") == TEXT


def test_latin_1_is_read_as_the_encoding_that_contains_it(tmp_path: Path) -> None:
    (tmp_path / "my drinks.jsonl").write_bytes('{"text": "crème brûlée"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match="It reads .*crème brûlée.* in windows-1252") as caught:
        with open_input(tmp_path / "my drinks.jsonl"):
            pass
    follow(str(caught.value), tmp_path)
    with open_input(tmp_path / "my drinks.jsonl") as found:
        assert [row.text for row in found.rows] == ["crème brûlée"]


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "lines"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-32be"])
def test_every_format_is_refused_at_its_first_line(format: str, encoding: str) -> None:
    with pytest.raises(UserError, match=f"^t: this is {encoding[:6].upper()}, .* iconv -f {encoding} -t utf-8$"):
        with open_table(io.BytesIO('{"text": "a"}\n'.encode(encoding)), format, "t") as table:
            list(table.records)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("привет мир", "windows-1251"), ("日本語です", "shift_jis"), ("你好世界", "gb18030"), ("안녕하세요", "euc-kr")],
)
def test_text_that_is_not_western_is_shown_in_each_encoding(text: str, encoding: str) -> None:
    problem = not_utf8(text.encode(encoding), "t.txt", False)
    assert f"{text!r} in {encoding}" in problem and problem.endswith("iconv -f ENCODING -t utf-8 t.txt > t.utf8.txt")


def test_one_wrong_line_does_not_condemn_the_file() -> None:
    content = "naïve\ncaf".encode() + b"\xe9\nna\xc3\xafve caf\xe9\n"
    with open_table(io.BytesIO(content), "lines", "t") as table:
        errors = [record.error for record in table.records]
    assert errors[0] == ""
    for number, error in enumerate(errors[1:], start=2):
        assert error.startswith(f"t, line {number}: not UTF-8 (byte 0xe9), but other") and "iconv" not in error


def test_bytes_that_windows_1252_does_not_have() -> None:
    assert "It reads 'a Å b' in macintosh, 'a Ѓ b' in windows-1251. " in not_utf8(b"a \x81 b", "-", False)


@pytest.mark.parametrize(
    ("start", "what"), [(b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04", "Excel workbook"), (b"PAR1\x15\x04", "Parquet")]
)
def test_files_that_are_no_text(start: bytes, what: str) -> None:
    with pytest.raises(UserError, match=f"^t: this is no text, but .*{what}"):
        with open_table(io.BytesIO(start), "csv", "t"):
            pass


def test_zero_bytes_in_utf_8_are_no_other_encoding() -> None:
    for text in ("a\0b", "a,b\n1,\0\0\0\0", "\0" * 8, "a"):
        assert not_text(text.encode(), "t") == "" and decode_utf8(text.encode(), "t", "t") == text
    assert decode_utf8(b"\xef\xbb\xbfname", "t", "t") == "name"


def test_utf_16_that_was_converted_wrongly() -> None:
    with pytest.raises(
        UserError, match="this was UTF-16 and was converted as if it were Latin-1. Convert the original"
    ):
        with open_table(io.BytesIO("text,n\n".encode("utf-16").decode("latin-1").encode()), "csv", "t"):
            pass


EUROS = ["3 €", "4 €"]


@pytest.mark.parametrize(("format", "content", "where"), [
    ("lines", "a\n3 €\n4 €\n", "line 2"),
    ("csv", "text,n\na,1\n3 €,2\n4 €,3\n", "line 3"),
    ("jsonl", "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in EUROS), "line 1"),
    ("json", json.dumps([{"text": text} for text in ["a", *EUROS]], ensure_ascii=False, indent=1), "record 2 (line 5)"),
    ("conll", "a O\n\n3 B-x\n€ I-x\n\n€ O\n", "line 4"),
])  # fmt: skip
@pytest.mark.parametrize("encoding", [UTF8, "iso-8859-1"])
def test_windows_1252_that_was_converted_wrongly(
    format: str, content: str, where: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for a file, in every format of text."""
    written = content.encode("cp1252").decode("latin-1").encode(encoding)
    with caplog.at_level(logging.WARNING):
        with open_table(io.BytesIO(written), format, "t", Dialect(encoding=encoding)) as table:
            assert not any(record.error for record in table.records)
    (warning,) = caplog.messages
    assert warning.startswith(f"t, {where}: control character U+0080")
