"""What the trainer knows of scoring: one method, which `eval.held_out` has. Layers below do not import `eval`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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


class Calibrated(Protocol):
    """What the held-out examples say about the probabilities of a model's labels."""

    def save(self, folder: Path) -> None:
        """Write it into an export of the model, which has its weights already. On rank 0."""


class HeldOutScorer(Protocol):
    """Scores the held-out examples of a run."""

    def score(self, model: nn.Module, stop: Callable[[], bool]) -> HeldOutScore | None:
        """Score ``model``, whose parameters are sharded before and after. All ranks call this together.

        Args:
            stop: asked between forward passes. If it is true on any rank, the result is None on all.
        """

    def calibrate(self, model: nn.Module, stop: Callable[[], bool]) -> Calibrated | None:
        """Score ``model`` by the probabilities of labels, and fit temperatures to them; otherwise as `score`."""
