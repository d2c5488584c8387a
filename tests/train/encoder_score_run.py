"""``train.py`` that keeps its held-out predictions, as a script under torchrun: ``encoder_score_run.py OUT OPTION...``.

Each rank writes the last held-out scoring's result to OUT/rank<r>.pt. The model is sharded as one too large to stay
gathered, and every document has a row to itself, so that ranks have unequal numbers of rows.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import eval.encoder_score  # noqa: E402
import train.parallelize  # noqa: E402
from train.config import load_config  # noqa: E402
from train.distributed import pick_device, run_guarded, set_up_logging, start  # noqa: E402
from train.setup import open_run  # noqa: E402
from train.trainer import Trainer  # noqa: E402


def main() -> None:
    out, argv = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    set_up_logging()
    train.parallelize.KEEP_GATHERED_BELOW = 0
    score, results = partial(eval.encoder_score.score_encoder, max_batch_tokens=1), []
    eval.encoder_score.score_encoder = lambda *args, **kwargs: results.append(score(*args, **kwargs)) or results[-1]
    config = load_config(argv)
    setup = open_run(config)
    world = start(pick_device("cpu"))
    Trainer(config, setup, world).run()
    torch.save(results[-1], out / f"rank{world.rank}.pt")


if __name__ == "__main__":
    run_guarded(main)
