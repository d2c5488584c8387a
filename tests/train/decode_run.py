"""Decoding inside training, as a script under torchrun: ``python decode_run.py OUT`` writes OUT/rank<r>.json.

The model is sharded with FSDP2 and checkpoints its activations; the ranks hold unequal numbers of requests, one of them
none at all. A training pass follows, whose gradients must be those of a model that never decoded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import train.parallel.parallelize
from checkpoints_tools.registry import MODELS
from eval.decoder.decode import greedy_decode
from model.llama import Llama
from train.parallel.distributed import run_guarded, start
from train.parallel.parallelize import parallelize, reshard

CONFIG = MODELS["llama_debug"].config
PREFIX = [5, 6, 7]
BODIES = [[11, 12], [13], [14, 15, 16, 17], [18, 19], [20]]
LIMIT, STOP = 9, {1, 2, 3}
# By scenario, which requests each of the two ranks has: lopsided, one rank without any, nobody any.
SHARES = {"lopsided": [[0, 1, 2, 3], [4]], "idle": [[], [0, 1, 2]], "none": [[], []]}
TOKENS = list(range(40, 60))


def gradients(model: torch.nn.Module) -> dict[str, list[float]]:
    """The sum and the largest entry of every gradient of one made-up loss."""
    model.zero_grad()
    model(torch.tensor([TOKENS])).float().square().mean().backward()
    full = {n: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for n, p in model.named_parameters()}
    return {name: [g.double().sum().item(), g.abs().max().item()] for name, g in full.items()}


def main() -> None:
    out = Path(sys.argv[1])
    world = start(torch.device("cpu"))
    train.parallel.parallelize.RESHARD_FROM = 0  # as for a model too large to stay gathered
    model = parallelize(
        lambda: Llama(CONFIG), world.mesh, world.device, precision="fp32", activation_checkpointing="full"
    )
    found: dict[str, object] = {}
    for name, shares in SHARES.items():
        bodies = [BODIES[i] for i in shares[world.rank]]
        decoded = greedy_decode(model, PREFIX, bodies, LIMIT, STOP, max_batch_tokens=24, group=dist.group.WORLD)
        found[name] = [(d.tokens, d.stopped) for d in decoded]
        assert model.training
    reshard(model)
    found["gradients"] = gradients(model)
    (out / f"rank{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_guarded(main)
