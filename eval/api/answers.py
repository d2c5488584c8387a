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
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from data.errors import UserError
from data.files.documents import parse_line
from eval.api.setup import Request
from eval.kept_lines import KeptLines, Kind, open_lines

FILE = "answers.jsonl"
_LOST = b'{"lost"'
_KIND = Kind(
    advice="give another --output, or remove the file if you do not need its answers.",
    foreign="To score answers from elsewhere, give --answers. ",
    full=" The answers before are kept; the same command goes on.",
)

Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Answer:
    """A server's answer to one example.

    Attributes:
        answer: the text; if the model refused, its refusal.
        request: `Request.fingerprint` of what was asked; empty: not known.
        finish_reason: the server's: "stop", "length", "content_filter", ...; or "no_choices", if it sent none.
        refused: the model or the server's filter refused to answer.
        model: the model's name according to the server.
        prompt_tokens, completion_tokens: the server's ``usage``; None if it sent none.
        at_most: without ``usage``, the most tokens of prompt and of answer. A file of an earlier version has none.
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
    at_most: tuple[Count, Count] | None = None
    seconds: float = 0.0
    attempts: Count = 1

    @property
    def usage(self) -> tuple[int, int] | None:
        """Tokens of prompt and answer according to the server; None unless it sent both."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens, self.completion_tokens


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

    file: KeptLines
    answers: list[Answer]
    lost: list[Lost]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def add(self, answer: Answer) -> None:
        """Append an answer; it is on the disk when this returns.

        Raises:
            UserError: the disk is full.
        """
        with self._lock:
            self.file.append([dataclasses.asdict(answer)], sync=True)

    def lose(self, attempt: Lost) -> None:
        """Append an attempt without an answer, likewise."""
        with self._lock:
            self.file.append([dataclasses.asdict(attempt)], sync=True)
            self.lost.append(attempt)


@contextmanager
def open_answers(folder: Path, identity: Mapping[str, str]) -> Iterator[AnswersFile]:
    """Open and lock the answers file of an output folder, which is made if it does not exist.

    Args:
        identity: what the answers have in common.

    Raises:
        UserError: the folder cannot be written, another process writes the file, it has answers of something else, or
            a line in it is damaged.
    """
    with open_lines(folder / FILE, identity, _KIND) as file:
        answers, lost = list[Answer](), list[Lost]()
        for where, line in file.lines:
            try:
                if line.startswith(_LOST):
                    lost.append(parse_line(line, where, Lost))
                else:
                    answers.append(parse_line(line, where, Answer))
            except UserError as error:
                raise UserError(f"{str(error).rstrip('.')}. Remove the line to ask its example again.") from None
        yield AnswersFile(file, answers, lost)


def match(answers: Sequence[Answer], requests: Sequence[Request]) -> tuple[dict[str, Answer], int]:
    """The answers to these requests by example id, and the number of answers to other requests of these examples.

    A request differs from an earlier one of the same example if documents are now cut elsewhere (``--row_length``) or
    answers may have another length (``--max_new_tokens``).
    """
    wanted = {request.example.id: request.fingerprint for request in requests}
    found = {answer.id: answer for answer in answers if wanted.get(answer.id) == answer.request}
    return found, sum(answer.id in wanted and wanted[answer.id] != answer.request for answer in answers)
