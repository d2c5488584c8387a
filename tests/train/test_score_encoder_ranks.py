"""An encoder scored on two ranks, sharded inside its training run and by eval.py, answers as in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.tasks import TASKS
from eval.config import EvalConfig
from eval.job import ScoringJob
from eval.results import Prediction, read_predictions, read_results
from eval.score import score
from eval.setup import build_model, open_scoring
from model.encoder import ROBERTA_DEBUG
from tests.encoder_exports import write_encoder
from tests.launching import ROOT
from tests.train import encoder_score_run
from train.resolve import load_config
from train.setup import open_run


def assert_same(found: list[Prediction], expected: list[Prediction]) -> None:
    """Equal but for rounding in the probabilities, which rows put together otherwise leave."""
    rounded = {"top": {}, "log_probs": {}}
    assert [replace(p, **rounded) for p in found] == [replace(p, **rounded) for p in expected]
    for p, q in zip(found, expected, strict=True):
        for name, likeliest in q.top.items():
            assert [value for _, value in p.top[name]] == pytest.approx([value for _, value in likeliest], abs=1e-5)
    for values in ({p.parsed["intent"] for p in found}, {kind for p in found for kind in p.parsed["slots"]}):
        assert len(values) > 2, "answers that are all the same prove nothing"


ROUNDED = ("ece", "nll", "ece_uncalibrated", "nll_uncalibrated", "threshold")  # figures of probabilities


def assert_close(found: object, expected: object, name: str = "") -> None:
    """Metrics that are equal; figures of probabilities but for rounding."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value, key)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if name in ROUNDED else expected), name


def test_two_ranks_answer_as_one_process(launch, tmp_path: Path) -> None:
    start, run = write_encoder(tmp_path, TASKS["massive_joint"], ROBERTA_DEBUG), tmp_path / "run"
    args = [
        "--model", "roberta", "--checkpoint", str(start), "--task", "massive_joint", "--data", "sample", "--output",
        str(run), "--cache_dir", str(tmp_path / "cache"), "--steps", "4", "--lr", "1e-4", "--holdout", "0.05",
        "--eval_every", "2", "--export_dtype", "fp32", "--device", "cpu", "--precision", "fp32", "--max_length", "12",
    ]  # fmt: skip
    done = launch(Path(encoder_score_run.__file__), tmp_path, *args, ranks=2, timeout=120)
    assert done.returncode == 0, done.stderr
    sharded, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))

    asked = EvalConfig(model="roberta", checkpoint=run / "export", data="sample", limit=30)
    setup = open_scoring(asked)
    model = build_model(setup, "fp32", torch.device("cpu"))

    def alone(examples):
        return score(model, ScoringJob(setup.task, setup.tokenizer, examples, setup.max_length))

    held_out = open_run(load_config([*args, "--output", str(tmp_path / "other")])).held_out
    assert len(held_out) % 2, "one of the two ranks has a row less and must run a dummy"
    expected = alone(held_out)
    assert_same(sharded.predictions, expected.predictions)
    assert sharded.metrics == other.metrics and sharded.counts["truncated"] > 0
    assert_close(sharded.metrics, expected.metrics)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line.get("event") == "score"][-1]
    assert logged["step"] == 4 and logged["exact match"] == expected.metrics["exact_match"]

    out = tmp_path / "scored"
    options = ["--model", "roberta", "--checkpoint", run / "export", "--data", "sample", "--limit", 30]
    options += ["--device", "cpu", "--precision", "fp32", "--batch_tokens", "64"]
    options += ["--cache_dir", tmp_path / "cache", "--output", out]
    assert (done := launch(ROOT / "eval.py", *options, ranks=2, timeout=120)).returncode == 0, done.stderr
    assert setup.job.temperatures, "the run had held-out examples"
    expected = score(model, setup.job)
    assert_same(read_predictions(out), expected.predictions)
    results = read_results(out)
    assert_close(results.metrics, expected.metrics)
    assert results.settings["ranks"] == 2
