"""Progress of scoring, on rank 0: a bar on a terminal, otherwise a log line after every tenth of the examples."""

from __future__ import annotations

import logging
import time

from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from data.progress import Bar

log = logging.getLogger(__name__)


class Progress(Bar):
    """Counts the finished examples of this rank's share."""

    def __init__(self, n_examples: int, world_size: int, show: bool) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__("scoring", -(-n_examples // world_size), show, *columns)
        self.start = time.perf_counter()

    def say(self, n: int) -> None:
        total = max(self.total, 1)
        if 10 * self.done // total > 10 * (self.done - n) // total:
            seconds = time.perf_counter() - self.start
            left = seconds / self.done * (self.total - self.done)
            log.info("scored %d of %d, %.0f s, about %.0f s left", self.done, self.total, seconds, left)
