"""How much memory a process holds at most while it does something, without the files that it has mapped.

Of what a process has in memory, mapped file pages are the system's: shared with every process that maps the same file,
and given up when memory is short. What is the process's own is anonymous memory (``RssAnon``); ``VmHWM`` and
``ru_maxrss``, the peaks that the kernel keeps, count both.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
import time
from pathlib import Path

STATUS = Path("/proc/self/status")
EVERY = 0.001  # seconds between two looks


def anonymous_bytes() -> int:
    """This process's own memory in bytes (Linux)."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


class AnonymousPeak:
    """Measures the growth of anonymous memory: ``with AnonymousPeak() as peak: ...; peak.bytes``.

    A thread looks every millisecond. It sees whatever is held for longer than that: a tensor of some megabytes takes
    longer to fill.
    """

    def __enter__(self) -> AnonymousPeak:
        gc.collect()
        # What earlier work freed and malloc kept would be used again without growth; musl has no such function.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        self.start = self.highest = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(EVERY)

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, anonymous_bytes())

    @property
    def bytes(self) -> int:
        """How far memory rose above where it stood at the start."""
        return self.highest - self.start
