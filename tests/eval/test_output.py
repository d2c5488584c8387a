"""The output folder, before any work: it can be written, and nothing but a result of the same scoring is replaced."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import eval.baselines
import eval.combine
from data.errors import UserError
from eval.config import EvalConfig
from eval.output import default_output
from eval.results import PREDICTIONS, RESULTS, new_name, read_results
from eval.setup import open_scoring
from tests.launching import ROOT, call_main

OLD = ROOT / "tests" / "old_files" / "scored"
SOME = ("--limit", "3", "--max_new_tokens", "3")
Run = Callable[..., Path]


@pytest.fixture
def score(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``eval.py`` in this process, into ``out`` unless an option says otherwise; later options win."""

    def call(*options: object) -> Path:
        common = ["--model", "llama_debug", "--checkpoint", tiny_checkpoint, "--task", "massive_intent", "--data",
                  "sample", "--cache_dir", tmp_path / "cache", "--output", tmp_path / "out", *SOME]  # fmt: skip
        call_main(monkeypatch, "eval.py", *common, *options)
        return tmp_path / "out"

    return call


def baselines(monkeypatch: pytest.MonkeyPatch, output: Path, *options: str) -> None:
    words = ["baselines", "--task", "massive_intent", "--data", "sample", "--output", str(output)]
    monkeypatch.setattr("sys.argv", [*words, "--limit", "60", "--score_limit", "9", *options])
    eval.baselines.main()


# --- it can be written ------------------------------------------------------------------------------------------------


def a_file(path: Path) -> Path:
    path.write_text("notes")
    return path


def below_a_file(path: Path) -> Path:
    return a_file(path) / "below"


def with_a_folder_for_results(path: Path) -> Path:
    (path / RESULTS).mkdir(parents=True)
    return path


def nowhere(path: Path) -> Path:
    return Path("/proc/no/folder")  # also for root, who may write to every folder


KINDS = [a_file, below_a_file, with_a_folder_for_results, nowhere]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_written_is_refused_before_any_work(
    kind: Callable[[Path], Path], score: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = kind(tmp_path / "taken")
    monkeypatch.setattr("eval.setup.load_pretrained", None)
    monkeypatch.setattr(eval.baselines, "majority", None)
    monkeypatch.setattr(eval.combine, "combine_runs", None)
    programs: list[Callable[[], object]] = [
        lambda: score("--output", output),
        lambda: call_main(monkeypatch, "eval.py", "--combine", OLD / "intent", OLD / "slots", "--output", output),
        lambda: call_main(
            monkeypatch, "eval.py", "--model", "gpt-4o", "--task", "massive_intent", "--data", "sample", "--yes",
            "--output", output,
        ),
    ]  # fmt: skip
    if kind is not with_a_folder_for_results:
        programs.append(lambda: baselines(monkeypatch, output))
    for program in programs:
        with pytest.raises(UserError, match=f"--output {output}"):
            program()


@pytest.mark.parametrize("below", ["", "out"])
def test_a_link_to_what_does_not_exist_is_named(below: str, score: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/not/there")
    with pytest.raises(UserError, match=f"{tmp_path}/link is a link to /not/there, which does not exist"):
        score("--output", tmp_path / "link" / below)


@pytest.mark.parametrize("key", list(eval.baselines.SYSTEMS))
def test_the_folder_of_each_baseline_is_looked_at_first(key: str, tmp_path: Path, monkeypatch) -> None:
    with_a_folder_for_results(tmp_path / key)
    monkeypatch.setattr(eval.baselines, "majority", None)
    with pytest.raises(UserError, match=f"{key}: results.json there is a folder"):
        baselines(monkeypatch, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [key], "and no other was made"


@pytest.mark.parametrize("kind", [below_a_file, nowhere])
def test_a_table_that_cannot_be_written(kind, tmp_path: Path, monkeypatch, capsys) -> None:
    file = kind(tmp_path / "taken")
    with pytest.raises(UserError, match="cannot write --markdown"):
        call_main(monkeypatch, "eval.py", "--compare", OLD / "intent", OLD / "slots", "--markdown", file)
    assert "system" not in capsys.readouterr().out, "before the table"


def test_a_table_is_replaced_when_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, link, words = tmp_path / "table.md", tmp_path / "link.md", ("eval.py", "--compare", OLD / "intent")
    link.symlink_to(table)
    call_main(monkeypatch, *words, OLD / "slots", "--markdown", link)
    before = table.read_text()
    assert link.is_symlink() and before.count("\n") == 4

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot write .*link.md: No space left"):
            call_main(patch, *words, "--markdown", link)
    assert table.read_text() == before
    call_main(monkeypatch, *words, "--markdown", link)
    assert link.is_symlink() and table.read_text().count("\n") == 3
    call_main(monkeypatch, *words, "--markdown", "/dev/null")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.md", "table.md"]


def test_a_table_replaces_only_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(file: Path) -> None:
        call_main(monkeypatch, "eval.py", "--compare", OLD / "intent", OLD / "slots", "--markdown", file)

    table = tmp_path / "new" / "table.md"
    compare(table)
    before = table.read_text()
    table.write_text("| system | old |\n")
    compare(table)
    assert table.read_text() == before
    with pytest.raises(UserError, match="this is a folder"):
        compare(tmp_path)
    with pytest.raises(UserError, match="no table of ours, and it would be overwritten"):
        compare(a_file(tmp_path / "notes.md"))
    assert (tmp_path / "notes.md").read_text() == "notes"
    compare(Path(os.devnull))
    assert os.path.exists(os.devnull)


def test_a_run_that_fails_leaves_no_folder(score: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("no model")

    monkeypatch.setattr("eval.setup.load_pretrained", fail)
    with pytest.raises(UserError, match="no model"):
        score()
    assert not (tmp_path / "out").exists()


# --- no result replaces another ---------------------------------------------------------------------------------------


def test_another_scoring_is_refused_and_the_same_may_be_repeated(score: Run, tmp_path: Path, capsys) -> None:
    output = score()
    before = {path: path.read_bytes() for path in output.iterdir()}
    for options, message in (
        (("--split", "dev"), r"another split \(test there, dev now\), examples"),
        (("--limit", 4), r"another limit \(3 there, 4 now\), examples"),
        (("--seed", 1), r"another seed \(0 there, 1 now\), prompt.seed .*examples"),
        (("--name", "mine"), r"another name \(checkpoint, 0-shot there, mine now\)\. Give another --output, or remove"),
        (("--max_new_tokens", 4), r"another max_new_tokens \(3 there, 4 now\)"),
        (("--task", "massive_slots"), r"another task \(massive_intent there, massive_slots now\)"),
        (("--list_labels", "off"), r"another prompt.list_labels \(true there, false now\)"),
        (("--batch_tokens", 1), r"another batch_tokens \(4096 there, 1 now\)"),
    ):
        with pytest.raises(UserError, match=rf"--output {output} has the result of another scoring, with {message}"):
            score(*options)
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    old = json.loads((output / RESULTS).read_text())
    old["settings"]["limit"] = None
    (output / RESULTS).write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"another limit \(none there, 3 now\)"):
        score()
    (output / RESULTS).write_bytes(before[output / RESULTS])
    capsys.readouterr()
    score()
    assert "the result of an earlier scoring of the same, which this one will replace" in capsys.readouterr().out
    assert (output / PREDICTIONS).read_bytes() == before[output / PREDICTIONS]


def test_other_weights_are_another_scoring(score: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other" / "checkpoint")  # of the same name
    output = score("--checkpoint", other)
    score(), "the same weights in another place"
    record = json.loads((output / RESULTS).read_text())
    (output / RESULTS).write_text(json.dumps(record | {"weights": "abc"}))
    with pytest.raises(UserError, match=r"another weights \(abc there, "):
        score()
    for name in ("weights", "examples"):
        record.pop(name)
    (output / RESULTS).write_text(json.dumps(record))
    score()  # an older file does not say
    assert read_results(output).weights


def test_what_is_not_ours_is_left_alone(score: Run, tmp_path: Path) -> None:
    output = score()
    results, predictions = (output / name for name in (RESULTS, PREDICTIONS))
    ours = results.read_bytes(), predictions.read_bytes()
    for name, content in ((RESULTS, b'{"accuracy": 1}'), (RESULTS, b"notes"), (PREDICTIONS, b"notes")):
        results.write_bytes(ours[0]), predictions.write_bytes(ours[1])
        (output / name).write_bytes(content)
        with pytest.raises(UserError, match=f"has a file {name} that is no result of ours .* would be overwritten"):
            score()
        assert (output / name).read_bytes() == content
    results.unlink()
    with pytest.raises(UserError, match=r"predictions.jsonl that is no result of ours \(there is no results.json\)"):
        score()
    assert predictions.read_bytes() == b"notes"


@pytest.mark.parametrize("n_renamed", [0, 1])
def test_a_result_that_was_half_written_is_ours(score: Run, n_renamed: int) -> None:
    """As a kill leaves it while it replaces the result of the same scoring."""
    output = score()
    predictions = (output / PREDICTIONS).read_bytes()
    (output / RESULTS).rename(output / new_name(RESULTS))
    if not n_renamed:
        (output / new_name(PREDICTIONS)).write_bytes(predictions)
        (output / PREDICTIONS).write_bytes(b"of the result before\n")
    with pytest.raises(UserError, match=r"another split \(test there, dev now\)"):
        score("--split", "dev")
    score()
    assert read_results(output) and (output / PREDICTIONS).read_bytes() == predictions


def test_combined_runs_and_baselines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def combine(*options: object) -> None:
        folders = (OLD / "intent", OLD / "slots")
        call_main(monkeypatch, "eval.py", "--combine", *folders, "--output", tmp_path / "dual", *options)

    combine()
    combine()
    with pytest.raises(UserError, match="has the result of another scoring, with another name"):
        combine("--name", "mine")
    baselines(monkeypatch, tmp_path / "b")
    baselines(monkeypatch, tmp_path / "b")
    monkeypatch.setattr(eval.baselines, "majority", None)
    for options, what in ((("--limit", "50"), "train_examples"), (("--split", "dev"), "split")):
        with pytest.raises(UserError, match=f"b/majority has the result of another scoring, with another {what}"):
            baselines(monkeypatch, tmp_path / "b", *options)
    with pytest.raises(UserError, match="b/majority has the result of another scoring, with another name"):
        call_main(
            monkeypatch, "eval.py", "--combine", OLD / "intent", OLD / "slots", "--output", tmp_path / "b/majority"
        )


def test_the_default_folder_names_split_and_limit(tiny_checkpoint: Path) -> None:
    common = {"model": "llama_debug", "checkpoint": tiny_checkpoint, "task": "massive_intent", "data": "sample"}
    for options, end in (({}, ""), ({"split": "dev"}, "-dev"), ({"split": "dev", "limit": 2}, "-dev-limit2"),
                         ({"decode": "labels", "limit": 2}, "-labels-limit2")):  # fmt: skip
        found = open_scoring(EvalConfig(**common, **options)).output
        assert found == Path(f"runs/eval/checkpoint-massive_intent-0shot{end}")
    assert default_output("org/model", "test", None) == Path("runs/eval/org-model")


def test_the_default_folder_of_joined_runs_has_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("intent", "slots"):
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "slots")
    call_main(monkeypatch, "eval.py", "--combine", "../intent/results.json", ".")
    assert [path.name for path in Path("runs/eval").iterdir()] == ["intent+slots"]


def test_whether_the_limit_left_examples_out_is_recorded(score: Run, tiny_checkpoint: Path) -> None:
    common = {"model": "llama_debug", "checkpoint": tiny_checkpoint, "task": "massive_intent", "data": "sample"}
    whole = open_scoring(EvalConfig(**common))
    assert whole.examples is not None and not whole.limited
    n = len(whole.examples)
    limits = (n - 1, n, n + 1)
    assert [open_scoring(EvalConfig(**common, limit=limit)).limited for limit in limits] == [True, False, False]
    assert read_results(score()).settings["limited"] is True
