"""An encoder run's training checkpoints as `eval.setup` opens them for scoring: no weights pass through an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints_tools.checksums import CHECKSUMS
from data.errors import UserError
from data.source import load_examples
from data.task_file import TASK_FILE
from data.tasks import TASKS, get_task
from eval.config import EvalConfig
from eval.score import score
from eval.setup import build_model, open_model, open_scoring
from tests.encoder_tokenizers import write_roberta
from tests.launching import TICKETS
from train.checkpointing.checkpoint import TRAINING_FILE
from train.parallel.distributed import World
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


def test_a_step_is_scored_as_its_export_is(world: World, tmp_path: Path) -> None:
    texts = [example.text for example in load_examples("massive", "train", "sample")]
    tokenizer = write_roberta(tmp_path, texts, vocab_size=600)["files"]
    config = load_config([
        "--model", "roberta_debug", "--init", "random", "--checkpoint", str(tokenizer), "--task", "massive_joint",
        "--data", "sample", "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--limit", "40",
        "--steps", "4", "--save_every", "2", "--lr", "0.01", "--max_length", "8", "--device", "cpu", "--precision",
        "fp32",
    ])  # fmt: skip
    Trainer(config, open_run(config), world).run()
    first, last = (tmp_path / "run" / "checkpoints" / f"step_00000{n}" for n in (2, 4))
    plans = [
        open_scoring(EvalConfig(model="roberta_debug", checkpoint=folder, data="sample", limit=20, max_length=asked))
        for folder, asked in ((tmp_path / "run" / "export", None), (last, None), (first, None))
    ]
    assert all(p.task == TASKS["massive_joint"] and p.max_length == 8 for p in plans)
    other = EvalConfig(model="roberta_debug", checkpoint=tmp_path / "run" / "export", data="sample", max_length=6)
    assert open_scoring(other).max_length == 6
    assert [p.weights.is_training for p in plans] == [False, True, True]
    export, step, older = (
        score(build_model(p, "fp32", torch.device("cpu")), replace(p.job, cache_dir=None)) for p in plans
    )
    assert export.predictions == step.predictions and step.counts["truncated"] > 0
    assert [p.top for p in step.predictions] != [p.top for p in older.predictions]


def test_a_task_of_the_users_own(world: World, tmp_path: Path) -> None:
    """Two class fields from a TOML file; to be scored, it has to be named again, for it names the examples."""
    texts = [example.text for example in load_examples("massive", "train", "sample")]
    tokenizer = write_roberta(tmp_path, texts, vocab_size=600)["files"]
    config = load_config([
        "--model", "roberta_debug", "--init", "random", "--checkpoint", str(tokenizer), "--task", str(TICKETS),
        "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--steps", "2", "--device", "cpu",
        "--precision", "fp32",
    ])  # fmt: skip
    Trainer(config, open_run(config), world).run()
    asked = EvalConfig(model="roberta_debug", checkpoint=tmp_path / "run" / "export")
    with pytest.raises(UserError, match="a task of your own, 'tickets': give its TOML file with --task"):
        open_scoring(asked)
    assert open_model(asked, labelled=False).task.fields == get_task(TICKETS).fields  # without labelled examples
    for name in (TASK_FILE, CHECKSUMS):
        (tmp_path / "run" / "export" / name).unlink()
    with pytest.raises(UserError, match=r"export was fine-tuned here \(training.json says so\), but has no task.json"):
        open_scoring(replace(asked, task=str(TICKETS)))
    (tmp_path / "run" / "export" / TRAINING_FILE).unlink()  # as of an older version
    with pytest.raises(UserError, match=r"no --task given, and no built-in task has the heads .* queue"):
        open_scoring(asked)
    plan = open_scoring(replace(asked, task=str(TICKETS)))
    model = build_model(plan, "fp32", torch.device("cpu"))
    result = score(model, replace(plan.job, cache_dir=None))
    assert result.metrics["fields"].keys() == {"queue", "urgency"} and len(result.predictions) == len(plan.examples)
    assert len(result.predictions[0].top["queue"]) == 4 and len(result.predictions[0].top["urgency"]) == 2
