"""Checkpoints that are refused before anything is scored."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from checkpoints_tools.checksums import write_checksums
from data.errors import UserError
from eval.config import EvalConfig
from eval.setup import open_model, open_scoring
from train.checkpointing.run_folder import write_config
from train.resolve import load_config
from train.setup import open_run


def plan(checkpoint, **options):
    options = {"model": "llama_debug", "data": "sample", **options}
    return open_scoring(EvalConfig(checkpoint=checkpoint, **options))


def test_checkpoints_that_cannot_be_scored(tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match="no checkpoint folder"):
        plan(tmp_path / "nowhere", task="massive_intent")
    with pytest.raises(UserError, match="smollm2_135m.*--allow_mismatch"):
        plan(tiny_checkpoint, model="smollm2_135m", task="massive_intent")
    (tmp_path / "models" / "checkpoints" / "minilm").mkdir(parents=True)  # such as this repository
    with pytest.raises(UserError, match=r"models has no config.json, so it is not a checkpoint folder"):
        plan(tmp_path / "models", task="massive_intent")
    run = tmp_path / "run"
    run.mkdir()
    write_config(run, "")
    with pytest.raises(UserError, match=r"run folder.*: none yet\.$"):
        plan(run, task="massive_intent")
    for inside in ("export", "checkpoints/step_000010"):
        (run / inside).mkdir(parents=True)
    with pytest.raises(UserError, match=r"run folder.*export, .*step_000010"):
        plan(run, task="massive_intent")
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    with pytest.raises(UserError, match=r"other is not what was written: config.json has .* --checksums write"):
        plan(other, task="massive_intent")
    write_checksums(other)
    with pytest.raises(UserError, match=r"embed.weight is \[600, 48\], the config says \[10, 48\]"):
        plan(other, task="massive_intent")


def test_a_label_that_the_tokenizer_changes_is_refused_before_anything_runs(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "NFC"}}))
    write_checksums(folder)
    (tmp_path / "places.csv").write_text("text,kind\nespresso,cafe\u0301\nstout,bar\n", encoding="utf-8")
    task = tmp_path / "task.toml"
    task.write_text('name = "places"\n[files]\ntrain = "places.csv"\ntest = "places.csv"\n[[fields]]\nname = "kind"\n'
                    'type = "class"\nlabels_from = "train"\n')  # fmt: skip
    refused = r"label 'cafe\u0301' of field 'kind' does not come back from the model's tokenizer: .*caf\\xe9"
    options = EvalConfig(model="llama_debug", checkpoint=folder, task=str(task))
    for labelled in (True, False):  # as eval.py and predict.py
        with pytest.raises(UserError, match=refused):
            open_model(options, labelled)
    training = ["--model", "llama_debug", "--checkpoint", str(folder), "--task", str(task), "--steps", "1"]
    with pytest.raises(UserError, match=refused):
        open_run(load_config([*training, "--output", str(tmp_path / "run"), "--device", "cpu"]))
    open_model(dataclasses.replace(options, checkpoint=tiny_checkpoint))
