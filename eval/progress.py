"""How far scoring has come: a bar with the time left on a terminal, a line every tenth elsewhere; rank 0 alone."""

from __future__ import annotations

import logging
import time

from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from data.progress import Bar

log = logging.getLogger(__name__)


class Progress(Bar):
    """Counts this rank's finished examples against its share of all of them."""

    def __init__(self, n_examples: int, world_size: int, show: bool) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__("scoring", -(-n_examples // world_size), show, *columns)
        self.start = time.perf_counter()

    def say(self, n: int) -> None:
        all_of_them = max(self.total, 1)
        if 10 * self.done // all_of_them > 10 * (self.done - n) // all_of_them:
            seconds = time.perf_counter() - self.start
            left = seconds / self.done * (self.total - self.done)
            log.info("scored %d of %d, %.0f s, about %.0f s left", self.done, self.total, seconds, left)
