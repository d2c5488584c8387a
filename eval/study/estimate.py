"""How long what is left of a study will take, and what it will cost: estimates, with where they come from.

In this order: the same cell with another seed, which is done; for a GPU type that the study file names, what ``--plan``
of the two programs computes; else nothing. Models behind an API cost what ``eval.py`` prints before it asks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from checkpoints_tools.registry import ApiModel, get_model
from data.errors import UserError
from eval.study.file import Study, StudyCell, words
from eval.study.plan import eval_options, train_options
from eval.study.records import outcome, readable_record
from train.metrics import duration


@dataclass(frozen=True)
class Estimate:
    """Of one cell: seconds and US dollars, None where nothing is known; ``how`` it was estimated."""

    seconds: float | None = None
    dollars: float | None = None
    how: str = ""


class Estimates:
    """Estimates of the cells that are not done; plans are made once for the life of the process."""

    def __init__(self, study: Study, output: Path) -> None:
        self.study, self.output = study, output
        self.open: list[StudyCell] = []
        self.done: list[StudyCell] = []
        for own in study.cells:
            (self.done if outcome(output, own.cell).state == "done" else self.open).append(own)

    def of(self, own: StudyCell) -> Estimate:
        """The estimate for a cell that is not done."""
        same = [self._took(other) for other in self.done if replace(other.cell, seed=0) == replace(own.cell, seed=0)]
        seconds = max(0.0, mean(same) - self._took(own)) if same else None
        if isinstance(own.spec, ApiModel):
            cost = _of_api(tuple(words(eval_options(own, self.output))))
            hows = cost.how, "time as with another seed" if same else ""
            return replace(cost, seconds=seconds, how="; ".join(filter(None, hows)))
        if same:
            return self._with_dollars(own, seconds, "as with another seed")
        if self.study.gpu:
            planned, fits = _planned(self.study, own, self.output)
            how = f"planned for {self.study.gpu}" + ("" if fits else ": does NOT fit, see --plan of its commands")
            return self._with_dollars(own, planned, how)
        return Estimate()

    def _took(self, own: StudyCell) -> float:
        record = readable_record(self.output, own.cell)
        return sum(record.seconds.values()) if record is not None else 0.0

    def _with_dollars(self, own: StudyCell, seconds: float | None, how: str) -> Estimate:
        price = self.study.dollars_per_gpu_hour
        if seconds is None:
            return Estimate()
        return Estimate(seconds, None if price is None else price * own.ranks * seconds / 3600, how)

    def left(self, jobs: int = 1) -> str:
        """The sum of what is left, in words; empty if nothing of it is known."""
        return total([self.of(own) for own in self.open], jobs)


def total(estimates: Sequence[Estimate], jobs: int = 1) -> str:
    """The sum of estimates in words, with the number of cells of which nothing is known; empty if that is all.

    Args:
        jobs: cells at the same time.
    """
    known = [e for e in estimates if e.seconds is not None or e.dollars is not None]
    if not known:
        return ""
    parts = []
    if seconds := sum(e.seconds or 0 for e in known):
        parts.append(duration(seconds / jobs))
    if dollars := sum(e.dollars or 0 for e in known):
        parts.append(f"${dollars:,.2f}")
    unknown = len(estimates) - len(known)
    return ", ".join(parts) + (f" and {unknown} cells of unknown length" if unknown else "")


def _planned(study: Study, own: StudyCell, output: Path) -> tuple[float | None, bool]:
    """Seconds by ``--plan`` of both programs, and whether both fit. None: it refuses, as files are missing or wrong."""
    plans = []
    if own.cell.tuned:
        plans.append(_plan_training(tuple(words(train_options(study, own, output))), study.gpu, own.ranks))
    if own.spec.kind != "encoder" or own.spec.architecture.is_decoder_with_heads:  # an encoder's scoring takes seconds
        scoring = eval_options(own, output) | {"task": own.task}
        if own.cell.tuned:  # as before the training, with the prompt that it will have
            scoring |= {"checkpoint": own.checkpoint} | ({"shots": own.cell.shots} if own.cell.shots else {})
            prompt = ("slot_answer", "slot_tags", "list_labels", "wording")
            scoring |= {name: own.train[name] for name in prompt if name in own.train}
        plans.append(_plan_scoring(tuple(words(scoring)), study.gpu, own.ranks))
    known = [plan for plan in plans if plan is not None]
    if len(known) < len(plans):
        return None, True
    return sum(seconds for seconds, _ in known), all(fits for _, fits in known)


@functools.cache
def _plan_training(given: tuple[str, ...], gpu: str, ranks: int) -> tuple[float, bool] | None:
    from train.planning.plan import make_plan, run_seconds
    from train.resolve import load_config

    try:
        plan = make_plan(load_config([*given, "--plan", "--gpu", gpu, "--gpus", str(ranks)]))
        return run_seconds(plan), plan.fits
    except UserError:
        return None


@functools.cache
def _plan_scoring(given: tuple[str, ...], gpu: str, ranks: int) -> tuple[float, bool] | None:
    from eval.plan import make_plan, scoring_seconds
    from eval.resolve import load_config
    from train.planning.memory import count_parameters

    try:
        plan = make_plan(load_config([*given, "--plan", "--gpu", gpu, "--gpus", str(ranks)]))
        return scoring_seconds(plan, count_parameters(plan.setup.spec, plan.setup.config).total), plan.fits
    except UserError:
        return None


@functools.cache
def _of_api(given: tuple[str, ...]) -> Estimate:
    from eval.api.estimate import estimate
    from eval.api.prices import read_prices
    from eval.api.setup import open_api
    from eval.resolve import load_config

    try:
        config = load_config(given)
        spec = get_model(config.model)
        assert isinstance(spec, ApiModel)
        prices = read_prices(config.api.api_model or spec.name, config.api.prices, required=False)
        setup = open_api(config, spec)
        if prices is None:
            return Estimate()
        return Estimate(dollars=estimate(setup.task, setup.requests, setup.counter).dollars(prices)[0], how="counted")
    except UserError:
        return Estimate()
