"""Progress of scoring and predicting, on rank 0: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data import terminal
from data.progress import Bar

LINE_SECONDS = 30.0  # between two lines of `RowProgress`

log = logging.getLogger(__name__)


class Progress(Bar):
    """Counts the finished examples of this rank's share; without a bar it logs after every tenth of them.

    Args:
        n_before: examples of all ranks that an interrupted scoring has finished.
    """

    def __init__(self, n_examples: int, world_size: int, show: bool, n_before: int = 0) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__("scoring", -(-n_examples // world_size), show, *columns)
        self.start = time.perf_counter()
        self.n_before = self.done = n_before // world_size

    def __enter__(self) -> Self:
        super().__enter__()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        return self

    def say(self, n: int) -> None:
        total = max(self.total, 1)
        if 10 * self.done // total > 10 * (self.done - n) // total:
            seconds = time.perf_counter() - self.start
            left = seconds / (self.done - self.n_before) * max(self.total - self.done, 0)
            log.info("scored %d of %d, %.0f s, about %.0f s left", self.done, self.total, seconds, left)


class RowProgress(Bar):
    """Counts the finished rows of an input whose number of rows is estimated from the part that has been read.

    Args:
        part: returns the part of the input that has been read, from 0 to 1; None: not known, so no time left is shown.
        show: False: this process prints nothing.
        n_before: number of rows that an interrupted run has finished.
    """

    def __init__(self, part: Callable[[], float | None], show: bool, n_before: int = 0) -> None:
        bar: list[ProgressColumn] = [] if part() is None else [BarColumn()]
        super().__init__("predicting", 1, show, *bar, TextColumn("{task.fields[line]}", markup=False))
        self.part, self.n_before, self.done, self.n_read = part, n_before, n_before, n_before
        self.start = self.printed = time.perf_counter()

    def fields(self) -> dict[str, Any]:
        return {"line": ""}

    def read(self, n: int) -> None:
        """Note that ``n`` more rows have been read."""
        self.n_read += n

    def advance(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            total = self._total()
            self.bar.update(self.task, completed=self.done / total if total else 0.0, line=self.line())
        elif self.show:
            self.say(n)

    def say(self, n: int) -> None:
        if time.perf_counter() - self.printed >= LINE_SECONDS:
            self.printed = time.perf_counter()
            terminal.say(f"predicted {self.line()}", "stderr")

    def line(self) -> str:
        """Rows, rows per second and, if it can be told, the time left."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        rate, total = (self.done - self.n_before) / seconds, self._total()
        line = f"{self.done:,} rows, {rate:,.1f} rows/s"
        if total is None or not rate:
            return line
        return f"{line}, about {timedelta(seconds=round(max(total - self.done, 0) / rate))} left"

    def _total(self) -> float | None:
        part = self.part()
        return self.n_read / part if part else None
