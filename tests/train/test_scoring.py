"""Scoring inside a run of a model that FSDP frees after each pass: the split copy answers as the whole model does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints_tools.architectures import ARCHITECTURES
from checkpoints_tools.registry import MODELS
from eval.held_out import tp_for
from tests.train import score_run


@pytest.mark.parametrize("mesh", [[], pytest.param(["--tp", "2"], marks=pytest.mark.slow)])
def test_a_split_copy_answers_as_one_process_does(mesh: list[str], launch, world, train_args, tmp_path: Path) -> None:
    """On 4 ranks: 2 replicas of 2 slices, from weights sharded over all four, or already split in training."""
    args = [*train_args, "--steps", "2", "--holdout", "0.3", "--eval_every", "1", "--max_new_tokens", "5"]
    args += ["--precision", "fp32", "--export", "off"]
    done = launch(Path(score_run.__file__), tmp_path, *args, *mesh, ranks=4)
    assert done.returncode == 0, done.stderr
    trainer = score_run.make_trainer([*args, "--output", str(tmp_path / "alone")], world)
    alone = trainer.scorer.answer(trainer.model)
    assert trainer.scorer.copy_world is None, "one rank has all weights at hand"
    n = len(alone.predictions)
    assert n % 4 and len({p.raw for p in alone.predictions}) > 1
    for rank in range(4):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert found["slices"] == 2
        for way in ("copy", "too little memory"):
            predictions, metrics, counts = found[way]
            assert metrics == alone.metrics and counts == alone.counts, (rank, way)
            assert rank or predictions == alone.predictions, way
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([event for event in events if event.get("event") == "score"]) == 2
    assert "temporary copy of the model, split over 2 ranks" in done.stdout


def test_how_far_a_model_is_split() -> None:
    """As far as it divides inside a machine, so that sums over the ranks never leave it."""
    large = MODELS["llama3_70b"].config
    assert [tp_for(large, n) for n in (1, 4, 6, 8, 16)] == [1, 4, 2, 8, 8]
    assert tp_for(MODELS["llama_debug"].config, 8) == 1


def test_a_model_without_a_plan_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that a user added: nobody asked for --tp, so held-out scoring must not need it."""
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(ARCHITECTURES["llama"], tensor_plan=None))
    assert tp_for(MODELS["llama3_70b"].config, 8) == 1
