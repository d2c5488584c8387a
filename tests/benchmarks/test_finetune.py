"""The report of a fine-tuning run: what it reads from the log and the results is what stands there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import finetune
from benchmarks.finetune import Options, read_log, report
from eval.results import Results, write_run


def step(number: int, time: float) -> dict:
    return {"step": number, "loss": 4.0 / number, "lr": 1e-4, "examples": 8, "examples_per_second": 4.0,
            "real_tokens": 100, "time": time}  # fmt: skip


def write_log(path: Path) -> None:
    path.parent.mkdir(parents=True)
    records = [step(1, 100.0), step(2, 103.0), {"event": "resume", "step": 2}, step(3, 1000.0), step(4, 1002.5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_pauses_between_sessions_are_not_training_time(tmp_path: Path) -> None:
    write_log(tmp_path / "train" / "log.jsonl")
    steps, seconds, tokens, losses = read_log(tmp_path / "train" / "log.jsonl")
    assert (steps, tokens, losses) == (4, 400, [4.0, 2.0, 4 / 3, 1.0])
    # 3.0 and 2.5 between steps; the first of each session by its own rate, 8 examples at 4 a second
    assert seconds == 2.0 + 3.0 + 2.0 + 2.5


def test_report_shows_before_and_after(tmp_path: Path) -> None:
    write_log(tmp_path / "train" / "log.jsonl")
    (tmp_path / "train" / "config.toml").write_text('[train]\nprecision = "fp32"\n')
    for name, accuracy in (("before", 0.125), ("after", 0.875)):
        metrics = {"n_examples": 8, "n_unparsed": 1, "exact_match": accuracy,
                   "fields": {"intent": {"accuracy": accuracy, "macro_f1": 0.5, "n_unparsed": 1}}}  # fmt: skip
        cost = {"seconds_per_example": 0.25, "new_tokens": 5.0}
        results = Results(name, "massive_intent", {"intent": "class"}, "sample", "test", metrics, cost=cost,
                          settings={"precision": "bf16", "threads": 2})  # fmt: skip
        write_run(tmp_path / name, results, [])
    text = report(Options(Path("checkpoint"), "sample"), tmp_path)
    before, after = (line for line in text.splitlines() if line.startswith(("| before", "| after")))
    assert "12.5%" in before and "87.5%" in after
    assert "All 8 test examples" in text and "in bf16 on 2 threads" in text
    assert "Trained 4 steps of 32 samples" in text and "fp32 over fp32 weights" in text


def test_options_reach_training_and_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(finetune, "call", called.append)
    monkeypatch.setattr(finetune, "report", lambda options, folder: "body")
    argv = ["--checkpoint", "x", "--data", "sample", "--no_list_labels", "--train_options=--seed 1 --clip 0"]
    argv += ["--output", str(tmp_path / "run"), "--result", str(tmp_path / "result.md")]
    monkeypatch.setattr("sys.argv", ["finetune", *argv])
    finetune.main()
    before, train, after = (" ".join(command) for command in called)
    assert all("--no_list_labels" in command for command in (before, train, after))
    assert "--seed 1 --clip 0" in train and "--clip" not in before + after
    assert "body" in (tmp_path / "result.md").read_text()
