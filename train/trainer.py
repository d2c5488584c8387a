"""The training loop: forward, backward, clip, step; log, score, save; and early ends of a run."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from checkpoints_tools.architectures import costs_of
from data.decoder.rows import ANSWER
from data.loader import StepBatch
from train import options, stopping, trial
from train.best import record_of_best
from train.build import build_model, describe_run
from train.checkpointing import checkpoint, run_folder, tensors
from train.checkpointing.disk_space import run_sizes
from train.checkpointing.saver import open_saver
from train.config import TrainConfig
from train.config_file import to_toml
from train.errors import Interrupted, NotFinite, RunStopped
from train.finite import require_finite_weights
from train.launched import under_torchrun
from train.loss import field_losses
from train.metrics import Plateau, RunLog, Speed, device_peak, memory_gib
from train.next_command import advice_to_continue, resume_command, scoring_advice, write_resume_script
from train.optim.formats import OPTIMIZERS
from train.optim.optimizer import build_optimizer, clip_gradients, learning_rate
from train.parallel.distributed import World, all_sum
from train.patience import Watched
from train.resolve import describe_settings
from train.run_export import export_best, export_run
from train.scorer import Calibrated, HeldOutScorer
from train.setup import Setup

log = logging.getLogger(__name__)


def announcement() -> str:
    """What a run says as soon as it is told to stop."""
    grace = f" There are {stopping.grace_seconds():.0f} seconds for that (torchrun's --shutdown-timeout)."
    return "finishing this step, then saving." + (grace if under_torchrun() else "")


def rank_seed(seed: int, rank: int, step: int) -> int:
    """The random seed of one rank from ``step`` on; it differs between ranks, run seeds and steps."""
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0])


NAMED_SAMPLES = 20  # ids in the message when a run stops; log.jsonl has all of them


class Trainer:
    """One rank of a run. Steps count from 0 in code and from 1 in everything printed and saved.

    Args:
        scorer: scores the model on held-out examples every ``eval_every`` steps; required if that is set.
    """

    def __init__(self, config: TrainConfig, setup: Setup, world: World, scorer: HeldOutScorer | None = None) -> None:
        assert scorer is not None or not config.eval.eval_every, "eval_every needs a scorer"
        self.config, self.setup, self.world = config, setup, world
        self.output = config.checkpoint.output
        self.checkpoints = self.output / "checkpoints"
        self.step = 0  # optimizer steps taken
        self.saved_step: int | None = None
        self.best: float | None = None
        self.watched = Watched()  # the scores that patience counts
        self.figures: dict[str, float] | None = None  # of the last held-out scoring
        self.unscored = False  # a scoring is due: it was stopped, or it is that of heads fitted before the first step
        self.calibrated: tuple[int, Calibrated] | None = None  # the model after this step
        self.stop = stopping.Stop()
        self.scorer = scorer
        self.costs = costs_of(setup.model_config)
        log.info("%s", describe_settings(config))
        sizes = run_sizes(config, setup.spec, setup.model_config, world.size)
        self.saver = open_saver(config, sizes, setup.total_steps, setup.resume_from, world)
        self.again = resume_command(config)  # now: torchrun may have died when it is needed
        with self._explained("building the model"):
            self._build_model()
        if config.eval.eval_every:
            self.best = record_of_best(self.output / "best", self.best, config, setup.identity, setup.task)
        if world.is_main:
            run_folder.write_config(self.output, to_toml(config, {"optim": config.optim_reason}))
            setup.save_task(self.output)
            write_resume_script(self.again, self.output)
        dist.barrier()

    def _build_model(self) -> None:
        """The order of `train/parallel/parallelize.py`: ... -> load -> optimizer."""
        config, resume = self.config, self.setup.resume_from
        self.model, fitted = build_model(config, self.setup, self.world)
        self.unscored = fitted and config.eval.eval_every > 0
        self.optimizer = build_optimizer(
            self.model,
            lr=config.optim.lr,
            betas=(config.optim.beta1, config.optim.beta2),
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            formats=OPTIMIZERS[config.optim.optim],
            offload_states=config.optim.offload_states,
            seed=config.train.seed,
        )
        if resume is not None:
            state = checkpoint.read_state(resume)
            self.step = self.saved_step = state.step
            self.best, self.unscored, self.watched = state.best, state.unscored, state.watched
            self.figures = state.figures
        if self.world.device.type in trial.TRIED_ON and not self.is_done:
            self._try_worst_step()
        if resume is not None:
            tensors.load_optimizer(resume, self.model, self.optimizer)
        # Dropout: ranks that work on the same samples draw the same numbers, other ranks draw different ones. A run
        # resumed on as many ranks continues with the checkpoint's generator states.
        torch.manual_seed(rank_seed(config.train.seed, self.world.data_rank, self.step))
        if resume is not None:
            checkpoint.load_rng(resume, state, self.world.shape.describe())

    def _try_worst_step(self) -> None:
        batch = self.setup.loader.worst_case()
        with self._explained(f"{trial.describe(batch)}, tried before step {self.step + 1}"):
            trial.try_step(self.model, self.optimizer, batch, self.config.optim.clip, self.world.device)

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return trial.explain_out_of_memory(what, self.config, self.setup.spec)

    @property
    def is_done(self) -> bool:
        """Whether no step is left to take."""
        return self.step >= self.setup.total_steps or self.watched.ends(self.config.eval.patience)

    def run(self) -> None:
        """Train to the last step, save and export.

        Raises:
            RunStopped: loss or gradients are not finite, and no update was made with them; or a save failed.
            Interrupted: a signal arrived; the step was finished and a checkpoint saved.
        """
        config, total = self.config, self.setup.total_steps
        log.info("%s", describe_run(config, self.setup, self.world, self.model))
        if self.setup.resume_from is not None:
            log.info("resuming after step %d from %s", self.step, self.setup.resume_from)
        self.log = RunLog(
            self.output,
            active=self.world.is_main,
            total_steps=total,
            start_step=self.step,
            resumed=self.setup.resume_from is not None,
            log_every=config.log.log_every,
            tensorboard=config.log.tensorboard,
        )
        if self.setup.resume_from is not None:
            self.log.event("resume", step=self.step)
        if self.setup.class_weights:
            self.log.event("class_weights", weights=self.setup.class_weights)
        with stopping.saying(lambda: f"{self._kept()} {self._advice()}"), stopping.held(announcement()) as self.stop:
            try:
                self._loop()
                self._save()
                self.saver.finish()
                self._say_why_early()
                if config.checkpoint.export:
                    self._export_end()
            finally:
                self.saver.close()
                self.log.close()
        log.info("%s", self._next())

    def _next(self) -> str:
        """What to do with the trained model."""
        n_parameters = sum(p.numel() for p in self.model.parameters())
        return scoring_advice(self.config, self.setup.task, self.step, n_parameters, self.world.device)

    def _loop(self) -> None:
        config, total = self.config, self.setup.total_steps
        speed, plateau = Speed(), Plateau(total)
        if self.unscored and config.eval.eval_every:
            self.unscored = not self._score()
            if not self.unscored:
                self.saved_step = None  # the checkpoint, if there is one, does not know of this scoring
            if self.unscored or (self._told_to_stop() and not self.is_done):
                self._interrupt()
        if self.is_done:
            return
        start = time.perf_counter()
        for batch in self.setup.loader.prefetch(self.step, total):
            with self._explained(f"step {self.step + 1}"):
                record, flops, stop = self.train_step(batch)
            speed.add(time.perf_counter() - start, batch.n_real_tokens, batch.n_examples, flops)
            self.log.step(record | self._speed_record(speed))
            if plateau.add(record["loss"]):
                log.info(
                    "note: the training loss has stopped falling: the mean over the last %d steps is less than 1%% "
                    "below the mean over the %d steps before.",
                    plateau.window,
                    plateau.window,
                )
                self.log.event("plateau", step=self.step)
            to_score = config.eval.eval_every and (self.step % config.eval.eval_every == 0 or self.step == total)
            to_save = config.checkpoint.save_every and self.step % config.checkpoint.save_every == 0
            if to_score:
                self.unscored = stop or not self._score()
            if to_save:
                self._save()
            if to_score or to_save:  # both take time, and another step would too
                stop = self._told_to_stop()
            if stop and (not self.is_done or self.unscored):
                self._interrupt()
            if self.is_done:
                break
            start = time.perf_counter()

    def train_step(self, batch: StepBatch) -> tuple[dict[str, Any], float, bool]:
        """Take one optimizer step.

        Returns:
            The log record of the step; its floating-point operations; whether any rank received a signal to stop.
        """
        optim = self.config.optim
        lr = learning_rate(self.step, self.setup.total_steps, optim.lr, optim.schedule, optim.warmup_steps)
        losses = torch.zeros(len(batch.n_label_tokens), dtype=torch.float64, device=self.world.device)
        for micro_batch in batch.batches:
            parts = field_losses(self.model, micro_batch.to(self.world.device), batch.total_weights)
            parts.sum().backward()
            losses += parts.detach()
        norm = clip_gradients(self.model, optim.clip).item()
        counted = float(self.world.tensor_rank == 0)  # ranks of a tensor-parallel group have the same losses
        local = [*(x * counted for x in losses.tolist()), self.stop.noted, self.saver.failed]
        *by_field, n_signals, n_failed = all_sum(local, self.world.device)
        if n_failed:
            self.saver.finish()
        total_loss = sum(by_field)
        if not (math.isfinite(total_loss) and math.isfinite(norm)):
            self._stop(batch, total_loss, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        named = zip(batch.n_label_tokens, by_field, strict=True)
        record = {
            "step": self.step,
            "epoch": round(batch.epoch, 4),
            "loss": total_loss,
            **({"weighted": True} if self.setup.class_weights else {}),
            **{f"loss/{name}": x for name, x in named if name != ANSWER},
            "lr": lr,
            "grad_norm": norm,
            "examples": batch.n_examples,
            "label_tokens": sum(batch.n_label_tokens.values()),
            "real_tokens": batch.n_real_tokens,
            "computed_tokens": batch.n_tokens,
        }
        n_pairs = self.costs.attended_pairs(batch.row_prefix, batch.row_lengths)
        flops = self.costs.step_flops(batch.n_real_tokens, batch.n_label_tokens, n_pairs)
        return record, flops, n_signals > 0

    def _speed_record(self, speed: Speed) -> dict[str, float | None]:
        tokens, examples, flops, seconds = speed.rates()
        device, mfu = self.world.device, None
        if device.type == "cuda" and self.config.train.precision == "bf16":
            peak = device_peak(torch.cuda.get_device_name(device))
            mfu = flops / (peak * self.world.size) if peak else None
        return {
            "tokens_per_second": tokens,
            "examples_per_second": examples,
            "mfu": mfu,
            "memory_gib": memory_gib(device),
            "seconds_left": (self.setup.total_steps - self.step) * seconds,
        }

    def _stop(self, batch: StepBatch, loss: float, norm: float) -> None:
        self.log.event("stopped", step=self.step + 1, loss=str(loss), grad_norm=str(norm), samples=batch.sample_ids)
        ids = batch.sample_ids[:NAMED_SAMPLES]
        n_more = len(batch.sample_ids) - len(ids)
        more = f" and {n_more} more (in log.jsonl)" if n_more else ""
        raise RunStopped(
            f"step {self.step + 1}: the loss is {loss} and the gradient norm {norm}. No update was made. "
            f"{self._kept()}\n"
            f"The step's samples: {', '.join(ids)}{more}.\n"
            "Usual causes: a learning rate that is too high, damaged weights, or a bad sample."
        )

    def _kept(self) -> str:
        """Wait for the save in flight; a sentence about the newest checkpoint, for a run that stops."""
        self.saver.close()
        saved = checkpoint.steps_in(self.checkpoints)
        return f"The last checkpoint is {saved[-1]}." if saved else "No checkpoint had been saved yet."

    def _advice(self) -> str:
        return advice_to_continue(self.again, self.output)

    def _told_to_stop(self) -> bool:
        """Whether any rank was told to stop. Collective."""
        return all_sum([self.stop.noted], self.world.device)[0] > 0

    def _interrupt(self) -> None:
        signum = self.stop.signum or signal.SIGTERM
        self.log.event("interrupted", step=self.step)
        if not self.step:  # fitted heads were scored; AdamW has no states yet that a checkpoint could hold
            raise Interrupted(f"interrupted before the first step: nothing to save. {self._advice()}", signum)
        self._save()
        self.saver.finish()
        saved = f"saved to {checkpoint.step_folder(self.checkpoints, self.step)}. {self._advice()}"
        raise Interrupted(f"interrupted: stopped after step {self.step} of {self.setup.total_steps}, {saved}", signum)

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        with self._stops_unless_finite("saving"):
            require_finite_weights(self.model, self.world.device)
        state = checkpoint.RunState(
            step=self.step,
            config=options.flatten(self.config),
            identity=self.setup.identity,
            labels=self.setup.labels,
            best=self.best,
            world_size=self.world.size,
            mesh=self.world.shape.describe(),
            optim_reason=self.config.optim_reason,
            unscored=self.unscored,
            watched=self.watched,
            figures=self.figures,
        )
        self.saver.save(self.model, self.optimizer, state, self.setup.save_with_model)
        self.saved_step = self.step

    @contextmanager
    def _stops_unless_finite(self, what: str) -> Iterator[None]:
        try:
            yield
        except NotFinite as error:
            raise RunStopped(f"{what} after step {self.step}: {error} {self._kept()}") from None

    def _score(self) -> bool:
        """Score the held-out examples; export the model to ``best/`` if it is the best so far. False: was stopped."""
        assert self.scorer is not None
        with self._stops_unless_finite("scoring"):
            found = self.scorer.score(self.model, lambda: self.stop.noted)
        if found is None:
            return False
        figures, score = found.figures, found.score
        is_best = self.best is None or score > self.best
        if is_best and not self._calibrate():
            return False
        self.figures = figures
        self.log.event("score", step=self.step, score=score, **figures)
        self.watched, patience = self.watched.add(score, self.step), self.config.eval.patience
        listed = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        # The first score is always the best, also that of a model that gets nothing right.
        note = " (best so far)" if is_best and score > 0 else ""
        if patience is not None and self.watched.since:
            note += f" (no better than step {self.watched.step}, {self.watched.since} of {patience} times)"
        log.info("held-out, step %d: %s%s", self.step, listed, note)
        if is_best:
            self.best = score
            self._export("best", {"step": self.step, "score": score, **figures})
        return True

    def _calibrate(self) -> bool:
        """Fit temperatures to the held-out examples, if there are any, for the export that follows. False: was stopped.

        The model that is the best and the last is exported twice and calibrated once.
        """
        if self.scorer is None or (self.calibrated is not None and self.calibrated[0] == self.step):
            return True
        with self._stops_unless_finite("calibrating"):
            found = self.scorer.calibrate(self.model, lambda: self.stop.noted)
        self.calibrated = (self.step, found) if found is not None else None
        return found is not None

    def _say_why_early(self) -> None:
        patience, total = self.config.eval.patience, self.setup.total_steps
        if self.watched.ends(patience):
            log.info("the training ended after step %d of %d, as --patience %d asks: %s.",
                     self.step, total, patience, self.watched.why())  # fmt: skip
            self.log.event("early_end", step=self.step, best_step=self.watched.step, best=self.watched.best)

    def _export_end(self) -> None:
        if self.config.eval.patience is None:
            if not self._calibrate():
                self._interrupt()
            return self._export("export")
        self.saver.before_export(self.output / "export")
        export_best(self.output / "best", self.output / "export", self.config.checkpoint.export_dtype)

    def _export(self, name: str, about: dict[str, Any] | None = None) -> None:
        folder = self.output / name
        self.saver.before_export(folder)
        calibrated = self.calibrated[1] if self.calibrated is not None else None
        export_run(self.model, self.config, self.setup, folder, self.step, self.figures, about, calibrated)
