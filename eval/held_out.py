"""Scoring held-out examples inside a training run.

How a decoder decodes there depends on what FSDP2 does with its weights (`docs/scoring_in_training.md` has the
arithmetic and the measurements):

    gathered once, they stay   a small model, or a single rank: decode with them, each rank its share of the examples
    freed after each pass      every token would gather the whole model anew. Instead a temporary copy is split over the
                               GPUs of each machine, made once a scoring and freed afterwards; its replicas share the
                               examples

The copy takes no more memory than the gradients, which are not there while scoring, when it is split over as many ranks
as they are. Where it cannot be made (key/value heads that do not divide, too little free memory) decoding goes through
FSDP, one gathering a token, and the log says so. Encoders take one pass a row and need no copy.
"""

from __future__ import annotations

import logging
import math
import os
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from eval.decoder.score import score_model
from eval.decoder.tensor_parallel import copy_for_scoring
from eval.encoder.score import score_encoder
from eval.gather import ScoreResult
from eval.memory import RESERVE, scoring_memory
from eval.metrics import main_figures, selection_metric
from model.llama import LlamaConfig
from train.config import TrainConfig
from train.parallel.distributed import World, place
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import PRECISIONS, keep_unsharded, reshard, reshards_after_forward
from train.setup import CACHE_DIR, Setup, longest_input
from train.trainer import HeldOutScore

log = logging.getLogger(__name__)

BATCH_TOKENS = 4096  # of a decoding batch of a whole model; a rank that has 1/n of the heads takes n times as many


def tp_for(config: LlamaConfig, local_ranks: int) -> int:
    """Over how many ranks of a machine a model is split: as many as its heads and hidden units divide into."""
    return math.gcd(config.n_kv_heads, config.ffn_dim, local_ranks)


class HeldOutScoring:
    """Scores a run's held-out examples: what `train.py` hands to the trainer."""

    def __init__(self, config: TrainConfig, setup: Setup, world: World) -> None:
        self.config, self.setup, self.world = config, setup, world
        self.copy_world: World | None = None  # the ranks as the copy has them
        self._is_set_up = False

    def score(self, model: nn.Module) -> HeldOutScore:
        """Score ``model``, whose parameters are sharded before and after; a collective call of all ranks."""
        metrics = self.answer(model).metrics
        return HeldOutScore(main_figures(self.setup.task, metrics), selection_metric(self.setup.task, metrics))

    def answer(self, model: nn.Module) -> ScoreResult:
        """The answers to the held-out examples, and what they come to; a collective call of all ranks."""
        if not self._is_set_up:
            self._set_up(model)
        if self.copy_world is None or not self._copy_fits():
            keep_unsharded(model, self.world.size == 1)  # where the gradients are that are not there while scoring
            result = self._answer(model, self.world, sharded=True)
            keep_unsharded(model, False)
            reshard(model)
            return result
        build = partial(self.setup.spec.build, self.setup.model_config)
        return self._answer(
            copy_for_scoring(model, build, self.copy_world.mesh["tensor"], self._dtype, self.world.device),
            self.copy_world,
            max_batch_tokens=BATCH_TOKENS * self.copy_world.shape.tensor,
        )

    def _set_up(self, model: nn.Module) -> None:
        """Lay the ranks out for a copy of the model, where one is needed; once, as it makes process groups."""
        self._is_set_up = True
        setup, world = self.setup, self.world
        is_spread = world.shape.tensor > 1 or (world.size > 1 and reshards_after_forward(model))
        if not is_spread or not isinstance(setup.model_config, LlamaConfig):
            return
        tp = tp_for(setup.model_config, int(os.environ.get("LOCAL_WORLD_SIZE", world.size)))
        if tp > 1:
            self.copy_world = place(world.device, MeshShape(shard=world.size // tp, tensor=tp))
            log.info("held-out scoring: by a temporary copy of the model, split over %d ranks", tp)
        else:
            log.info(
                "held-out scoring: gathers the model for every token; %d key/value heads and %d hidden units do not "
                "divide over the ranks of a machine",
                setup.model_config.n_kv_heads,
                setup.model_config.ffn_dim,
            )

    @property
    def _dtype(self) -> torch.dtype:
        return PRECISIONS[self.config.train.precision].compute

    def _answer(
        self, model: nn.Module, ranks: World, sharded: bool = False, max_batch_tokens: int = BATCH_TOKENS
    ) -> ScoreResult:
        config, setup = self.config, self.setup
        score_answers = score_encoder
        if setup.prompt is not None:
            score_answers = partial(score_model, prompt=setup.prompt, max_new_tokens=config.eval.max_new_tokens)
        return score_answers(
            model,
            setup.tokenizer,
            setup.task,
            examples=setup.held_out,
            max_length=longest_input(config, setup.model_config),
            device=ranks.device,
            rank=ranks.data_rank,
            world_size=ranks.shape.n_data,
            group=ranks.data_group,
            sharded=sharded,
            max_batch_tokens=max_batch_tokens,
            cache_dir=config.data.cache_dir or CACHE_DIR,
        )

    def _copy_fits(self) -> bool:
        """Whether a copy fits on every rank beside what is there, as far as can be known; the log says if it does not.

        A collective call on CUDA; elsewhere always True.
        """
        if self.world.device.type != "cuda":
            return True
        torch.cuda.empty_cache()  # what the last step's gradients and activations took can be had again
        free = torch.tensor(torch.cuda.mem_get_info(self.world.device)[0], device=self.world.device)
        dist.all_reduce(free, op=dist.ReduceOp.MIN)
        c, tp = self.setup.model_config, self.copy_world.shape.tensor
        memory = scoring_memory(c, self._dtype, tp, self.config.batch.row_length, BATCH_TOKENS * tp)
        largest = c.vocab_size * c.dim * self._dtype.itemsize  # of the tensors that are whole for a moment
        needed = memory.total + largest + RESERVE
        if free.item() < needed:
            log.info(
                "held-out scoring: gathers the model for every token; %.1f GB are free, a copy needs %.1f",
                free.item() / 1e9,
                needed / 1e9,
            )
        return free.item() >= needed
