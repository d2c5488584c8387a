"""``python -m data.new`` on tables as well-known sites, corpora and tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.test_new import table, written
from tests.data.test_new_lists import column_of

# --- Kaggle -----------------------------------------------------------------------------------------------------------


def tagged(n: int) -> tuple[str, list[str], list[str], list[str]]:
    """A sentence, its words, their parts of speech and their tags."""
    words = ["to", "New", "York", *["now"] * (n % 2), f"x{n}"]
    return " ".join(words), words, ["TO", *["NNP"] * (len(words) - 1)], ["O", "B-city", "I-city", *["O"] * (n % 2 + 1)]


@pytest.mark.parametrize("options", ["", "--text Sentence", "--label Tag"])
def test_two_lists_of_tags_beside_a_text(capsys, tmp_path: Path, options: str) -> None:
    """The tags are not the words of each other, though they are equally long."""
    rows = [(n, *tagged(n)) for n in range(24)]
    content = table(((n, text, pos, tags) for n, text, _, pos, tags in rows), "Sentence #;Sentence;POS;Tag", ";")
    (tmp_path / "t.csv").write_text(content)
    found, _ = written(capsys, tmp_path / "t.csv", *options.split())
    assert column_of(found) == ("Sentence", "Tag", "token")
    (tmp_path / "t.toml").unlink()
    # A list of the text's words is one, however few of them differ.
    (tmp_path / "t.jsonl").write_text(
        "".join(
            json.dumps({"Sentence": text, "words": words, "POS": pos, "Tag": tags}) + "\n"
            for _, text, words, pos, tags in rows
        )
    )
    found, _ = written(capsys, tmp_path / "t.jsonl", *options.split())
    assert column_of(found) == ("Sentence" if "--text" in options else "words", "Tag", "token")


# --- CoNLL-U ----------------------------------------------------------------------------------------------------------

UNIVERSAL = [
    "1 to to ADP IN _ 2 case _ _",
    "2 Bonn{n} Bonn{n} PROPN NNP Number=Sing 0 root _ SpaceAfter=No",
    "3 now now ADV RB _ 2 {relation} _ _",
]


def write_universal(file: Path, without: tuple[int, ...] = (), more: str = "") -> None:
    names = "ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC".split()
    with file.open("w") as stream:
        if more:
            print("# global.columns =", *names, more, file=stream)
        for n in range(24):
            for line in UNIVERSAL:
                cells = line.format(n=n, relation=("case:time", "advmod")[n % 2]).split()
                cells = ["_" if at in without else cell for at, cell in enumerate(cells)]
                print(*cells, *(["O" if line[0] == "1" else "B-x"] if more else []), sep="\t", file=stream)
            print(file=stream)


@pytest.mark.parametrize(
    ("without", "more", "expected", "others"),
    [
        ((), "", "upos", ["xpos", "deprel"]),
        ((3,), "", "xpos", ["deprel"]),
        ((3, 4), "", "deprel", []),
        ((), "NER", "ner", ["upos", "xpos", "deprel"]),
    ],
)
def test_universal_dependencies(
    capsys, tmp_path: Path, without: tuple[int, ...], more: str, expected: str, others: list[str]
) -> None:
    """Numbers of words, and notes such as SpaceAfter=No, are no labels."""
    write_universal(tmp_path / "t.conllu", without, more)
    found, text = written(capsys, tmp_path / "t.conllu")
    assert column_of(found) == ("form", expected, "token")
    assert [line[10:-1] for line in text.splitlines() if line.startswith("# name = ")] == others
    # A relation may be the beginning of another one.
    assert ('answer = "list"' in text) and (
        found["fields"][0].get("answer") == ("list" if expected == "deprel" else None)
    )


def test_a_column_of_universal_dependencies_that_is_named(capsys, tmp_path: Path) -> None:
    write_universal(tmp_path / "t.conllu")
    found, _ = written(capsys, tmp_path / "t.conllu", "--label", "feats")
    assert column_of(found) == ("form", "feats", "token")
