"""Tiny training runs on made-up token ids, for tests in this process and, as a script, under torchrun.

``python tiny_run.py OUT CASE...`` runs cases on all ranks and lets rank 0 write OUT/CASE.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from checkpoints_tools.registry import ModelSpec
from data.decoder.fewshot import PromptSpec
from data.decoder.samples import SampleSet
from data.tasks import TASKS
from model.llama import LlamaConfig
from train import options
from train.config import TrainConfig
from train.parallel import parallelize
from train.parallel.distributed import World, run_guarded, start
from train.setup import Setup
from train.trainer import Trainer
from train.training_data import build_loader, hash_samples

VOCAB = 301
STEPS = 3
# Widths that two and three ranks do not divide evenly.
TINY = LlamaConfig(dim=30, n_layers=2, n_heads=3, n_kv_heads=1, ffn_dim=50, vocab_size=VOCAB, head_dim=10)
TIED = LlamaConfig(**{**vars(TINY), "tie_embeddings": True})
# Wide enough for eight-bit states, but for the keys' and values' matrices.
WIDE = LlamaConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, vocab_size=VOCAB, head_dim=16)
# Four rows over three ranks are 2, 2 and none: a rank without a single element of some parameters.
SLIVER = LlamaConfig(dim=4, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=7, vocab_size=VOCAB, head_dim=2)

CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"model_config": TIED},
    "sliver": {"model_config": SLIVER},
    "empty_rank": {"batch_size": 1, "model_config": TIED},
    "accumulated": {"row_length": 36, "batch_size": 16, "micro_rows": 1, "model_config": TIED},
    "rows": {"row_length": 64, "batch_unit": "rows", "batch_size": 4},
    "bf16": {"precision": "bf16", "model_config": TIED},
    "adamw_sr": {"precision": "bf16", "optim": "adamw_sr", "model_config": TIED},
    "adamw_sr_8bit": {"precision": "bf16", "optim": "adamw_sr_8bit", "model_config": WIDE},
    "full": {"activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "weighted": {"class_weights": ("made up",), "batch_size": 16},
    "weighted, accumulated": {"class_weights": ("made up",), "batch_size": 16, "row_length": 36, "micro_rows": 1},
}


def make_samples(n: int = 60, seed: int = 0) -> SampleSet:
    rng = np.random.default_rng(seed)
    bodies, labels = rng.integers(3, 20, n), rng.integers(2, 5, n)
    label_end = np.cumsum(bodies + labels)
    return SampleSet(
        prefix=rng.integers(0, VOCAB, 12).astype(np.int32),
        ids=[f"made/up/{i}" for i in range(n)],
        tokens=rng.integers(0, VOCAB, label_end[-1]).astype(np.int32),
        body_end=label_end - labels,
        label_end=label_end,
        document_tokens=bodies.astype(np.int32),
        truncated=np.zeros(n, dtype=bool),
    )


def make_trainer(
    output: Path, world: World, *, model_config: LlamaConfig = TINY, resume_from: Path | None = None, **values: Any
) -> Trainer:
    """A trainer over made-up samples; ``values`` are options by name."""
    # A large eps keeps AdamW from blowing up rounding: without it a gradient of 1e-9 moves a weight as far as 1 does.
    defaults = dict(
        model="tiny", task="20ng_7", init="random", output=output, precision="fp32", lr=1e-2, eps=1e-4, steps=STEPS,
        batch_size=8, row_length=512, export=False, optim="adamw",
    )  # fmt: skip
    config = options.build(TrainConfig, [defaults, values])
    samples = make_samples()
    if config.train.class_weights:
        samples.label_weights = np.random.default_rng(1).choice([0, 0.5, 3], samples.label_lengths.sum())
        samples.label_weights = samples.label_weights.astype(np.float32)
    loader = build_loader(config, samples, rank=world.data_rank, world_size=world.shape.n_data)
    setup = Setup(
        spec=ModelSpec("tiny", "llama", model_config, "plain", "debug"),
        model_config=model_config,
        tokenizer=None,
        task=TASKS["20ng_7"],
        prompt_spec=PromptSpec("20ng_7", "plain"),
        prompt=None,
        samples=samples,
        held_out=[],
        loader=loader,
        total_steps=config.train.steps,
        device=world.device,
        mesh_shape=world.shape,
        identity={"model_config": vars(model_config), "training_data": hash_samples(samples)},
        resume_from=resume_from,
    )
    return Trainer(config, setup, world)


def whole(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().float().numpy().copy()  # NumPy has no bf16


def run_case(name: str, output: Path, world: World, **values: Any) -> dict[str, np.ndarray]:
    """Run a case's steps; returns losses, gradient norms and all parameters at the end."""
    trainer = make_trainer(output, world, **{**CASES[name], **values})
    records = [trainer.train_step(trainer.setup.loader.step(n))[0] for n in range(STEPS)]
    return {
        "losses": np.array([r["loss"] for r in records]),
        "norms": np.array([r["grad_norm"] for r in records]),
        "passes": np.array([len(trainer.setup.loader.step(n).batches) for n in range(STEPS)]),
        "dummies": np.array([sum(b.dummy for b in trainer.setup.loader.step(n).batches) for n in range(STEPS)]),
        "empty_shards": np.array(sum(p.to_local().numel() == 0 for p in trainer.model.parameters())),
        **{name: whole(p) for name, p in trainer.model.named_parameters()},
    }


def main() -> None:
    torch.set_num_threads(1)
    small = parallelize.RESHARD_FROM
    out = Path(sys.argv[1])
    world = start(torch.device("cpu"))
    for number, name in enumerate(sys.argv[2:]):
        # Every other case as for a model too large to stay gathered from forward to backward.
        parallelize.RESHARD_FROM = small if number % 2 else 0
        result = run_case(name, out / name, world)
        # Whether some rank had nothing to do or nothing to hold is known to that rank alone.
        for key in ("dummies", "empty_shards"):
            total = torch.from_numpy(np.atleast_1d(result[key]))
            torch.distributed.all_reduce(total)
            result[key] = total.numpy()
        if world.is_main:
            np.savez(out / f"{name}.npz", **result)


if __name__ == "__main__":
    run_guarded(main)
