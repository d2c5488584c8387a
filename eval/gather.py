"""Gather the ranks' answers into one result, in the order of the examples.

Shared by decoders (`eval/decoder/score.py`) and encoders (`eval/encoder/score.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from data.example import Example
from data.tasks import Task
from eval.job import ScoringRanks
from eval.probabilities import set_temperatures
from eval.results import Prediction, count_oddities, mark_unsure, measure
from eval.together import Stopped


@dataclass
class ScoreResult:
    """The result of scoring a model.

    Attributes:
        predictions: one per example, in their order; empty on ranks other than 0.
        metrics: see :func:`eval.results.measure`; the same on every rank.
        counts: ``truncated`` documents; answers ``not_stopped`` (they ran into their token limit); in answers to token
            fields ``labels_missing``, ``labels_extra``, ``labels_unknown`` and ``spans_not_found``; and for decoders
            ``limit_shortened``, answers for which ``max_length`` leaves fewer tokens than are reserved for them.
        cost: ``seconds`` from the first forward pass to the last answer, on the slowest rank;
            ``seconds_per_example``, which is ``seconds`` / examples: a latency only for batches of one on one rank;
            and mean tokens per example: ``prompt_tokens`` (prefix included), ``computed_tokens`` (prefix counted
            once per rank) and ``new_tokens``. In a scoring that was continued, seconds and computed tokens are those of
            the examples that were left, and per example of these; they are missing if none was left.
    """

    predictions: list[Prediction]
    metrics: dict[str, Any]
    counts: dict[str, int]
    cost: dict[str, float]


@dataclass
class Share:
    """The answers of one rank.

    Attributes:
        indices: indices of its examples.
        answers: one for each of them.
        seconds: from its first forward pass to its last answer.
        computed_tokens: tokens it passed through the model, without padding.
        counts: of all ranks' examples, added to ``ScoreResult.counts``.
        stopped: it was told to stop, and has no answers.
    """

    indices: list[int]
    answers: list[Prediction]
    seconds: float
    computed_tokens: int
    counts: dict[str, int] = field(default_factory=dict)
    stopped: bool = False

    @classmethod
    def without_end(cls) -> Share:
        """The share of a rank that was told to stop."""
        return cls([], [], 0.0, 0, stopped=True)


def gather_answers(n_examples: int, share: Share, ranks: ScoringRanks) -> list[Prediction]:
    """All ranks' answers in the order of the examples; empty on ranks other than 0.

    With several ranks a collective call of ``ranks.group``.
    """
    shares = _gather(share, ranks)
    return _in_order(n_examples, shares, {}) if ranks.rank == 0 else []


def gather_scores(
    task: Task,
    examples: Sequence[Example],
    share: Share,
    ranks: ScoringRanks,
    earlier: Mapping[int, Prediction] | None = None,
    temperatures: Mapping[str, float] | None = None,
    abstain_below: float | None = None,
) -> ScoreResult:
    """Gather the ranks' shares: with several ranks a collective call of ``ranks.group``.

    Args:
        examples: the examples of all ranks, with their gold labels.
        earlier: on rank 0, the answers of an interrupted scoring, by the index of their example.
        temperatures, abstain_below: see `eval.job.ScoringJob`.

    Raises:
        Stopped: a rank was told to stop. Raised on every rank.
    """
    shares = _gather(share, ranks)
    stopped = any(share.stopped for share in shares)
    result = None
    if ranks.rank == 0 and not stopped:
        predictions = _in_order(len(examples), shares, earlier or {})
        set_temperatures(task.fields, predictions, temperatures or {})
        mark_unsure(predictions, abstain_below)
        metrics = measure(task, examples, predictions, temperatures, abstain_below)
        result = _assemble(predictions, metrics, shares, len(earlier or {}))
    return _share_figures(result, ranks)


def _gather(share: Share, ranks: ScoringRanks) -> list[Share]:
    if ranks.world_size == 1:
        return [share]
    shares: list[Any] | None = [None] * ranks.world_size if ranks.rank == 0 else None
    dist.gather_object(share, shares, group=ranks.group, group_dst=0)
    return shares or []


def _in_order(n_examples: int, shares: list[Share], earlier: Mapping[int, Prediction]) -> list[Prediction]:
    placed = dict(earlier)
    for share in shares:
        placed.update(zip(share.indices, share.answers, strict=True))
    assert sorted(placed) == list(range(n_examples)), "an example was dropped or scored twice"
    n_scored = len(earlier) + sum(len(share.indices) for share in shares)
    assert n_scored == n_examples, "an example was scored twice"
    return [placed[i] for i in range(n_examples)]


def _assemble(
    predictions: list[Prediction], metrics: dict[str, Any], shares: list[Share], n_earlier: int
) -> ScoreResult:
    n, n_new = max(len(predictions), 1), len(predictions) - n_earlier
    seconds = max(share.seconds for share in shares)
    cost = {
        "seconds": seconds,
        "seconds_per_example": seconds / max(n_new, 1),
        "prompt_tokens": sum(p.n_prompt_tokens for p in predictions) / n,
        "computed_tokens": sum(share.computed_tokens for share in shares) / max(n_new, 1),
        "new_tokens": sum(p.n_new_tokens for p in predictions) / n,
    }
    if n_earlier and not n_new:  # nothing was computed
        cost = {name: cost[name] for name in ("prompt_tokens", "new_tokens")}
    return ScoreResult(
        predictions=predictions,
        metrics=metrics,
        counts=count_oddities(predictions) | shares[0].counts,
        cost=cost,
    )


def _share_figures(result: ScoreResult | None, ranks: ScoringRanks) -> ScoreResult:
    """Send the figures to every rank, because the trainer chooses the best checkpoint on all ranks; not the answers.

    Args:
        result: of rank 0; None there: the scoring was stopped.
    """
    if ranks.world_size > 1:
        figures: list[Any] = [(result.metrics, result.counts, result.cost) if result else None]
        dist.broadcast_object_list(figures, group=ranks.group, group_src=0)
        if figures[0] is not None:
            result = result or ScoreResult([], *figures[0])
    if result is None:
        raise Stopped
    return result
