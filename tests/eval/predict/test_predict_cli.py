"""``predict.py``: the answers of ``eval.py`` from every format, on several ranks; bad input.

The models are those of ``tests/old_files``, which were trained, so that there are answers to read.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest

from data.answers import entities
from data.errors import UserError
from data.tasks import get_task
from eval.predict import run as run_module
from eval.predict.config import load_config
from tests.eval.predict.rows import IN_FP32, OLD, PROGRAM, lines, texts_of, write_texts
from tests.launching import TICKETS, command, environment


def launch(*arguments, ranks=1, checkpoint, **options) -> subprocess.CompletedProcess:
    words = command(PROGRAM, "--checkpoint", checkpoint, *IN_FP32, *arguments, ranks=ranks)
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment(), **options)


def test_answers_that_ran_into_their_limit_are_counted(run, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("my invoice is wrong\nthe parcel is late\n")
    whole = run("--input", source, "--output", tmp_path / "whole.jsonl", "--decode", "free")
    assert whole.n_not_stopped == 0 and "limit of tokens" not in whole.describe()
    cut = run("--input", source, "--output", tmp_path / "cut.jsonl", "--max_new_tokens", 1, "--decode", "free")
    assert cut.n_not_stopped == 2 and "2 answers ran into their limit of tokens" in cut.describe()


def expected(name: str, field: str) -> list:
    """What ``eval.py`` answered."""
    return [line["parsed"][field] for line in lines(OLD / "scored" / name / "predictions.jsonl")]


def test_a_labelled_table_gets_the_answers_of_eval(run, tmp_path):
    test = TICKETS.parent / "test.csv"
    summary = run("--input", test, "--output", tmp_path / "out.csv", "--decode", "free")
    with (tmp_path / "out.csv").open(newline="") as file, test.open(newline="") as source:
        rows, before = list(csv.DictReader(file)), list(csv.DictReader(source))
    assert list(rows[0]) == [
        *before[0],
        "predicted_queue",
        "predicted_urgency",
        "predicted_truncated",
        "predicted_error",
    ]
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    for field in ("queue", "urgency"):
        assert [row[f"predicted_{field}"] or None for row in rows] == expected("tickets", field)
    n_read = sum(not row["predicted_error"] for row in rows)
    assert (summary.n_rows, summary.n_rows - summary.n_problems) == (len(before), n_read) and 0 < n_read < len(before)
    assert not (tmp_path / "out.csv.partial").exists() and not (tmp_path / "out.csv.partial.json").exists()


def test_the_tasks_template_makes_the_texts(run, tickets, tmp_path):
    shutil.copytree(tickets, tmp_path / "model")
    task = json.loads((tmp_path / "model/task.json").read_text())
    (tmp_path / "model/task.json").write_text(json.dumps(task | {"format": 2, "text_template": "{title}: {body}"}))
    (tmp_path / "in.csv").write_bytes("title;body\nmy café;invoice is wrong\nthe parcel;is late\n".encode("cp1252"))
    (tmp_path / "joined.txt").write_text("my café: invoice is wrong\nthe parcel: is late\n", encoding="utf-8")
    options = ("--delimiter", ";", "--encoding", "windows-1252")
    run("--input", tmp_path / "in.csv", "--output", tmp_path / "a.jsonl", *options, checkpoint=tmp_path / "model")
    run("--input", tmp_path / "joined.txt", "--output", tmp_path / "b.jsonl")
    made, given = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl")
    assert made[0]["title"] == "my café" and made[0]["predicted_queue"] in (
        "account",
        "billing",
        "delivery",
        "technical",
    )
    for row, same in zip(made, given, strict=True):
        assert {k: v for k, v in row.items() if "predicted" in k} == {k: v for k, v in same.items() if "predicted" in k}
    with pytest.raises(UserError, match="no column 'title'. The task makes its texts of title, body"):
        run("--input", tmp_path / "joined.txt", checkpoint=tmp_path / "model")


def test_words_are_read_as_the_task_reads_them(run, tickets, tmp_path):
    shutil.copytree(tickets, tmp_path / "model")
    task = json.loads((tmp_path / "model/task.json").read_text())
    task |= {"format": 2, "text_column": "words", "has_words": True, "conll_columns": ["id", "words"]}
    (tmp_path / "model/task.json").write_text(json.dumps(task))
    (tmp_path / "text.csv").write_text("words\nthe parcel is late\n")
    (tmp_path / "list.csv").write_text('words\n"[""the"", ""parcel"", ""is"", ""late""]"\n')
    (tmp_path / "named.csv").write_text('w\n"[""the"", ""parcel"", ""is"", ""late""]"\n')
    (tmp_path / "t.conll").write_text("1 the\n2 parcel\n3 is\n4 late\n")
    (tmp_path / "other.conll").write_text("the 1\nparcel 2\nis 3\nlate 4\n")
    inputs = [("text.csv",), ("list.csv",), ("named.csv", "--text_column", "w"), ("t.conll",),
              ("other.conll", "--conll_columns", "words", "id")]  # fmt: skip
    answers = []
    for name, *options in inputs:
        run("--input", tmp_path / name, "--output", tmp_path / f"{name}.jsonl", *options, checkpoint=tmp_path / "model")
        (line,) = lines(tmp_path / f"{name}.jsonl")
        answers.append({key: value for key, value in line.items() if "predicted" in key})
    assert answers[1:] == answers[:1] * 4


def test_a_decoder_writes_labels_and_their_probabilities(run, tmp_path):
    """By default, also for texts that it has no answer to if it writes freely."""
    test = TICKETS.parent / "test.csv"
    assert any(label is None for label in expected("tickets", "queue"))
    summary = run("--input", test, "--output", tmp_path / "out.jsonl")
    assert summary.n_rows == len(expected("tickets", "queue")) and not summary.n_problems
    for row in lines(tmp_path / "out.jsonl"):
        for field in get_task(TICKETS).fields:
            top = [row[f"predicted_{field.name}_probability"]]
            top += [other["probability"] for other in row[f"predicted_{field.name}_next"]]
            others = {other["label"] for other in row[f"predicted_{field.name}_next"]}
            assert top == sorted(top, reverse=True) and sum(top) == pytest.approx(1, abs=1e-4)
            assert others | {row[f"predicted_{field.name}"]} == set(field.labels)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_unsure_labels_are_in_a_column_of_their_own(run, tmp_path, ending):
    test, whole = TICKETS.parent / "test.csv", tmp_path / "whole.jsonl"
    run("--input", test, "--output", whole)
    output, below = tmp_path / f"out.{ending}", 0.6
    summary = run("--input", test, "--output", output, "--abstain_below", below)
    if ending == "csv":
        with output.open(newline="") as file:
            rows = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
    else:
        rows = lines(output)
    assert [name for name in rows[0] if name.startswith("predicted_queue")] == [
        "predicted_queue", "predicted_queue_probability", "predicted_queue_unsure", "predicted_queue_next",
    ]  # fmt: skip
    n_unsure = 0
    for row, before in zip(rows, lines(whole), strict=True):
        unsure = [before[f"predicted_{name}_probability"] < below for name in ("queue", "urgency")]
        n_unsure += any(unsure)
        for name, is_unsure in zip(("queue", "urgency"), unsure, strict=True):
            label = before[f"predicted_{name}"]
            expected_cells = (None, label) if is_unsure else (label, None)
            assert (row[f"predicted_{name}"], row[f"predicted_{name}_unsure"]) == expected_cells
            assert float(row[f"predicted_{name}_probability"]) == before[f"predicted_{name}_probability"]
        assert row["predicted_error"] is None
    assert 0 < n_unsure < len(rows) and summary.n_unsure == n_unsure
    assert f"{len(rows) - n_unsure} with all labels; {n_unsure} with a label that is not probable enough" in (
        summary.describe()
    )


def test_an_encoder_from_every_format(run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, labels = texts_of("joint"), expected("joint", "intent")
    write_texts(tmp_path / "in.jsonl", texts)
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(texts)])
    (tmp_path / "in.tsv").write_text("n\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    (tmp_path / "in.txt").write_text("\n".join(texts))
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), tmp_path / "in.parquet")
    first = None
    for name in ("in.jsonl", "in.csv", "in.tsv", "in.txt", "in.parquet"):
        output = tmp_path / f"{name}.out.jsonl"
        run("--input", tmp_path / name, "--output", output, checkpoint=OLD / "joint" / "export")
        rows = [{key: value for key, value in row.items() if key != "n"} for row in lines(output)]
        assert [row["text"] for row in rows] == texts and [row["predicted_intent"] for row in rows] == labels
        first = first or rows
        assert rows == first
    row = first[0]
    assert 0 < row["predicted_intent_probability"] <= 1 and len(row["predicted_intent_next"]) == 4
    for row, text, types in zip(first, texts, expected("joint", "slots"), strict=True):
        assert [e["text"] for e in row["predicted_slots"]] == [
            " ".join(text.split()[start:end]) for _, start, end in entities(types, "Other")
        ]
    assert any(row["predicted_slots"] for row in first), "there are entities"


@pytest.mark.parametrize("name", ["tickets", "joint"])
def test_two_ranks_write_what_one_process_writes(tickets, tmp_path, name):
    checkpoint = tickets if name == "tickets" else OLD / "joint" / "export"
    texts = texts_of(name)
    texts[3:3] = ["", "one more text"]
    write_texts(tmp_path / "in.jsonl", texts)
    for ranks in (1, 2):
        done = launch("--input", tmp_path / "in.jsonl", "--output", tmp_path / f"{ranks}.jsonl", ranks=ranks,
                      checkpoint=checkpoint)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"{len(texts)} rows" in done.stderr and done.stdout == ""
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()
    assert [row["n"] for row in lines(tmp_path / "1.jsonl")] == list(range(len(texts)))


def test_a_model_split_over_two_ranks(divisible_checkpoint, tmp_path):
    write_texts(tmp_path / "in.jsonl", texts_of("tickets"))
    options = (
        "--task",
        "massive_intent",
        "--input",
        tmp_path / "in.jsonl",
        "--row_length",
        2048,
        "--max_new_tokens",
        5,
        "--decode",
        "free",
    )
    for ranks in (1, 2):
        done = launch(*options, "--output", tmp_path / f"{ranks}.jsonl", "--tp", ranks, ranks=ranks,
                      checkpoint=divisible_checkpoint)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()
    assert "could be read from the answer" in lines(tmp_path / "1.jsonl")[0]["predicted_error"]


def test_standard_input_and_output(tickets):
    texts = texts_of("tickets")
    done = launch("--input", "-", checkpoint=tickets, input="\n".join(texts))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts and rows[0]["predicted_queue"] == expected("tickets", "queue")[0]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_all_problems_with_the_options_are_reported_together():
    with pytest.raises(UserError) as error:
        load_config("--task massive_intnt --tp 0 --outptu x".split())
    for part in ("no --checkpoint", "no --input", "massive_intent", "tp = 0", "Did you mean '--output'"):
        assert part in str(error.value), part


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "{folder}/none.csv"), "no such file"),
        (("--input", "{folder}/in.jsonl", "--abstain_below", "2"), "abstain_below = 2.0: must be above 0 and at most"),
        (("--input", "{folder}/in.jsonl", "--abstain_below", ".5", "--decode", "free"), "Give --decode labels"),
        (("--input", "{folder}"), "this is a folder"),
        (("--input", "{folder}/empty.csv"), "no records"),
        (("--input", "{folder}/in.jsonl", "--text_column", "txt"), "no column 'txt'. Did you mean 'text'"),
        (("--input", "{folder}/in.jsonl", "--output", "{folder}/there.csv"), "there.csv"),
        (("--input", "{folder}/in.jsonl", "--output", "{folder}/no/out.csv"), "no/out.csv|no such folder|/no"),
        (("--input", "{folder}/in.jsonl", "--output", "{folder}/out.txt"), "'.txt' is not one of .jsonl, .csv"),
        (("--input", "{folder}/in.jsonl", "--prefix", "", "--output", "{folder}/out.csv"), None),
        (
            ("--input", "{folder}/old.jsonl", "--output", "{folder}/out.csv"),
            "already has a column 'predicted_queue'",
        ),
    ],
)
def test_what_cannot_be_used_is_named_before_any_work(run, monkeypatch, tmp_path, arguments, message):
    write_texts(tmp_path / "in.jsonl", ["a text"])
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "there.csv").write_text("x")
    (tmp_path / "old.jsonl").write_text('{"text": "a", "predicted_queue": "x"}\n')
    words = [word.format(folder=tmp_path) for word in arguments]
    if message is None:
        assert run(*words).n_rows == 1 and "queue" in (tmp_path / "out.csv").read_text()
        return
    monkeypatch.setattr(run_module, "build_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=message):
        run(*words)
    assert (tmp_path / "there.csv").read_text() == "x" and not (tmp_path / "out.csv.partial").exists()


def test_a_bad_line_in_the_middle_costs_the_others_nothing(tickets, tmp_path):
    good = [json.dumps({"text": text}) for text in texts_of("tickets")[:4]]
    (tmp_path / "in.jsonl").write_text("\n".join([*good[:2], "{not json", '{"text": 7}', '{"text": ""}', *good[2:]]))
    done = launch(
        "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--decode", "free", checkpoint=tickets
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 of the input's records could not be read" in done.stderr and "line 3: not JSON" in done.stderr
    rows = lines(tmp_path / "out.jsonl")
    assert len(rows) == 7 and [rows[i]["predicted_queue"] for i in (0, 1, 5, 6)] == expected("tickets", "queue")[:4]
    assert "not JSON" in rows[2]["predicted_error"] and "text" not in rows[2]
    assert "not a string" in rows[3]["predicted_error"] and rows[4]["predicted_error"] == "the text is empty"


def test_words_that_could_not_be_read_count(run, tmp_path):
    """Empty ones were read."""
    empty = ['{"tokens": ["to", "Rome"]}', '{"tokens": []}', '{"tokens": null}', '{"tokens": ""}']
    wrong = ['{"tokens": ["x", 5]}', '{"tokens": {"a": 1}}', '{"toke": ["x"]}', "[1]"]
    (tmp_path / "in.jsonl").write_text("\n".join(empty + wrong))
    summary = run("--input", tmp_path / "in.jsonl", "--text_column", "tokens", "--output", tmp_path / "out.jsonl",
                  checkpoint=OLD / "joint" / "export")  # fmt: skip
    assert (summary.n_rows, summary.n_problems, summary.n_unreadable) == (8, 7, 4)


def test_standard_input_that_ends_in_the_middle_of_a_line(tickets):
    text = json.dumps({"text": texts_of("tickets")[0]}) + '\n{"text": "the writer di'
    done = launch("--input", "-", "--format", "jsonl", checkpoint=tickets, input=text)
    assert done.returncode == 2 and "cut off" in done.stderr
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["predicted_queue"] == expected("tickets", "queue")[0] and second["predicted_queue"] is None


def test_it_is_imported_from_anywhere(tickets, tmp_path):
    code = "import sys; from predict import Classifier, Entity, Label, Result\n"
    code += "print(Classifier.load(sys.argv[1]).task.name)"
    done = subprocess.run([sys.executable, "-c", code, str(tickets)], capture_output=True, text=True, cwd=tmp_path,
                          env=environment())  # fmt: skip
    assert done.stdout == "tickets\n", done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_reader_that_wants_no_more(tickets, tmp_path, ranks):
    write_texts(tmp_path / "in.jsonl", texts_of("tickets") * 300)
    words = command(PROGRAM, "--checkpoint", tickets, *IN_FP32, "--input", tmp_path / "in.jsonl", ranks=ranks)
    script = 'set -o pipefail; "$@" | head -n 1'
    done = subprocess.run(["bash", "-c", script, "-", *words], capture_output=True, text=True, env=environment(),
                          timeout=120)  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr and len(done.stdout.splitlines()) == 1
