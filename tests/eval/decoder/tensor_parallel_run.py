"""Script for torchrun: score with a tensor-parallel model; ``tensor_parallel_run.py OUT CHECKPOINT`` writes rank<r>.pt.

For each number of slices: the answers of the model read from disk; and whether the slices read from a training
checkpoint, and those copied from an FSDP2 model, equal the slices read from the Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from checkpoints_tools.load import load_pretrained
from eval.config import EvalConfig
from eval.decoder.kv_cache import SlotCache
from eval.decoder.tensor_parallel import copy_for_scoring
from eval.gather import ScoreResult
from eval.job import ScoringRanks
from eval.score import score
from eval.setup import ScoringSetup, build_model, open_scoring
from train.parallel.distributed import World, place, run_guarded, start
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import parallelize

CPU = torch.device("cpu")
SLICES = (2, 4)
N_EXAMPLES = (9, 1)  # over two replicas: unequal numbers of examples, and one replica without any


def setup_of(checkpoint: Path) -> ScoringSetup:
    return open_scoring(
        EvalConfig(model="llama", checkpoint=checkpoint, task="massive_intent", data="sample", limit=9, row_length=3000)
    )


def score_some(setup: ScoringSetup, model: torch.nn.Module, n_examples: int, world: World | None = None) -> ScoreResult:
    """Score the first examples, in several batches."""
    job = dataclasses.replace(
        setup.job, examples=setup.examples[:n_examples], max_new_tokens=6, max_batch_tokens=200, cache_dir=None
    )
    return score(model, job, ScoringRanks.of(world) if world is not None else None)


def seen_heads(heads: set[int]) -> Callable[..., None]:
    """`SlotCache.write` that notes how many heads it is given."""
    write = SlotCache.write

    def noted(cache: SlotCache, layer: int, slot: Tensor, offset: Tensor, k: Tensor, v: Tensor) -> None:
        heads.add(k.shape[1])
        write(cache, layer, slot, offset, k, v)

    return noted


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    assert left.keys() == right.keys()
    return all(x.dtype == right[name].dtype and torch.equal(x, right[name]) for name, x in left.items())


def main() -> None:
    torch.set_num_threads(1)
    out, setup = Path(sys.argv[1]), setup_of(Path(sys.argv[2]))
    world = start(CPU)
    build = lambda: setup.spec.build(setup.config)  # noqa: E731
    trained = parallelize(
        build, world.mesh, CPU, precision="fp32", activation_checkpointing="full",
        load=lambda model: load_pretrained(model, setup.weights.path),
    )  # fmt: skip
    dcp.save({"model": get_model_state_dict(trained)}, checkpoint_id=out / "dcp")
    weights = dataclasses.replace(setup.weights, path=out / "dcp", is_training=True)

    found: dict[Any, Any] = {}
    for n in SLICES:
        ranks = place(world.device, MeshShape(shard=world.size // n, tensor=n))
        mesh = ranks.mesh["tensor"]
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            model = build_model(setup, precision, CPU, mesh)
            copy = copy_for_scoring(trained, build, mesh, dtype, CPU)
            resumed = build_model(dataclasses.replace(setup, weights=weights), precision, CPU, mesh)
            found[n, precision] = {"copied": same(copy, model), "resumed": same(resumed, model)}
            if precision == "fp32":
                heads: set[int] = set()
                with mock.patch.object(SlotCache, "write", seen_heads(heads)):
                    found[n] = [score_some(setup, model, k, ranks) for k in N_EXAMPLES]
                found[n, "cached heads"] = heads
                with torch.no_grad():  # every row of the embedding, wherever the slices end
                    found[n, "logits"] = model(torch.arange(setup.config.vocab_size)[None])
                found[n, "parameters"] = sum(p.numel() for p in model.parameters())
        alive = weakref.ref(copy.layers[0].attention.wq.weight)
        del copy
        gc.collect()
        found[n, "freed"] = alive() is None
    assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in trained.parameters())
    torch.save(found, out / f"rank{world.rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    run_guarded(main)
