"""A run's training checkpoints as `eval.setup` opens them for scoring."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from checkpoints_tools.checksums import CHECKSUMS, write_checksums
from data.decoder.fewshot import PROMPT_FILE
from data.errors import UserError
from data.task_file import TASK_FILE
from eval.config import EvalConfig
from eval.score import score
from eval.setup import ScoringSetup, build_model, open_model, open_scoring
from eval.weights import Weights, trained_with
from tests.launching import TICKETS
from train.parallel.distributed import World
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


def plan(checkpoint: Path, **options) -> ScoringSetup:
    return open_scoring(EvalConfig(model="llama_debug", checkpoint=checkpoint, task=str(TICKETS), limit=3, **options))


def test_a_step_is_scored_as_its_export_is(world: World, train_args: list[str], tmp_path: Path) -> None:
    config = load_config([*train_args, "--steps", "2", "--save_every", "1", "--shots", "1"])
    Trainer(config, open_run(config), world).run()
    older, newer = (tmp_path / "run" / "checkpoints" / f"step_00000{n}" for n in (1, 2))
    plans = [plan(folder) for folder in (tmp_path / "run" / "export", newer, older)]
    assert all(p.fine_tuned and p.max_length == 1024 and len(p.prompt.shots) == 1 for p in plans)
    assert [p.weights.is_training for p in plans] == [False, True, True]
    models = [build_model(p, "fp32", torch.device("cpu")) for p in plans]
    export, last, first = (dict(model.named_parameters()) for model in models)
    assert all(parameter.equal(last[name]) for name, parameter in export.items())
    assert not all(parameter.equal(first[name]) for name, parameter in export.items())
    results = [
        score(model, dataclasses.replace(p.job, max_new_tokens=3, cache_dir=None))
        for model, p in zip(models[:2], plans[:2], strict=True)
    ]
    assert results[0].predictions == results[1].predictions and len(results[0].predictions) == 3

    # Beside the figures it will say which optimizer made the weights, and why it was that one.
    made_with = [trained_with(p.weights) for p in plans]
    assert made_with[0] == made_with[1] == {"optim": "adamw", "optim_reason": config.optim_reason}
    assert config.optim_reason.startswith("chosen by --optim auto: ")
    assert f'optim = "adamw" # {config.optim_reason}\n' in (tmp_path / "run" / "config.toml").read_text()
    training = json.loads((tmp_path / "run" / "export" / "training.json").read_text())
    assert training["options"]["shots"] == 1 and "output" not in training["options"], "nothing of this machine's"

    with pytest.raises(UserError, match=r"dim: 48 \(expected 576\)"):
        open_scoring(EvalConfig(model="smollm2_135m", checkpoint=newer, task=str(TICKETS)))
    record = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(record | {"format": 99}))
    write_checksums(newer)
    with pytest.raises(UserError, match="step_000002 has format 99: a newer version of this code saved it"):
        plan(newer)
    (newer / "run.json").write_text(json.dumps(record))
    write_checksums(newer)

    # The folder asked for must be whole, whatever stands beside it.
    for file in older.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step_000001 is incomplete or damaged \(.*distcp is missing or cut off\)"):
        plan(older)
    assert plan(newer).weights.path == newer


def test_a_fine_tuned_checkpoint_without_its_prompt_or_task(
    world: World, train_args: list[str], tmp_path: Path
) -> None:
    """Another prompt than the one that it learned would be scored, and nothing would say so."""
    config = load_config([*train_args, "--steps", "1", "--save_every", "1"])
    Trainer(config, open_run(config), world).run()
    for folder, record in (("export", "training.json"), ("checkpoints/step_000001", "run.json")):
        copy = shutil.copytree(tmp_path / "run" / folder, tmp_path / "copy" / folder)
        (copy / CHECKSUMS).unlink()
        (copy / PROMPT_FILE).unlink()
        message = rf"was fine-tuned here \({record} says so\), but has no {PROMPT_FILE}: .* give eval.py --new_prompt"
        with pytest.raises(UserError, match=message):
            plan(copy)
        with pytest.raises(UserError, match=message):  # as predict.py
            open_model(EvalConfig(model="llama_debug", checkpoint=copy), labelled=False)
        assert not plan(copy, new_prompt=True).fine_tuned, "it was asked for"
        (copy / TASK_FILE).unlink()
        with pytest.raises(UserError, match=f"has no {PROMPT_FILE} and {TASK_FILE}"):
            plan(copy)
        shutil.copy(tmp_path / "run" / folder / PROMPT_FILE, copy)
        with pytest.raises(UserError, match=f"has no {TASK_FILE}"):
            plan(copy)
        options = json.loads((copy / record).read_text())
        options["config" if "config" in options else "options"].pop("slot_answer")
        (copy / record).write_text(json.dumps(options))
        assert plan(copy).fine_tuned, "older code wrote no such file"


def test_where_nothing_says_how_the_weights_were_made(tmp_path: Path) -> None:
    weights = Weights(tmp_path, tmp_path, is_training=False)
    assert trained_with(weights) is None
    (tmp_path / "training.json").write_text('{"learning_rate": 1}')
    assert trained_with(weights) is None, "another program's file"
