"""``python -m data.new`` on tags of words that are texts in the table, with spaces or else between them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data.tasks import get_task
from tests.data.test_new import refused, table, written
from tests.data.test_new_lists import column_of

SENTENCES = ["fly to Rome", "go to New York now", "Bonn please", "a ticket from Paris to Nice"]
TAGGED = ["O O B-city", "O O B-city I-city O", "B-city O", "O O O B-city O B-city"]


def spaced(change: Callable[[str], str] = str) -> list[tuple[str, str]]:
    return [(f"{SENTENCES[n % 4]} {n}", change(TAGGED[n % 4] + " O")) for n in range(24)]


@pytest.mark.parametrize("options", ["", "--label tags", "--text words"])
@pytest.mark.parametrize(
    ("change", "labels"),
    [
        (str, ("city",)),
        (lambda tags: re.sub("[BI]-city", "city", tags).replace("O", "Other"), ("city",)),  # types, longer than texts
        (lambda tags: tags.replace("B-city", ",").replace("I-city", "VB|x"), (",", "VB|x")),
    ],
)
def test_tags_with_spaces_for_the_words_of_a_text(
    capsys, tmp_path: Path, change: Callable, labels: tuple[str, ...], options: str
) -> None:
    rows = [(*row, "ab"[n % 2], row[0].lower()) for n, row in enumerate(spaced(change))]
    (tmp_path / "t.tsv").write_text(table(rows, "words\ttags\tintent\tplain", "\t"))
    found, text = written(capsys, tmp_path / "t.tsv", *options.split())
    assert column_of(found) == ("words", "tags", "token")
    assert f"{len(labels) + 1 + (labels == ('city',) and change is str)} different in these rows" in text
    assert get_task(tmp_path / "t.toml").fields[0].labels == labels
    assert '# name = "intent"' in text
    (tmp_path / "t.toml").unlink()
    found, _ = written(capsys, tmp_path / "t.tsv", "--text", "tags", "--label", "intent")
    assert column_of(found) == ("tags", "intent", "class") and "text_column" in found


def test_tags_with_spaces_for_a_list_of_words(capsys, tmp_path: Path) -> None:
    rows = [(json.dumps(text.split()), tags) for text, tags in spaced()]
    (tmp_path / "t.tsv").write_text(table(rows, "words\ttags", "\t"))
    found, _ = written(capsys, tmp_path / "t.tsv")
    assert column_of(found) == ("words", "tags", "token") and "tokens_column" in found


@pytest.mark.parametrize("options", ["", "--label tags"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tags: tags + " O",
            "not one for each word of 'words', such as 5 tags for 4 words. Write spaces between",
        ),
        (lambda tags: tags.replace(" ", ","), "written as 'O,O,B-city,O'. Write them with nothing but spaces"),
        (lambda tags: tags.replace(" ", ", "), "written as 'O, O, B-city, O'. Write them with nothing but spaces"),
        (lambda tags: f"[{tags.replace(' ', ', ')}]", "written as '[O, O, B-city, O]'. Write them with"),
        (
            lambda tags: tags.replace("O", "0").replace("B-city", "1").replace("I-city", "2"),
            "has numbers for the words",
        ),
    ],
)
def test_tags_with_spaces_that_no_task_reads(
    capsys, tmp_path: Path, change: Callable, message: str, options: str
) -> None:
    (tmp_path / "t.tsv").write_text(table(spaced(change), "words\ttags", "\t"))
    assert message in refused(capsys, tmp_path / "t.tsv", *options.split())
    rows = [(*row, "ab"[n % 2]) for n, row in enumerate(spaced(lambda tags: tags + " O"))]
    (tmp_path / "t.tsv").write_text(table(rows, "words\ttags\tintent", "\t"))
    found, text = written(capsys, tmp_path / "t.tsv")
    assert found["fields"][0]["name"] == "intent" and "tags" not in text, "another field is there to choose"


@pytest.mark.parametrize(
    "labels",
    [
        ("science fiction", "drama"),  # as many words as some titles
        ("S-size, L-size", "L-size", "S-size"),
        ("some words", "other words"),  # two for each text
    ],
)
def test_labels_of_several_words_are_no_tags(capsys, tmp_path: Path, labels: tuple[str, ...]) -> None:
    texts = ["the end", "winter", "two words"]
    rows = [(f"{texts[n % 3]}{n}", labels[n % len(labels)]) for n in range(24)]
    (tmp_path / "t.tsv").write_text(table(rows, "text\tlabel", "\t"))
    found, _ = written(capsys, tmp_path / "t.tsv", "--text", "text")
    assert found["fields"][0]["type"] != "token"
