"""The answers of a scoring that is not complete: ``answers.partial.RANK.jsonl`` in its output folder.

    {"answers_of": {"weights": ..., "task": ..., "examples": ..., ...}}
    {"index": 17, "prediction": {"id": "massive/test/1", ...}}

Each rank appends its answers to a file of its own as they come, so that no communication is needed and the process can
be ended at any time. A later run of the same scoring, on any number of ranks, takes the answers of all files and goes
on with the rest. What makes it the same is up to the caller (`eval/identity.py`): not temperatures and
``--abstain_below``, which are applied when all answers are there (`eval/gather.py`) and are in no line. When the result
is written, the files are removed. On several machines the output folder must be one that all of them see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch.distributed as dist

from data.errors import UserError
from data.files.documents import parse_line
from eval.kept_lines import KeptLines, Kind, open_lines, read_kept
from eval.results import Prediction

NAME = "answers.partial.{}.jsonl"


class _Line(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0)]
    prediction: Prediction


@dataclass
class PartialAnswers:
    """The answers that an interrupted scoring left, and the open file for those that come.

    Attributes:
        answers: those that were left, by the index of the example; on ranks other than 0 perhaps not all.
        done: the indices of the examples that need no answer any more; the same on every rank after `agree`.
    """

    folder: Path
    n_examples: int
    answers: dict[int, Prediction]
    file: KeptLines | None
    done: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.done = frozenset(self.answers)

    def agree(self) -> None:
        """Let all ranks take rank 0's word for what is done. Collective; before the first `add`."""
        shared: list[Any] = [self.done]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(shared, src=0)
        self.done = shared[0]
        self.answers = {i: answer for i, answer in self.answers.items() if i in self.done}

    def add(self, answers: Mapping[int, Prediction]) -> None:
        """Append answers by the index of their example.

        Raises:
            UserError: the disk is full.
        """
        if self.file is not None:
            records = ({"index": i, "prediction": dataclasses.asdict(found)} for i, found in answers.items())
            self.file.append(records)

    def remove(self) -> None:
        """Remove the files of all ranks: the result is written."""
        for path in _files(self.folder):
            path.unlink(missing_ok=True)

    def kept(self) -> str:
        """A sentence about what is kept if the program is ended now; empty if there is no answer yet."""
        try:
            n = sum(_count_lines(path) - 1 for path in _files(self.folder))
        except FileNotFoundError:  # removed by rank 0: the result is written
            return ""
        if n <= 0:
            return ""
        n = min(n, self.n_examples)  # two runs may have answered the same
        return f"{n:,} of {self.n_examples:,} answers are in {self.folder}; the same command goes on."


@contextmanager
def open_partial_answers(
    folder: Path, n_examples: int, identity: Mapping[str, str], rank: int | None
) -> Iterator[PartialAnswers]:
    """Read the answers that there are, and open and lock this rank's file.

    Args:
        identity: all that the answers depend on.
        rank: of the ranks that share the examples; None: this one keeps no answers, because another one has the same.

    Raises:
        UserError: the folder cannot be written, another process is scoring into it, or its files have answers of
            another scoring or a damaged line.
    """
    kind = _kind(folder)
    answers: dict[int, Prediction] = {}
    for path in _files(folder):
        for where, line in read_kept(path, identity, kind):
            try:
                found: _Line = parse_line(line, where, _Line)
            except UserError as error:
                raise UserError(f"{str(error).rstrip('.')}. Remove the line to answer its example again.") from None
            if found.index >= n_examples:
                raise UserError(f"{where}: no example has the index {found.index}. Remove the line.")
            answers[found.index] = found.prediction
    with ExitStack() as stack:
        file = stack.enter_context(open_lines(folder / NAME.format(rank), identity, kind)) if rank is not None else None
        yield PartialAnswers(folder, n_examples, answers, file)


def _kind(folder: Path) -> Kind:
    return Kind(
        advice=f"give another --output, or remove {folder / NAME.format('*')} if you do not need the answers.",
        full=" The answers before are kept; the same command goes on.",
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(NAME.format("*")))


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
