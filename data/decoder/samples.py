"""Tokenize examples, once per machine, for packing, scoring and length statistics.

``prepare`` tokenizes section by section, so that boundaries never move::

    prefix = prompt.prefix                     the same ids for every sample, stored once
    body   = document + prompt.suffix          only the document is truncated; its beginning is kept
    label  = prompt.answer(task.write(labels)) training only; ends with the end-of-turn token

The result is a ``SampleSet`` of flat arrays, four bytes per token. It is written to a cache file, named after a hash of
all inputs. Tokenizing 11,314 posts takes seconds to minutes, so one process of a machine does it and the others read
the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data.cache import Arrays, cached
from data.decoder.prompts import label_lists
from data.decoder.rows import ANSWER, Batch, build_batch, dummy_batch
from data.decoder.templates import Prompt, Text, encode_pieces
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.progress import track
from data.tasks import Task

CODE_VERSION = 2  # part of the cache key: raise it when the same input gives other tokens
COUNTED = 1000  # documents at most, for advice about their length


@dataclass
class SampleSet:
    """Tokenized samples in flat arrays.

    Sample ``i``: body ``tokens[label_end[i - 1] : body_end[i]]``, label ``tokens[body_end[i] : label_end[i]]``.

    Attributes:
        prefix: ``[P]`` int32, the tokens before every body.
        ids: the examples' ids, ``[S]``.
        tokens: int32, bodies and labels of all samples, concatenated.
        body_end, label_end: ``[S]`` int64, offsets into ``tokens``.
        document_tokens: ``[S]`` int32, the documents' lengths before any truncation.
        truncated: ``[S]`` bool.
        label_weights: ``[L]`` fp32, the weights in the loss of all samples' label tokens, concatenated; None: all 1.
    """

    prefix: np.ndarray
    ids: list[str]
    tokens: np.ndarray
    body_end: np.ndarray
    label_end: np.ndarray
    document_tokens: np.ndarray
    truncated: np.ndarray
    label_weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        start = np.concatenate([[0], self.label_end[:-1]]).astype(np.int64)[: len(self.ids)]
        self.lengths = self.label_end - start  # [S] body + label
        self.label_lengths = self.label_end - self.body_end  # [S]
        self.costs = self.lengths - (self.label_lengths > 0)  # [S] tokens in a row, without the last label token
        self._start = start
        self._label_tokens = np.cumsum(self.label_lengths)  # [S] offsets into label_weights

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
        """Tokens the sample adds to a row after a shared prefix: ``len(body) + len(label) - 1``."""
        return int(self.costs[i])

    def weights(self, i: int) -> np.ndarray | None:
        """The weights of the label's tokens in the loss; None: all are 1."""
        return None if self.label_weights is None else self.label_weights[self._places(i)]

    def _places(self, i: int) -> slice:
        end = self._label_tokens[i]
        return slice(end - self.label_lengths[i], end)

    def batch(self, rows: Sequence[Sequence[int]], share_prefix: bool, length: int) -> Batch:
        """The micro-batch of these rows of sample indices, padded to ``length`` tokens."""
        return build_batch(self, rows, share_prefix, length)

    def dummy(self) -> Batch:
        """A batch without targets; see `data.decoder.rows.dummy_batch`."""
        return dummy_batch()

    def count_targets(self, indices: Sequence[int]) -> dict[str, int]:
        """The number of label tokens of these samples, under the only field, `ANSWER`."""
        return {ANSWER: int(self.label_lengths[list(indices)].sum())}

    def sum_weights(self, indices: Sequence[int]) -> dict[str, float]:
        """The sum of these samples' weights in the loss, under the only field, `ANSWER`."""
        if self.label_weights is None:
            return dict(self.count_targets(indices))
        return {ANSWER: sum(float(self.label_weights[self._places(i)].sum(dtype=np.float64)) for i in indices)}

    def contents(self) -> list[np.ndarray]:
        """The arrays that training depends on, to be hashed."""
        return [self.prefix, self.tokens, self.body_end, self.label_end]

    def count_longer_than(self, n: int) -> int:
        """The number of samples longer than ``n`` tokens (such as a model's context), prefix and label included."""
        return int((len(self.prefix) + self.lengths > n).sum())

    def statistics(self) -> dict[str, Any]:
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
            f"{s['n_samples']:,} samples, each after a prefix of {s['prefix_tokens']:,} tokens; documents of "
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
    max_new_tokens: int | Sequence[int] | None = None,
    cache_dir: Path | None = None,
) -> SampleSet:
    """Tokenize ``examples`` for ``task``, truncating documents so that every sample fits ``max_length`` tokens.

    Each example's result is independent of the other examples.

    Args:
        examples: the examples; with ``with_labels`` they must have the task's labels.
        task: writes the label text.
        prompt: the sections around the document, and the end of the label.
        tokenizer: turns text and special tokens into ids.
        max_length: prefix + body + label (training), or prefix + body + ``max_new_tokens`` (scoring), in tokens.
        with_labels: False for scoring: labels are empty.
        max_new_tokens: without labels, the answer's token budget: one for all or one per example. Document and answer
            share ``max_length`` - prefix - suffix, of which the document keeps at least half if it needs it. An answer
            with a larger budget may thus get less: ``max_length`` - prefix - body.
        cache_dir: folder of the cache files; None: no cache. If several processes ask for the same samples, one
            tokenizes and the others wait for it (see `data.cache`).

    Raises:
        UserError: prefix, suffix and answer leave no tokens for a document (counted with the longest label; at
            scoring, with the smallest budget), or an example's label is missing or outside the label set.
    """
    assert with_labels or max_new_tokens is not None, "scoring needs max_new_tokens"
    budgets = [max_new_tokens] * len(examples) if isinstance(max_new_tokens, int) else list(max_new_tokens or [])
    assert with_labels or len(budgets) == len(examples), f"{len(budgets)} budgets for {len(examples)} answers"
    prefix = encode_pieces(prompt.prefix, tokenizer)
    suffix = encode_pieces(prompt.suffix, tokenizer)
    if with_labels:
        for example in examples:
            task.check(example)
    assert suffix, "a prompt without a suffix: an empty document would leave no token that predicts the label"
    answers = [task.write(example.labels, example.words) if with_labels else "" for example in examples]
    # Few answers are distinct, so each is tokenized once; without labels all are empty.
    labels = {a: encode_pieces(prompt.answer(a), tokenizer) if with_labels else [] for a in dict.fromkeys(answers)}
    reserve = max(map(len, labels.values()), default=0) if with_labels else min(budgets, default=1)
    if len(prefix) + len(suffix) + reserve >= max_length:
        parts = _Parts(len(prefix), _list_tokens(prompt, task, tokenizer), _shot_tokens(prompt, tokenizer), len(suffix))
        documents = _typical([len(labels[a]) for a in answers] if with_labels else budgets, examples, tokenizer)
        raise _too_short(max_length, parts, reserve, max(documents, reserve + 1), with_labels)

    def build() -> SampleSet:
        budget = max_length - len(prefix) - len(suffix)  # for the document and its answer
        return _tokenize(examples, [labels[a] for a in answers], prefix, suffix, tokenizer, budget, budgets)

    if cache_dir is None:
        return build()
    settings = [CODE_VERSION, tokenizer.fingerprint, prefix, suffix, labels, max_length, budgets]
    key = _hash(settings, examples, answers)
    return _from_arrays(cached(cache_dir, key, lambda: _to_arrays(build())))


def _tokenize(
    examples: Sequence[Example],
    labels: Sequence[list[int]],
    prefix: list[int],
    suffix: list[int],
    tokenizer: Tokenizer,
    budget: int,
    answer_budgets: Sequence[int],
) -> SampleSet:
    chunks: list[np.ndarray] = []
    documents = np.zeros(len(examples), dtype=np.int32)
    kept = np.zeros(len(examples), dtype=np.int64)
    for i, (example, label) in enumerate(zip(track(examples), labels, strict=True)):
        document = tokenizer.encode(example.text)
        documents[i] = len(document)
        most = budget - len(label) if label else max(budget - answer_budgets[i], budget // 2)
        kept[i] = min(len(document), most)
        chunks.append(np.array(document[: kept[i]] + suffix + label, dtype=np.int32))

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


@dataclass(frozen=True)
class _Parts:
    """The tokens of a prompt: before the document, of those the lists of labels and the examples, and after it."""

    prefix: int
    lists: int
    shots: int
    suffix: int


def _too_short(max_length: int, parts: _Parts, reserve: int, typical: int, with_labels: bool) -> UserError:
    """The error about a row without space for a document.

    Args:
        typical: tokens that most documents need with their answers: advice on which each document keeps one token
            would train on nothing.
    """
    shares = {"the lists of labels": parts.lists, "few-shot examples": parts.shots}
    listed = " and ".join(f"{what} {n:,}" for what, n in shares.items() if n)
    before = f"{parts.prefix:,}, of which {listed}" if listed else f"{parts.prefix:,}"
    answer = "the longest label" if with_labels else "the answer (max_new_tokens)"
    needed = parts.prefix + parts.suffix + typical
    advice = f"--row_length {needed:,} or more, which cuts at most one in ten documents"
    without = needed - parts.lists
    if parts.lists and (without <= max_length or 2 * parts.lists > needed):
        longer = "" if without <= max_length else f" with --row_length {without:,} or more"
        taught = "fine-tuning teaches the labels" if with_labels else "for a model that is fine-tuned so"
        advice = f"--list_labels off{longer} ({taught}); or {advice}"
    fewer = "; or fewer or shorter few-shot examples (--shots and --shot_tokens of train.py and eval.py)"
    fewer = (fewer if parts.shots else "") + ("" if with_labels else "; or a smaller --max_new_tokens")
    return UserError(
        f"A row of {max_length:,} tokens is too short: the prompt before the document has {before}; the prompt after "
        f"it {parts.suffix:,}; {answer} {reserve:,}; and a document needs at least 1. Give {advice}{fewer}."
    )


def _typical(answers: Sequence[int], examples: Sequence[Example], tokenizer: Tokenizer) -> int:
    """The tokens that are enough for nine of ten documents with their answers; counted on some of the examples."""
    some = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), COUNTED)).astype(int)).tolist()
    lengths = [len(tokenizer.encode(examples[i].text)) + answers[i] for i in some]
    return int(np.percentile(lengths, 90, method="inverted_cdf")) if lengths else 0


def _list_tokens(prompt: Prompt, task: Task, tokenizer: Tokenizer) -> int:
    """The number of the prefix's tokens that list the labels; 0 if it does not list them all."""
    text = "".join(piece.text for piece in prompt.prefix if isinstance(piece, Text))
    lists = label_lists(task)
    return sum(len(tokenizer.encode(labels)) for labels in lists) if all(labels in text for labels in lists) else 0


def _shot_tokens(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """The number of the prefix's tokens that are few-shot examples, found by their delimiters."""
    text = "".join(piece.text for piece in prompt.prefix if isinstance(piece, Text))
    start, end = text.find("Beginning of <<Examples>>"), text.rfind("End of <<Examples>>")
    return len(tokenizer.encode(text[start:end])) if 0 <= start < end else 0


def _hash(settings: list, examples: Sequence[Example], answers: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for example, answer in zip(examples, answers, strict=True):
        digest.update(json.dumps([example.id, example.text, answer]).encode() + b"\n")
    return digest.hexdigest()


_ARRAYS = ("prefix", "tokens", "body_end", "label_end", "document_tokens", "truncated")


def _to_arrays(samples: SampleSet) -> Arrays:
    ids = np.frombuffer(json.dumps(samples.ids).encode(), dtype=np.uint8)
    return {"ids": ids, **{name: getattr(samples, name) for name in _ARRAYS}}


def _from_arrays(arrays: Arrays) -> SampleSet:
    ids = msgspec.json.decode(arrays["ids"].tobytes(), type=list[str])
    return SampleSet(ids=ids, **{name: arrays[name] for name in _ARRAYS})
