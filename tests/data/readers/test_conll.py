"""CoNLL files: sentences, names of columns, comments, and what is wrong with them."""

from __future__ import annotations

import io
from typing import Any

import pytest

from data.errors import UserError
from data.files import limits
from data.readers.records import Record
from data.readers.tables import open_table


def read(content: str | bytes, format: str = "conll") -> tuple[tuple[str, ...] | None, list[Record]]:
    content = content.encode() if isinstance(content, str) else content
    with open_table(io.BytesIO(content), format, "t") as table:
        return table.columns, list(table.records)


def values(content: str, format: str = "conll") -> list[dict[str, Any]]:
    found = read(content, format)[1]
    assert not [record.error for record in found if record.error]
    return [record.values for record in found]


def test_conll_2003() -> None:
    content = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n"
    content += "-DOCSTART- -X- -X- O\n\nPeter NNP B-NP B-PER"
    columns, found = read(content)
    assert columns == ("tokens", "2", "3", "tags")
    assert found == [
        Record("t, lines 3 to 4", 4,
               {"tokens": ["EU", "rejects"], "2": ["NNP", "VBZ"], "3": ["B-NP", "B-VP"], "tags": ["B-ORG", "O"]}),
        Record("t, line 9", 9, {"tokens": ["Peter"], "2": ["NNP"], "3": ["B-NP"], "tags": ["B-PER"]}),
    ]  # fmt: skip


def test_a_document_begins_without_a_blank_line() -> None:
    assert [row["tokens"] for row in values("-DOCSTART- O\na O\n-DOCSTART- O\nb O\n")] == [["a"], ["b"]]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("by", ["\t", " ", "  \t "])
def test_columns_by_tabs_or_spaces(by: str, newline: str) -> None:
    lines = [f"a{by}O", f"b\u00a0c{by}B-x", " ", "d" + by + "O"]
    assert values(newline.join(lines)) == [
        {"tokens": ["a", "b\u00a0c"], "tags": ["O", "B-x"]},  # parted at blanks and tabs alone
        {"tokens": ["d"], "tags": ["O"]},
    ]


def test_tokens_alone() -> None:
    assert read("a\nb\n\nc\n")[0] == ("tokens",)
    assert values("a\nb\n\nc\n") == [{"tokens": ["a", "b"]}, {"tokens": ["c"]}]


def test_no_sentence() -> None:
    for content in ("", "\n\n", "\ufeff", "-DOCSTART- O\n\n", "# only a comment\n"):
        assert read(content) == ((), [])


def test_comments_and_tokens_that_look_like_them() -> None:
    content = "# id 1 domain=en\n#summer\tO\nand\tO\n#\tO\n\n#begin document (x);\nb\tO\n#end document\tO\n\n"
    assert [row["tokens"] for row in values(content)] == [["#summer", "and", "#"], ["b", "#end document"]]


def test_a_comment_that_may_be_a_token_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    assert [row["tokens"] for row in values("# id 1\n# O\nRome B-x\n\n# O\nb O\n")] == [["Rome"], ["b"]]
    (warning,) = caplog.messages
    assert warning.startswith("t, line 2: '# O' is read as a comment before a sentence")
    caplog.clear()
    values("# id 1\n#\tO\na\tO\n")
    assert not caplog.messages


UNIVERSAL = """# sent_id = 1
# text = I don't
1	I	I	PRON	_	_	2	nsubj	_	_
2-3	don't	_	_	_	_	_	_	_	_
2	do	do	AUX	_	_	0	root	_	_
3	n't	not	PART	_	_	2	advmod	_	_
3.1	go	go	VERB	_	_	_	_	_	_

1	10 000	10 000	NUM	_	_	0	root	_	_
"""


def test_conll_u() -> None:
    columns, found = read(UNIVERSAL, "conllu")
    assert columns is not None and columns[:4] == ("id", "form", "lemma", "upos")
    assert [record.values["form"] for record in found] == [["I", "do", "n't"], ["10 000"]]
    assert found[0].values["upos"] == ["PRON", "AUX", "PART"]
    assert [record.where for record in found] == ["t, lines 3 to 7", "t, line 9"]


def test_conll_u_plus_names_its_columns() -> None:
    content = "# global.columns = ID FORM UPOS PARSEME:MWE\n1\ta\tX\t*\n"
    assert read(content, "conllu")[0] == ("id", "form", "upos", "parseme:mwe")


def test_a_number_is_no_id() -> None:
    (row,) = values("# global.columns = FORM UPOS\ncosts\tV\n3.5\tNUM\n1-2\tNUM\n", "conllu")
    assert row["form"] == ["costs", "3.5", "1-2"]
    (row,) = values("# global.columns = FORM ID\n3.5\t1\ndon't\t2-3\ndo\t2\n", "conllu")
    assert row["form"] == ["3.5", "do"]


def test_a_sentence_that_cannot_be_read_and_the_next_one() -> None:
    found = read("a X O\nb O\nc X O\n\nd X O\n\ne X O O\n")[1]
    assert [record.error for record in found] == [
        "t, line 2: 2 columns, parted by spaces, but the first token has 3.",
        "",
        "t, line 7: 4 columns, parted by spaces, but the first token has 3.",
    ]
    assert [record.values for record in found] == [{}, {"tokens": ["d"], "2": ["X"], "tags": ["O"]}, {}]
    (record,) = read("a\tO\nb c\n")[1]
    assert record.error == "t, line 2: 1 columns, parted by tabs, but the first token has 2."
    latin1, good = read("café O\n\nb O\n".encode("latin-1"))[1]
    assert latin1.error.startswith("t, line 1: not UTF-8 (byte 0xe9)") and good.values["tokens"] == ["b"]
    (record,) = read(UNIVERSAL.split("\n\n")[0] + "\n# text = b\n" + UNIVERSAL.split("\n\n")[1], "conllu")[1]
    assert record.error == "t, line 8: a comment within a sentence. Is the blank line before it missing?"


def test_other_files_are_not_conll_u() -> None:
    with pytest.raises(UserError, match="t, line 1: 2 columns, but 10 are expected: id, form, lemma"):
        read("a O\n", "conllu")


def test_a_file_without_blank_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORD_CHARACTERS", 1000)
    with pytest.raises(UserError, match="t, line 251: a sentence with more than 1,000 characters.* blank lines"):
        read("a O\n" * 500)
