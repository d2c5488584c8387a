"""``python -m data.new``: a task file for tables as people have them, which works at once and says what was guessed."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.check import main as check
from data.new import main, new_task
from data.source import load_examples
from tests.launching import ROOT
from tests.screen import plain_environment
from tests.train.conftest import tiny_tokenizer  # noqa: F401  # a fixture
from train.resolve import load_config

SAMPLE = ROOT / "data" / "sample" / "tickets"


def table(rows: Iterable[Iterable[Any]], header: str = "text,label", delimiter: str = ",") -> str:
    lines = [header, *(delimiter.join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def rows(labels: str = "ab", text: str = "some words") -> list[tuple[str, str]]:
    return [(f"{text} {n}", labels[n % len(labels)]) for n in range(24)]


GERMAN = [(n, f"Größe {n} ist falsch; bitte ändern", ("Lieferung", "Rückgabe")[n % 2], n % 3) for n in range(24)]


def written(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> tuple[dict[str, Any], str]:
    """What the task file says, and its text; `data.check` and the reader of training take it as it is."""
    assert main([str(file), *words]) == 0
    path = file.with_name(file.name.split(".")[0] + ".toml")
    shown = capsys.readouterr().out
    assert f"written: {path}" in shown and f"data.check {path}" in shown and f"--task {path}" in shown
    assert check([str(path)]) == 0
    capsys.readouterr()
    text = path.read_text(encoding="utf-8")
    return tomllib.loads(text), text


def refused(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> str:
    before = set(file.parent.iterdir()) if file.parent.is_dir() else set()
    assert main([str(file), *words]) == 2
    assert (set(file.parent.iterdir()) if file.parent.is_dir() else set()) == before, "no file is left behind"
    return capsys.readouterr().err


def test_the_sample(capsys, tmp_path: Path) -> None:
    folder = tmp_path / "tickets"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (folder / name).write_bytes((SAMPLE / name).read_bytes())
    found, text = written(capsys, folder / "train.csv")
    assert found["name"] == "tickets" and found["text_column"] == "text"
    assert found["files"] == {"train": "train.csv", "test": "test.csv"}
    assert found["fields"] == [{"name": "queue", "type": "class", "labels_from": "train"}]
    assert "4 different in these rows: 'billing' (100)" in text and '# name = "urgency"' in text
    assert "delimiter" not in found and "encoding" not in found and "missing" not in found


# --- what is written --------------------------------------------------------------------------------------------------


def test_windows_and_semicolons(capsys, tmp_path: Path) -> None:
    file = tmp_path / "tabelle.csv"
    content = table([(n, f'"{text}"', *more) for n, text, *more in GERMAN], "nr;meldung;art;stufe", ";")
    file.write_text(content, encoding="windows-1252")
    found, text = written(capsys, file)
    assert (found["delimiter"], found["encoding"], found["text_column"]) == (";", "windows-1252", "meldung")
    assert found["fields"][0]["name"] == "art" and '# name = "stufe"' in text and "Größe 1" in text
    assert '# id_column = "nr"' in text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-be"])
def test_other_encodings(capsys, tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(table(GERMAN, "nr\tmeldung\tart\tstufe", "\t"), encoding=encoding)
    found, _ = written(capsys, file)
    assert (
        found["delimiter"] == "\t" and found.get("encoding", "utf-8-sig").replace("utf-16be", "utf-16-be") == encoding
    )
    assert load_examples(new(file), "train")[1].labels == {"art": "Rückgabe"}


def new(file: Path):
    file.with_suffix(".toml").unlink()
    return new_task(file)[0]


def test_an_encoding_beyond_the_rows_that_are_looked_at(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.guess.ROWS", 10)
    file = tmp_path / "t.csv"
    file.write_text(table([*rows(), ("Größe zwei", "a")]), encoding="windows-1252")
    found, text = written(capsys, file)
    assert found["encoding"] == "windows-1252" and "Guessed from 10 of 25 rows, drawn at random of" in text


def test_numbers_as_labels(capsys, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(table([(f"{n}.5", text, n % 2) for n, (text, _) in enumerate(rows())], "price,review,stars"))
    found, text = written(capsys, file)
    assert found["text_column"] == "review" and found["fields"][0]["name"] == "stars"
    suggested = next(line for line in text.splitlines() if line.startswith("# names"))
    # As the comment says: in the place of labels_from.
    field = suggested.removeprefix("# ").split("  #")[0].replace('"..."', '"bad"', 1).replace('"..."', '"good"')
    path = file.with_suffix(".toml")
    path.write_text(text.replace("labels_from", "# labels_from") + field + "\n")
    assert check([str(path)]) == 0 and "bad" in capsys.readouterr().out


def test_several_candidates(capsys, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    body = [
        (f"t-{n}", "en" if n % 2 else "de", f"Title of {n}", f"a body of many more words {n}", n % 4, "xyz"[n % 3])
        for n in range(24)
    ]
    file.write_text(table(body, "id,lang,title,body,stars,topic"))
    found, text = written(capsys, file)
    assert found["text_column"] == "body" and found["fields"][0]["name"] == "topic", "after the text, and no number"
    assert (
        '# text = "{title}\\n{body}"' in text and '# id_column = "id"' in text and '# id_column = "title"' not in text
    )
    order = [line for line in text.splitlines() if line.startswith("# name = ")]
    assert order == ['# name = "stars"', '# name = "lang"'], "a language comes last"
    # The suggested keys are right, too.
    path = file.with_suffix(".toml")
    path.write_text(text.replace("# text =", "text =").replace("text_column", "# text_column").replace("# id_", "id_"))
    assert check([str(path)]) == 0
    path.unlink()
    # A usual name counts more; what the user says, most.
    file.write_text(table(body, "id,lang,title,body,Class,topic"))
    assert written(capsys, file)[0]["fields"][0]["name"] == "Class"
    path.unlink()
    found, _ = written(capsys, file, "--label", "lang", "--text", "title")
    assert found["fields"][0]["name"] == "lang" and found["text_column"] == "title"


def write_tsv(file: Path) -> None:
    file.write_text('"text"\t"label"\n' + "".join(f'"say ""hi"" {n}"\t"{"ab"[n % 2]}"\n' for n in range(20)))


def write_tsv_without_quoted_header(file: Path) -> None:
    file.write_text("text\tlabel\n" + "".join(f'"say ""hi"" {n}"\t{"ab"[n % 2]}\n' for n in range(20)))


def write_lines(file: Path) -> None:
    lines = [json.dumps({"text": f"some words {n}", "label": n % 2 == 0}) for n in range(20)]
    file.write_text("\n".join(lines) + "\n")


def write_words(file: Path) -> None:
    lines = [json.dumps({"tokens": ["to", f"Bonn{n}"], "tags": ["O", "B-city"]}) for n in range(20)]
    file.write_text("\n".join(lines) + "\n")


def write_conll(file: Path) -> None:
    file.write_text("".join(f"to IN O\nBonn{n} NN B-city\n\n" for n in range(20)))


def write_packed(file: Path) -> None:
    file.write_bytes(gzip.compress(table(rows(text="über alles")).encode()))


def write_parquet(file: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"some words {n}" for n in range(20)], "label": [n % 2 for n in range(20)]}), file
    )


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("t.tsv", write_tsv, {"tsv_quoting": True}),
        ("t.tsv", write_tsv_without_quoted_header, {"tsv_quoting": True}),
        ("t.jsonl", write_lines, {"text_column": "text"}),
        ("t.jsonl", write_words, {"tokens_column": "tokens"}),
        ("t.conll", write_conll, {"tokens_column": "tokens"}),
        ("t.csv.gz", write_packed, {"text_column": "text"}),
        ("t.parquet", write_parquet, {"text_column": "text"}),
    ],
)
def test_other_formats(capsys, tmp_path: Path, name: str, write: Callable[[Path], None], expected: dict) -> None:
    write(tmp_path / name)
    found, _ = written(capsys, tmp_path / name)
    assert expected.items() <= found.items() and found["files"] == {"train": name}
    assert found["fields"][0]["type"] == ("token" if "tokens_column" in found else "class")


def test_the_cut_that_is_suggested(capsys, tmp_path: Path) -> None:
    pytest.importorskip("data.readers.cut")
    file = tmp_path / "t.csv"
    file.write_text(table(rows()))
    _, text = written(capsys, file)
    path = file.with_suffix(".toml")
    path.write_text(text.replace("# [split]", "[split]").replace("# test = 0.2", "test = 0.2"))
    assert check([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "┃ train ┃ test ┃" in shown and "24 examples" in shown


def test_gaps(capsys, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(table([*rows(), ("no label", ""), ("", "a")]))
    found, text = written(capsys, file)
    assert found["missing"] == "skip" and "1 have no text and 1 no label" in text


def test_names_that_mean_something(capsys, tmp_path: Path) -> None:
    file = tmp_path / "we[ir]d $HOME # \"'.csv"
    file.write_text(table(rows(), 'text,"la[b]el ""#"" \\"'))
    assert main([str(file)]) == 0
    found = tomllib.loads(file.with_suffix(".toml").read_text(encoding="utf-8"))
    assert found["files"]["train"] == file.name and found["fields"][0]["name"] == 'la[b]el "#" \\'
    assert found["name"] == "we_ir_d_HOME" and check([str(file.with_suffix(".toml"))]) == 0
    # The name of a built-in task; a name without a letter that may be in one.
    for name, expected in (("20ng_20", "my_20ng_20"), ("天", "my_task")):
        file = tmp_path / f"{name}.csv"
        file.write_text(table(rows()))
        assert new_task(file)[0].name == expected


def test_labels_do_not_end_a_comment(capsys, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    labels = ["a'\"]#", "x\u2028y", "tab\tbed"]
    lines = [
        json.dumps({"text": f"some words {n}", "label": labels[n % 2], "l2": labels[2 * (n % 2)]}) for n in range(20)
    ]
    file.write_text("\n".join(lines) + "\n")
    found, text = written(capsys, file, "--label", "label")
    assert found["fields"][0]["name"] == "label" and "\u2028" not in text and "\t" not in text


# --- what is refused --------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(rows()))
    (tmp_path / "t.toml").write_text("mine")
    assert "t.toml exists, and is not overwritten" in refused(capsys, tmp_path / "t.csv")
    assert (tmp_path / "t.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (
            table([(n, n * 1.5) for n in range(20)], "id,value"),
            [],
            "no column looks like texts .*--text.*'id' .20 diff",
        ),
        (
            table([(n, f"some words {n}") for n in range(20)], "id,words"),
            [],
            "looks like labels .*--label.*'words' .20",
        ),
        (table([(f"some words {n}", "a") for n in range(20)]), [], "looks like labels .*'label' .1 different"),
        (table([(f"some words {n}", "ab"[n % 2] * 101) for n in range(20)]), [], "looks like labels"),
        (table([(f"some words {n}", "a") for n in range(20)]), ["--label", "label"], "needs at least 2 labels"),
        (table(rows(), "some words first,a"), [], "the first line seems to be an example. Write the columns' names"),
        (table(rows()), ["--label", "lable"], "no column 'lable'. Did you mean 'label'"),
        (table(rows()), ["--text", "label", "--label", "label"], "--text and --label are both 'label'"),
        (table(rows()), ["--encoding", "klingon"], "--encoding 'klingon' is no encoding"),
        (table(rows(), "text,text"), [], "column 'text' is in the header twice"),
        ("text,label\n", [], "no rows below the header"),
        ("", [], "no rows"),
        ("PK\x03\x04", [], "Excel"),
    ],
)
def test_bad_tables(capsys, tmp_path: Path, content: str, words: list[str], message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    assert re.search(message, refused(capsys, tmp_path / "t.csv", *words))


def test_bad_files(capsys, tmp_path: Path) -> None:
    assert "no file" in refused(capsys, tmp_path / "none.csv")
    (tmp_path / "t.txt").write_text("x")
    assert "must end in one of .csv, .tsv" in refused(capsys, tmp_path / "t.txt")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(table(rows()).encode())[:-9])
    assert "damaged or cut off" in refused(capsys, tmp_path / "t.csv.gz")
    (tmp_path / "t.parquet").write_bytes(b"PAR1\x15")
    assert "t.parquet" in refused(capsys, tmp_path / "t.parquet")


def test_an_encoding_that_cannot_be_told(capsys, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(table(rows(text="привет мир")), encoding="windows-1251")
    said = refused(capsys, file)
    assert "line 2" in said and "'привет мир 0,a' in windows-1251" in said and "--encoding" in said
    found, _ = written(capsys, file, "--encoding", "windows-1251")
    assert found["encoding"] == "windows-1251"


def test_single_letters_do_not_decide_an_encoding(capsys, tmp_path: Path) -> None:
    """Only all lines together tell that this is not Western."""
    content = "label,text\nда,Я за!\nнет,Очень плохой телефон\nда,Очень хороший телефон\nнет,Никогда больше\n"
    (tmp_path / "t.csv").write_text(content, encoding="windows-1251")
    said = refused(capsys, tmp_path / "t.csv")
    assert "line 3: not UTF-8" in said and "'нет,Очень плохой' in windows-1251" in said and "--encoding" in said
    words = ["It is 良 phone", "非常に悪い電話", "とても良い", "二度と買わない"]
    (tmp_path / "t.csv").write_text(table([(text, "ab"[n % 2]) for n, text in enumerate(words)]), encoding="shift_jis")
    assert "in shift_jis" in refused(capsys, tmp_path / "t.csv")
    words.append("phone ﾂｱ")  # whose bytes are a letter in UTF-8 too, by chance
    (tmp_path / "t.csv").write_text(table([(text, "ab"[n % 2]) for n, text in enumerate(words)]), encoding="shift_jis")
    assert "in shift_jis" in refused(capsys, tmp_path / "t.csv")


def test_a_few_letters_side_by_side_are_western_as_well(capsys, tmp_path: Path) -> None:
    """Three bytes beyond ASCII in a row might be Cyrillic, if there were not so many that stand alone."""
    texts = [*(f"Größe {n} fällt für mich zu klein aus" for n in range(24)), "mit ÄÖÜ", "ja"]
    lines = [(text, "ab"[n % 2]) for n, text in enumerate(texts)]
    (tmp_path / "t.csv").write_text(table(lines), encoding="windows-1252")
    found, _ = written(capsys, tmp_path / "t.csv")
    assert found["encoding"] == "windows-1252"


def test_a_guessed_encoding_is_shown(capsys, tmp_path: Path) -> None:
    """Polish cannot be told from Western text: a person has to see it."""
    content = "text,label\nDobry sklep,tak\nPolecam sklep działa świetnie,tak\nNie wiem,nie\nOj nie,nie\n"
    (tmp_path / "t.csv").write_text(content, encoding="windows-1250")
    assert main([str(tmp_path / "t.csv")]) == 0
    assert "Not UTF-8: windows-1252 is guessed" in capsys.readouterr().out
    assert "so it reads 'lecam sklep dzia³a œwietnie,tak'" in (tmp_path / "t.toml").read_text(encoding="utf-8")
    (tmp_path / "t.toml").unlink()
    assert main([str(tmp_path / "t.csv"), "--encoding", "windows-1250"]) == 0
    assert "is guessed" not in capsys.readouterr().out


@pytest.mark.parametrize("at", [0, 5])
def test_no_encoding_is_guessed_from_a_wrong_line_of_a_file_in_utf_8(capsys, tmp_path: Path, at: int) -> None:
    """Wherever it is: the encoding of that one line would damage all others."""
    lines = [f"ein schöner Satz {n},{'ab'[n % 2]}\n".encode("windows-1252" if n == at else "utf-8") for n in range(30)]
    (tmp_path / "t.csv").write_bytes(b"text,label\n" + b"".join(lines))
    said = refused(capsys, tmp_path / "t.csv")
    assert f"line {at + 2}: not UTF-8 (byte 0xf6), but other characters of the file are: correct this line" in said


def test_a_column_with_a_name_that_predict_needs(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(rows(), "text,error"))
    found, _ = written(capsys, tmp_path / "t.csv")
    assert found["fields"][0] == {"name": "error_label", "column": "error", "type": "class", "labels_from": "train"}


def test_empty_columns_of_a_spreadsheet(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(((*row, "", "x") for row in rows()), "text;label;;", ";"))
    found, _ = written(capsys, tmp_path / "t.csv")
    assert (found["text_column"], found["fields"][0]["name"]) == ("text", "label")
    (tmp_path / "t.toml").unlink()
    (tmp_path / "t.csv").write_text(table(((*row, "", "x") for row in rows()), "text; label;;", ";"))
    said = refused(capsys, tmp_path / "t.csv")
    assert "' label' (not looked at, as its name has spaces around it: correct the header)" in said
    assert "'' (not looked at, as its name is empty: correct the header)" in said
    (tmp_path / "t.csv").write_text("text;label;text\n" + "I like it;pos;\nIt broke;neg;\n" * 3)
    assert "column 'text' is in the header twice. Rename one of them." in refused(capsys, tmp_path / "t.csv")


def test_labels_that_cannot_be_written(capsys, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table([*rows(), *[("more words", '"a\nb"')] * 2]))
    assert "t.csv, line 27: 'label' has the label 'a\\nb', which is empty or has a line break" in refused(
        capsys, tmp_path / "t.csv", "--label", "label"
    )
    (tmp_path / "t.conll").write_text("EU\tB-ORG\t\nrejects\tO\t\n\nPeter\tB-PER\t\n")
    assert "t.conll, lines 1 to 2: 'tags' has the label ''" in refused(capsys, tmp_path / "t.conll")


def test_a_name_that_is_not_utf8(capsys, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.csv")
    file.write_text(table(rows()))
    assert "'caf\\udce9.csv': " in refused(capsys, file)


# --- from a table to a model ------------------------------------------------------------------------------------------


def test_the_commands_that_it_names_run(tmp_path: Path, tiny_tokenizer: Path) -> None:  # noqa: F811
    file = tmp_path / "it's; new.csv"
    file.write_text(
        table([(n, f'"{text}"', *more) for n, text, *more in GERMAN], "nr;meldung;art;stufe", ";"), "latin-1"
    )

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=plain_environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run(f'{sys.executable} -m data.new "{file}"').splitlines()
    checking, training, encoder = (line.strip() for line in said if line.startswith("  "))
    checked = run(checking)
    assert checked.endswith("\n1 warning\n") and "warning: no test examples: " in checked
    assert "--model smollm2_135m " in training
    tiny = training.replace("smollm2_135m", f"llama_debug --init random --checkpoint {tiny_tokenizer} --device cpu")
    tiny = tiny.split(" --output")[0] + f" --output {tmp_path}/run --steps 1 --batch_size 2 --row_length 1024"
    assert "step 1/1" in run(f"{tiny} --cache_dir {tmp_path}/cache")
    assert encoder == training.replace("smollm2_135m", "bert --checkpoint checkpoints/minilm") + "_encoder"
    assert load_config(shlex.split(encoder)[2:]).train.fit_heads
