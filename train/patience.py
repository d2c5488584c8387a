"""Early stopping: ``--patience N`` ends the training when N held-out scorings in a row were no better than the best.

What counts are the scores that the run has seen up to its step, as its checkpoint stores them, and not the record of
`train.best`. ``best/`` may be newer than the checkpoint that a killed run goes on from. The steps in between are taken
again then, and no score of theirs exceeds that record, so counting against it would end the run too early.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import msgspec


@dataclass(frozen=True)
class Watched:
    """The held-out scores of a run so far.

    Attributes:
        best: the highest; None before the first.
        step: after which it was first reached.
        since: scorings after that one.
    """

    best: float | None = None
    step: Annotated[int, msgspec.Meta(ge=0)] = 0
    since: Annotated[int, msgspec.Meta(ge=0)] = 0

    def add(self, score: float, step: int) -> Watched:
        """The record with one more score."""
        if self.best is None or score > self.best:
            return Watched(score, step)
        return replace(self, since=self.since + 1)

    def ends(self, patience: int | None) -> bool:
        """Whether a run with this ``--patience`` takes no more steps."""
        return patience is not None and self.since >= patience

    def why(self) -> str:
        """Why the training has ended, for the log."""
        return (
            f"{self.since} held-out scoring(s) in a row were no better than that of step {self.step} ({self.best:.4f})"
        )
