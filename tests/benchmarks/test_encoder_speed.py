"""The encoders' speed benchmark on a tiny random checkpoint: all variants see the same samples and report one loss."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import encoder_speed
from checkpoints_tools.export import export_hf
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.source import load_examples
from model.encoder import ROBERTA_DEBUG, Encoder
from tests.encoder_tokenizers import write_roberta

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    texts = [example.text for example in load_examples("massive", "train", "sample")]
    tokenizer = load_encoder_tokenizer(write_roberta(folder, texts, vocab_size=600)["json"])
    config = replace(ROBERTA_DEBUG, vocab_size=tokenizer.vocab_size)
    model = Encoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    export_hf(model, config, tokenizer, folder / "checkpoint")
    return folder / "checkpoint"


def test_the_same_losses_in_different_time(checkpoint: Path, tmp_path: Path) -> None:
    options = {
        "checkpoint": checkpoint, "model": "roberta", "max_length": 24, "batch_size": 6, "steps": 1, "rounds": 2,
        "compared": 3, "lr": 1e-2, "output": tmp_path / "speed.md",
    }  # fmt: skip
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert encoder_speed.main([*argv, "--tasks", "massive_slots", "massive_intent"]) == 0
    text = (tmp_path / "speed.md").read_text()
    apart = re.findall(r"differ by at most (\S+) \(([^)]*)\)", text)
    assert len(apart) == 2
    for largest, losses in apart:
        first, _, last = map(float, losses.split(", "))
        assert float(largest) < 1e-4 < 1e-2 < abs(first - last), "weights moved, and alike in all three"
    rows = {(task, name): cells for task, name, cells in re.findall(r"\| (\w+), fp32, (\w+) \| (.*)", text)}
    assert len(rows) == 6
    for task in ("massive_slots", "massive_intent"):
        computed = {name: int(rows[task, name].split()[0]) for name in encoder_speed.VARIANTS}
        assert computed["packed"] < computed["Trainer"] <= computed["padded"]
    assert str(checkpoint) not in text and "Not measured on a GPU" in text


def test_tasks_of_several_fields_have_no_class_in_transformers(checkpoint: Path, capsys) -> None:
    assert encoder_speed.main(["--checkpoint", str(checkpoint), "--tasks", "massive_joint"]) == 2
    assert "transformers has no class for several fields" in capsys.readouterr().err
