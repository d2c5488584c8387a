"""``python -m data.new`` on labels in lists: of words, of texts with several labels, of spans of characters."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.check import main as check
from data.guess import guess
from data.new import main
from tests.data.test_new import refused, table, written

WORDS, TAGS, POS = ["to", "New", "York"], ["O", "B-city", "I-city"], ["IN", "NN", "NN"]


def lines(row: Callable[[int], dict[str, Any]]) -> str:
    return "".join(json.dumps(row(n)) + "\n" for n in range(24))


def with_number(values: list[str], n: int) -> list[str]:
    """As many as before, or one more."""
    return [*values, values[0]] if n % 2 else values


def words(n: int) -> dict[str, Any]:
    """A row of words, their parts of speech and their tags, and a label for all of them."""
    own = {"tokens": with_number(WORDS, n)[:-1] + [f"Bonn{n}"], "pos": with_number(POS, n), "ner": with_number(TAGS, n)}
    return own | {"intent": "ab"[n % 2], "one": ["X"] * len(own["pos"]), "empty": [""] * len(own["pos"])}


def column_of(found: dict[str, Any]) -> tuple[str, str, str]:
    (field,) = found["fields"]
    return found.get("tokens_column", found.get("text_column")), field.get("column", field["name"]), field["type"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ("tokens", "ner", "token")),
        ("--label ner", ("tokens", "ner", "token")),
        ("--label pos", ("tokens", "pos", "token")),
        ("--text tokens", ("tokens", "ner", "token")),
        ("--text tokens --label pos", ("tokens", "pos", "token")),
        ("--text tokens --label intent", ("tokens", "intent", "class")),
        ("--label intent", ("tokens", "intent", "class")),
        ("--text pos", ("pos", "ner", "token")),
    ],
)
def test_the_options_choose_words_and_their_labels(capsys, tmp_path: Path, options: str, expected: tuple) -> None:
    rows = lines(lambda n: {key: words(n)[key] for key in ("one", "tokens", "pos", "ner", "intent")})
    (tmp_path / "t.jsonl").write_text(rows)
    found, _ = written(capsys, tmp_path / "t.jsonl", *options.split())
    assert column_of(found) == expected and ("tokens_column" in found)


@pytest.mark.parametrize("options", ["", "--label tags", "--text tokens", "--text tokens --label 2"])
def test_the_options_choose_columns_of_conll(capsys, tmp_path: Path, options: str) -> None:
    (tmp_path / "t.conll").write_text("".join(f"to IN X O\nBonn{n} NN X B-city\n\n" for n in range(24)))
    found, text = written(capsys, tmp_path / "t.conll", *options.split())
    label = options.split("--label ")[-1] if "--label" in options else "tags"
    assert column_of(found) == ("tokens", label, "token")
    others = {"tags", "2"} - {label}  # the column 3 has one value
    assert {line[10:-1] for line in text.splitlines() if line.startswith("# name = ")} == others


@pytest.mark.parametrize(("file", "label"), [("t.jsonl", "one"), ("t.conll", "3")])
def test_a_chosen_column_of_one_label_is_written_and_then_refused(
    capsys, tmp_path: Path, file: str, label: str
) -> None:
    (tmp_path / "t.jsonl").write_text(lines(words))
    (tmp_path / "t.conll").write_text("".join(f"to IN X O\nBonn{n} NN X B-city\n\n" for n in range(24)))
    assert main([str(tmp_path / file), "--label", label]) == 0
    found = tomllib.loads((tmp_path / "t.toml").read_text(encoding="utf-8"))
    assert column_of(found) == ("tokens", label, "token")
    assert check([str(tmp_path / "t.toml")]) == 2
    assert f"every word has the label 'X' in '{label}', so there is nothing to learn" in capsys.readouterr().err


def test_other_columns_work_as_they_are_suggested(capsys, tmp_path: Path) -> None:
    """Of tags, spans, several labels in lists and in texts: all but those that no field can have."""

    def row(n: int) -> dict[str, Any]:
        more = {"topics": ["x", "y"][: n % 3], "keys": ("x; y", "x", "y; x")[n % 3], "codes": [n % 2] * (n % 3)}
        own = words(n) | more | {"numbers": [1] * len(words(n)["pos"])}
        return own | {"text": " ".join(own["tokens"]), "spans": [[0, 2, "to"]] * (n % 2)}

    for options in (["--label", "pos"], ["--text", "text", "--label", "intent"]):
        (tmp_path / "t.jsonl").write_text(lines(row))
        found, text = written(capsys, tmp_path / "t.jsonl", *options)
        suggested = text[text.index("# Other columns") :].splitlines()[1:]
        names = {line[10:-1] for line in suggested if line.startswith("# name = ")}
        lists = {"spans", "topics", "codes", "pos", "tokens"} if "intent" in options else {"intent"}
        assert names == {"keys", "ner", *lists}
        path = tmp_path / "t.toml"
        kept = [line.removeprefix("# ") for line in suggested if not line.startswith("# names")]
        path.write_text(text[: text.index("# Other columns")] + "\n".join(kept))
        assert check([str(path)]) == 0
        path.unlink()


def test_suggestions_that_need_missing(capsys, tmp_path: Path) -> None:
    """The index of pandas, which has no name, is no id; columns with gaps say so."""
    rows = [(n, f"title of {n}" if n % 4 else "", f"some more words {n}", "ab"[n % 2], "xyz"[n % 3]) for n in range(30)]
    content = table(
        ((*row[:4], row[4] if n % 5 else "", n % 10) for n, row in enumerate(rows)), ",title,body,label,o,p"
    )
    (tmp_path / "t.csv").write_text(content)
    _, text = written(capsys, tmp_path / "t.csv")
    assert "id_column" not in text and len(re.findall("of these rows have none", text)) == 2
    assert re.search('# text = .*; 8 of these rows have none, which missing = "skip" leaves out\n', text)
    assert re.search(
        '# name = "o"\n.*\n# labels_from.*; 6 of these rows have none, which missing = "skip" leaves', text
    )
    path = tmp_path / "t.toml"
    text = text.replace("# text =", "text =").replace("text_column =", "# text_column =")
    text = re.sub(r"^# (\[\[|name =|type =|labels_from =)", r"\1", text, flags=re.MULTILINE)
    path.write_text(text)
    assert check([str(path)]) == 2 and "is empty" in capsys.readouterr().err
    path.write_text('missing = "skip"\n' + text)
    assert check([str(path)]) == 0


def test_all_codes_are_named(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(((f"some words {n}", n % 12) for n in range(36)), "text,stars"))
    _, text = written(capsys, tmp_path / "t.csv")
    rest, names = text.split("labels_from", 1)[0], re.search("# (names = .*})  #", text)[1]  # type: ignore[index]
    (tmp_path / "t.toml").write_text(rest + names.replace('"..."', '"bad"', 1).replace('"..."', '"good"'))
    assert check([str(tmp_path / "t.toml")]) == 0


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            lambda n: {"id": n, "tokens": [*WORDS, str(n)], "pos": [1, 2, 2, 3], "ner": [0, 1, 2, 0]},
            "",
            "'ner' has numbers for the words of 'tokens', .* tokens_column = \"tokens\", .* type = \"token\", "
            'column = "ner" and names such as names = { 0 = "O"',
        ),
        (
            lambda n: {"tokens": [*WORDS, str(n)], "pos": [1, 2, 2, 3], "ner": [0, 1, 2, 0]},
            "--text tokens --label pos",
            "'pos' has numbers for the words of 'tokens'",
        ),
        (
            lambda n: {"text": f"to Bonn {n}", "ner": [0, 1, 0]},
            "--label ner",
            "'ner' has numbers for the words of 'text', .* text_column = \"text\"",
        ),
        (
            lambda n: {"tokens": [*WORDS, str(n)], "ner": TAGS},
            "--text tokens --label ner",
            "'tokens' and 'ner' are lists of different lengths.* tokens_column = \"tokens\", .* type = \"token\"",
        ),
        (lambda n: {"tokens": [*WORDS, str(n)], "ner": TAGS}, "--label tokens", "are lists of different lengths"),
        (lambda n: {"text": f"to Bonn {n}", "x": {"y": [0]}}, "--label x", 'type = "token" and tags = "spans"'),
        (lambda n: {"text": f"to Bonn {n}", "x": ["y", "z"]}, "", "looks like labels .* 'x' .lists."),
    ],
)
def test_lists_that_need_a_person(capsys, tmp_path: Path, row: Callable, options: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(lines(row))
    assert re.search(message, refused(capsys, tmp_path / "t.jsonl", *options.split()))


@pytest.mark.parametrize("options", ["", "--label labels"])
def test_several_labels(capsys, tmp_path: Path, options: str) -> None:
    def labels(n: int) -> list[str]:
        return [[], ["joy", "love"], ["joy"]][n % 3]

    def checked(name: str, **more: Any) -> None:
        found, _ = written(capsys, tmp_path / name, *options.split())
        expected = {"name": "labels", "type": "multi", "labels_from": "train"} | more
        assert found["fields"] == [expected] and found["text_column"] == "text" and "missing" not in found
        (tmp_path / "t.toml").unlink()

    texts = [f"some words {n}" for n in range(24)]
    (tmp_path / "t.jsonl").write_text(lines(lambda n: {"text": texts[n], "labels": labels(n)}))
    checked("t.jsonl")
    pq.write_table(pa.table({"text": texts, "labels": [labels(n) for n in range(24)]}), tmp_path / "t.parquet")
    checked("t.parquet")
    (tmp_path / "t.jsonl").write_text(lines(lambda n: {"text": texts[n], "labels": [0, n % 3][: n % 3]}))
    checked("t.jsonl")
    cells: tuple[Callable[[int], str], ...] = (str, json.dumps, lambda own: str(own) if own else "")  # type: ignore[assignment]
    for cell in cells:
        (tmp_path / "t.tsv").write_text(table(((texts[n], cell(labels(n))) for n in range(24)), "text\tlabels", "\t"))
        checked("t.tsv")
    for separator in (";", ",", "|"):
        own = [f"a{separator} b", "", "b", "c", f"c{separator} a"]
        (tmp_path / "t.tsv").write_text(table(zip(texts, own * 5, strict=False), "text\tlabels", "\t"))
        checked("t.tsv", separator=separator)


@pytest.mark.parametrize(
    "labels", [("rec/autos", "rec/sport", "talk/sport"), ("a", "b", "a; b"), ("1", "5", "1,5", "5,1"), ("[a]", "[b]")]
)
def test_labels_that_are_one(capsys, tmp_path: Path, labels: tuple[str, ...]) -> None:
    """Where it is not clear, each cell is a label; `data.check` warns of some of these."""
    rows = ((f"some words {n}", labels[n % len(labels)]) for n in range(24))
    (tmp_path / "t.tsv").write_text(table(rows, "text\tlabel", "\t"))
    found, _ = written(capsys, tmp_path / "t.tsv")
    assert found["fields"] == [{"name": "label", "type": "class", "labels_from": "train"}]


def test_nobody_has_looked_or_no_label(capsys, tmp_path: Path) -> None:
    """An empty list of labels is none; null is a gap, and so is a list without words."""
    cells = [None, [], [], ["a"], ["a", "b"], ["b"]]
    (tmp_path / "t.jsonl").write_text(lines(lambda n: {"text": f"some words {n}", "labels": cells[n % 6]}))
    found, text = written(capsys, tmp_path / "t.jsonl")
    assert found["missing"] == "skip" and "0 have no text and 4 no label" in text
    (tmp_path / "t.toml").unlink()
    (tmp_path / "t.jsonl").write_text(lines(lambda n: words(n) | ({"tokens": [], "ner": []} if n == 3 else {})))
    found, text = written(capsys, tmp_path / "t.jsonl", "--label", "ner")
    assert found["missing"] == "skip" and "1 have no text and 0 no label" in text


@pytest.mark.parametrize(
    "spans",
    [
        [[3, 7, "city"]],
        [{"start": 3, "end": 7, "label": "city"}],
        [{"start_offset": 3, "end_offset": 7, "labels": ["city"]}],
        {"start": [3], "end": [7], "label": ["city"]},
    ],
)
@pytest.mark.parametrize("options", ["", "--label label"])
def test_spans(capsys, tmp_path: Path, spans: Any, options: str) -> None:
    (tmp_path / "t.jsonl").write_text(lines(lambda n: {"text": f"to Bonn {n}", "label": spans if n % 3 else []}))
    found, _ = written(capsys, tmp_path / "t.jsonl", *options.split())
    assert found["fields"] == [{"name": "label", "type": "token", "tags": "spans", "labels_from": "train"}]


def test_lists_of_three_texts_are_no_spans(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(lines(lambda n: {"text": f"to Bonn {n}", "label": [["a", "b", "c"]]}))
    assert "no column looks like labels" in refused(capsys, tmp_path / "t.jsonl")


def test_a_list_for_the_words_of_a_text(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(lines(lambda n: {"text": f"to New York {n}", "tags": [*TAGS, "O"]}))
    found, _ = written(capsys, tmp_path / "t.jsonl")
    assert column_of(found) == ("text", "tags", "token")
    (tmp_path / "t.toml").unlink()
    (tmp_path / "t.tsv").write_text(
        table(((json.dumps([*WORDS, f"x{n}"]), json.dumps([*TAGS, "O"])) for n in range(24)), "tokens\tner", "\t")
    )
    found, _ = written(capsys, tmp_path / "t.tsv")
    assert column_of(found) == ("tokens", "ner", "token") and "tokens_column" in found


def test_lists_of_different_lengths_are_no_words_and_labels(capsys, tmp_path: Path) -> None:
    def write(*keys: str) -> None:
        texts = ["I like this phone", "It broke on day two", "Good price", "Never again from here"] * 2
        lists = {"tags": lambda n: ["x", "y"][: n % 2 + 1], "keywords": lambda n: texts[n].split() + ["z"]}
        lists |= {"tokens": lambda n: texts[n].split(), "ner": lambda n: ["O"] * len(texts[n].split())}
        with (tmp_path / "t.jsonl").open("w") as stream:
            for n, text in enumerate(texts):
                row = {"text": text, "label": "ab"[n % 2]} | {key: lists[key](n) for key in keys}
                if n % 2:
                    row |= {key: [*row[key][:-1], "B-x"] for key in keys if key == "ner"}
                stream.write(json.dumps(row) + "\n")

    write("tags", "keywords")
    found, _ = written(capsys, tmp_path / "t.jsonl")
    assert found["text_column"] == "text" and found["fields"][0]["name"] == "label"
    (tmp_path / "t.toml").unlink()
    write("tags", "keywords", "tokens", "ner")
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    damaged = json.loads(lines[0]) | {"ner": ["O"]}
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, *lines, json.dumps(damaged)]))
    assert guess(tmp_path / "t.jsonl", "jsonl", None, None, None).text == "tokens", "data.check names the damaged row"
    write("tags", "keywords", "tokens", "ner")
    found, _ = written(capsys, tmp_path / "t.jsonl")
    assert found["tokens_column"] == "tokens" and found["fields"][0]["name"] == "ner"


def test_lists_as_pandas_writes_them(capsys, tmp_path: Path) -> None:
    """In CSV as Python writes them: of words and tags, and of spans."""
    rows = [(f"x{n}", repr([*WORDS, f"x{n}"]), repr([*TAGS, "O"]), repr([[3, 6, "it's"]])) for n in range(24)]
    (tmp_path / "t.tsv").write_text(table((row[1:3] for row in rows), "tokens\tner", "\t"))
    found, _ = written(capsys, tmp_path / "t.tsv")
    assert column_of(found) == ("tokens", "ner", "token") and "tokens_column" in found
    (tmp_path / "t.toml").unlink()
    (tmp_path / "t.tsv").write_text(table(((f"to New {row[0]}", row[3]) for row in rows), "text\tmarks", "\t"))
    found, _ = written(capsys, tmp_path / "t.tsv")
    assert column_of(found) == ("text", "marks", "token")
    # NumPy writes no commas, and Python reads two texts as one.
    task = (tmp_path / "t.toml").read_text().replace('tags = "spans"', "#").replace("text_column", "tokens_column")
    (tmp_path / "t.toml").write_text(task)
    rows = [(f"['to' 'Bonn{n}']", "['O' 'B-city']") for n in range(24)]
    (tmp_path / "t.tsv").write_text(table(rows, "text\tmarks", "\t"))
    assert check([str(tmp_path / "t.toml")]) == 2
    assert "line 2, column 'marks' has no comma between texts, as NumPy writes lists" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["B-B", "C"])
def test_tags_that_a_person_must_decide(capsys, tmp_path: Path, other: str) -> None:
    """The file is kept: all but one line of it is right."""
    (tmp_path / "t.conll").write_text("".join(f"to B-A\nBonn{n} {other}\n\n" for n in range(24)))
    assert main([str(tmp_path / "t.conll")]) == 2
    path = tmp_path / "t.toml"
    assert f'{path} is written: decide there, in the line tags = "?".' in capsys.readouterr().err
    assert check([str(path)]) == 2 and "unknown tags '?'" in capsys.readouterr().err
    text = path.read_text(encoding="utf-8")
    assert 'tags = "?"  # DECIDE: "types", "iob1"' in text
    path.write_text(text.replace('"?"', '"types"'), encoding="utf-8")
    assert check([str(path)]) == 0 and "B-A" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "keys"),
    [(("#a #b", "#b", "#c #a", ""), {"separator": " "}), (("{'a', 'b'}", "{'c'}", "set()", "{'b'}"), {})],
)
def test_tags_with_spaces_and_sets(capsys, tmp_path: Path, cells: tuple[str, ...], keys: dict[str, str]) -> None:
    rows = ((f"some words {n}", cells[n % 4]) for n in range(24))
    (tmp_path / "t.tsv").write_text(table(rows, "text\tlabel", "\t"))
    found, text = written(capsys, tmp_path / "t.tsv")
    assert found["fields"] == [{"name": "label", "type": "multi", "labels_from": "train"} | keys]
    assert "3 different in these rows" in text and "missing" not in found
