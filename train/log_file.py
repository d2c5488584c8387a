"""``log.jsonl``: whole lines, and none that the disk refuses ends a run."""

from __future__ import annotations

import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from data.json_text import to_json

log = logging.getLogger(__name__)

MOST_WAITING = 100_000  # lines, of some 400 bytes each; more than the disk refuses in most runs


class LogFile:
    """A file to which a run appends records as JSON lines.

    What cannot be written, because the disk is full or broken, is said once and waits in memory: each later line tries
    again. No method raises OSError, since the run that writes has a checkpoint to save.

    Args:
        resumed: go on with the file, after its last whole line. Otherwise write it anew.
    """

    def __init__(self, path: Path, resumed: bool) -> None:
        self._path, self._resumed = path, resumed
        self._file: BinaryIO | None = None
        self._waiting: deque[bytes] = deque()
        self._n_dropped = 0
        self._failing = False
        self._write_waiting()

    def write(self, record: dict[str, Any]) -> None:
        self._waiting.append(to_json(record, ascii_only=True).encode() + b"\n")
        self._write_waiting()
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._n_dropped += 1

    def close(self) -> None:
        self._write_waiting()
        if n := self._n_dropped + len(self._waiting):
            log.warning("warning: %s has not all lines: %d could not be written.", self._path, n)
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:  # some network file systems say here that the disk is full
            log.warning("warning: %s may lack lines: %s.", self._path, error.strerror)

    def _write_waiting(self) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            while self._waiting:
                _append(self._file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._failing:
                log.warning(
                    "warning: %s cannot be written: %s. Training goes on, and its lines are written when they can be.",
                    self._path,
                    error.strerror,
                )
            self._failing = True
        else:
            if self._failing:
                log.info("note: %s can be written again and has the lines that waited.", self._path)
            self._failing = False

    def _open(self) -> BinaryIO:
        file = open(self._path, "ab", buffering=0)
        file.truncate(_whole_bytes(self._path) if self._resumed else 0)
        return cast(BinaryIO, file)


def _whole_bytes(path: Path) -> int:
    """Up to the last line break. A power cut, or older code on a full disk, leaves a part of a line behind it."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


def _append(file: BinaryIO, line: bytes) -> None:
    """Append the line, or nothing."""
    end = os.fstat(file.fileno()).st_size
    try:
        while line:
            line = line[file.write(line) :]
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise
