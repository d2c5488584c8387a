"""``train.py`` that keeps its held-out predictions, as a script under torchrun: ``encoder_score_run.py OUT OPTION...``.

Each rank writes the last held-out scoring's result to OUT/rank<r>.pt. The model is sharded as one too large to stay
gathered, and every document has a row to itself, so that ranks have unequal numbers of rows.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import eval.held_out
import train.parallel.parallelize
from eval.gather import ScoreResult
from eval.job import ScoringJob, ScoringRanks
from train.parallel.distributed import pick_device, run_guarded, set_up_logging, start
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


def main() -> None:
    out, argv = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    set_up_logging()
    train.parallel.parallelize.RESHARD_FROM = 0
    score, results = eval.held_out.score, []

    def keep(model: nn.Module, job: ScoringJob, ranks: ScoringRanks) -> ScoreResult:
        results.append(score(model, replace(job, max_batch_tokens=1), ranks))
        return results[-1]

    eval.held_out.score = keep
    config = load_config(argv)
    setup = open_run(config)
    world = start(pick_device("cpu"))
    Trainer(config, setup, world, eval.held_out.HeldOutScoring(config, setup, world)).run()
    torch.save(results[-1], out / f"rank{world.rank}.pt")


if __name__ == "__main__":
    run_guarded(main)
