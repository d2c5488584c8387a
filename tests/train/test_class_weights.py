"""--class_weights in a run: refused when wrong, said in the log, stored, and part of what a resumed run must match."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data.decoder.rows import ANSWER
from data.errors import UserError
from data.source import load_examples
from train.config import TrainConfig
from train.config_file import to_toml
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer
from train.training_data import divide


def test_balanced_in_a_run(world, train_args: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = [*train_args, "--steps", "2", "--limit", "11"]  # of the sample all labels have equally many
    run, args = tmp_path / "run", [*few, "--class_weights", "balanced"]
    config = load_config(args)
    with caplog.at_level("INFO"):
        setup = open_run(config)
        trainer = Trainer(config, setup, world)
        trainer.run()
    assert list(setup.class_weights) == ["queue", "urgency"]
    assert "class weights in the loss of queue: " in caplog.text and "loss of urgency: " in caplog.text
    step = setup.loader.step(0)
    assert step.total_weights[ANSWER] != step.n_label_tokens[ANSWER] == len(step.batches[0].weights[ANSWER])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "class_weights" and lines[0]["weights"] == setup.class_weights
    assert all(line["weighted"] is True for line in lines if "loss" in line)
    assert "class weights of queue" in (run / "export" / "README.md").read_text()
    assert json.loads((run / "export" / "training.json").read_text())["options"]["class_weights"] == ["balanced"]
    with pytest.raises(UserError, match=r"class_weights: the checkpoint has \['balanced'\], this run has \[\]"):
        open_run(load_config([*few, "--resume"]))
    with pytest.raises(UserError, match=r"class_weights: the checkpoint has \['balanced'\], this run has \['low=2'\]"):
        open_run(load_config([*few, "--resume", "--class_weights", "low=2"]))


def test_the_weights_are_of_the_examples_to_train_on(train_args: list[str]) -> None:
    config = load_config(
        [*train_args, "--class_weights", "balanced", "--limit", "11", "--holdout", "0.3", "--eval_every", "1"]
    )
    setup = open_run(config)

    _, _, examples = divide(load_examples(setup.task, "train", None), setup.task, config)
    for name, weights in setup.class_weights.items():
        counts = Counter(example.class_label(name) for example in examples)
        assert sum(counts.values()) == len(examples) == len(setup.samples) == 11
        assert weights == {label: len(examples) / (len(counts) * n) for label, n in sorted(counts.items())}


def test_without_the_option_nothing_has_weights(train_args: list[str]) -> None:
    setup = open_run(load_config(train_args))
    step = setup.loader.step(0)
    assert setup.class_weights == {} and step.total_weights == step.n_label_tokens
    assert all(type(n) is int for n in step.total_weights.values()) and not any(b.weights for b in step.batches)


def test_equal_weights_change_only_rounding(world, train_args: list[str], tmp_path: Path) -> None:
    def losses(name: str, *more: str) -> list[float]:
        config = load_config([*train_args, *more, "--output", str(tmp_path / name), "--steps", "3"])
        trainer = Trainer(config, open_run(config), world)
        return [trainer.train_step(trainer.setup.loader.step(n))[0]["loss"] for n in range(3)]

    ones = ["billing=1", "delivery=1", "technical=1", "account=1", "urgency:low=1"]
    np.testing.assert_allclose(losses("a"), losses("b", "--class_weights", *ones), rtol=1e-5)
    assert np.abs(np.subtract(losses("a"), losses("c", "--class_weights", "high=9"))).max() > 1e-3


def test_from_a_file_and_back(tmp_path: Path, train_args: list[str]) -> None:
    for value, found in (('"balanced"', ("balanced",)), ('["high=2.5", "low=1"]', ("high=2.5", "low=1"))):
        (tmp_path / "options.toml").write_text(f"class_weights = {value}\n")
        config = load_config([*train_args, "--config", str(tmp_path / "options.toml")])
        assert config.train.class_weights == found
        (tmp_path / "again.toml").write_text(to_toml(config))
        assert load_config(["--config", str(tmp_path / "again.toml")]).train.class_weights == found
    assert TrainConfig().train.class_weights == ()
    with pytest.raises(UserError, match="class_weights = 'hihg=2': there is no label 'hihg'. Did you mean 'high'?"):
        load_config([*train_args, "--class_weights", "hihg=2"])


def test_a_weighted_step_is_pinned_and_moved_with_its_weights(train_args: list[str]) -> None:
    setup = open_run(load_config([*train_args, "--class_weights", "balanced"]))
    (batch, *_) = setup.loader.step(0).batches
    moved = batch.map_tensors(lambda tensor: tensor.to("meta"))
    assert moved.weights[ANSWER].device.type == "meta" and batch.weights[ANSWER].dtype == torch.float32
