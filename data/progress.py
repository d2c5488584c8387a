"""Progress of long work: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from data import terminal

T = TypeVar("T")

TRACKED_FROM = 2000  # items from which `track` shows their progress
LOG_INTERVAL = 10.0  # seconds between lines

log = logging.getLogger(__name__)


class Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


class Bar:
    """A progress bar on standard error, while a ``with`` block runs. Where there can be none, a subclass prints lines.

    Args:
        what: a word before the bar.
        total: number of items.
        show: False: this process prints nothing.
        columns: the bar's columns.
    """

    def __init__(self, what: str, total: int | None, show: bool, *columns: ProgressColumn) -> None:
        self.what, self.total, self.done, self.show = what, total or 0, 0, show
        self.columns = (TextColumn("{task.description}", markup=False), *columns)
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.show:
            self.bar = terminal.start_bar(Progress, *self.columns, stream="stderr", transient=True)
        if self.bar is not None:
            self.task = self.bar.add_task(terminal.printable(self.what), total=self.total or None, **self.fields())
        return self

    def __exit__(self, *exception: object) -> None:
        terminal.stop_bar(self.bar)

    def fields(self) -> dict[str, Any]:
        """What else the columns show."""
        return {}

    def advance(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.advance(self.task, n)
        elif self.show:
            self.say(n)

    def say(self, n: int) -> None:
        """Called after ``n`` more items if there is no bar."""
        raise NotImplementedError


class Regular(Bar):
    """A bar whose lines come every `LOG_INTERVAL` seconds."""

    def __init__(self, what: str, total: int | None, show: bool, *columns: ProgressColumn) -> None:
        super().__init__(what, total, show, *columns)
        self.start = self.last_logged = time.perf_counter()

    def say(self, n: int) -> None:
        now = time.perf_counter()
        if now - self.last_logged >= LOG_INTERVAL:
            self.last_logged = now
            log.info("%s: %s", self.what, self.line(now - self.start))

    def line(self, seconds: float) -> str:
        """What is done after ``seconds``, which are more than zero."""
        left = max(self.total - self.done, 0) / (self.done / seconds)
        return f"{self.done:,} of {self.total:,}, {self.done / seconds:,.0f}/s, about {left:.0f} s left"


def track(items: Sequence[T], what: str = "tokenizing") -> Iterator[T]:
    """Iterate, and show the progress (rate and time left) of `TRACKED_FROM` items and more."""
    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Regular(what, len(items), len(items) >= TRACKED_FROM, *columns) as progress:
        for item in items:
            yield item
            progress.advance(1)
