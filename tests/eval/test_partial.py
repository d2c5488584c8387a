"""A scoring that is ended at any time keeps its answers, and is continued: on other ranks, by the same command."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eval.partial
from data.errors import UserError
from eval.gather import ScoreResult
from eval.job import ScoringJob, ScoringRanks
from eval.partial import PartialAnswers, open_partial_answers
from eval.results import Prediction
from eval.score import SCORERS, score
from tests.eval.encoder.test_score import folders as folders
from tests.eval.test_together import decoder, encoder
from tests.launching import ROOT, TICKETS, call_main, command, environment, with_signals

IDENTITY = {"weights": "abc", "examples": "9 (def)"}


class Ended(Exception):
    """In the place of a kill."""


@pytest.fixture(params=["decoder", "encoder"])
def scored(request, tiny_checkpoint: Path, folders: dict[str, Path]) -> tuple[torch.nn.Module, ScoringJob]:
    """A model, and a job of nine examples in batches of one."""
    torch.manual_seed(0)
    return decoder(tiny_checkpoint) if request.param == "decoder" else encoder(folders["roberta"])


@contextlib.contextmanager
def opened(job: ScoringJob, folder: Path, rank: int = 0, **changes: str) -> Iterator[PartialAnswers]:
    with open_partial_answers(folder, len(job.examples), IDENTITY | changes, rank) as partial:
        yield partial


@contextlib.contextmanager
def ended_after(n: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the scoring inside of the block when it has kept ``n`` times."""
    real, calls = PartialAnswers.add, []

    def add(self: PartialAnswers, answers: Mapping[int, Prediction]) -> None:
        real(self, answers)
        calls.append(answers)
        if len(calls) == n:
            raise Ended

    with patch.context() as inner, pytest.raises(Ended):
        inner.setattr(eval.partial.PartialAnswers, "add", add)
        yield


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("answers.partial.*.jsonl"))


def test_continued_is_the_same_as_uninterrupted(scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, job = scored
    whole = score(model, job)
    with ended_after(2, monkeypatch), opened(job, tmp_path) as partial:
        score(model, job, partial=partial)
    # As if that had been rank 1 of two, and killed in the middle of a line.
    files(tmp_path)[0].rename(tmp_path / "answers.partial.1.jsonl")
    with (tmp_path / "answers.partial.1.jsonl").open("ab") as file:
        file.write(b'{"index": 8, "predic')
    with ended_after(3, monkeypatch), opened(job, tmp_path) as partial:
        assert len(partial.done) == 2
        score(model, job, partial=partial)
    seen: list[int] = []
    with opened(job, tmp_path) as partial:
        assert (
            len(partial.done) == 5 and partial.kept() == f"5 of 9 answers are in {tmp_path}; the same command goes on."
        )
        found = score(model, job, progress=seen.append, partial=partial)
        assert sum(seen) == 4, "the rest"
        check_same(found, whole)
        assert found.cost["seconds_per_example"] == pytest.approx(found.cost["seconds"] / 4)
    with opened(job, tmp_path) as partial:
        found = score(model, job, partial=partial)
        check_same(found, whole)
        assert found.cost.keys() == {"prompt_tokens", "new_tokens"}, "nothing was computed"
        assert len(files(tmp_path)) == 2
        partial.remove()
    assert not files(tmp_path) and partial.kept() == ""


def check_same(found: ScoreResult, whole: ScoreResult) -> None:
    assert [dataclasses.asdict(p) for p in found.predictions] == [dataclasses.asdict(p) for p in whole.predictions]
    assert found.metrics == whole.metrics and found.counts == whole.counts
    for name in ("prompt_tokens", "new_tokens"):
        assert found.cost[name] == whole.cost[name]


def test_only_what_is_left_is_divided_over_the_ranks(scored, tmp_path: Path) -> None:
    model, job = scored
    whole = score(model, job).predictions
    with opened(job, tmp_path) as partial:
        partial.add(dict(enumerate(whole[:4])))
    with opened(job, tmp_path, 0) as first, opened(job, tmp_path, 1) as second:
        shares = [
            SCORERS[job.kind].answer(model, job, ScoringRanks("cpu", rank, 2), None, partial)
            for rank, partial in enumerate((first, second))
        ]
    assert sorted(i for share in shares for i in share.indices) == [4, 5, 6, 7, 8]
    assert sorted(len(share.indices) for share in shares) == [2, 3]
    with opened(job, tmp_path) as partial:
        assert [partial.answers[i] for i in range(9)] == whole, "each rank kept its share"


def test_a_scoring_without_an_answer_leaves_nothing(scored, tmp_path: Path) -> None:
    model, job = scored
    with opened(job, tmp_path / "new") as partial:
        assert partial.kept() == ""
    assert not (tmp_path / "new").exists()


def test_answers_of_something_else_are_refused(scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, job = scored
    with ended_after(2, monkeypatch), opened(job, tmp_path) as partial:
        score(model, job, partial=partial)
    path, before = files(tmp_path)[0], files(tmp_path)[0].read_bytes()

    def refused(message: str, rank: int = 0, **changes: str) -> None:
        with pytest.raises(UserError, match=message), opened(job, tmp_path, rank, **changes):
            pass
        assert files(tmp_path) == [path]

    for rank in (0, 1):  # whichever rank's file it is
        refused("another weights: 'abc', and not 'x'.*start with the same weights.*give another --output, or remove",
                rank, weights="x")  # fmt: skip
        assert path.read_bytes() == before
    first, *lines = before.splitlines(keepends=True)
    for content, message in (
        (b"notes\n", "does not begin with what its answers are of"),
        (b"{}\n" + lines[0], "does not begin with what its answers are of"),
        (first + b"{}\n", "line 2: .*index.*Remove the line to answer its example again"),
        (first + lines[0].replace(b'"index": ', b'"index": 9'), "line 2: no example has the index 9"),
    ):
        path.write_bytes(content)
        refused(message)
        assert path.read_bytes() == content
    path.write_bytes(first + lines[1])  # what the messages advise: remove the line, or the file
    with opened(job, tmp_path) as partial:
        assert len(partial.done) == 1
    path.unlink()
    with opened(job, tmp_path, weights="x") as partial:
        assert not partial.done


@pytest.mark.parametrize("name", ["decode", "temperature"])
def test_what_only_one_of_two_scorings_has_is_compared_both_ways(
    scored, tmp_path: Path, name: str, monkeypatch
) -> None:
    model, job = scored
    for with_it, first, then in ((True, {name: "x"}, {}), (False, {}, {name: "x"})):
        folder = tmp_path / str(with_it)
        with ended_after(2, monkeypatch), opened(job, folder, **first) as partial:
            score(model, job, partial=partial)
        with pytest.raises(UserError, match=f"has answers of another {name}: "), opened(job, folder, **then):
            pass


def test_one_process_at_a_time(scored, tmp_path: Path) -> None:
    _, job = scored
    with (
        opened(job, tmp_path),
        pytest.raises(UserError, match=r"answers.partial.0.jsonl: another process is writing it"),
        opened(job, tmp_path),
    ):
        pass


def test_a_disk_that_fills(scored, small_disk: Path) -> None:
    model, job = scored
    with opened(job, small_disk / "out") as partial:
        with (small_disk / "ballast").open("wb") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(1 << 12))
        with pytest.raises(UserError, match="No space left on device. The answers before are kept; the same command"):
            for _ in range(1000):
                score(model, job, partial=partial)


# --- the program ------------------------------------------------------------------------------------------------------


def words(checkpoint: Path, folder: Path, *options: object) -> list[object]:
    return ["--model", "llama_debug", "--checkpoint", checkpoint, "--task", "massive_joint", "--data", "sample",
            "--precision", "fp32", "--device", "cpu", "--batch_tokens", "1", "--limit", "20", "--max_new_tokens", "8",
            "--cache_dir", folder / "cache", *options]  # fmt: skip


def test_eval_goes_on_where_it_stopped(tiny_checkpoint: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def run(name: str, *options: object) -> Path:
        call_main(monkeypatch, "eval.py", *words(tiny_checkpoint, tmp_path, "--output", tmp_path / name, *options))
        return tmp_path / name

    whole, output = run("whole"), tmp_path / "out"
    with ended_after(7, monkeypatch):
        run("out")
    assert [path.name for path in output.iterdir()] == ["answers.partial.0.jsonl"]
    kept = (output / "answers.partial.0.jsonl").read_bytes()
    for options, name in (
        (("--split", "dev"), "split: 'test'"),
        (("--max_new_tokens", 9), "max_new_tokens: '8', and not '9'.*start with the same max_new_tokens"),
        (("--max_new_tokens", None), "max_new_tokens: '8', and not none"),
        (("--limit", 19), r"examples: '20 \("),
        (("--seed", 1), r"examples: '20 \("),
        (("--list_labels", "off"), "prompt: "),
        (("--row_length", 1500), "maximum length: "),
        (("--precision", "bf16"), "precision: 'fp32', and not 'bf16'"),
        (("--task", "massive_slots"), "task: 'massive_joint "),
        (("--decode", "labels"), "decode: none, and not 'labels'"),
    ):
        with pytest.raises(UserError, match=f"has answers of another {name}.*give another --output"):
            run("out", *options)
    assert (output / "answers.partial.0.jsonl").read_bytes() == kept
    capsys.readouterr()
    run("out", "--batch_tokens", 64)  # batches change nothing in fp32
    printed = capsys.readouterr().out
    assert f"continuing: 7 of 20 examples are answered in {output}" in printed
    assert "seconds and computed tokens are those of the last 13 examples" in printed
    assert sorted(path.name for path in output.iterdir()) == ["predictions.jsonl", "results.json"]
    assert (output / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    found, wanted = (json.loads((folder / "results.json").read_text()) for folder in (output, whole))
    assert found["metrics"] == wanted["metrics"] and found["counts"] == wanted["counts"]
    assert found["settings"]["kept_answers"] == 7 and wanted["settings"]["kept_answers"] == 0


def test_probabilities_go_on_up_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, batch_tokens: int) -> list[dict[str, Any]]:
        options = ["--model", "llama", "--checkpoint", ROOT / "tests" / "old_files" / "tickets" / "export", "--task",
                   TICKETS, "--precision", "fp32", "--device", "cpu", "--decode", "labels",
                   "--batch_tokens", batch_tokens, "--cache_dir", tmp_path / "cache",
                   "--output", tmp_path / name]  # fmt: skip
        call_main(monkeypatch, "eval.py", *options)
        return [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]

    whole = run("whole", 1)
    with ended_after(3, monkeypatch):
        run("out", 1)
    found = run("out", 2000)
    assert len(found) == len(whole) == 8
    for one, other in zip(found, whole, strict=True):
        assert one["parsed"] == other["parsed"] and one["raw"] == other["raw"]
        for name, log_probs in other["log_probs"].items():
            np.testing.assert_allclose(one["log_probs"][name], log_probs, atol=2e-5)


def n_kept(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") - 1 for path in files(folder))


@pytest.mark.slow
def test_killed_and_continued_on_other_ranks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """KILL on two ranks, then each other signal, on one rank and two: the result is that of one uninterrupted run."""
    output = tmp_path / "out"

    def start(folder: Path, ranks: int) -> subprocess.Popen[str]:
        options = words(tiny_checkpoint, tmp_path, "--max_new_tokens", 40, "--limit", 60, "--output", folder)
        return subprocess.Popen(
            command(ROOT / "eval.py", *options, ranks=ranks), env=environment(), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=with_signals,
        )  # fmt: skip

    with start(tmp_path / "whole", 1) as process:
        assert process.wait(300) == 0
    stops = [(2, signal.SIGKILL), (1, signal.SIGINT), (2, signal.SIGTERM), (1, signal.SIGHUP), (1, signal.SIGUSR1)]
    for ranks, signum in stops:
        before = n_kept(output)
        with start(output, ranks) as process:
            while n_kept(output) < before + 4:
                assert process.poll() is None, process.stdout and process.stdout.read()
                time.sleep(0.01)
            os.killpg(process.pid, signum)
            printed, _ = process.communicate(timeout=60)
        done = n_kept(output)
        assert before + 4 <= done < 60, "it was interrupted"
        if signum != signal.SIGKILL:
            assert f"{signum.name}: stopped. " in printed and "of 60 answers are in" in printed, printed
            assert "the same command goes on" in printed
        if ranks == 1:  # torchrun adds a traceback of its own
            assert "Traceback" not in printed
            assert process.returncode == 128 + signum
    assert len(files(output)) == 2
    with start(output, 2) as process:
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f"continuing: {done} of 60 examples" in printed, printed
    assert sorted(path.name for path in output.iterdir()) == ["predictions.jsonl", "results.json"]
    assert (output / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
