"""``python -m data.new`` chooses among the columns of a table, and says what it cannot use."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from data.check import main as check
from data.guess import guess
from data.new import main
from data.tasks import get_task
from tests.data.test_new import refused, table, written

# --- columns and rows that are nearly empty ---------------------------------------------------------------------------


def test_nearly_empty_columns_are_last(capsys, tmp_path: Path) -> None:
    """Neither a longer text nor a usual name makes up for values that most rows do not have."""
    body = [("de" if n % 8 else "", "a longer text of few rows" if n % 4 == 0 else "", f"some words {n}", "xy"[n % 2])
            for n in range(48)]  # fmt: skip
    (tmp_path / "t.csv").write_text(table(((*row[:3], row[3]) for row in body), "label,note,text,author"))
    found, _ = written(capsys, tmp_path / "t.csv")
    assert (found["text_column"], found["fields"][0]["name"]) == ("text", "author") and "missing" not in found


def test_many_skipped_rows_are_said_last(capsys, tmp_path: Path) -> None:
    """The only columns are chosen, however empty they are; `data.new` and `data.check` say what that means."""
    rows = [(f"some words {n}" if n % 4 else "", "ab"[n % 2] if n < 20 else "") for n in range(40)]
    (tmp_path / "t.csv").write_text(table(rows))
    assert main([str(tmp_path / "t.csv")]) == 0
    assert "of 40 rows 10 have no text and 20 no label. Such rows are skipped (62%)" in capsys.readouterr().out
    assert check([str(tmp_path / "t.toml")]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "25 of 40 records have no value" in warnings[0] and "62% of all: are these the right columns?" in warnings[0]
    (tmp_path / "t.toml").unlink()
    (tmp_path / "t.csv").write_text(table([*(row for row in rows if all(row)), ("", "a")]))
    assert main([str(tmp_path / "t.csv")]) == 0 and "are skipped" not in capsys.readouterr().out
    assert check([str(tmp_path / "t.toml")]) == 0 and "of all" not in capsys.readouterr().out


WORDS = [("to", "TO", "O"), ("Rome", "NN", "B-city"), ("NA", "NN", "O"), ("Bonn", "NN", "B-city")]


@pytest.mark.parametrize(
    ("name", "header", "mark"),
    [
        ("t.csv", "Sentence #,Word,POS,Tag", lambda n, k: "" if k else f"Sentence: {n}"),
        ("t.tsv", "Satz,Wort,POS,Tag", lambda n, k: "" if k else f"Satz {n}"),
        ("t.csv", "sentence_id,words,POS,Tag", lambda n, k: n),
    ],
)
def test_a_word_on_each_row(capsys, tmp_path: Path, monkeypatch, name: str, header: str, mark) -> None:
    """The line of pandas that is named makes a table that is read."""
    pd = pytest.importorskip("pandas")
    separator = "\t" if name == "t.tsv" else ","
    rows = [(mark(n, k), *word) for n in range(20) for k, word in enumerate(WORDS)]
    (tmp_path / name).write_text(table(rows, header.replace(",", separator), separator))
    said = refused(capsys, tmp_path / name)
    words = header.split(",")[1]
    assert f"each row has one word ({words!r}), and {header.split(',')[0]!r} says where sentences begin" in said
    monkeypatch.chdir(tmp_path)
    eval(said.splitlines()[-1].strip(), {"pd": pd})
    found, _ = written(capsys, tmp_path / "t_sentences.jsonl")
    assert found["tokens_column"] == words and found["fields"][0]["name"] == "Tag"
    assert main([name, "--text", words, "--label", "Tag"]) == 0, "as told"


def test_single_words_without_sentences(capsys, tmp_path: Path) -> None:
    """Names are texts, too; a column that few rows have marks no sentences."""
    rows = [(f"Name{n}", "fm"[n % 2], f"Nick{n}" if n % 3 == 1 else "") for n in range(30)]
    (tmp_path / "t.csv").write_text(table(rows, "name,gender,nick"))
    found, _ = written(capsys, tmp_path / "t.csv")
    assert (found["text_column"], found["fields"][0]["name"]) == ("name", "gender")


# --- which rows are looked at -----------------------------------------------------------------------------------------


def test_a_table_that_is_sorted_by_its_labels(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.guess.ROWS", 50)
    rows = [(f"some words {n}", "no" if n < 200 else "yes", "x" if n else "y") for n in range(400)]
    (tmp_path / "t.csv").write_text(table(rows, "text,answers,kind"))
    found, text = written(capsys, tmp_path / "t.csv")
    assert found["fields"][0]["name"] == "answers"
    assert "Guessed from 50 of 400 rows, drawn at random of" in text
    (tmp_path / "t.toml").unlink()
    monkeypatch.setattr("data.guess.READ", 150)
    (tmp_path / "t.csv").write_text(table((row[:2] for row in rows), "text,answers"))
    said = refused(capsys, tmp_path / "t.csv")
    assert (
        "The columns, in 50 of the first 150 rows, drawn at random: 'text' (50" in said and "'answers' (1 diff" in said
    )


@pytest.mark.parametrize("n_rows", [50, 100, 200])
def test_the_first_row_is_looked_at(tmp_path: Path, monkeypatch, n_rows: int) -> None:
    """It says whether a column marks where sentences begin."""
    monkeypatch.setattr("data.guess.ROWS", 4)
    (tmp_path / "t.csv").write_text(table((f"some words {n}", "ab"[n % 2]) for n in range(n_rows)))
    found = guess(tmp_path / "t.csv", "csv", "text", "label", None)
    assert found.n_rows == 4 and "some words 0" in found.columns["text"].values


def test_a_gap_in_a_row_that_is_not_looked_at(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.guess.ROWS", 50)
    for gap in ("", " ,a"):
        rows = [(f"some words {n}", "ab"[n % 2]) for n in range(400)]
        (tmp_path / "t.csv").write_text(table(rows) + f"{gap or 'a text,'}\n")
        found, text = written(capsys, tmp_path / "t.csv")
        assert (
            found["missing"] == "skip" and "of 50 rows 0 have no text and 0 no label, but others have such gaps" in text
        )
        (tmp_path / "t.toml").unlink()


def test_a_column_of_nearly_one_value_is_last(capsys, tmp_path: Path) -> None:
    rows = [(f"some words {n}", "no" if n > 1 else "yes", n % 3) for n in range(300)]
    (tmp_path / "t.csv").write_text(table(rows, "text,label,mark"))
    assert written(capsys, tmp_path / "t.csv")[0]["fields"][0]["name"] == "mark"


# --- columns that are about texts, but no labels ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("country,stars,text,verified_purchase,language", "stars"),
        ("text,Answer,kind", "kind"),
        ("is_reply,author,text", "author"),  # words before truths
        ("text,lang", "lang"),  # the only one
    ],
)
def test_usual_names_are_first_and_others_last(capsys, tmp_path: Path, header: str, expected: str) -> None:
    values = {"stars": "12345", "is_reply": ("true", "false"), "text": [f"some words {n}" for n in range(40)]}
    names = header.split(",")
    rows = ([own[n % len(own)] for own in (values.get(name, "xy") for name in names)] for n in range(40))
    (tmp_path / "t.csv").write_text(table(rows, header))
    assert written(capsys, tmp_path / "t.csv")[0]["fields"][0]["name"] == expected


def test_labels_of_words_are_before_one_for_the_text(capsys, tmp_path: Path) -> None:
    """As Prodigy writes them, with what the annotator pressed."""
    rows = ({"text": f"to Rome {n}", "_view_id": "ab"[n % 2], "kind": "xy"[n % 2], "tokens": [{"text": "to", "id": 0}],
             "marks": [{"start": 3, "end": 7, "label": "city"}] * (n % 2), "answer": "xy"[n % 2]}
            for n in range(40))  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = written(capsys, tmp_path / "t.jsonl")
    assert found["fields"][0]["name"] == "marks"


# --- a column of 0 and 1 for each label -------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [("0", "1"), ("False", "True"), ("0.0", "1.0")])
def test_columns_of_flags_are_one_field(capsys, tmp_path: Path, values: tuple[str, str]) -> None:
    """As of Kaggle's toxic comments. An id is no part of a text."""
    rows = [(f"{n:06x}ade", f"some words {n}", *(values[n % m == 0] for m in (2, 3, 5)), "en") for n in range(60)]
    (tmp_path / "t.csv").write_text(table(rows, "id,comment,toxic,threat,a b,language"))
    found, text = written(capsys, tmp_path / "t.csv")
    assert found["fields"] == [{"name": "labels", "type": "multi", "columns": ["toxic", "threat", "a b"]}]
    assert "'toxic' (30), 'threat' (20), 'a b' (12)" in text and "{id}" not in text and '# id_column = "id"' in text
    assert "one more thing" not in text
    # What the user names is used, and the other way is suggested.
    (tmp_path / "t.toml").unlink()
    found, text = written(capsys, tmp_path / "t.csv", "--label", "threat")
    assert found["fields"] == [{"name": "threat", "type": "class", "labels_from": "train"}]
    lines = text[text.index("# Several columns") :].splitlines()[1:5]
    suggested = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
    assert suggested["fields"][0]["columns"] == ["toxic", "threat", "a b"]
    # A column of words, or with a usual name, is a better label.
    for header, expected in (("id,label,toxic,threat,text", "label"), ("id,author,toxic,threat,text", "author")):
        (tmp_path / "t.toml").unlink()
        label = values if expected == "label" else "xy"
        rows = [(n, label[n % 2], values[n % 3 == 0], values[n % 5 == 0], f"some words {n}") for n in range(60)]
        (tmp_path / "t.csv").write_text(table(rows, header))
        found, text = written(capsys, tmp_path / "t.csv")
        assert found["fields"][0]["name"] == expected and '"toxic", "threat"]' in text


def test_gaps_in_columns_of_flags(capsys, tmp_path: Path) -> None:
    rows = [(f"some words {n}", "" if n == 3 else n % 2, "" if n in (3, 4) else int(n % 3 == 0)) for n in range(60)]
    (tmp_path / "t.csv").write_text(table(rows, "text,a,b"))
    found, text = written(capsys, tmp_path / "t.csv")
    assert found["missing"] == "skip" and "0 have no text and 2 no label" in text
    assert found["fields"][0]["columns"] == ["a", "b"]


# --- files that are no tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("t.xlsx", "Save the sheet as CSV"),
        ("t.zip", "Unpack it"),
        ("t.tab", "Name it .tsv; of a file of Orange also delete the lines 2 and 3"),
        ("t.txt", "make it CSV with the header label,text: of fastText's lines __label__x becomes the cell x"),
        ("t.csv.bz2", "Unpack it"),
        ("t", ".gz."),
    ],
)
def test_what_to_do_with_other_files(capsys, tmp_path: Path, name: str, step: str) -> None:
    (tmp_path / name).write_text(table([("some words", "a")]))
    said = refused(capsys, tmp_path / name)
    assert "must end in one of .csv, .tsv" in said and step in said and ".csv.gz" not in said


def test_a_folder_for_each_label(capsys, tmp_path: Path) -> None:
    (tmp_path / "reviews" / "good").mkdir(parents=True)
    said = refused(capsys, tmp_path / "reviews")
    assert "this is a folder" in said and "make a CSV of it with the header text,label" in said


def test_objects_are_named(capsys, tmp_path: Path) -> None:
    """As of Label Studio's full export, and of cells with JSON as TMDB has them."""
    rows = ({"id": n, "data": {"text": f"some words {n}"}, "genres": '[{"id": 1}]'} for n in range(20))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(capsys, tmp_path / "t.jsonl")
    for name in ("data", "genres"):
        assert f"{name!r} (objects; flatten them (Label Studio: export JSON-MIN))" in said


@pytest.mark.parametrize(
    "labels",
    [
        ("prix\u00a0juste", "prix\u202ftrop haut"),
        ("👩\u200d💻 dev", "👨\u200d🍳 cook"),
        ("\u200eabc\u200e", "\u200fdef"),
        ("other", "a label that is long " * 8 + "x"),
        ("a\tb", "c"),
    ],
)
def test_labels_of_all_characters_that_the_readers_take(capsys, tmp_path: Path, labels: tuple[str, str]) -> None:
    lines = [json.dumps({"a\u00a0text": f"some words {n}", "la\u200dbel": labels[n % 2]}) for n in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found, text = written(capsys, tmp_path / "t.jsonl")
    assert (found["text_column"], found["fields"][0]["name"]) == ("a\u00a0text", "la\u200dbel")
    assert not set(text) & set("\u202f\u200e\u200f\t"), "comments show them escaped"
    assert get_task(tmp_path / "t.toml").fields[0].labels == tuple(sorted(labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a" * 101, "b" * 101), "labels have at most 100 characters on average, unless --label names them"),
        (("a\nb", "c"), "the label 'a\\nb' is empty, has a line break or is not UTF-8: correct it"),
        (("\u200b", "c"), "the label '\\u200b' is empty, has a line break or is not UTF-8: correct it"),
        ((["a\rb"], ["c"]), "lists; the label 'a\\rb' is empty, has a line break or is not UTF-8: correct it"),
    ],
)
def test_why_labels_are_none(capsys, tmp_path: Path, labels: tuple[Any, Any], message: str) -> None:
    lines = [json.dumps({"text": f"some words {n}", "topic": labels[n % 2]}) for n in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    assert message in refused(capsys, tmp_path / "t.jsonl")


def test_a_name_with_a_control_character(capsys, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"some words {n}", "la\tbel": "ab"[n % 2]}) for n in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    assert "its name has a control character: correct the header" in refused(capsys, tmp_path / "t.jsonl")


def test_the_text_is_not_a_label_that_is_longer(capsys, tmp_path: Path) -> None:
    long = "a label that is longer than texts"
    (tmp_path / "t.csv").write_text(table([(f"some words {n}", f"{long} {n % 2}") for n in range(20)]))
    found, _ = written(capsys, tmp_path / "t.csv")
    assert (found["text_column"], found["fields"][0]["name"]) == ("text", "label")
