"""How a program stops when it is told to: by a signal, or because its launcher has died.

A signal handler only notes. A thread sees the note, also while the main thread waits in a system call or a collective,
and does what takes time:

    outside of `held`    it says what is kept (`saying`) and ends the process at once
    inside of `held`     it says that the program will stop; the program looks at ``Stop.noted`` and does so

The signals are those of Ctrl-C, `kill`, torchrun, a closed terminal, and Slurm's ``--signal=USR1``. They often arrive
twice: from the terminal and from torchrun. Only the first one counts, unless a program asks for the second one.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data import terminal
from train.launched import env_rank, under_torchrun, words_of_parent

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LOOK_SECONDS = 0.5  # between two looks for the launcher
GRACE_SECONDS = 30.0  # torchrun's default


@dataclass
class Stop:
    """Whether the program was told to stop.

    Attributes:
        signum: the first signal; SIGTERM if the launcher has died. None: go on.
        why: its name, or that the launcher has died.
    """

    signum: int | None = None
    why: str = ""

    @property
    def noted(self) -> bool:
        return self.signum is not None


_stop = Stop()
_lock = threading.Lock()
_held: str | None = None  # what is said when a stop is noted inside of `held`
_second_ends = False
_told: Callable[[], None] | None = None
_watching = False
_sentence: Callable[[], str] | None = None  # of the innermost `saying`
BEFORE_LEAVING: list[Callable[[], None]] = []  # called by `leave`, last


def watch() -> None:
    """Begin to watch, in the main thread; a program calls it before its slow imports."""
    global _watching
    if _watching:
        return
    _watching = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        # Under nohup the end of the terminal is to be ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda signum, frame: None)
    # Without a rank it is a program that a rank, or a shell below one, has started: its parent may end.
    launcher = os.getppid() if under_torchrun() else None
    grace = grace_seconds()
    threading.Thread(target=_watch, args=(reader, launcher, grace), name="stopping", daemon=True).start()


def grace_seconds() -> float:
    """How long torchrun gives its ranks to stop, and a rank itself if torchrun has died."""
    words = [word for given in words_of_parent() for word in given.split("=", 1)]
    for option, value in zip(words, words[1:], strict=False):
        if option in ("--shutdown-timeout", "--shutdown_timeout") and value.isdecimal():
            return float(value)
    return GRACE_SECONDS


@contextmanager
def held(announcement: str, second_ends: bool = False, told: Callable[[], None] | None = None) -> Iterator[Stop]:
    """While the block runs, a stop is only noted; rank 0 then prints why, and ``announcement``.

    Args:
        second_ends: a second signal ends the process at once. Not for programs that torchrun may start.
        told: called in another thread when a stop is noted, for programs that do not look at ``Stop.noted``.
    """
    global _held, _second_ends, _told
    with _lock:
        assert _held is None, "held twice"
        _held, _second_ends, _told = announcement, second_ends, told
    try:
        yield _stop
    finally:
        with _lock:
            _held = _told = None


@contextmanager
def saying(sentence: Callable[[], str]) -> Iterator[None]:
    """While the block runs, a program that ends at once prints this sentence about what is kept; it may be empty.

    Of nested blocks the innermost's. After an error in the block it stays: the program ends, perhaps not by itself. If
    a rank was killed, the others' collectives fail, and they wait for torchrun's signal.
    """
    global _sentence
    before, _sentence = _sentence, sentence
    yield
    _sentence = before


def _watch(reader: int, launcher: int | None, grace: float) -> None:
    deadline: float | None = None
    while True:
        ready, _, _ = select.select([reader], [], [], LOOK_SECONDS)
        numbers = [number for number in (os.read(reader, 64) if ready else b"") if number in SIGNALS]
        if numbers:
            _note(numbers[0], signal.Signals(numbers[0]).name)
        if launcher is not None and os.getppid() != launcher:
            if deadline is None:
                deadline = time.monotonic() + grace
                _note(signal.SIGTERM, "torchrun has died")
            elif time.monotonic() > deadline:
                os._exit(128 + signal.SIGTERM)


def _note(signum: int, why: str) -> None:
    with _lock:
        first, announcement, told = not _stop.noted, _held, _told
        if first:
            _stop.signum, _stop.why = signum, why
    terminal.hurry()
    if announcement is None and first or announcement is not None and not first and _second_ends:
        leave(128 + signum, lambda: f"{why}: stopped. {_sentence() if _sentence else ''}".rstrip())
    elif first:
        if told is not None:
            told()
        if env_rank() == 0:
            terminal.say(f"\n{why}: {announcement}")


def leave(status: int, message: Callable[[], str] | None = None) -> None:
    """End the process at once, from any thread, whatever fails. Rank 0 prints the message first."""
    try:
        terminal.end()
        if message is not None and env_rank() == 0:
            terminal.say(message(), "stderr")
        for action in BEFORE_LEAVING:
            action()
    finally:
        os._exit(status)
