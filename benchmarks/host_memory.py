"""Measure a process's peak memory without mapped files.

Pages of mapped files are shared by all processes that map the file, and the kernel can drop them when memory is short.
A process's own memory is anonymous (``RssAnon``). The kernel's peak values, ``VmHWM`` and ``ru_maxrss``, count both.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
import time
from pathlib import Path

STATUS = Path("/proc/self/status")
INTERVAL = 0.001  # seconds between two samples


def anonymous_bytes() -> int:
    """This process's anonymous memory in bytes (Linux)."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


class AnonymousPeak:
    """Measures the growth of anonymous memory: ``with AnonymousPeak() as peak: ...; peak.bytes``.

    A thread samples it every millisecond, which is short enough: filling a tensor of some megabytes takes longer.
    """

    def __enter__(self) -> AnonymousPeak:
        gc.collect()
        # Return freed memory to the system: reusing it would not show as growth. musl has no such function.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        self.start = self.highest = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(INTERVAL)

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, anonymous_bytes())

    @property
    def bytes(self) -> int:
        """Peak memory minus the memory at the start."""
        return self.highest - self.start
