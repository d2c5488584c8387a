"""``python -m data.check``: what spoils training or scoring is an error, with the first examples; else a warning."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_tools.architectures import ARCHITECTURES
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.llama_heads import FRAME
from data import findings, token_counts
from data.check import main
from data.example import Example
from data.findings import Finding, facts_of
from data.source import load_examples, splits_of
from data.tasks import TASKS, ClassField, Task, TokenField
from eval.weights import Weights, trained_length
from tests.encoder_tokenizers import write_bert, write_roberta
from tests.launching import ROOT
from tests.screen import in_terminal, plain_environment
from train.config import TrainConfig
from train.training_data import longest_input

SAMPLE = ROOT / "data" / "sample" / "tickets"
FIELD = '[[fields]]\nname = "q"\ntype = "class"\n'
NO_TEST = "no test examples: "  # most tables here have train alone
GOOD = [(f"text number {n}", "ab"[n % 2]) for n in range(12)]


def write(folder: Path, labels: str = 'labels = ["a", "b"]', top: str = "", **splits: list[tuple[str, str]]) -> Path:
    for split, rows in splits.items():
        lines = [f'"{text}",{label}' for text, label in rows]
        (folder / f"{split}.csv").write_text("\n".join(["text,q", *lines]) + "\n", encoding="utf-8")
    files = "".join(f'{split} = "{split}.csv"\n' for split in splits)
    (folder / "t.toml").write_text(f'name = "t"\n{top}\n[files]\n{files}{FIELD}{labels}\n', encoding="utf-8")
    return folder / "t.toml"


def checked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The status, and what is printed."""
    status = main([str(word) for word in words])
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def lines(shown: str, kind: str) -> list[str]:
    """The findings about the texts that there are."""
    found = [line.removeprefix(f"{kind}: ") for line in shown.splitlines() if line.startswith(kind)]
    return [line for line in found if not line.startswith(NO_TEST)]


def one(shown: str, kind: str) -> str:
    (line,) = lines(shown, kind)
    return line


def of_task(task: Task, **splits: list[tuple[str, object]]) -> list[Finding]:
    """The findings about examples of a task with one field."""
    found = []
    for split, rows in splits.items():
        examples = [
            Example(f"{split}/{i}", text, {task.fields[0].name: label})  # type: ignore[dict-item]
            for i, (text, label) in enumerate(rows)
        ]
        found.append(facts_of(split, examples, task))
    return findings.findings(found, task)


# --- what is found ----------------------------------------------------------------------------------------------------


def test_nothing_is_found_in_the_sample(capsys) -> None:
    status, shown = checked(capsys, SAMPLE / "tickets.toml")
    assert status == 0 and shown.endswith("nothing found\n") and "500 examples" in shown
    assert "│ billing" in shown and "100 ( 25.0%)" in shown and "222 ( 55.5%)" in shown


@pytest.mark.parametrize("name", TASKS)
def test_built_in_tasks(capsys, name: str) -> None:
    status, shown = checked(capsys, name, "--data", "sample")
    assert status == 0 and not lines(shown, "error")
    for split in splits_of(TASKS[name]):
        assert f" {split} " in shown and f" {len(load_examples(TASKS[name], split, 'sample')):,} " in shown


def test_no_examples_to_score_on(capsys, tmp_path: Path) -> None:
    path = write(tmp_path, train=GOOD)
    status, shown = checked(capsys, path)
    assert status == 0 and shown.endswith("\n1 warning\n")
    assert f"warning: {NO_TEST}" in shown and f"write test = 0.2 below [split] in {path}." in shown
    assert NO_TEST not in checked(capsys, write(tmp_path, train=GOOD, dev=[("x", "a")]))[1]
    assert NO_TEST not in checked(capsys, write(tmp_path, train=GOOD, test=[("x", "a")]))[1]
    path.write_text(write(tmp_path, train=GOOD).read_text() + "[split]\ntest = 0.2\n")
    status, shown = checked(capsys, path)
    assert status == 0 and NO_TEST not in shown and "test " in shown


def test_equal_texts_with_different_labels(capsys, tmp_path: Path) -> None:
    rows = [*GOOD, ("same  text", "a"), ("same text", "b"), ("same text", "a")]
    status, shown = checked(capsys, write(tmp_path, train=rows))
    found = one(shown, "error")
    assert status == 1 and "t/train/14 ('a') and t/train/15 ('b')" in found
    assert found.startswith("1 text has different labels of q in 3 examples")
    # In two splits, and the examples of the first findings are those that are first in the files.
    rows = [(f"text number {n}", "ba"[n % 2]) for n in range(12)]
    _, shown = checked(capsys, write(tmp_path, train=GOOD, test=rows))
    assert lines(shown, "error")[0].startswith(
        "12 texts have different labels of q in 24 examples: t/train/2 ('a') and t/test/2 ('b'); t/train/3 ('b') and "
    )
    assert "(7 more)" in lines(shown, "error")[0]


def test_only_the_field_that_differs_is_named() -> None:
    task = Task("t", "custom", (ClassField("p", ("x", "y")), ClassField("q", ("a", "b"))))
    examples = [Example(str(i), "same", {"p": "x", "q": label}) for i, label in enumerate("aba")]
    found = [f for f in findings.findings([facts_of("train", examples, task)], task) if f.is_error]
    assert len(found) == 1 and "different labels of q in 3 examples: 0 ('a') and 1 ('b')" in found[0].text


def test_texts_in_two_splits(capsys, tmp_path: Path) -> None:
    test = [*GOOD[:2], *((f"other {text}", label) for text, label in GOOD)]
    status, shown = checked(capsys, write(tmp_path, train=GOOD, test=test))
    found = one(shown, "error")
    assert status == 1 and found.startswith("2 test texts are also in train (14.3% of test): t/test/2 (= t/train/2), ")
    assert "the text's column as its group keeps equal texts together" in found
    # Of dev and test: the score on test is right.
    dev = [test[-1], ("only dev", "b")]
    path = write(tmp_path, train=GOOD, dev=dev, test=test[2:])
    status, shown = checked(capsys, path)
    assert status == 0 and "1 test text is also in dev (8.3% of test): t/test/13 (= t/dev/2)" in shown


def test_repeated_texts(capsys, tmp_path: Path) -> None:
    status, shown = checked(capsys, write(tmp_path, train=[*GOOD, GOOD[0], GOOD[0]]))
    assert status == 0
    assert (
        one(shown, "warning")
        == "2 train texts repeat an earlier one: t/train/14 (= t/train/2), t/train/15 (= t/train/2)."
    )
    assert "│ different texts " in shown and "12 │" in shown


def test_labels_in_one_split_only(capsys, tmp_path: Path) -> None:
    test = [("x", "a"), ("y", "c")]
    status, shown = checked(capsys, write(tmp_path, 'labels = ["a", "b", "c", "d"]', train=GOOD, test=test))
    assert status == 1 and one(shown, "error").startswith("test has the q label 'c' (1 in all) and train has not")
    unused, untested = lines(shown, "warning")
    assert unused == "no example has the q label 'd'." and untested.startswith("test does not have the q label 'b'")
    assert "│ d " not in shown


def test_a_field_that_is_called_label() -> None:
    train = [(f"text {n}", "a") for n in range(40)] + [("text", "b")]
    test = [("other 1", "c"), ("other 2", "a")]
    task = Task("t", "custom", (ClassField("label", tuple("abcde")),))
    assert {f.text for f in of_task(task, train=train, test=test)} == {
        "test has the label 'c' (1 in all) and train has not: a model cannot learn them.",
        "no example has 2 labels: 'd', 'e'.",
        "test does not have the label 'b': scores do not say how these are learnt.",
        "fewer than 5 times in train: the label 'b'.",
        "97.6% of the train texts have the label 'a': to answer it always is right as often.",
    }


def test_a_wrong_separator_is_said_of_a_table(capsys, tmp_path: Path) -> None:
    rows = [*GOOD, *((f"more {text}", "a;b") for text, _ in GOOD)]
    path = write(tmp_path, 'labels_from = "train"\nseparator = "|"', train=rows)
    path.write_text(path.read_text().replace('"class"', '"multi"'))
    status, shown = checked(capsys, path)
    assert status == 0 and one(shown, "warning") == (
        "the q label 'a;b' seems to be several labels with ';' between them: set separator = \";\" in the field."
    )


def test_rare_labels_and_one_that_nearly_all_have(capsys, tmp_path: Path) -> None:
    rows = [(f"text {n}", "b" if n < 4 else "a") for n in range(50)]
    status, shown = checked(capsys, write(tmp_path, train=rows))
    rare, most = lines(shown, "warning")
    assert status == 0 and rare == "fewer than 5 times in train: the q label 'b'."
    assert most.startswith("92.0% of the train texts have the q label 'a'")


def test_blank_and_long_texts(capsys, tmp_path: Path) -> None:
    rows = [*GOOD, ("?!", "a"), ("x" * 70_000, "b")]
    status, shown = checked(capsys, write(tmp_path, train=rows))
    blank, long = lines(shown, "warning")
    assert status == 0 and blank == "1 train text is without a letter or digit: t/train/14."
    assert long.startswith("1 train example is longer than 65,536 characters (7.1% of train): t/train/15 (70,000).")


def test_what_the_readers_warn_of_is_in_the_report_once(capsys, tmp_path: Path) -> None:
    rows = [*GOOD, *((f"more {text}", label.upper()) for text, label in GOOD)]
    status, shown = checked(capsys, write(tmp_path, 'labels_from = "train"', train=rows, test=rows[:0] or [("x", "a")]))
    alike = [line for line in lines(shown, "warning") if "differ only in case" in line]
    assert status == 0 and len(alike) == 2 and all("[[fields]] number 1" in line for line in alike)  # a and A, b and B
    status, shown = checked(capsys, write(tmp_path, 'labels = ["a", "b", "c"]', train=GOOD))
    assert one(shown, "warning") == "no example has the q label 'c'."
    _, shown = checked(capsys, write(tmp_path, top='missing = "skip"', train=[*GOOD, ("no label", "")]))
    assert "skipped" in one(shown, "warning")


def test_spans_that_are_extended_are_a_note(capsys, tmp_path: Path) -> None:
    rows = [{"text": f"to Rome, {n} now", "marks": [[3, 7, "city"]], "n": n} for n in range(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    field = 'name = "marks"\ntype = "token"\ntags = "spans"\nlabels = ["city"]'
    for name in ("train", "test"):
        (tmp_path / "t.toml").write_text(f'name = "t"\n[files]\n{name} = "t.jsonl"\n[[fields]]\n{field}\n')
        status, shown = checked(capsys, tmp_path / "t.toml")
        note = f"t {name}, 'marks': 6 of 6 spans end beside punctuation within a word, as in 'Paris,'; a model labels"
        assert (
            status == 0
            and one(shown, "note").startswith(note)
            and "punctuation" not in "".join(lines(shown, "warning"))
        )


def test_half_a_character_in_a_label(capsys, tmp_path: Path) -> None:
    path = write(tmp_path, 'labels_from = "train"', train=GOOD)
    path.write_text(path.read_text().replace("train.csv", "train.jsonl"))
    records = [json.dumps({"text": text, "q": label + "\ud800"}) for text, label in GOOD]
    (tmp_path / "train.jsonl").write_text("\n".join(records) + "\n")
    status, shown = checked(capsys, path)
    assert status == 2 and "label 'a\\ud800' holds half a character" in shown


def test_word_labels() -> None:
    task = Task("t", "custom", (TokenField("slots", ("city", "day"), "Other"),))
    rows = [("to Bonn", ("Other", "city")), ("to Bonn", ("Other", "Other"))]
    conflict, *others = of_task(task, train=rows)
    assert conflict.is_error and "train/0 (other labels) and train/1 (other labels)" not in conflict.text
    assert "slots in 2 examples: train/0 and train/1" in conflict.text
    assert not any(finding.is_error for finding in others)


def test_a_field_with_any_number_of_labels() -> None:
    """As `MultiField` will be: the labels of an example are a tuple, which may be empty."""

    class Any:
        name, labels = "topics", ("a", "b")

    task = Task("t", "custom", (Any(),))  # type: ignore[arg-type]
    assert {f.text for f in of_task(task, train=[("x", ()), ("y", ())])} == {
        "no example has 2 topics labels: 'a', 'b'."
    }
    found = of_task(task, train=[("x", ("a",)), ("x", ("a", "b"))], test=[("y", ())])
    assert [f.is_error for f in found][:2] == [True, False] and "different labels of topics" in found[0].text


# --- with a tokenizer -------------------------------------------------------------------------------------------------


@pytest.fixture
def normalizing(tiny_folder: dict[str, Path], tmp_path: Path) -> Path:
    """A decoder's tokenizer that makes letters small."""
    folder = Path(shutil.copytree(tiny_folder["json"], tmp_path / "normalizing"))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def test_labels_that_the_tokenizer_cannot_write(capsys, tmp_path: Path, normalizing: Path) -> None:
    rows = [(f"text {n}", ("Tea", "milk", "Wine")[n % 3]) for n in range(18)]
    path = write(tmp_path, 'labels_from = "train"', train=rows)
    status, shown = checked(capsys, path, "--checkpoint", normalizing, "--row_length", "4096")
    found = one(shown, "error")
    assert status == 1 and "cannot write 2 of the q labels" in found
    assert "'Tea' becomes 'tea'" in found and "'Wine' becomes 'wine'" in found and "milk" not in found


def test_tokens_of_a_decoder_are_those_of_training(capsys, tiny_folder: dict[str, Path]) -> None:
    from data.decoder.prompts import build_prompt
    from data.decoder.samples import prepare
    from data.decoder.templates import template_for
    from data.decoder.tokenizer import load_tokenizer

    task = TASKS["20ng_joint"]
    tokenizer = load_tokenizer(tiny_folder["json"])
    examples = load_examples(task, "train", "sample")
    whole = prepare(examples, task, build_prompt(task, template_for(tokenizer)), tokenizer, 100_000)
    lengths = (len(whole.prefix) + whole.lengths).tolist()
    counter = token_counts.open_counter(tiny_folder["json"], task, max(lengths) - 10)
    assert counter.count(examples, "train").tolist() == lengths

    n_cut = sum(length > max(lengths) - 10 for length in lengths)
    words = ["20ng_joint", "--data", "sample", "--checkpoint", tiny_folder["json"]]
    status, shown = checked(capsys, *words, "--row_length", max(lengths) - 10)
    assert status == 0 and f"cut to {max(lengths) - 10:,} tokens" in shown
    assert f"more than {max(lengths) - 10:,}, cut" in shown and f" {max(lengths):,} │" in shown
    assert f" {n_cut} │" in next(line for line in shown.splitlines() if ", cut" in line)
    status, shown = checked(capsys, *words, "--row_length", "100")
    assert status == 1 and "training would stop: A row of 100 tokens is too short" in one(shown, "error")


def test_many_examples_are_counted_in_parts(monkeypatch, tiny_folder: dict[str, Path]) -> None:
    task = TASKS["massive_joint"]
    examples = load_examples(task, "train", "sample")
    whole = token_counts.open_counter(tiny_folder["json"], task, 100_000).count(examples, "train")
    monkeypatch.setattr(token_counts, "CHUNK", 7)
    parts = token_counts.open_counter(tiny_folder["json"], task, 100_000).count(examples, "train")
    assert len(examples) > 7 and parts.tolist() == whole.tolist()


def test_tokens_of_an_encoder(capsys, tiny_bert: Path) -> None:
    from data.encoder.samples import prepare
    from data.encoder.tokenizer import load_tokenizer

    for name in ("20ng_20", "massive_slots"):
        examples = load_examples(TASKS[name], "train", "sample")
        whole = prepare(examples, TASKS[name], load_tokenizer(tiny_bert), 100_000)
        assert (
            token_counts.open_counter(tiny_bert, TASKS[name], None).count(examples, "").tolist()
            == whole.lengths.tolist()
        )
    status, shown = checked(capsys, "20ng_20", "--data", "sample", "--checkpoint", tiny_bert, "--row_length", "40")
    assert status == 0 and "80 train examples are cut to 40 tokens (100.0% of train)" in shown


ENCODER = dict(hidden_size=4, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=999)
HEADS = {"head": "linear", "fields": [{"name": "a", "kind": "class", "labels": ["x", "y"]}]}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"model_type": "bert"}, 512),
        ({"model_type": "bert", "max_position_embeddings": 100}, 100),
        ({"model_type": "bert", "heads": HEADS | {"max_length": 77}}, 77),
        ({"model_type": "roberta", "max_position_embeddings": 102}, 100),
        ({"model_type": "roberta"}, 510),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "llama", "heads": HEADS | {"max_length": 777, "frame": FRAME}}, 777),
        ({"model_type": "llama", "heads": HEADS | {"frame": FRAME}, "max_position_embeddings": 600}, 600),
        ({"model_type": "llama", "heads": HEADS | {"frame": FRAME}}, 2048),
    ],
)
def test_texts_are_cut_where_training_and_scoring_cut_them(
    capsys, tmp_path: Path, tiny_folder: dict[str, Path], config: dict[str, object], longest: int
) -> None:
    """Of a model with heads: as `eval.py` has it, which without a stored length is as in training."""
    folder = {
        "bert": lambda: write_bert(tmp_path, ["some words of a text"] * 9),
        "roberta": lambda: write_roberta(tmp_path, ["some words of a text"] * 9)["files"],
        "llama": lambda: shutil.copytree(tiny_folder["json"], tmp_path / "llama"),
    }[str(config["model_type"])]()
    (folder / "config.json").write_text(json.dumps(ENCODER | config))
    model = read_config(folder)
    assert longest == trained_length(Weights(folder, folder, False), model), "where eval.py cuts"
    assert model.heads or longest == longest_input(TrainConfig(), model), "where train.py cuts"
    _, shown = checked(capsys, "20ng_7", "--data", "sample", "--checkpoint", folder)
    assert f"more than {longest:,}, cut" in shown


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    write_bert(folder, ["some words of a text and a label"] * 9)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def test_the_encoders_are_those_of_the_registry() -> None:
    heads = {name for name, own in ARCHITECTURES.items() if own.kind == "encoder"}
    assert set(token_counts.ENCODERS) == {name for name in heads if not ARCHITECTURES[name].starts_from}


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such.toml"], "no task file"),
        (["no_such"], "Unknown task 'no_such'"),
        (["20ng_20", "--data", "nowhere"], "nowhere"),
        ([SAMPLE / "tickets.toml", "--data", "sample"], "Omit --data"),
        ([SAMPLE / "tickets.toml", "--checkpoint", "nowhere"], "--checkpoint: there is no folder nowhere"),
        ([SAMPLE / "tickets.toml", "--checkpoint", SAMPLE], "No tokenizer in"),
        ([SAMPLE / "tickets.toml", "--row_length", "9"], "--row_length 9 is for --checkpoint"),
        ([SAMPLE / "tickets.toml", "--checkpoint", SAMPLE, "--row_length", "0"], "--row_length 0"),
    ],
    ids=str,
)
def test_what_cannot_be_read(capsys, words: list[object], message: str) -> None:
    status, shown = checked(capsys, *words)
    assert status == 2 and message in one(shown, "error")


def test_the_problems_of_all_splits_are_named(capsys, tmp_path: Path) -> None:
    path = write(tmp_path, train=[*GOOD, ("x", "c")], test=[("y", "")])
    status, shown = checked(capsys, path)
    assert (
        status == 2 and "train.csv, line 14" in shown and "test.csv, line 2" in shown and "examples, read" not in shown
    )


# --- on a screen, in a pipe -------------------------------------------------------------------------------------------


def test_odd_names_on_any_stream(tmp_path: Path) -> None:
    rows = [(f"text {n}", ("[wet]", "[/dry]")[n % 2]) for n in range(18)]
    path = write(tmp_path, 'labels = ["[wet]", "[/dry]", "\U0001f327"]', train=rows)
    words = [sys.executable, "-m", "data.check", str(path)]
    env = plain_environment(PYTHONIOENCODING="ascii:strict")
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, timeout=100)
    shown = done.stdout.decode("ascii")
    assert done.returncode == 0 and not done.stderr and "\x1b" not in shown
    assert "[/dry]" in shown and "no example has the q label '\\U0001f327'" in shown
    screen = in_terminal(words, columns=60)
    assert screen.status == 0 and any("[/dry]" in line and "│" in line for line in screen.lines)


def test_long_work_shows_its_progress(monkeypatch, capsys, tmp_path: Path, tiny_folder: dict[str, Path]) -> None:
    monkeypatch.setattr("data.progress.LOG_INTERVAL", 0.0)
    path = write(tmp_path, train=[(f"text {n}", "ab"[n % 2]) for n in range(2000)])
    assert main([str(path), "--checkpoint", str(tiny_folder["json"]), "--row_length", "4096"]) == 0
    shown = capsys.readouterr()
    assert "tokenizing train: 1,000 of 2,000" in shown.err and "tokenizing" not in shown.out
    assert "2,000 examples, read in" in shown.out
