"""Tiny encoder training runs on made-up documents, for tests in this process and, as a script, under torchrun.

``python tiny_encoder_run.py OUT CASE...`` runs cases on all ranks and lets rank 0 write OUT/CASE.npz.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints_tools.llama_heads import without_heads
from checkpoints_tools.registry import ModelSpec
from data.loader import StepLoader
from data.tasks import TASKS
from model.encoder import ROBERTA_DEBUG, Head
from model.llama_heads import HeadedConfig
from tests.encoder_samples import make_encoder_samples
from tests.train.tiny_run import STEPS, TIED, whole
from train import options
from train.config import TrainConfig
from train.fit_heads import fit_heads
from train.parallel.distributed import World, run_guarded, start
from train.setup import Setup
from train.trainer import Trainer

HEADS = (Head("topic", "class", 7), Head("slots", "token", 5))
DROPPING = replace(ROBERTA_DEBUG, dim=30, n_heads=3, ffn_dim=50, heads=HEADS)
QUIET = replace(DROPPING, dropout=0.0, attention_dropout=0.0)
BERT = replace(QUIET, family="bert", position_offset=0, n_token_types=2, norm_eps=1e-12, head="dense")
MULTI = replace(QUIET, heads=(*HEADS, Head("marks", "multi", 4)))
LLAMA = replace(without_heads(TIED), heads=MULTI.heads)

CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "dense": {"model_config": BERT},
    "mean": {"model_config": replace(MULTI, head="mean")},
    "mean, empty rank": {"model_config": replace(MULTI, head="mean"), "batch_size": 1},
    "fitted": {"model_config": replace(MULTI, head="mean"), "fit_heads": True},
    "fitted, weighted": {"class_weights": ("made up",), "batch_size": 16, "fit_heads": True},
    "llama": {"model_config": LLAMA},
    "llama, empty rank": {"model_config": LLAMA, "batch_size": 1},
    "llama, fitted": {"model_config": LLAMA, "fit_heads": True},
    "llama, unpacked": {"model_config": LLAMA, "packing": False},
    "multi": {"model_config": MULTI},
    "multi, unpacked": {"model_config": MULTI, "packing": False},
    "multi, empty rank": {"model_config": MULTI, "batch_size": 1},
    "unpacked": {"packing": False},
    "accumulated": {"row_length": 24, "batch_size": 16},
    "empty_rank": {"batch_size": 1},
    "full": {"activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "weighted": {"class_weights": ("made up",), "batch_size": 16},
    "weighted, accumulated": {"class_weights": ("made up",), "batch_size": 16, "row_length": 24},
}
OF_TOPICS = np.array([0, 0.25, 0.5, 1, 2, 4, 8], dtype=np.float32)


def make_trainer(
    output: Path, world: World, *, model_config: HeadedConfig = QUIET, resume_from: Path | None = None, **values: Any
) -> Trainer:
    """A trainer over made-up documents; ``values`` are options by name."""
    defaults = dict(
        model="roberta_debug", task="massive_joint", init="random", output=output, precision="fp32", lr=1e-2, eps=1e-4,
        steps=STEPS, batch_size=8, row_length=256, export=False, optim="adamw",
    )  # fmt: skip
    config = options.build(TrainConfig, [defaults, values])
    samples = make_encoder_samples(60, multi=MULTI.heads == model_config.heads)
    if config.train.class_weights:
        samples.weights["topic"] = OF_TOPICS
    loader = StepLoader(
        samples,
        batch_size=config.batch.batch_size,
        row_length=config.batch.row_length,
        packing=config.batch.packing,
        seed=config.train.seed,
        rank=world.data_rank,
        world_size=world.shape.n_data,
    )
    setup = Setup(
        spec=ModelSpec("tiny", model_config.family, model_config, "", "encoder_debug"),
        model_config=model_config,
        tokenizer=None,
        task=TASKS["massive_joint"],
        prompt_spec=None,
        prompt=None,
        samples=samples,
        held_out=[],
        loader=loader,
        total_steps=config.train.steps,
        device=world.device,
        mesh_shape=world.shape,
        identity={"model_config": asdict(model_config)},
        resume_from=resume_from,
    )
    trainer = Trainer(config, setup, world)
    if config.train.fit_heads:  # as if the encoder were pretrained and the heads were new
        before = whole(trainer.model.heads["topic"].out.weight).copy()
        fit_heads(trainer.model, ["topic", "slots", "marks"], samples, config.batch.row_length, config.train.seed)
        assert not np.allclose(whole(trainer.model.heads["topic"].out.weight), before, atol=1e-2)
    return trainer


def run_case(name: str, output: Path, world: World, **values: Any) -> dict[str, np.ndarray]:
    """Run a case's steps; returns losses, in all and by field, gradient norms and all parameters at the end."""
    trainer = make_trainer(output, world, **{**CASES[name], **values})
    steps = [trainer.setup.loader.step(n) for n in range(STEPS)]
    records = [trainer.train_step(step)[0] for step in steps]
    return {
        "losses": np.array([r["loss"] for r in records]),
        **{key: np.array([r[key] for r in records]) for key in records[0] if key.startswith("loss/")},
        "norms": np.array([r["grad_norm"] for r in records]),
        "passes": np.array([len(step.batches) for step in steps]),
        "dummies": np.array([sum(b.dummy for b in step.batches) for step in steps]),
        **{name: whole(p) for name, p in trainer.model.named_parameters()},
    }


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    world = start(torch.device("cpu"))
    for name in sys.argv[2:]:
        result = run_case(name, out / name, world)
        total = torch.from_numpy(result["dummies"])
        torch.distributed.all_reduce(total)
        result["dummies"] = total.numpy()
        if world.is_main:
            np.savez(out / f"{name}.npz", **result)


if __name__ == "__main__":
    run_guarded(main)
