"""The commands of a study as processes: started, watched, told to stop; what they print goes to a log.

Cells that run at the same time share the machine: each gets its part of the CPU's cores and, where there are several
GPUs, one of them.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from data.errors import DISK_FULL
from data.terminal import say
from eval.kept_lines import writable
from eval.study.plan import Step

TAIL = 200  # lines of output in which the reason of a failure is looked for; those of torchrun come after it
SHOWN = 600  # characters of it; our messages have fewer, unless they list many problems
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
# What torchrun prints about its ranks that failed, last the one that failed first; and if it was told to stop.
_RANKS = re.compile(r"^\s*rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+) ", re.MULTILINE)
_TOLD = re.compile(r"\bSignalException: Process \d+ got signal: (\d+)$", re.MULTILINE)
_LOG = re.compile(r"[WEI]\d{4} ")  # lines of torchrun
_ENDING = re.compile(_LOG.pattern + r".*(closing signal|failed \(exitcode)")  # after them, lines are about its ranks
_ERROR = re.compile(r"(\[rank \d+\] )?error:|.*: error: ")
CELL = "STUDY_CELL"  # variable with the cell's folder, by which `left_behind` finds processes
GPUS, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it) and the last lines of its output."""

    status: int
    tail: list[str]

    @property
    def _ranks(self) -> list[tuple[int, int]]:
        """The ranks that failed, with their exit statuses, if torchrun says so; last the one that failed first."""
        return [(int(rank), int(status)) for rank, status in _RANKS.findall("\n".join(self.tail))]

    @property
    def signum(self) -> signal.Signals | None:
        """The signal that it was told to stop by. torchrun ends with status 1, whether it was told or its ranks."""
        told = [-int(number) for number in _TOLD.findall("\n".join(self.tail))]
        status = [self.status, *(status for _, status in self._ranks), *told][-1]
        number = -status if status < 0 else status - 128
        return signal.Signals(number) if number in STOPS else None

    @property
    def met_a_full_disk(self) -> bool:
        """Whether a program said so. torchrun ends with status 1, after lines with the statuses of its ranks."""
        return DISK_FULL in (self.status, *(status for _, status in self._ranks))

    @property
    def why(self) -> str:
        """The reason of a failure, in one line."""
        who, status = "", self.status
        if self._ranks:
            rank, status = self._ranks[-1]
            who = f"rank {rank} was "
        if status == -signal.SIGKILL:
            return f"{who}killed by SIGKILL, which is what a machine without free memory does"
        lines = [line.strip() for line in self.tail if line.strip()]
        errors = [i for i, line in enumerate(lines) if _ERROR.match(line)]
        if errors:
            text = " ".join(takewhile(lambda line: not _LOG.match(line), lines[errors[-1] :]))
        else:
            own = takewhile(lambda line: not _ENDING.match(line), lines)
            said = [line for line in own if re.search(r"[^\W\d_]", line) and not _LOG.match(line)]
            text = said[-1] if said else "it printed nothing"
        if len(text) > SHOWN:  # a message ends with what to do
            text = f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
        return f"status {status}: {text}"


class Commands:
    """Those that run now; any number of threads may start one.

    Attributes:
        stopped: the signal by which all were told to stop. Those that start later are told at once.
    """

    def __init__(self) -> None:
        self.stopped: int | None = None
        self._running: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()

    def stop(self, signum: int) -> None:
        """Tell all to stop; only the first signal counts."""
        with self._lock:
            if self.stopped is None:
                self.stopped = signum
                for process in self._running:
                    _tell(process, signum)

    def run(
        self,
        step: Step,
        log: Path,
        environment: dict[str, str],
        shown: bool,
        started: Callable[[subprocess.Popen[str]], None] = lambda process: None,
    ) -> Ended:
        """Run a command to its end.

        Args:
            environment: variables that it gets beside ours.
            shown: print what it prints, too.
            started: called when it runs.

        Raises:
            UserError: the log cannot be written; the command is stopped.
        """
        tail: deque[str] = deque(maxlen=TAIL)
        process = subprocess.Popen(
            step.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            env={**os.environ, **environment, CELL: str(log.parent.resolve())},
            start_new_session=True,  # Ctrl-C reaches the study alone, which passes it on
            preexec_fn=_stop_with_parent if sys.platform == "linux" else None,
        )
        with self._lock:
            self._running.append(process)
            if self.stopped is not None:
                _tell(process, self.stopped)
        try:
            started(process)
            assert process.stdout is not None
            with writable(log), log.open("a", encoding="utf-8") as file:
                file.write(f"$ {step.line}\n")
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    tail.append(line.rstrip("\n"))
                    if shown:
                        say(line.rstrip("\n"))
            return Ended(process.wait(), list(tail))
        except BaseException:  # such as a full disk, which is an error of the study
            process.terminate()
            process.communicate()
            raise
        finally:
            with self._lock:
                self._running.remove(process)


def _tell(process: subprocess.Popen[str], signum: int) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signum)


def left_behind(folder: Path) -> int:
    """A process of a cell's commands that is still running, also a rank whose torchrun has died; 0 if there is none.

    Those of this machine and user are found, on Linux.
    """
    mark = f"{CELL}={folder.resolve()}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
    return 0


def shares(jobs: int) -> list[dict[str, str]]:
    """The environment of each of ``jobs`` commands that run at the same time: its part of the machine."""
    if jobs == 1:
        return [{}]
    import torch

    given = os.environ.get(GPUS)
    gpus = [str(i) for i in range(torch.cuda.device_count())] if given is None else [g for g in given.split(",") if g]
    threads = os.environ.get(THREADS) or str(max(1, (os.cpu_count() or 1) // jobs))
    return [{THREADS: threads} | ({GPUS: gpus[i % len(gpus)]} if gpus else {}) for i in range(jobs)]


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _stop_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when the thread that started it dies, so when the study does."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
