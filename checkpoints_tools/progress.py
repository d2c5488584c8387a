"""How far reading or converting a checkpoint has come: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import time

from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from data.progress import Bar

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between lines


class ByteProgress(Bar):
    """Counts bytes against all there are, and says at what rate they come and how long the rest will take."""

    def __init__(self, what: str, total: int, show: bool) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        super().__init__(what, total, show, *columns)
        self.what = what
        self.start = self.said = time.perf_counter()

    def say(self, n: int) -> None:
        now = time.perf_counter()
        if now - self.said < EVERY:
            return
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
