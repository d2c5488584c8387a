"""What the trainer knows of scoring: one method, which `eval.held_out` has. Layers below do not import `eval`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True)
class HeldOutScore:
    """The result of scoring the held-out examples.

    Attributes:
        figures: metrics for the log, by name.
        score: the number that selects the best model; higher is better.
    """

    figures: dict[str, float]
    score: float


class HeldOutScorer(Protocol):
    """Scores the held-out examples of a run."""

    def score(self, model: nn.Module, stop: Callable[[], bool]) -> HeldOutScore | None:
        """Score ``model``, whose parameters are sharded before and after. All ranks call this together.

        Args:
            stop: asked between forward passes. If it is true on any rank, the result is None on all.
        """
