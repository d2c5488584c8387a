"""Weights that are NaN or infinite are no start of a run: the message names the checkpoint and the tensors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools.checksums import write_checksums
from checkpoints_tools.export import export_hf
from checkpoints_tools.registry import get_model_spec
from data.decoder.tokenizer import load_tokenizer
from data.tasks import TASKS
from model.encoder import ROBERTA_DEBUG
from tests.encoder_exports import write_encoder
from tests.encoder_samples import make_encoder_samples
from tests.launching import ROOT, TICKETS
from tests.train.tiny_encoder_run import QUIET, make_trainer
from train.errors import NotFinite
from train.fit_heads import fit_heads
from train.parallel.distributed import World


def damage(folder: Path, *names: str) -> Path:
    """Write one NaN into the last row of each of these tensors, with several ranks that of the last rank."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_checksums(folder)  # the tensor was written so
    return folder


def refused(done: subprocess.CompletedProcess, folder: Path, names: str, run: Path) -> None:
    said = done.stdout + done.stderr
    assert f"error: {folder} cannot be trained: NaN or infinite values are in its {names}. The checkpoint is" in said
    assert not run.exists(), "nothing stays behind"
    for word in ("sklearn", "[rank 1] error"):
        assert word not in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_decoder(ranks: int, tiny_tokenizer: Path, train_args: list[str], launch: Callable, tmp_path: Path) -> None:
    tokenizer, spec = load_tokenizer(tiny_tokenizer), get_model_spec("llama_debug")
    model = spec.build(replace(spec.config, vocab_size=tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    export_hf(model, model.config, tokenizer, tmp_path / "model")
    names = ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"]
    folder = damage(tmp_path / "model", *names)
    train_args[train_args.index("--init") + 1] = "pretrained"
    train_args[train_args.index("--checkpoint") + 1] = str(folder)
    done = launch(ROOT / "train.py", *train_args, ranks=ranks)
    refused(done, folder, ", ".join(names), tmp_path / "run")
    assert ranks == 2 or (done.returncode == 2 and "Traceback" not in done.stderr)


def test_an_encoder_whose_new_heads_are_fitted(launch: Callable, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, TASKS["massive_intent"], ROBERTA_DEBUG)
    name = "embeddings.LayerNorm.weight"
    damage(folder, name)
    args = ["--model", "roberta_debug", "--checkpoint", folder, "--task", TICKETS, "--device", "cpu", "--fit_heads"]
    args += ["--output", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--steps", "1"]
    done = launch(ROOT / "train.py", *args)
    refused(done, folder, name, tmp_path / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_heads_are_not_fitted_to_values_that_overflowed(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world, model_config=QUIET)
    with torch.no_grad():
        for parameter in trainer.model.layers[-1].parameters():
            parameter.fill_(3e38)
    with pytest.raises(NotFinite, match="values computed for topic are NaN or infinite, though all weights are"):
        fit_heads(trainer.model, ["topic", "slots"], make_encoder_samples(60), 64, 0)
