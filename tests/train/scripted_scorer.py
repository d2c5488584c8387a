"""A scorer of held-out examples that says what a test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from train.scorer import HeldOutScore


class Calibrated:
    """Writes a file, in which a test finds which calibration it was."""

    def __init__(self, number: int) -> None:
        self.number = number

    def save(self, folder: Path) -> None:
        (folder / "calibration.json").write_text(f'{{"number": {self.number}}}')


class ScriptedScorer:
    """What `HeldOutScorer` asks for.

    Attributes:
        n_calibrated: number of calibrations that were not stopped.
    """

    def __init__(self, score: Callable[[nn.Module, Callable[[], bool]], HeldOutScore | None]) -> None:
        self.score, self.n_calibrated = score, 0

    def calibrate(self, model: nn.Module, stop: Callable[[], bool]) -> Calibrated | None:
        if stop():
            return None
        self.n_calibrated += 1
        return Calibrated(self.n_calibrated)
