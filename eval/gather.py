"""What every way of scoring ends with: the ranks' shares of the answers become one result, in the examples' order.

Decoders (`eval/decoder/score.py`) and encoders (`eval/encoder/score.py`) find their answers differently; from here on
nothing differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from data.example import Example
from data.tasks import Task
from eval.job import ScoringRanks
from eval.metrics import compute_metrics
from eval.results import Prediction, count_oddities


@dataclass
class ScoreResult:
    """What scoring a model found.

    Attributes:
        predictions: one per example, in the order given; empty on ranks other than 0.
        metrics: see :func:`eval.metrics.compute_metrics`; the same on every rank.
        counts: ``truncated`` documents; answers ``not_stopped`` (cut by the limit on their length); in lists of labels,
            ``labels_missing``, ``labels_extra`` and ``labels_unknown``; and for decoders ``limit_shortened``, answers
            for which ``max_length`` leaves less than the longest valid one needs.
        cost: ``seconds`` from the first forward pass to the last answer, on the slowest rank;
            ``seconds_per_example`` (seconds over all examples, so the ranks' and batches' parallelism is in
            it; with batches of one on one rank it is the latency of a call); and mean tokens per example:
            ``prompt_tokens`` (prefix included), ``computed_tokens`` (prefix counted once a rank) and
            ``new_tokens``.
    """

    predictions: list[Prediction]
    metrics: dict[str, Any]
    counts: dict[str, int]
    cost: dict[str, float]


@dataclass
class Share:
    """What one rank did.

    Attributes:
        indices: its examples' places in the order given.
        answers: what it found for each of them.
        seconds: from its first forward pass to its last answer.
        computed_tokens: tokens it passed through the model, padding not counted.
    """

    indices: list[int]
    answers: list[Prediction]
    seconds: float
    computed_tokens: int


def gather_scores(
    task: Task,
    examples: Sequence[Example],
    share: Share,
    counts: dict[str, int],
    ranks: ScoringRanks,
) -> ScoreResult:
    """Join the ranks' shares; a collective call of all of them when there are several.

    Args:
        examples: all of them, not only this rank's.
        counts: added to the counts of the answers' flags.
    """
    shares = _gather(share, ranks)
    result = _assemble(task, examples, shares, counts) if ranks.rank == 0 else None
    return _share_figures(result, ranks)


def _gather(share: Share, ranks: ScoringRanks) -> list[Share]:
    if ranks.world_size == 1:
        return [share]
    shares: list[Any] | None = [None] * ranks.world_size if ranks.rank == 0 else None
    dist.gather_object(share, shares, group=ranks.group, group_dst=0)
    return shares or []


def _assemble(task: Task, examples: Sequence[Example], shares: list[Share], counts: dict[str, int]) -> ScoreResult:
    """Put the ranks' answers back into the order of the examples."""
    placed: dict[int, Prediction] = {}
    for share in shares:
        placed.update(zip(share.indices, share.answers, strict=True))
    assert sorted(placed) == list(range(len(examples))), "an example was dropped or scored twice"
    assert sum(len(share.indices) for share in shares) == len(examples), "an example was scored twice"
    predictions = [placed[i] for i in range(len(examples))]
    n = max(len(predictions), 1)
    seconds = max(share.seconds for share in shares)
    return ScoreResult(
        predictions=predictions,
        metrics=compute_metrics(task, examples, predictions),
        counts=count_oddities(predictions) | counts,
        cost={
            "seconds": seconds,
            "seconds_per_example": seconds / n,
            "prompt_tokens": sum(p.n_prompt_tokens for p in predictions) / n,
            "computed_tokens": sum(share.computed_tokens for share in shares) / n,
            "new_tokens": sum(p.n_new_tokens for p in predictions) / n,
        },
    )


def _share_figures(result: ScoreResult | None, ranks: ScoringRanks) -> ScoreResult:
    """Give every rank the figures (a trainer that keeps the best checkpoint decides on all ranks), not the answers."""
    if ranks.world_size > 1:
        figures = [(result.metrics, result.counts, result.cost) if result else None]
        dist.broadcast_object_list(figures, group=ranks.group, group_src=0)
        result = result or ScoreResult([], *figures[0])
    assert result is not None
    return result
