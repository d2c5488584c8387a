"""Script for torchrun: probabilities of labels on 2 ranks; ``labels_run.py OUT CHECKPOINT`` writes rank<r>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from checkpoints_tools.load import load_pretrained
from eval.config import EvalConfig
from eval.decoder.labels import Answered, ValidAnswers, decode_labels
from eval.decoder.score import prepare_requests
from eval.setup import ScoringSetup, build_model, open_scoring
from train.parallel.distributed import place, run_guarded, start
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import parallelize

CPU = torch.device("cpu")
TASKS = ("massive_intent", "20ng_joint", "massive_joint", "massive_slots")
N = 7


def setup_of(checkpoint: Path, task: str) -> ScoringSetup:
    options = EvalConfig(model="llama", checkpoint=checkpoint, task=task, data="sample", limit=N, row_length=3000)
    return open_scoring(options)


def choose(setup: ScoringSetup, model: torch.nn.Module, own: slice, group: dist.ProcessGroup | None) -> list[Answered]:
    requests = prepare_requests(setup.job)
    samples, own_ids = requests.samples, range(N)[own]
    answers = ValidAnswers(setup.task, setup.job.prompt, setup.tokenizer)
    return decode_labels(
        model,
        samples.prefix.tolist(),
        [samples.body(i).tolist() for i in own_ids],
        [setup.examples[i].words for i in own_ids],
        [requests.limits[i] for i in own_ids],
        answers,
        max_batch_tokens=500,
        group=group,
    )


def alone(checkpoint: Path, task: str) -> list[Answered]:
    setup = setup_of(checkpoint, task)
    return choose(setup, build_model(setup, "fp32", CPU), slice(None), None)


def main() -> None:
    torch.set_num_threads(1)
    out, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    world = start(CPU)
    found: dict[Any, Any] = {}
    for task in TASKS:
        setup = setup_of(checkpoint, task)
        sharded = parallelize(
            lambda setup=setup: setup.spec.build(setup.config), world.mesh, CPU, precision="fp32",
            load=lambda model, setup=setup: load_pretrained(model, setup.weights.path),
        )  # fmt: skip
        own = [slice(0, 5), slice(5, N)][world.rank]
        found["fsdp", task] = choose(setup, sharded, own, dist.group.WORLD)
        found["none", task] = choose(setup, sharded, [slice(0, 2), slice(0, 0)][world.rank], dist.group.WORLD)
    ranks = place(world.device, MeshShape(shard=1, tensor=2))
    for task in TASKS:
        setup = setup_of(checkpoint, task)
        found["tensor", task] = choose(setup, build_model(setup, "fp32", CPU, ranks.mesh["tensor"]), slice(None), None)
    torch.save(found, out / f"rank{world.rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    run_guarded(main)
