"""Examples to token ids, once per machine: what packing, scoring and the length statistics read.

``prepare`` tokenizes section by section, so that boundaries never move::

    prefix = prompt.prefix                     the same ids for every sample, kept once
    body   = document + prompt.suffix          the document alone is ever truncated; its beginning is kept
    label  = task.write(labels) + prompt.end   training only

and keeps the result in flat arrays (``SampleSet``), which cost four bytes a token and are written to a cache file named
by a hash of everything that went in. Tokenizing 11,314 posts takes seconds to minutes, so with several processes on a
machine one does it and the others read the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import UserError
from data.example import Example

if TYPE_CHECKING:
    from data.prompts import Prompt
    from data.tasks import Task
    from data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CODE_VERSION = 1  # part of the cache key: raise it when the same input would give other tokens
PROGRESS_FROM = 2000  # examples from which tokenizing shows a progress bar


@dataclass
class SampleSet:
    """Tokenized samples in flat arrays.

    Sample ``i``: body ``tokens[label_end[i - 1] : body_end[i]]``, label ``tokens[body_end[i] : label_end[i]]``.

    Attributes:
        prefix: ``[P]`` int32, what stands before every body.
        ids: the examples' ids, ``[S]``.
        tokens: int32, bodies and labels of all samples end to end.
        body_end, label_end: ``[S]`` int64, offsets into ``tokens``.
        document_tokens: ``[S]`` int32, the documents' lengths before any truncation.
        truncated: ``[S]`` bool.
    """

    prefix: np.ndarray
    ids: list[str]
    tokens: np.ndarray
    body_end: np.ndarray
    label_end: np.ndarray
    document_tokens: np.ndarray
    truncated: np.ndarray

    def __post_init__(self) -> None:
        start = np.concatenate([[0], self.label_end[:-1]]).astype(np.int64)[: len(self.ids)]
        self.lengths = self.label_end - start  # [S] body + label
        self.label_lengths = self.label_end - self.body_end  # [S]
        self.costs = self.lengths - (self.label_lengths > 0)  # [S] tokens in a row: the last label token is no input
        self._start = start

    def __len__(self) -> int:
        return len(self.ids)

    def body(self, i: int) -> np.ndarray:
        return self.tokens[self._start[i] : self.body_end[i]]

    def label(self, i: int) -> np.ndarray:
        return self.tokens[self.body_end[i] : self.label_end[i]]

    def length(self, i: int) -> int:
        """Tokens of body and label."""
        return int(self.lengths[i])

    def cost(self, i: int) -> int:
        """Tokens the sample adds to a row behind a shared prefix: ``len(body) + len(label) - 1``."""
        return int(self.costs[i])

    def count_longer_than(self, n: int) -> int:
        """How many samples are longer than ``n`` tokens, prefix and label included (a model's trained context)."""
        return int((len(self.prefix) + self.lengths > n).sum())

    def statistics(self) -> dict[str, int | dict[str, float]]:
        """Return ``n_samples``, ``n_truncated``, ``prefix_tokens``, and mean, median, p99 and max of three lengths.

        ``document`` is the document before truncation, ``sample`` body and label, ``label`` the label alone.
        """

        def summary(lengths: np.ndarray) -> dict[str, float]:
            if not len(lengths):
                return dict.fromkeys(("mean", "median", "p99", "max"), 0.0)
            p50, p99 = np.percentile(lengths, [50, 99])
            return {
                "mean": float(lengths.mean()),
                "median": float(p50),
                "p99": float(p99),
                "max": float(lengths.max()),
            }

        return {
            "n_samples": len(self),
            "n_truncated": int(self.truncated.sum()),
            "prefix_tokens": len(self.prefix),
            "document": summary(self.document_tokens),
            "sample": summary(self.lengths),
            "label": summary(self.label_lengths),
        }

    def describe(self) -> str:
        """One line for the log: how many samples, how long, how many truncated."""
        s = self.statistics()
        d = s["document"]
        return (
            f"{s['n_samples']:,} samples behind a prefix of {s['prefix_tokens']:,} tokens; documents of "
            f"{d['mean']:.1f} tokens (median {d['median']:.0f}, p99 {d['p99']:.0f}, longest {d['max']:.0f}), "
            f"{s['n_truncated']:,} truncated"
        )


def prepare(
    examples: Sequence[Example],
    task: Task,
    prompt: Prompt,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    with_labels: bool = True,
    max_new_tokens: int | None = None,
    cache_dir: Path | None = None,
) -> SampleSet:
    """Tokenize ``examples`` for ``task``, truncating documents so that every sample fits ``max_length`` tokens.

    Args:
        examples: what to tokenize; with ``with_labels`` they must carry the task's labels.
        task: writes the label text.
        prompt: the sections around the document, and what ends the label.
        tokenizer: turns text and special tokens into ids.
        max_length: prefix + body + label (training), or prefix + body + ``max_new_tokens`` (scoring), in tokens.
        with_labels: False for scoring: labels stay empty.
        max_new_tokens: room kept for the answer when there are no labels.
        cache_dir: where cache files lie; ``None`` tokenizes anew. Processes that ask for the same samples at the
            same time wait for the first one, under a lock that the system releases should that one die.

    Raises:
        UserError: prefix, suffix and the room for the answer leave no room for a document.
    """
    from data.prompts import encode_pieces

    assert with_labels or max_new_tokens is not None, "scoring has to say how much room the answer needs"
    prefix = encode_pieces(prompt.prefix, tokenizer)
    suffix = encode_pieces(prompt.suffix, tokenizer)
    end = encode_pieces(prompt.end, tokenizer)
    answers = [task.write(example.labels) for example in examples] if with_labels else None

    def build() -> SampleSet:
        return _tokenize(examples, answers, prefix, suffix, end, tokenizer, max_length, max_new_tokens)

    if cache_dir is None:
        return build()
    settings = [CODE_VERSION, fingerprint(tokenizer), prefix, suffix, end, max_length, max_new_tokens]
    key = _hash(settings, examples, answers)
    path = Path(cache_dir) / f"samples-{key[:32]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        samples = _read(path, key)
        if samples is None:
            samples = build()
            _write(path, key, samples)
    return samples


def _tokenize(
    examples: Sequence[Example],
    answers: Sequence[str] | None,
    prefix: list[int],
    suffix: list[int],
    end: list[int],
    tokenizer: Tokenizer,
    max_length: int,
    max_new_tokens: int | None,
) -> SampleSet:
    assert suffix, "a prompt without a suffix: an empty document would leave no token that predicts the label"
    labels: list[list[int]] = [[]] * len(examples)
    if answers is not None:
        known = {answer: tokenizer.encode(answer) + end for answer in dict.fromkeys(answers)}
        labels = [known[answer] for answer in answers]
    reserve = max((len(label) for label in labels), default=0) if answers is not None else max_new_tokens
    _check_room(len(prefix), len(suffix), reserve, max_length, answers is not None)

    chunks: list[np.ndarray] = []
    documents = np.zeros(len(examples), dtype=np.int32)
    kept = np.zeros(len(examples), dtype=np.int64)
    for i, example in enumerate(_progress(examples)):
        document = tokenizer.encode(example.text)
        answer_room = len(labels[i]) if answers is not None else max_new_tokens
        room = max_length - len(prefix) - len(suffix) - answer_room
        documents[i] = len(document)
        kept[i] = min(len(document), room)
        chunks.append(np.array(document[: kept[i]] + suffix + labels[i], dtype=np.int32))

    label_end = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    return SampleSet(
        prefix=np.array(prefix, dtype=np.int32),
        ids=[example.id for example in examples],
        tokens=np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int32),
        body_end=label_end - np.array([len(label) for label in labels], dtype=np.int64),
        label_end=label_end,
        document_tokens=documents,
        truncated=kept < documents,
    )


def _check_room(n_prefix: int, n_suffix: int, reserve: int, max_length: int, with_labels: bool) -> None:
    needed = n_prefix + n_suffix + reserve + 1  # one token of the document at the very least
    if needed <= max_length:
        return
    answer = "the longest label" if with_labels else "the answer (--max_new_tokens)"
    raise UserError(
        f"A row of {max_length:,} tokens is too short: the prompt before the document takes {n_prefix:,} (instruction "
        f"and few-shot examples), the part after it {n_suffix:,}, {answer} {reserve:,}, and a document needs at least "
        f"1. Give --row_length {needed:,} or more, or fewer or shorter few-shot examples (--shots, --shot_tokens)."
    )


def _progress(examples: Sequence[Example]) -> Iterator[Example]:
    """Iterate with a progress bar (rate and time left) on stderr when there are enough to wait for."""
    if len(examples) < PROGRESS_FROM:
        yield from examples
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(examples, description="tokenizing")


# ------------------------------------------------------------------------------------------------------- the cache


def fingerprint(tokenizer: Tokenizer) -> str:
    """Hash what the tokenizer consists of: the files it came from."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _hash(settings: list, examples: Sequence[Example], answers: Sequence[str] | None) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for i, example in enumerate(examples):
        answer = None if answers is None else answers[i]
        digest.update(json.dumps([example.id, example.text, answer]).encode() + b"\n")
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between the processes of this machine; the system drops it when its holder dies."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems: every process then does the work itself
            log.warning("No file lock at %s (%s): each process tokenizes for itself.", path, error)
        yield


_ARRAYS = ("prefix", "tokens", "body_end", "label_end", "document_tokens", "truncated")


def _write(path: Path, key: str, samples: SampleSet) -> None:
    arrays = {name: getattr(samples, name) for name in _ARRAYS}
    ids = np.frombuffer(json.dumps(samples.ids).encode(), dtype=np.uint8)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, key=np.frombuffer(key.encode(), dtype=np.uint8), ids=ids, **arrays)
        os.replace(part, path)  # atomic: a reader finds a whole file or none
    except OSError as error:
        log.warning("The tokenized samples could not be cached in %s: %s", path.parent, error)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, key: str) -> SampleSet | None:
    """Return the cached samples, or None when there are none or the file is damaged (which is logged)."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["key"].tobytes().decode() != key:
                raise ValueError("it holds other samples than its name says")
            arrays = {name: file[name] for name in _ARRAYS}
            return SampleSet(ids=json.loads(file["ids"].tobytes()), **arrays)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("The cache file %s is damaged (%s); tokenizing anew.", path, error)
        return None
