"""Encodings of tables as people have them: named, not named, and named wrongly."""

from __future__ import annotations

import codecs
import gzip
import re
from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.encoding import UTF8
from tests.own_tables import TABLE, train

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
        ("gb18030", ["学习", "学习", "你好"] * 6),  # most lines are UTF-8 by chance
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


WRONG_FIRST = ["text,queue\n", *(f"ein schöner Satz {n},{('sales', 'billing')[n % 2]}\n" for n in range(30))]


def mixed(n_western: int, ending: str = "\n") -> bytes:
    """The first lines beyond ASCII are Windows-1252, the others UTF-8."""
    lines = [line.encode("cp1252" if n <= n_western else UTF8) for n, line in enumerate(WRONG_FIRST)]
    return b"".join(lines).replace(b"\n", ending.encode())


@pytest.mark.parametrize("encoding", ["", "windows-1252", "latin-1", "gb18030"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["\n", "\r"])
def test_wrong_lines_before_lines_of_utf_8(folder: Path, encoding: str, packed: bool, ending: str) -> None:
    """Read as the first of them suggests, all others would be wrong."""
    name = "train.csv.gz" if packed else "train.csv"
    content = mixed(2, ending)
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    named = f'encoding = "{encoding}"' if encoding else ""
    with pytest.raises(UserError) as caught:
        train(folder, named, files=f'train = "{name}"')
    what = r"not UTF-8 \(byte 0xf6\), but other characters of the file are: correct this line\. To convert .* them\."
    omit = " Omit encoding: UTF-8 is the default." if encoding else ""
    assert re.fullmatch(f".*{name}, line 2: {what}{omit}", str(caught.value))


def test_most_lines_of_a_document_of_json(folder: Path) -> None:
    """It may be one line."""
    rows = (f'{{"text": "schön {n}", "queue": "{("sales", "billing")[n % 2]}"}}' for n in range(9))
    content = [row.encode(UTF8 if n else "cp1252") for n, row in enumerate(rows)]
    (folder / "train.json").write_bytes(b"[" + b", ".join(content) + b"]")
    for named in ("", 'encoding = "windows-1252"'):
        with pytest.raises(UserError, match=r"record 1 .line 1.: not UTF-8 .*, but other characters of the file are"):
            train(folder, named, files='train = "train.json"')


def test_a_file_of_two_encodings(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.csv").write_bytes(mixed(16))
    assert train(folder, 'encoding = "windows-1252"')[15].text == "ein schöner Satz 15"
    (said,) = caplog.messages
    assert "line 18: encoding = 'windows-1252' reads 'ein schÃ¶ner Satz 16,sa', UTF-8 reads 'ein sch" in said
    assert said.endswith("but other lines are not UTF-8. Write all lines in one encoding.")


def test_characters_that_nobody_writes_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.csv").write_bytes(WESTERN.replace("crème", "4 €").encode("cp1252"))
    train(folder, 'encoding = "latin-1"')
    (said,) = [record.getMessage() for record in caplog.records]
    assert "line 2: control character U+0093 in latin-1. This is probably windows-1252. Write encoding" in said


def test_json_lines_that_end_in_cr_alone(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(b'{"text": "a", "queue": "sales"}\r\r{"text": "b", "queue": "none"}\r')
    with pytest.raises(UserError, match="train.jsonl, line 3: 'queue' is 'none'"):
        train(folder, files='train = "train.jsonl"')
