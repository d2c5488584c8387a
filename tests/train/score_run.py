"""Held-out scoring inside a run, as a script under torchrun: ``score_run.py OUT TRAIN-ARGS...``; rank r writes
OUT/rank<r>.pt: what the temporary split copy answers, and what decoding through FSDP does."""

from __future__ import annotations

import dataclasses
import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import train.parallel.parallelize
from checkpoints_tools.registry import MODELS
from eval.held_out import HeldOutScoring
from model.llama import Llama
from train.parallel.distributed import World, run_guarded, set_up_logging, start
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


def make_trainer(args: list[str], world: World | None = None) -> Trainer:
    """A trainer of the debug model with two key/value heads, so that two ranks can split it."""
    spec = MODELS["llama_debug"]
    try:
        MODELS["llama_debug"] = dataclasses.replace(spec, config=dataclasses.replace(spec.config, n_kv_heads=2))
        config = load_config(args)
        setup = open_run(config)
        world = world or start(setup.device, setup.mesh_shape)
        trainer = Trainer(config, setup, world, HeldOutScoring(config, setup, world))
    finally:
        MODELS["llama_debug"] = spec
    with torch.no_grad():  # as initialized, the model repeats its last token whatever the document
        for parameter in trainer.model.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
    return trainer


def main() -> None:
    torch.set_num_threads(1)
    set_up_logging()
    train.parallel.parallelize.RESHARD_FROM = 0  # as for a model too large to stay gathered
    out, found = Path(sys.argv[1]), {}
    trainer = make_trainer(sys.argv[2:])
    world = trainer.world
    scoring = trainer.scorer
    for way, fits in (("copy", True), ("too little memory", False)):
        scoring._copy_fits = lambda fits=fits: fits
        result = scoring.answer(trainer.model)
        found[way] = (result.predictions, result.metrics, result.counts)
        gc.collect()
        # FSDP gives the model in training a class of its own.
        assert not [o for o in gc.get_objects() if type(o) is Llama], "the copy is freed"
        assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in trainer.model.parameters())
    found["slices"] = scoring.copy_world and scoring.copy_world.shape.tensor
    del scoring._copy_fits
    torch.save(found, out / f"rank{world.rank}.pt")
    trainer.run()  # scores after its steps, and keeps the best
    dist.barrier()


if __name__ == "__main__":
    run_guarded(main)
