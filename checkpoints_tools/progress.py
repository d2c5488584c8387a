"""Progress of loading or converting a checkpoint: a bar on a terminal, else a log line every ten seconds."""

from __future__ import annotations

import logging
import time

from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from data.progress import Bar

log = logging.getLogger(__name__)

LOG_INTERVAL = 10.0  # seconds between lines


class ByteProgress(Bar):
    """Shows how many of all bytes are done, their rate and the time left."""

    def __init__(self, what: str, total: int, show: bool) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        super().__init__(what, total, show, *columns)
        self.what = what
        self.start = self.last_logged = time.perf_counter()

    def say(self, n: int) -> None:
        now = time.perf_counter()
        if now - self.last_logged < LOG_INTERVAL:
            return
        self.last_logged = now
        rate = self.done / (now - self.start)
        log.info(
            "%s: %.1f of %.1f GB, %.2f GB/s, about %.0f s left",
            self.what,
            self.done / 1e9,
            self.total / 1e9,
            rate / 1e9,
            (self.total - self.done) / rate,
        )
