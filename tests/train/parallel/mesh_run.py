"""Tiny training runs on device meshes of every kind, for tests: in this process, or as a script under torchrun.

``python mesh_run.py OUT NAME...`` runs cases (`CASES`) and stages of a run (`STAGES`) in their order, on all ranks, and
rank 0 writes OUT/NAME.npz. All share the processes: starting those takes longer than the runs do.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from data.errors import UserError
from model.llama import LlamaConfig
from tests.train.tiny_run import make_trainer, whole
from train.checkpointing import checkpoint
from train.parallel import parallelize
from train.parallel.distributed import World, place, run_guarded, start
from train.parallel.mesh import MeshShape
from train.together import require_same
from train.trainer import Trainer

# Four key/value heads, so that four ranks can split them; all other widths leave someone with less than others.
NET = LlamaConfig(dim=30, n_layers=2, n_heads=8, n_kv_heads=4, ffn_dim=52, vocab_size=301, head_dim=4)
TIED = LlamaConfig(**{**vars(NET), "tie_embeddings": True})

CASES: dict[str, tuple[MeshShape, dict[str, Any]]] = {
    "hybrid": (MeshShape(replicate=2, shard=2), {}),
    "replicated": (MeshShape(replicate=4), {"model_config": TIED}),
    "tp": (MeshShape(shard=2, tensor=2), {"row_length": 36, "micro_rows": 1}),
    "tp_tied": (
        MeshShape(shard=2, tensor=2),
        {"model_config": TIED, "activation_checkpointing": "full", "activation_offload": True},
    ),
    "tp_alone": (MeshShape(tensor=4), {"activation_checkpointing": "selective"}),
    # Not equal to one process, as bf16 weights are rounded at random; but on all copies alike.
    "rounded": (MeshShape(replicate=2, tensor=2), {"optim": "adamw_sr", "precision": "bf16"}),
    # Eight ranks.
    "hybrid_tp": (MeshShape(2, 2, 2), {}),
}

# One run, each stage of which goes on where the one before it stopped. "one" is the single process of the test.
STEPS_A_STAGE = 2
STAGES: dict[str, MeshShape] = {
    "full_8": MeshShape(shard=8),
    "full": MeshShape(shard=4),
    "hybrid_2": MeshShape(replicate=2, shard=2),
    "tp_2": MeshShape(shard=2, tensor=2),
    "one": MeshShape(),
}


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: whole(p) for name, p in trainer.model.named_parameters()}


def states(trainer: Trainer) -> dict[str, np.ndarray]:
    """The optimizer's states by parameter and key."""
    found = {}
    for name, parameter in trainer.model.named_parameters():
        for key, value in trainer.optimizer.state[parameter].items():
            found[f"{name}/{key}"] = whole(value)
    return found


def copies_that_differ(trainer: Trainer) -> int:
    """Of all parameters, how many that ranks hold a copy of each are not the same on them, bit for bit.

    Copies are what lies at the same place of the same parameter: on replicas, and whatever tensor parallelism leaves
    whole.
    """
    mine = {}
    for name, parameter in trainer.model.named_parameters():
        assert isinstance(parameter, DTensor)
        local, mesh = parameter.to_local(), parameter.device_mesh
        kept = [
            (dim, place)
            for dim, p, place in zip(mesh.mesh_dim_names, parameter.placements, mesh.get_coordinate(), strict=True)
            if not p.is_replicate()
        ]
        mine[name, tuple(kept)] = local.detach().float().numpy().tobytes()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    seen: dict[Any, bytes] = {}
    copies, differing = 0, 0
    for of_rank in everyone:
        for key, value in of_rank.items():
            copies += key in seen
            differing += seen.setdefault(key, value) != value
    replicas = trainer.world.shape.replicate > 1 or trainer.world.shape.tensor > 1
    assert bool(copies) == replicas, "nothing to compare"
    return differing


def run_case(name: str, output: Path, world: World) -> dict[str, np.ndarray]:
    """Two steps; returns losses, gradient norms, counts, and all parameters at the end."""
    trainer = make_trainer(output, world, **{"model_config": NET, **CASES[name][1]})
    steps = [trainer.setup.loader.step(n) for n in range(2)]
    records, flops, _ = zip(*(trainer.train_step(step) for step in steps), strict=True)
    return {
        "losses": np.array([r["loss"] for r in records]),
        "norms": np.array([r["grad_norm"] for r in records]),
        "flops": np.array(flops),
        "passes": np.array([len(step.batches) for step in steps]),
        "differing": np.array(copies_that_differ(trainer)),
        **weights(trainer),
    }


def run_stage(name: str, output: Path, world: World) -> dict[str, np.ndarray]:
    """Go on with the run in ``output`` for two steps, and save; what was loaded stands under "loaded/..."."""
    checkpoints = output / "checkpoints"
    resume_from = checkpoint.newest_complete(checkpoints) if checkpoints.exists() else None
    done = checkpoint.read_state(resume_from).step if resume_from else 0
    options = {"steps": done + STEPS_A_STAGE, "schedule": "constant", "model_config": NET, "resume_from": resume_from}
    trainer = make_trainer(output, world, **options)
    loaded = weights(trainer) | states(trainer)
    trainer.run()
    return {
        **{f"loaded/{key}": value for key, value in loaded.items()},
        **{f"saved/{key}": value for key, value in (weights(trainer) | states(trainer)).items()},
    }


def disagreement(output: Path, world: World) -> str:
    """What is said when one rank of several was given another learning rate and another data set."""
    trainer = make_trainer(output, world)
    config, setup = trainer.config, trainer.setup
    require_same(config, setup)
    if world.rank == 2:
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
        setup = dataclasses.replace(setup, identity=setup.identity | {"training_data": "other"})
    try:
        require_same(config, setup)
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    parallelize.RESHARD_FROM = 0  # as for large models: gathered again for the backward pass
    out, names = Path(sys.argv[1]), sys.argv[2:]
    start(torch.device("cpu"))
    said = disagreement(out / "disagreement", place(torch.device("cpu"), MeshShape(shard=dist.get_world_size())))
    (out / f"disagreement{dist.get_rank()}.txt").write_text(said)
    for name in names:
        if name in CASES:
            result = run_case(name, out / name, place(torch.device("cpu"), CASES[name][0]))
        else:
            result = run_stage(name, out / "staged", place(torch.device("cpu"), STAGES[name]))
        if dist.get_rank() == 0:
            np.savez(out / f"{name}.npz", **result)


if __name__ == "__main__":
    run_guarded(main)
