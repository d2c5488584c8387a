"""All that our programs print: lines, tables and progress bars. Nothing else writes to standard output or error.

- Only a terminal gets a bar. A file or pipe gets lines, whatever the environment says about colour.
- Texts are shown as they are. None is read as rich's markup: names, labels and paths may have square brackets.
- No text can end a program: what the encoding of the stream lacks is escaped, and so are control characters.
- A line is never broken to fit the terminal, so that paths can be copied.
- No reader can end or hold up a program: what cannot be written, because the reader has ended or the disk is full, is
  dropped. A program waits for a reader that is slow or stopped, but no longer once it was told to stop (`hurry`).
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import time
from contextlib import suppress
from typing import Any, Literal, TextIO, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

Stream = Literal["stdout", "stderr"]
P = TypeVar("P", bound=Progress)

WIDTH_WITHOUT_TERMINAL = 200  # of tables; rich assumes 80 columns without a terminal
# Control characters, which could move the cursor or end the text; a line break and a tab are harmless.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

LOOK_SECONDS = 0.1  # between two looks whether a program that waits for a reader was told to stop
PATIENCE_SECONDS = 1.0

_hurried = False
_lost: OSError | None = None  # why something could not be written
_bar: Progress | None = None  # on the screen now; a terminal has one at a time


# --- the start of a program -------------------------------------------------------------------------------------------


def open_streams() -> None:
    """Let standard output and error escape what their encoding lacks. A program calls this before it prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the program was started with it closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if stream is getattr(sys, f"__{name}__"):  # not one that a test reads
                setattr(sys, name, _unending(stream))


def _unending(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Another stream to the same file, for which no write fails."""
    with suppress(OSError):
        stream.flush()
    raw = _Unending(stream.fileno())
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Unending(io.RawIOBase):
    """Writes to a file descriptor, which stays open, what can be written there, and claims to have written the rest."""

    def __init__(self, fd: int) -> None:
        self.fd, self.dropping = fd, False
        # A pipe that is ready takes a page without waiting. A terminal that is ready may have room for less.
        self.at_once = 256 if os.isatty(fd) else select.PIPE_BUF

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return os.isatty(self.fd)

    def write(self, data: Any) -> int:
        global _lost
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self._is_ready():
                with suppress(BlockingIOError):  # another process may have made it non-blocking
                    done += os.write(self.fd, view[done : done + self.at_once])
        except BrokenPipeError:
            pass  # the reader wants no more
        except OSError as error:
            _lost = _lost or error
        return len(view)

    def _is_ready(self) -> bool:
        """Wait for the reader. False: it does not read, and the program was told to stop."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        since = time.monotonic()
        while not poll.poll(0 if self.dropping else 1000 * LOOK_SECONDS):
            if _hurried and (self.dropping or time.monotonic() - since > PATIENCE_SECONDS):
                self.dropping = True
                return False
        self.dropping = False
        return True


def hurry() -> None:
    """From now on wait `PATIENCE_SECONDS` for a reader that does not read, once, and then no more."""
    global _hurried
    _hurried = True


def show_logs(stream: Stream = "stdout", level: int = logging.INFO) -> None:
    """Print log messages from ``level`` on, without anything around them."""
    give_logs(_Lines(stream), level)


def give_logs(handler: logging.Handler, level: int = logging.INFO) -> None:
    """Give log messages from ``level`` on to a handler, and to no other."""
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)


class _Lines(logging.Handler):
    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), self.stream)


# --- lines and tables -------------------------------------------------------------------------------------------------


def say(text: str, stream: Stream = "stdout") -> None:
    """Print a text, above the bar if there is one."""
    text = printable(text)
    if _bar is not None and is_terminal(stream):
        _bar.console.print(Text(text), soft_wrap=True)
    else:
        print(text, file=getattr(sys, stream), flush=True)


def show(table: Table) -> None:
    """Print a table on standard output. Its strings are no markup; those from data or users are made by `literal`."""
    console("stdout").print(table)


def width() -> int:
    """Characters in a line of a table on standard output."""
    return console("stdout").width


def literal(text: str, style: str = "") -> Text:
    """A text for a table, shown as it is."""
    return Text(printable(text), style)


def printable(text: str) -> str:
    """``text`` with its control characters written out, except line breaks and tabs."""
    return text.translate(CONTROL)


def console(stream: Stream) -> Console:
    """A console for tables and bars; as wide as tables need if it is no terminal."""
    terminal = is_terminal(stream)
    fixed = None if terminal or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    # None: then the environment decides whether a file gets colours; rich also takes FORCE_COLOR for a terminal.
    forced = True if terminal and os.environ.get("TTY_COMPATIBLE") != "0" else None
    return Console(
        stderr=stream == "stderr",
        force_terminal=forced,
        force_interactive=has_bars(stream),
        width=fixed,
        markup=False,
        emoji=False,
        highlight=False,
    )


def is_terminal(stream: Stream) -> bool:
    """Whether the stream is a terminal; the environment has no say in it."""
    file: TextIO = getattr(sys, stream)
    try:
        return file.isatty()
    except ValueError:  # it is closed
        return False


# --- bars -------------------------------------------------------------------------------------------------------------


def has_bars(stream: Stream) -> bool:
    """Whether bars can be drawn: on a terminal, unless the environment says that it cannot move its cursor."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    refused = "0" in (os.environ.get("TTY_COMPATIBLE"), os.environ.get("TTY_INTERACTIVE"))
    return is_terminal(stream) and not dumb and not refused


def start_bar(bar: type[P], *columns: ProgressColumn, stream: Stream, transient: bool) -> P | None:
    """Draw a bar of the class ``bar`` below the lines.

    Args:
        transient: `stop_bar` removes it from the screen.

    Returns:
        None where there can be none, or if there is one already: print lines instead.
    """
    global _bar
    if _bar is not None or not has_bars(stream):
        return None
    # What other packages print goes above the bar, except to a file: rich would print it on the terminal instead.
    found = bar(
        *columns,
        console=console(stream),
        transient=transient,
        redirect_stdout=is_terminal("stdout"),
        redirect_stderr=is_terminal("stderr"),
    )
    _bar = found
    found.start()
    return found


def stop_bar(bar: Progress | None) -> None:
    """End a bar; None: there was none."""
    global _bar
    if bar is not None and bar is _bar:
        _bar = None
        bar.stop()


def status_of(status: int) -> int:
    """The exit status of a program whose result is what it prints: 1 if it would be 0 and something is missing."""
    end()
    if _lost is None or status:
        return status
    say(f"error: not all could be printed ({_lost.strerror}).", "stderr")
    return 1


def end() -> None:
    """Leave the terminal as it was, without a bar and with a cursor, if an error passed by the end of a bar."""
    stop_bar(_bar)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
