"""How far scoring has come: a bar with the time left on a terminal, a line every tenth elsewhere; rank 0 alone."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)


class Progress:
    """Counts this rank's finished examples against its share of all of them."""

    def __init__(self, n_examples: int, world_size: int, show: bool) -> None:
        self.total, self.done, self.show = -(-n_examples // world_size), 0, show
        self.start = time.perf_counter()
        console = Console(stderr=True)
        self.bar: RichProgress | None = None
        if show and console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = RichProgress(TextColumn("scoring"), *columns, console=console, transient=True)
            self.task = self.bar.add_task("scoring", total=self.total)

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, n: int) -> None:
        tenths = 10 * self.done // max(self.total, 1)
        self.done += n
        if self.bar is not None:
            self.bar.advance(self.task, n)
        elif self.show and 10 * self.done // max(self.total, 1) > tenths:
            seconds = time.perf_counter() - self.start
            left = seconds / self.done * (self.total - self.done)
            log.info("scored %d of %d, %.0f s, about %.0f s left", self.done, self.total, seconds, left)
