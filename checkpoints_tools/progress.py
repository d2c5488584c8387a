"""Progress of loading or converting a checkpoint."""

from __future__ import annotations

from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from data.progress import Regular


class ByteProgress(Regular):
    """Shows how many of all bytes are done, their rate and the time left."""

    def __init__(self, what: str, total: int, show: bool) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        super().__init__(what, total, show, *columns)

    def line(self, seconds: float) -> str:
        rate, left = self.done / seconds, self.total - self.done
        gb = f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB"
        return f"{gb}, {rate / 1e9:.2f} GB/s, about {left / rate:.0f} s left"
