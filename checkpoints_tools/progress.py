"""How far reading or converting a checkpoint has come: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between lines


class ByteProgress:
    """Counts bytes against all there are, and says at what rate they come and how long the rest will take."""

    def __init__(self, what: str, total: int, show: bool) -> None:
        self.what, self.total, self.done, self.show = what, total, 0, show
        self.start = self.said = time.perf_counter()
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if show and console.is_terminal:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self.bar = Progress(TextColumn(what), *columns, console=console, transient=True)
            self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> ByteProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, n: int) -> None:
        self.done += n
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.advance(self.task, n)
        elif self.show and now - self.said >= EVERY:
            self.said = now
            rate = self.done / (now - self.start)
            log.info(
                "%s: %.1f of %.1f GB, %.2f GB/s, about %.0f s left",
                self.what,
                self.done / 1e9,
                self.total / 1e9,
                rate / 1e9,
                (self.total - self.done) / rate,
            )
