"""What a user sees: programs started in a terminal of a given width, and a terminal for code in this process."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.launching import ROOT, environment

# What may be set about colours and terminals on the machine that runs the tests.
ABOUT_COLOUR = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM",
                "PYTHONIOENCODING", "PYTHONUTF8")  # fmt: skip
LINE_UP = "\x1b[1A"


class Screen(io.StringIO):
    """A stream that says it is a terminal, to replace ``sys.stdout`` or ``sys.stderr``."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return lines_of(self.getvalue())


@dataclass
class Shown:
    """The end of a program in a terminal.

    Attributes:
        raw: all that was written, with the codes that move the cursor.
        lines: the same without the codes.
    """

    status: int
    raw: str

    @property
    def lines(self) -> list[str]:
        return lines_of(self.raw)


def lines_of(raw: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain)]


def plain_environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in environment().items() if k not in ABOUT_COLOUR} | more


def in_terminal(words: Sequence[object], columns: int, cwd: Path = ROOT, **more: str) -> Shown:
    """Run a program whose standard input, output and error are a terminal; ``more`` is environment."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = plain_environment(**{"TERM": "xterm-256color"} | more)
    process = subprocess.Popen([*map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # on Linux, the end
            break
        if not part:
            break
        written += part
    os.close(ours)
    return Shown(process.wait(timeout=60), written.decode(errors="replace"))
