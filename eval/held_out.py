"""Scoring held-out examples inside a training run.

How a decoder decodes here depends on what FSDP2 does with its weights (`docs/scoring_in_training.md` has the
arithmetic and the measurements):

    stay gathered              a small model, or a single rank: decode with them; the ranks share the examples
    freed after each pass      every token would gather the weights again. Instead a temporary copy is made for each
                               scoring. It is split over the GPUs of each machine; its replicas share the examples

There are no gradients during scoring. The copy needs at most their memory if it is split over as many ranks. If no copy
is possible (key/value heads that do not divide, too little free memory), decoding runs through FSDP and gathers the
weights for every token; the log says so. Encoders need one pass per row and no copy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, cast

import seqeval.metrics  # noqa: F401  # with scikit-learn: what is missing shows before the first step
import torch
import torch.distributed as dist
from torch import nn

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.formats import HELD_OUT
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.tasks import ClassField
from eval.decoder.labels import valid_answers
from eval.decoder.tensor_parallel import copy_for_scoring
from eval.gather import ScoreResult
from eval.job import BATCH_TOKENS, ScoringJob, ScoringRanks
from eval.memory import ScoringLoad
from eval.metrics import main_figures, selection_metric
from eval.score import request_lengths, score
from eval.stored_calibration import fit
from eval.together import Stopped
from train.config import TrainConfig
from train.launched import launched
from train.parallel.distributed import World, place
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import PRECISIONS, keep_unsharded, reshard, reshards_after_forward
from train.planning.hardware import usable
from train.scorer import Calibrated, HeldOutScore
from train.setup import Setup
from train.training_data import CACHE_DIR, longest_input

log = logging.getLogger(__name__)

Decode = Literal["free", "labels"]


def tp_for(config: ModelConfig, local_ranks: int) -> int:
    """Tensor-parallel ranks of a copy: the most that divide what the plan says and a machine's ranks; 1 without one."""
    plan = architecture_of(config).tensor_plan
    return 1 if plan is None else math.gcd(*(getattr(config, field) for field in plan.divides), local_ranks)


class Nothing:
    """The calibration of a model that has none."""

    def save(self, folder: Path) -> None:
        """Write nothing."""


class HeldOutScoring:
    """Scores a run's held-out examples: what `train.py` hands to the trainer."""

    def __init__(self, config: TrainConfig, setup: Setup, world: World) -> None:
        self.config, self.setup, self.world = config, setup, world
        self.copy_world: World | None = None  # the copy's layout of the ranks
        self._is_set_up = False

    def score(self, model: nn.Module, stop: Callable[[], bool]) -> HeldOutScore | None:
        """Score ``model``, whose parameters are sharded before and after; a collective call of all ranks.

        Args:
            stop: asked between forward passes. If it is true on any rank, the result is None on all.
        """
        try:
            metrics = self.answer(model, stop).metrics
        except Stopped:
            return None
        return HeldOutScore(main_figures(self.setup.task, metrics), selection_metric(self.setup.task, metrics))

    def calibrate(self, model: nn.Module, stop: Callable[[], bool]) -> Calibrated | None:
        """Fit temperatures to the probabilities of the held-out examples' labels; otherwise as `score`.

        Nothing is fitted for a task without class fields, or for a tokenizer that has no tokens for its answers.
        """
        setup = self.setup
        if not any(isinstance(field, ClassField) for field in setup.task.fields):
            return Nothing()
        if setup.prompt is not None:
            try:  # on every rank alike, before any pass
                _ = valid_answers(setup.task, setup.prompt, cast(Tokenizer, setup.tokenizer)).load
            except UserError as error:
                log.info("note: the exports have no calibration. %s", error)
                return Nothing()
        try:
            predictions = self.answer(model, stop, decode="labels").predictions
        except Stopped:
            return None
        if not predictions:  # on ranks other than 0
            return Nothing()
        found = fit(self._job(), predictions, HELD_OUT)
        log.info("probabilities: %s", found.describe())
        return found

    def answer(self, model: nn.Module, stop: Callable[[], bool] | None = None, decode: Decode = "free") -> ScoreResult:
        """Answers to the held-out examples, and their metrics; a collective call of all ranks.

        Raises:
            Stopped: ``stop`` was true on a rank.
        """
        if not self._is_set_up:
            self._set_up(model)
        if self.copy_world is None or not self._copy_fits(decode):
            keep_unsharded(model, self.world.size == 1)  # in the gradients' memory, which is free now
            try:
                return score(model, self._job(decode=decode), ScoringRanks.of(self.world, sharded=True, stop=stop))
            finally:
                keep_unsharded(model, False)
                reshard(model)
        build = partial(self.setup.spec.build, self.setup.model_config)
        mesh = self.copy_world.mesh["tensor"]
        copy = copy_for_scoring(model, build, mesh, self._dtype, self.world.device)
        return score(copy, self._copy_job(decode), ScoringRanks.of(self.copy_world, stop=stop))

    def _set_up(self, model: nn.Module) -> None:
        """Lay out the ranks for a copy of the model, if one is needed. Only once: it creates process groups."""
        self._is_set_up = True
        setup, world = self.setup, self.world
        needs_copy = world.shape.tensor > 1 or (world.size > 1 and reshards_after_forward(model))
        if not needs_copy or setup.spec.kind == "encoder":
            return
        tp = tp_for(setup.model_config, launched().local_size)
        if tp > 1:
            self.copy_world = place(world.device, MeshShape(shard=world.size // tp, tensor=tp))
            log.info("held-out scoring: with a temporary copy of the model, split over %d ranks", tp)
        else:
            log.info(
                "held-out scoring: gathers the weights for every token, since the matrices of this model cannot be "
                "split over the ranks of a machine"
            )

    @property
    def _dtype(self) -> torch.dtype:
        return PRECISIONS[self.config.train.precision].compute

    def _job(self, max_batch_tokens: int = BATCH_TOKENS, decode: Decode = "free") -> ScoringJob:
        config, setup = self.config, self.setup
        return ScoringJob(
            task=setup.task,
            tokenizer=setup.tokenizer,
            examples=setup.held_out,
            max_length=longest_input(config, setup.model_config),
            prompt=setup.prompt,
            max_new_tokens=config.eval.max_new_tokens,
            max_batch_tokens=max_batch_tokens,
            cache_dir=config.data.cache_dir or CACHE_DIR,
            fine_tuned=True,
            answer_tokens=setup.prompt_spec.answer_tokens if setup.prompt_spec is not None else None,
            decode=decode,
        )

    def _copy_job(self, decode: Decode = "free") -> ScoringJob:
        """The job with n times larger batches: a rank of the copy caches 1/n of the keys and values."""
        assert self.copy_world is not None
        return self._job(BATCH_TOKENS * self.copy_world.shape.tensor, decode)

    def _copy_fits(self, decode: Decode) -> bool:
        """Estimate whether a copy fits into every rank's free memory; the log says if it does not.

        A collective call on CUDA; on other devices always True.
        """
        if self.world.device.type != "cuda":
            return True
        torch.cuda.empty_cache()  # frees the last step's gradients and activations
        free = torch.tensor(torch.cuda.mem_get_info(self.world.device)[0], device=self.world.device)
        dist.all_reduce(free, op=dist.ReduceOp.MIN)
        needed, limit = self._copy_peak(decode), usable(int(free.item()))
        if limit < needed:
            log.info(
                "held-out scoring: gathers the weights for every token; %.1f GB are free, a copy needs %.1f",
                limit / 1e9,
                needed / 1e9,
            )
        return limit >= needed

    def _copy_peak(self, decode: Decode = "free") -> int:
        """Bytes of a GPU that the copy needs: while it is made, with one unsharded tensor; later, with the cache."""
        assert self.copy_world is not None
        setup, job, shape = self.setup, self._copy_job(decode), self.copy_world.shape
        load = ScoringLoad(setup.spec, setup.model_config, self._dtype, request_lengths(job), job.max_batch_tokens)
        memory = load.memory(shape.tensor, shape.n_data)
        largest = setup.model_config.vocab_size * setup.model_config.dim * self._dtype.itemsize
        return max(memory.peak, memory.weights + largest)
