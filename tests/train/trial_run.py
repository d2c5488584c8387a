"""Tiny runs with a trial of the worst step before the first one, against the same without, on all ranks.

For tests in this process and, as a script under torchrun, ``python trial_run.py OUT``, which ends with a trial that
runs out of memory on the last rank.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from tests.train import tiny_encoder_run, tiny_run
from train import trial
from train.checkpointing import checkpoint
from train.parallel import distributed
from train.parallel.distributed import World, run_guarded, start
from train.trainer import Trainer

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "decoder": (tiny_run, {"model_config": tiny_run.TIED, "row_length": 36, "batch_size": 16}),
    "8bit": (
        tiny_run,
        {"batch_size": 2, "weight_decay": 0.1, "optim": "adamw_sr_8bit", "offload_states": True, "precision": "bf16"},
    ),
    "encoder": (tiny_encoder_run, {"model_config": tiny_encoder_run.DROPPING, "row_length": 24, "batch_size": 16}),
}


def train(trainer: Trainer, *steps: int) -> list[Any]:
    return [trainer.train_step(trainer.setup.loader.step(n))[0] for n in steps]


def everything(trainer: Trainer) -> dict[str, Any]:
    """Weights, the optimizer's states and the random-number generators' states of this rank."""

    def local(x: Any) -> Any:
        x = x.to_local() if isinstance(x, DTensor) else x
        return x.detach().float().numpy().copy() if isinstance(x, torch.Tensor) else x

    found = {name: local(p) for name, p in trainer.model.named_parameters()}
    for name, p in trainer.model.named_parameters():
        found |= {f"{name} {key}": local(x) for key, x in trainer.optimizer.state[p].items()}
    state = checkpoint.rng_state()
    return found | {"rng": state["torch"].numpy(), "python": state["python"][1], "numpy": state["numpy"][1].numpy()}


def seeded() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)


def compare(case: str, output: Path, world: World) -> None:
    """Two steps, a save, two more in a new trainer that resumes: with a trial before each beginning, and without."""
    module, options = CASES[case]
    results, tried = [], []
    try_step = trial.try_step

    def counted(model, optimizer, batch, clip, device):
        before = [p.detach().clone() for p in model.parameters()]
        try_step(model, optimizer, batch, clip, device)
        tried.append(len(batch.batches))
        states = [optimizer.state[p] for p in model.parameters()]
        assert all(len(state) >= 3 and not state["step"].any() for state in states), "they are there, and unused"
        for p, was in zip(model.parameters(), before, strict=True):
            assert torch.equal(_local(p), _local(was)) and p.grad is None

    trial.try_step = counted
    for devices in ((), ("cpu",)):
        trial.TRIED_ON = frozenset(devices)
        folder = output / f"{case}_{len(devices)}"
        seeded()
        first = module.make_trainer(folder, world, **options, steps=4, async_save="off")
        records = train(first, 0, 1)
        first._save()
        first.saver.finish()
        seeded()
        setup = dataclasses.replace(first.setup, resume_from=checkpoint.newest_complete(first.checkpoints))
        second = Trainer(first.config, setup, world)
        assert second.step == 2
        results.append((records + train(second, 2, 3), everything(second)))
        assert len(tried) == 2 * len(devices)
    trial.try_step = try_step
    (plain, a), (after_trial, b) = results
    assert plain == after_trial, (plain, after_trial)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=f"{case} {key}")
    assert set(tried) == {1 if case == "8bit" else 2}, "steps that accumulate are tried as such"


def _local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def main() -> None:
    torch.set_num_threads(1)
    distributed.GRACE_SECONDS = 2.0
    world, output = start(torch.device("cpu")), Path(sys.argv[1])
    compare("encoder", output, world)
    if world.is_main:
        (output / "compared").touch()

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    loss = trial.batch_loss
    trial.batch_loss = full if world.rank == world.size - 1 else loss
    tiny_run.make_trainer(output / "full", world)
    raise AssertionError("the other ranks must not get here")


if __name__ == "__main__":
    run_guarded(main)
