"""The answers of a run, ``answers.jsonl`` in its output folder: one line each, written when it arrives.

    {"answers_of": {"task": ..., "prompt": ..., "model": ..., "server": ..., "data": ...}}
    {"id": "massive/test/1", "answer": "alarm_set", "request": "9f0c...", "prompt_tokens": 531, ...}
    {"lost": "massive/test/2", "prompt_tokens": 2117, "completion_tokens": 24}

The last is an attempt that the server may have charged without an answer. An interrupted run goes on with the same
command and pays for no answer twice. One process at a time writes the file. A last line that was cut off is removed,
and its example is asked again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec

from data.errors import UserError
from data.files.documents import parse_line
from data.json_text import to_json
from eval.api.setup import Request
from eval.predict.partial import check_same, complete_lines, lock, writable

FILE = "answers.jsonl"
HEADER = "answers_of"
_LOST = b'{"lost"'
_ADVICE = "Give another --output, or remove the file if you do not need its answers."
_NOT_OURS = f"does not begin with what its answers are of. To score answers from elsewhere, give --answers. {_ADVICE}"

log = logging.getLogger("eval")


Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Answer:
    """A server's answer to one example.

    Attributes:
        answer: the text; if the model refused, its refusal.
        request: `Request.fingerprint` of what was asked; empty: not known.
        finish_reason: the server's: "stop", "length", "content_filter", ...
        refused: the model or the server's filter refused to answer.
        model: the model's name according to the server.
        prompt_tokens, completion_tokens: the server's ``usage``; None if it sent none.
        seconds: from sending the request to its answer.
        attempts: how often it was sent.
    """

    id: str
    answer: str
    request: str = ""
    finish_reason: str = "stop"
    refused: bool = False
    model: str = ""
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    seconds: float = 0.0
    attempts: Count = 1


@dataclass(frozen=True)
class Lost:
    """An attempt at the example ``lost`` that the server may have charged, by the most that it can have cost."""

    lost: str
    prompt_tokens: Count
    completion_tokens: Count


@dataclass(frozen=True)
class AnswersFile:
    """An open answers file. It is shared by threads.

    Attributes:
        answers: all that it has had when it was opened, in the order in which they arrived.
        lost: attempts without an answer, those of this run included.
    """

    file: BinaryIO
    path: Path
    answers: list[Answer]
    lost: list[Lost]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def add(self, answer: Answer) -> None:
        """Append an answer; it is on the disk when this returns.

        Raises:
            UserError: the disk is full.
        """
        with self._lock:
            _append(self.file, self.path, dataclasses.asdict(answer))

    def lose(self, attempt: Lost) -> None:
        """Append an attempt without an answer, likewise."""
        with self._lock:
            _append(self.file, self.path, dataclasses.asdict(attempt))
            self.lost.append(attempt)


def _append(file: BinaryIO, path: Path, record: Mapping[str, Any]) -> None:
    with writable(path, " The answers before are kept; the same command goes on."):
        file.write(to_json(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def open_answers(folder: Path, identity: Mapping[str, str]) -> Iterator[AnswersFile]:
    """Open and lock the answers file of an output folder, which is made if it does not exist.

    Args:
        identity: what the answers have in common.

    Raises:
        UserError: the folder cannot be written, another process writes the file, it has answers of something else, or
            a line in it is damaged.
    """
    path, is_new = folder / FILE, not folder.exists()
    with writable(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        lock(file, path)
        check_same(file, path)  # a run that got no answer may have removed it since
        _check_beginning(file, path)
        with writable(path):
            end = 0
            for end in complete_lines(file):  # noqa: B007
                pass
            if end < path.stat().st_size:
                log.info("%s: the last line was cut off; its example is asked again", path)
            file.truncate(end)
            file.seek(0)
        answers, lost = _read(file, path, identity)
        if answers or lost:
            file.seek(0, os.SEEK_END)
        else:  # whatever the file was begun for
            file.seek(0)
            file.truncate()
            _append(file, path, {HEADER: dict(identity)})
        empty = 0 if answers or lost else file.tell()
        try:
            yield AnswersFile(file, path, answers, lost)
        finally:
            if empty and path.stat().st_size == empty:  # nothing was answered: as if nothing had been begun
                path.unlink()
                with suppress(OSError):  # not empty
                    if is_new:
                        folder.rmdir()
    finally:
        with suppress(OSError):  # a full disk was reported before
            file.close()


def _check_beginning(file: BinaryIO, path: Path) -> None:
    """Refuse a file that is not ours before anything is removed from it; ours may have been cut off anywhere."""
    ours = f'{{"{HEADER}"'.encode()
    begun = file.read(len(ours))
    file.seek(0)
    if not ours.startswith(begun):
        raise UserError(f"{path} {_NOT_OURS}")


def _read(file: BinaryIO, path: Path, identity: Mapping[str, str]) -> tuple[list[Answer], list[Lost]]:
    """What a file of complete lines has. Its identity is compared if there is anything."""
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(file, 1)]
    answers, lost = list[Answer](), list[Lost]()
    for number, (where, line) in enumerate(lines if len(lines) > 1 else [], 1):
        if number == 1:
            _compare(path, parse_line(line, where, dict[str, Any]).get(HEADER), identity)
            continue
        try:
            if line.startswith(_LOST):
                lost.append(parse_line(line, where, Lost))
            else:
                answers.append(parse_line(line, where, Answer))
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}. Remove the line to ask its example again.") from None
    return answers, lost


def _compare(path: Path, stored: object, identity: Mapping[str, str]) -> None:
    if not isinstance(stored, dict):
        raise UserError(f"{path} {_NOT_OURS}")
    for name, now in identity.items():
        if stored.get(name) != now:
            raise UserError(f"{path} has answers of another {name}: {stored.get(name)!r}, and not {now!r}. {_ADVICE}")


def match(answers: Sequence[Answer], requests: Sequence[Request]) -> tuple[dict[str, Answer], int]:
    """The answers to these requests by example id, and the number of answers to other requests of these examples.

    A request differs from an earlier one of the same example if documents are now cut elsewhere (``--row_length``) or
    answers may have another length (``--max_new_tokens``).
    """
    wanted = {request.example.id: request.fingerprint for request in requests}
    found = {answer.id: answer for answer in answers if wanted.get(answer.id) == answer.request}
    return found, sum(answer.id in wanted and wanted[answer.id] != answer.request for answer in answers)
