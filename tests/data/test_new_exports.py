"""``python -m data.new`` on tables as well-known sites, corpora and tools write them."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path

import pytest

from data.check import main as check
from data.errors import UserError
from data.new import main, new_task
from data.source import load_examples
from data.tasks import get_task
from tests.data.test_new import rows, table, written
from tests.data.test_new_lists import column_of

# --- Kaggle -----------------------------------------------------------------------------------------------------------


def tagged(n: int) -> tuple[str, list[str], list[str], list[str]]:
    """A sentence, its words, their parts of speech and their tags."""
    words = ["to", "New", "York", *["now"] * (n % 2), f"x{n}"]
    return " ".join(words), words, ["TO", *["NNP"] * (len(words) - 1)], ["O", "B-city", "I-city", *["O"] * (n % 2 + 1)]


@pytest.mark.parametrize("options", ["", "--text Sentence", "--label Tag"])
def test_two_lists_of_tags_beside_a_text(capsys, tmp_path: Path, options: str) -> None:
    """The tags are not the words of each other, though they are equally long."""
    body = [(n, *tagged(n)) for n in range(24)]
    content = table(((n, text, pos, tags) for n, text, _, pos, tags in body), "Sentence #;Sentence;POS;Tag", ";")
    (tmp_path / "t.csv").write_text(content)
    found, _ = written(capsys, tmp_path / "t.csv", *options.split())
    assert column_of(found) == ("Sentence", "Tag", "token")
    (tmp_path / "t.toml").unlink()
    # A list of the text's words is one, however few of them differ.
    (tmp_path / "t.jsonl").write_text(
        "".join(
            json.dumps({"Sentence": text, "words": words, "POS": pos, "Tag": tags}) + "\n"
            for _, text, words, pos, tags in body
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


# --- Label Studio -----------------------------------------------------------------------------------------------------

CHOSEN = ("price", {"choices": ["price", "screen"]}, "screen", {"choices": ["battery", "screen", "price"]})


@pytest.mark.parametrize("name", ["t.json", "t.csv"])
def test_one_choice_and_several_of_label_studio(capsys, tmp_path: Path, name: str) -> None:
    """In JSON-MIN a text or an object, in CSV the JSON text of it. Some texts have none of the labels."""
    path = tmp_path / name
    body = [{"id": n, "review": f"some words {n}", "topics": CHOSEN[n % 4]} for n in range(24)]
    if path.suffix == ".json":
        path.write_text(json.dumps(body))
    else:
        body[0]["topics"] = ""
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, body[0])
            writer.writeheader()
            cells = (json.dumps(row["topics"]) if isinstance(row["topics"], dict) else row["topics"] for row in body)
            writer.writerows(row | {"topics": cell} for row, cell in zip(body, cells, strict=True))
    found, text = written(capsys, path)
    assert found["fields"] == [{"name": "topics", "type": "multi", "choices": True, "labels_from": "train"}]
    assert "3 different in these rows: " in text
    labels = [example.label_set("topics") for example in load_examples(get_task(tmp_path / "t.toml"), "train")]
    assert labels[1:4] == [("price", "screen"), ("screen",), ("battery", "price", "screen")]
    assert labels[0] == (("price",) if path.suffix == ".json" else ())
    # What a person wrote by hand, or before several labels came: the check says what they are.
    task = (tmp_path / "t.toml").read_text()
    if path.suffix == ".csv":
        single = task.replace('type = "multi"', 'type = "class"').replace("choices =", "# choices =")
        (tmp_path / "t.toml").write_text('missing = "skip"\n' + single)
        assert check([str(tmp_path / "t.toml")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "2 topics labels:" in shown and 'several labels: set type = "multi" and choices = true' in shown
    else:
        (tmp_path / "t.toml").write_text(task.replace('type = "multi"', 'type = "class"').replace("choices =", "# "))
        assert check([str(tmp_path / "t.toml")]) == 2
        assert 'For several choices of Label Studio write type = "multi" and choices' in capsys.readouterr().err
    (tmp_path / "t.toml").write_text(task.replace("choices = true", "#"))
    assert check([str(tmp_path / "t.toml")]) == 2
    assert "set choices = true" in capsys.readouterr().err


def test_two_choices_for_texts_of_two_words(capsys, tmp_path: Path) -> None:
    """They are no labels of the words."""
    chosen = [{"choices": list(pair)} for pair in (("a", "b"), ("b", "c"), ("a", "c"))]
    body = [{"review": f"words {n}", "topics": chosen[n % 3]} for n in range(24)]
    (tmp_path / "t.json").write_text(json.dumps(body))
    found, _ = written(capsys, tmp_path / "t.json")
    assert found["fields"] == [{"name": "topics", "type": "multi", "choices": True, "labels_from": "train"}]


def test_labels_of_spans_that_begin_with_another_one(capsys, tmp_path: Path) -> None:
    lines = ({"text": f"to Bonn {n}", "label": [[3, 7, ("loc", "loc:city")[n % 2]]]} for n in range(24))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = written(capsys, tmp_path / "t.jsonl")
    assert (found["fields"][0]["tags"], found["fields"][0]["answer"]) == ("spans", "list")


# --- a test file without labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["", "some other words,\n" * 3, "short\n" * 2, ",a\n"])
def test_a_file_beside_it_without_labels_is_no_split(capsys, tmp_path: Path, rest: str) -> None:
    (tmp_path / "train.csv").write_text(table(rows()))
    (tmp_path / "dev.csv").write_text(table([("words without a label", ""), ("other words", "a")]))
    (tmp_path / "test.csv").write_text("text,label\n" + rest)
    assert main([str(tmp_path / "train.csv")]) == 0
    text = (tmp_path / "train.toml").read_text()
    assert tomllib.loads(text)["files"] == {"train": "train.csv", "dev": "dev.csv"}
    assert "\n# 'test.csv' is left out: no row of it has a text and a label. predict.py labels its texts.\n" in text
    # The gap of dev is for the user to decide, and the advice is good.
    capsys.readouterr()
    assert check([str(tmp_path / "train.toml")]) == 2 and 'write missing = "skip"' in capsys.readouterr().err
    (tmp_path / "train.toml").write_text('missing = "skip"\n' + text)
    assert check([str(tmp_path / "train.toml")]) == 0


def test_one_labelled_row_makes_a_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(table(rows()))
    (tmp_path / "test.csv").write_text(table([("some other words", "a"), ("more words", "")]))
    assert main([str(tmp_path / "train.csv")]) == 0
    assert tomllib.loads((tmp_path / "train.toml").read_text())["files"]["test"] == "test.csv"


@pytest.mark.parametrize("missing", ["", 'missing = "skip"\n'])
def test_the_advice_about_a_split_without_labels(tmp_path: Path, missing: str) -> None:
    """To skip all its examples is none."""
    (tmp_path / "train.csv").write_text(table(rows()))
    (tmp_path / "test.csv").write_text(table([("some words", ""), ("other words", "")]))
    assert main([str(tmp_path / "train.csv")]) == 0
    task = (tmp_path / "train.toml").read_text().replace("[files]\n", '[files]\ntest = "test.csv"\n')
    (tmp_path / "train.toml").write_text(missing + task)
    with pytest.raises(UserError, match=r"remove test from \[files\]. Texts without labels are for predict.py") as said:
        load_examples(get_task(tmp_path / "train.toml"), "test")
    assert "test.csv, line 2: 'label' is empty" in str(said.value) and "write missing" not in str(said.value)


# --- numbers of labels in a cell --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("27 0 2 0,2 2,4,27 4 27", {"type": "multi", "separator": ","}),  # as of GoEmotions
        ("3 4 5 3,5 4,5 5 2,5 2", {"type": "class"}),  # half stars
    ],
)
def test_cells_of_numbers(capsys, tmp_path: Path, cells: str, expected: dict[str, str]) -> None:
    values = cells.split()
    body = ((f"some words {n}", values[n % len(values)], f"id{n}") for n in range(40))
    (tmp_path / "t.tsv").write_text(table(body, "text\tlabels\tid", "\t"))
    found, _ = written(capsys, tmp_path / "t.tsv")
    assert found["fields"] == [{"name": "labels", "labels_from": "train"} | expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("отзывы.csv", "my_task"), ("отзывы/train.csv", "my_task"), ("отзывы_2.csv", "2"), ("20ng_7.csv", "my_20ng_7")],
)
def test_names_of_tasks(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(table(rows()))
    assert new_task(tmp_path / name)[0].name == expected


# --- Prodigy ----------------------------------------------------------------------------------------------------------


def test_what_prodigy_did_not_accept(capsys, tmp_path: Path) -> None:
    """It is not counted among the labels, unless the answers are these."""
    answers = ("accept", "accept", "reject")
    body = [
        {"text": f"some words {n}", "_input_hash": n, "_task_hash": -n, "label": "xy"[n % 2], "answer": answers[n % 3]}
        for n in range(36)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in body))
    found, text = written(capsys, path)
    assert found["fields"] == [{"name": "label", "type": "class", "labels_from": "train"}]
    assert "2 different in these rows: 'x' (12), 'y' (12)" in text and "Guessed from 24 rows" in text
    assert "\n# 12 records with Prodigy's answer reject (12) are left out: " in text and 'name = "answer"' not in text
    # Of one label each answer says whether the text has it.
    for options, rest in (((), [row | {"label": "x"} for row in body]), (("--label", "answer"), body)):
        (tmp_path / "t.toml").unlink()
        path.write_text("".join(json.dumps(row) + "\n" for row in rest))
        found, text = written(capsys, path, *options)
        assert found["fields"][0]["name"] == "answer" and "left out" not in text
    (tmp_path / "t.toml").unlink()
    path.write_text("".join(json.dumps(row | {"answer": "reject"}) + "\n" for row in body))
    with pytest.raises(UserError, match=r"no rows. 36 records with Prodigy's answer reject \(36\) are left out"):
        new_task(path)
