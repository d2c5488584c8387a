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
