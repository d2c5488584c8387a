"""Prepared samples: tokenized by sections, only documents truncated, cached by content, once for all processes."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import progress
from data.decoder import samples as prepare_module
from data.decoder.prompts import build_prompt
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import Prompt, Special, Text
from data.errors import UserError
from data.example import Example
from data.tasks import TASKS, ClassField
from tests.screen import Screen

TASK = TASKS["20ng_7"]
PROMPT = Prompt(
    prefix=(Special("bos"), Text("Classify this:\n")),
    suffix=(Text("\nLabel:"),),
    end=(Special("eos"),),
    lead=" ",
)


class ByteTokenizer:
    """One token per byte, two special ones; counts what it is asked to encode."""

    vocab_size, bos_id, eos_id = 258, 256, 257
    special = {"<s>": 256, "</s>": 257}
    chat_template = ""

    def __init__(self, fingerprint: str = "bytes") -> None:
        self.fingerprint = fingerprint
        self.n_calls = 0

    def encode(self, text: str) -> list[int]:
        self.n_calls += 1
        return list(text.encode())

    def decode(self, ids) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def save(self, folder: Path) -> None: ...


def make_examples(lengths: list[int]) -> list[Example]:
    roots = TASK.fields[0].labels
    return [
        Example(f"x/{i}", "".join(random.Random(i).choices("abc d", k=n)), {"root": roots[i % len(roots)]})
        for i, n in enumerate(lengths)
    ]


def run(examples: list[Example], max_length: int = 200, **options) -> SampleSet:
    options = {"task": TASK, "prompt": PROMPT, "tokenizer": ByteTokenizer(), **options}
    return prepare(examples, max_length=max_length, **options)


def assert_same(a: SampleSet, b: SampleSet) -> None:
    assert a.ids == b.ids
    assert a.label_weights is b.label_weights is None
    for field in dataclasses.fields(SampleSet):
        if field.name not in ("ids", "label_weights"):
            assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name
            assert getattr(a, field.name).dtype == getattr(b, field.name).dtype, field.name


# --------------------------------------------------------------------------------------------------------- samples


def test_sections_are_tokenized_one_by_one_and_laid_end_to_end():
    examples = make_examples([10, 0, 60])
    samples = run(examples)
    assert samples.prefix.tolist() == [256, *b"Classify this:\n"]
    assert samples.ids == ["x/0", "x/1", "x/2"] and len(samples) == 3
    for i, example in enumerate(examples):
        assert bytes(samples.body(i).tolist()) == example.text.encode() + b"\nLabel:"
        assert samples.label(i).tolist() == [*(" " + example.labels["root"]).encode(), 257]
        assert samples.length(i) == len(samples.body(i)) + len(samples.label(i)) == samples.cost(i) + 1
    assert not samples.truncated.any()
    assert samples.document_tokens.tolist() == [10, 0, 60]


def test_only_the_end_of_the_document_is_cut():
    examples = make_examples([45_931, 130, 129, 0])
    whole = run(examples, max_length=100_000)
    assert not whole.truncated.any() and whole.length(0) > 45_931
    samples = run(examples, max_length=len(whole.prefix) + int(whole.lengths[2]))
    assert samples.truncated.tolist() == [True, True, False, False]
    assert samples.document_tokens.tolist() == [45_931, 130, 129, 0], "the length before the cut is kept"
    for i, example in enumerate(examples):
        kept = len(samples.body(i)) - len("\nLabel:")
        assert bytes(samples.body(i).tolist()) == example.text[:kept].encode() + b"\nLabel:"
        assert samples.label(i).tolist() == whole.label(i).tolist()
        total = len(samples.prefix) + samples.length(i)
        assert total == len(samples.prefix) + whole.lengths[2] if samples.truncated[i] else True
        assert total <= len(samples.prefix) + whole.lengths[2]


def test_scoring_reserves_tokens_for_the_answer_and_needs_no_labels():
    examples = [Example("a", "x" * 500, {}), Example("b", "short", {})]
    samples = run(examples, max_length=110, with_labels=False, max_new_tokens=40)
    assert len(samples.prefix) + len(samples.body(0)) + 40 == 110
    assert samples.truncated.tolist() == [True, False]
    assert samples.label_lengths.tolist() == [0, 0]
    assert samples.costs.tolist() == samples.lengths.tolist()


def test_an_examples_truncation_depends_on_no_other_example():
    documents = [Example("a", "x" * 60, {}), Example("b", "y" * 60, {}), Example("c", "z" * 500, {})]
    budgets = [10, 70, 4000]  # the second must share its 97 tokens, the third does not fit any row
    together = run(documents, max_length=120, with_labels=False, max_new_tokens=budgets)
    for i, (document, budget) in enumerate(zip(documents, budgets, strict=True)):
        if budget < 97:
            alone = run([document], max_length=120, with_labels=False, max_new_tokens=budget)
            assert alone.body(0).tolist() == together.body(i).tolist()
    kept = together.lengths - len(b"\nLabel:")
    assert kept.tolist() == [60, 48, 48], "a document keeps half of the budget that it shares with its answer"
    with pytest.raises(UserError, match=r"\(max_new_tokens\) 4,000"):
        run(documents[2:], max_length=120, with_labels=False, max_new_tokens=budgets[2:])


def test_no_examples_at_all():
    samples = run([])
    assert len(samples) == 0 and samples.statistics()["n_samples"] == 0
    assert "0 samples" in samples.describe()


def test_statistics_and_counts():
    examples = make_examples(list(range(1, 101)))
    samples = run(examples, max_length=90)
    s = samples.statistics()
    assert s["document"] == {"mean": 50.5, "median": 50.5, "p99": pytest.approx(99.01), "max": 100.0}
    assert s["n_truncated"] == samples.truncated.sum() > 10
    assert samples.count_longer_than(90) == 0 and samples.count_longer_than(0) == 100
    brute = sum(len(samples.prefix) + len(samples.body(i)) + len(samples.label(i)) > 70 for i in range(100))
    assert 0 < samples.count_longer_than(70) == brute < 100
    assert f"{s['n_truncated']} truncated" in samples.describe()


# ---------------------------------------------------------------------------------------------------------- errors


def test_row_shorter_than_prompt_and_label_names_the_figures():
    examples = make_examples([3, 3])
    n_label = 1 + max(len(e.labels["root"]) for e in examples) + 1
    needed = 16 + 7 + n_label + 1
    with pytest.raises(UserError) as error:
        run(examples, max_length=needed - 1)
    message = str(error.value)
    assert f"A row of {needed - 1} tokens" in message and "has 16;" in message
    assert "after it 7;" in message and f"longest label {n_label};" in message
    advised = 16 + 7 + 3 + n_label
    assert f"Give --row_length {advised} or more, which cuts at most one in ten documents." in message
    assert run(examples, max_length=needed).lengths.max() + 16 == needed
    assert not run(examples, max_length=advised).truncated.any()  # what the message proposes works


def advised(message: str) -> list[int]:
    """The rows that a message proposes."""
    return [int(n.replace(",", "")) for n in re.findall(r"--row_length ([\d,]+)", message)]


@pytest.mark.parametrize("labelled", [True, False])
def test_the_proposed_row_cuts_few_documents(labelled: bool):
    examples = make_examples([*range(1, 91), *[5000] * 10])
    how = {} if labelled else {"with_labels": False, "max_new_tokens": [30 + i % 7 for i in range(100)]}
    with pytest.raises(UserError) as error:
        run(examples, max_length=20, **how)
    (row,) = advised(str(error.value))
    assert run(examples, max_length=row, **how).truncated.sum() == 10


def test_with_more_labels_than_the_row_holds_the_first_advice_is_to_list_none():
    field = ClassField("kind", tuple(f"kind {n} of 2000" for n in range(2000)))
    task = dataclasses.replace(TASK, fields=(field,))
    examples = [Example(f"x/{i}", "d" * 60, {"kind": field.labels[i]}) for i in range(20)]
    listed, bare = build_prompt(task, "plain"), build_prompt(task, "plain", list_labels=False)

    def refusal(row: int, **how) -> str:
        with pytest.raises(UserError) as error:
            prepare(examples, task, listed, ByteTokenizer(), row, **how)
        return str(error.value)

    message = refusal(1000)
    n_lists = len(", ".join(map(repr, field.labels)))
    assert f"of which the lists of labels {n_lists:,}; " in message
    assert "Give --list_labels off (fine-tuning teaches the labels); or --row_length " in message
    assert not prepare(examples, task, bare, ByteTokenizer(), 1000).truncated.any()
    (row,) = advised(message)
    assert not prepare(examples, task, listed, ByteTokenizer(), row).truncated.any()

    shorter, longer = advised(refusal(100))
    assert f"Give --list_labels off with --row_length {shorter} or more (fine-tuning" in refusal(100) and longer == row
    assert not prepare(examples, task, bare, ByteTokenizer(), shorter).truncated.any()
    scored = refusal(1000, with_labels=False, max_new_tokens=20)
    assert "Give --list_labels off (for a model that is fine-tuned so); or" in scored
    assert "; or a smaller --max_new_tokens." in scored and "--max_new_tokens" not in refusal(1000)


def test_lists_that_are_not_the_cause_are_not_to_be_left_out():
    with pytest.raises(UserError) as error:
        run(make_examples([400]), max_length=60, prompt=build_prompt(TASK, "plain"))
    assert "the lists of labels 50" in str(error.value) and "list_labels off" not in str(error.value)
    with pytest.raises(UserError) as error:
        run(make_examples([400]), max_length=60, prompt=build_prompt(TASK, "plain", list_labels=False))
    assert "list" not in str(error.value)


def test_few_shot_examples_longer_than_the_row_are_named():
    shots = make_examples([400, 400])
    task_prompt = build_prompt(TASK, "plain", shots)
    with pytest.raises(UserError, match=r"labels 50 and few-shot examples 9\d\d;.*\(--shots and --shot_tokens of"):
        run(make_examples([5]), max_length=700, prompt=task_prompt)


def test_label_outside_the_label_set():
    with pytest.raises(UserError, match="x/9.*'nonsense'"):
        run([Example("x/9", "text", {"root": "nonsense"})])


# ----------------------------------------------------------------------------------------------------------- cache


def test_second_time_is_read_from_the_cache(tmp_path: Path):
    examples = make_examples([5, 50, 500, 0])
    tokenizer = ByteTokenizer()
    first = run(examples, tokenizer=tokenizer, cache_dir=tmp_path)
    calls = tokenizer.n_calls
    again = run(examples, tokenizer=tokenizer, cache_dir=tmp_path)
    assert tokenizer.n_calls - calls < calls and len(list(tmp_path.glob("*.npz"))) == 1
    assert_same(first, again)
    assert_same(first, run(examples))


def test_anything_that_matters_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = make_examples([5, 50, 500])

    def n_files(**options) -> int:
        run(**{"examples": examples, "cache_dir": tmp_path, **options})
        return len(list(tmp_path.glob("*.npz")))

    def changed(**change) -> list[Example]:
        return [dataclasses.replace(examples[0], **change), *examples[1:]]

    assert n_files() == n_files() == 1
    assert n_files(max_length=150) == 2
    assert n_files(tokenizer=ByteTokenizer("other")) == 3
    assert n_files(prompt=dataclasses.replace(PROMPT, suffix=(Text("\nAnswer:"),))) == 4
    assert n_files(prompt=dataclasses.replace(PROMPT, lead="")) == 5
    assert n_files(examples=changed(text="other")) == 6
    assert n_files(examples=changed(id="other")) == 7
    assert n_files(examples=changed(labels={"root": TASK.fields[0].labels[3]})) == 8
    assert n_files(examples=examples[::-1]) == 9
    assert n_files(with_labels=False, max_new_tokens=9) == 10
    assert n_files(with_labels=False, max_new_tokens=10) == 11
    monkeypatch.setattr(prepare_module, "CODE_VERSION", -1)
    assert n_files() == 12


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another's"])
def test_damaged_cache_file_is_rebuilt_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str):
    examples = make_examples([5, 50, 500])
    good = run(examples, cache_dir=tmp_path)
    (file,) = tmp_path.glob("*.npz")
    content = file.read_bytes()
    if damage == "another's":
        run(make_examples([1, 2]), cache_dir=tmp_path / "other")
        content = next((tmp_path / "other").glob("*.npz")).read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 1000, "another's": content}
    file.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert_same(good, run(examples, cache_dir=tmp_path))
    assert "is damaged" in caplog.text and file.name in caplog.text
    caplog.clear()
    assert_same(good, run(examples, cache_dir=tmp_path))
    assert not caplog.text, "it was written again"


def test_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("not a folder")
    examples = make_examples([5, 50])
    assert_same(run(examples), run(examples, cache_dir=tmp_path / "file"))
    assert "No lock at" in caplog.text and "could not be written" in caplog.text


class SlowTokenizer(ByteTokenizer):
    """Slow, and writes a file each time documents are tokenized."""

    def __init__(self, marks: Path) -> None:
        super().__init__()
        self.marks = marks

    def encode(self, text: str) -> list[int]:
        if text.startswith("SLOW"):
            (self.marks / f"{os.getpid()}").touch()
            time.sleep(0.5)
        return super().encode(text)


def _prepare_slowly(folder: Path, results) -> None:
    examples = [Example("slow", "SLOW document", {"root": "rec"}), *make_examples([5, 10])]
    samples = run(examples, tokenizer=SlowTokenizer(folder / "marks"), cache_dir=folder / "cache")
    results.put(samples.tokens.tolist())


def _start(n: int, folder: Path):
    (folder / "marks").mkdir()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    return [context.Process(target=_prepare_slowly, args=(folder, results)) for _ in range(n)], results


def test_one_process_tokenizes_and_the_others_read(tmp_path: Path):
    processes, results = _start(3, tmp_path)
    for process in processes:
        process.start()
    found = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1] == found[2]
    assert len(list((tmp_path / "marks").iterdir())) == 1


def test_a_process_that_dies_while_it_tokenizes_does_not_block_the_others(tmp_path: Path):
    (first, second), results = _start(2, tmp_path)
    first.start()
    while not (tmp_path / "marks" / str(first.pid)).exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    second.start()
    assert results.get(timeout=20)
    first.join()
    second.join()
    assert {path.name for path in (tmp_path / "marks").iterdir()} == {str(first.pid), str(second.pid)}


def test_many_examples_show_progress(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "TRACKED_FROM", 20)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    assert len(run(make_examples([3] * 20))) == 20
    assert "20/20" in screen.getvalue()
