"""A scoring that is told to stop ends on every rank, whichever of them was told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.source import load_examples
from eval.job import ScoringJob, ScoringRanks
from eval.score import score
from eval.setup import build_model
from eval.together import Stopped
from tests.encoder_exports import random_encoder
from tests.eval.decoder.test_score import setup_of
from tests.eval.encoder.test_score import JOINT, config_for
from tests.eval.encoder.test_score import folders as folders
from tests.eval.encoder.test_score import job as encoder_job
from train.parallel.distributed import leave_group

TOLD = 1  # rank


class Told:
    """True on one rank from the third question on; counts the model's forward passes."""

    def __init__(self, model: torch.nn.Module, rank: int) -> None:
        self.asked, self.rank, self.passes = 0, rank, 0
        model.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.passes += 1

    def __call__(self) -> bool:
        self.asked += 1
        return self.rank == TOLD and self.asked > 2


def decoder(checkpoint: Path) -> tuple[torch.nn.Module, ScoringJob]:
    setup = setup_of(checkpoint)
    job = dataclasses.replace(setup.job, max_new_tokens=6, cache_dir=None, max_batch_tokens=1)
    return build_model(setup, "fp32", torch.device("cpu")), job


def encoder(folder: Path) -> tuple[torch.nn.Module, ScoringJob]:
    tokenizer = load_encoder_tokenizer(folder)
    examples = load_examples(JOINT, "test", "sample")[:9]
    return random_encoder(config_for(JOINT, tokenizer)), encoder_job(JOINT, tokenizer, examples, max_batch_tokens=1)


def on_rank(rank: int, port_file: Path, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    for model, job in (decoder(checkpoint), encoder(folder)):
        for sharded in (False, True):
            passes = dist.group.WORLD if sharded else None
            told = Told(model, rank)
            with pytest.raises(Stopped):
                score(model, job, ScoringRanks("cpu", rank, 2, None, sharded, passes, told))
            # Ranks with forward passes of their own find out at the end; the others at the same pass.
            assert told.passes == 2 if sharded or rank == TOLD else told.passes > 2
        untold = ScoringRanks("cpu", rank, 2, stop=lambda: False)
        assert score(model, job, untold).metrics["n_examples"] == 9
    leave_group()


def test_all_ranks_stop_if_one_is_told(tiny_checkpoint: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    mp.spawn(on_rank, (tmp_path / "rendezvous", tiny_checkpoint, folders["roberta"]), nprocs=2, join=True)
