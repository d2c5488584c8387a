"""Examples to encoder samples: a document's token ids, the indices of its words, and the targets of every field.

There is no prompt and no answer. A sample is the document between an encoder's two special tokens, or in another
`data.encoder.frame`; its targets are stored separately::

    words     wake       me    up    at    nine   am                 class target   intent: alarm_set's number
    tokens    <s>  wa ke me    up    at    ni ne  am   </s>
    first          1     3     4     5     6      8                  indices of the words' first sub-words
    tags           O     O     O     O     B-time I-time             the words' targets, as numbers of `tag_set`

If the task has a token field, the words are tokenized one by one, otherwise the text at once. Documents that are too
long are truncated at the end. A word that was truncated, or that has no tokens, has index -1. It is never a target, and
scoring labels it ``other``.

Samples are packed into rows in `data.encoder.rows`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.cache import Arrays, cached
from data.class_weights import ClassWeights
from data.encoder.frame import Frame
from data.encoder.read_twice import TwiceTokenizer
from data.encoder.rows import Batch, build_batch, dummy_batch
from data.encoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.progress import track
from data.tasks import ClassField, Field, FieldKind, MultiField, Task, TokenField

LONGEST_DOCUMENT = 512  # tokens: the paper's limit for encoders, and the number of RoBERTa's and BERT's positions

CODE_VERSION = 2  # part of the cache key: raise it when the same input gives other arrays

AnyTokenizer = Tokenizer | TwiceTokenizer


@dataclass
class SampleSet:
    """Encoder samples in flat arrays.

    Sample ``i``: ``tokens[end[i - 1] : end[i]]``, words ``word_end[i - 1] .. word_end[i]``.

    Attributes:
        ids: the examples' ids, ``[S]``.
        tokens: int32, all samples concatenated, each with the frame around the document.
        end: ``[S]`` int64, offsets into ``tokens``.
        word_end: ``[S]`` int64, offsets into the words' arrays; all zero without a token field.
        first_places: ``[W]`` int32, the index of each word's first sub-word within its sample, -1 for none.
        targets: by field name, int64 numbers of labels: ``[S]`` for a class field (into ``field.labels``), ``[W]`` for
            a token field (into ``tag_set(field)``). For a multi field ``[S, labels]`` bool: whether the document has
            the label. Empty if prepared without labels.
        document_tokens: ``[S]`` int32, the documents' lengths before any truncation.
        truncated: ``[S]`` bool.
        kinds: by field name, in the task's order; set even if there are no targets.
        pad_id: id of the padding token.
        weights: by class field, ``[labels]`` weights in the loss; a field that is not in it has none.
    """

    ids: list[str]
    tokens: np.ndarray
    end: np.ndarray
    word_end: np.ndarray
    first_places: np.ndarray
    targets: dict[str, np.ndarray]
    document_tokens: np.ndarray
    truncated: np.ndarray
    kinds: dict[str, FieldKind]
    pad_id: int
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._start = np.concatenate([[0], self.end[:-1]]).astype(np.int64)[: len(self.ids)]
        self._word_start = np.concatenate([[0], self.word_end[:-1]]).astype(np.int64)[: len(self.ids)]
        self.lengths = self.end - self._start  # [S] tokens, those around the document included
        n_kept = np.concatenate([[0], np.cumsum(self.first_places >= 0)])
        self.prefix = np.zeros(0, dtype=np.int32)  # empty: only decoders share a prefix
        self.costs = self.lengths  # [S] tokens in a row
        self.kept_words = n_kept[self.word_end] - n_kept[self._word_start]  # [S] words that have an index

        self.label_lengths = sum(map(self.n_outputs, self.kinds), np.zeros(len(self), dtype=np.int64))  # [S] all fields

    def __len__(self) -> int:
        return len(self.ids)

    def document(self, i: int) -> np.ndarray:
        """The sample's token ids, ``cls ... sep`` of an encoder."""
        return self.tokens[self._start[i] : self.end[i]]

    def first(self, i: int) -> np.ndarray:
        """Per word, the index of its first sub-word in ``document(i)``, or -1; empty without a token field."""
        return self.first_places[self._word_start[i] : self.word_end[i]]

    def target(self, field: str, i: int) -> np.ndarray:
        """A field's targets: one of the document, for a token field one per word with an index."""
        values = self.targets[field]
        if self.kinds[field] != "token":
            return values[i : i + 1]
        return values[self._word_start[i] : self.word_end[i]][self.first(i) >= 0]

    def n_outputs(self, field: str) -> np.ndarray:
        """``[S]`` number of positions of each sample that the field's head reads."""
        return np.ones(len(self), dtype=np.int64) if self.kinds[field] != "token" else self.kept_words

    def batch(self, rows: Sequence[Sequence[int]], share_prefix: bool, length: int) -> Batch:
        """Build a micro-batch from rows of samples, padded to ``length`` tokens; there is no prefix to share."""
        return build_batch(self, rows, length)

    def dummy(self) -> Batch:
        """A batch without targets."""
        return dummy_batch(self)

    def count_targets(self, indices: Sequence[int]) -> dict[str, int]:
        """By field, the number of targets of these samples."""
        return {field: int(self.n_outputs(field)[list(indices)].sum()) for field in self.kinds}

    def sum_weights(self, indices: Sequence[int]) -> dict[str, float]:
        """By field, the sum of these samples' weights in the loss; for a field without weights, its targets."""
        sums: dict[str, float] = dict(self.count_targets(indices))
        return sums | {
            field: float(by_label[self.targets[field][list(indices)]].sum(dtype=np.float64))
            for field, by_label in self.weights.items()
        }

    def weigh(self, weights: ClassWeights, task: Task) -> None:
        """Weigh the labels of class fields in the loss."""
        for field in task.fields:
            if (by_label := weights.get(field.name)) is not None:
                assert isinstance(field, ClassField), field
                self.weights[field.name] = np.array([by_label.get(x, 0.0) for x in field.labels], dtype=np.float32)

    def contents(self) -> list[np.ndarray]:
        """The arrays that training depends on, to be hashed."""
        return [self.tokens, self.end, self.first_places, *self.targets.values()]

    def describe(self) -> str:
        """One line for the log: number and lengths of the documents, and how many were truncated."""
        n = self.document_tokens
        mean, median, p99, longest = (n.mean(), *np.percentile(n, [50, 99]), n.max()) if len(n) else (0, 0, 0, 0)
        text = (
            f"{len(self):,} documents of {mean:.1f} tokens (median {median:.0f}, p99 {p99:.0f}, longest "
            f"{longest:.0f}), {int(self.truncated.sum()):,} truncated"
        )
        n_lost = int((self.first_places < 0).sum())
        return text + (f"; {n_lost:,} words truncated or without a sub-word, never a target" if n_lost else "")


def tag_set(field: TokenField) -> tuple[str, ...]:
    """The labels of a token head: ``"O"``, then ``"B-x"`` and ``"I-x"`` for each type; 111 for MASSIVE's 55 types."""
    return ("O", *(f"{mark}-{label}" for label in field.labels for mark in "BI"))


def output_labels(task: Task) -> dict[str, list[str]]:
    """By field, the labels of its head's outputs, in order; tags for a token field."""
    return {f.name: list(tag_set(f) if isinstance(f, TokenField) else f.labels) for f in task.fields}


def prepare(
    examples: Sequence[Example],
    task: Task,
    tokenizer: AnyTokenizer,
    max_length: int,
    *,
    with_labels: bool = True,
    cache_dir: Path | None = None,
) -> SampleSet:
    """Tokenize ``examples`` for ``task``, truncating documents so that every sample has at most ``max_length`` tokens.

    Each example is tokenized independently of the others. A document without words is the two special tokens.

    Args:
        examples: with ``with_labels`` they must have the task's labels. A token field's tags are the example's brackets
            if it has any; otherwise equal neighbours are one entity.
        task: its fields decide the targets, and whether words are tokenized one by one.
        tokenizer: of the encoder; its frame is put around each document.
        max_length: maximum tokens of a sample, those around the document included.
        with_labels: False, for scoring: the result has no targets.
        cache_dir: folder of the cache files; ``None``: no cache.

    Raises:
        UserError: ``max_length`` is too small for a document, or an example's label is missing or not in the label set.
    """
    frame = tokenizer.frame
    if frame.least > max_length:
        raise UserError(
            f"A document of at most {max_length} tokens has none left beside its {frame.size} special tokens. "
            f"It needs {frame.least} or more: --max_length, in training also --row_length."
        )
    if with_labels:
        for example in examples:
            task.check(example)
    by_words = any(isinstance(field, TokenField) for field in task.fields)
    targets = {field.name: _targets(field, examples) for field in task.fields} if with_labels else {}

    def build() -> Arrays:
        return _tokenize(examples, tokenizer, max_length, by_words)

    if cache_dir is None:
        arrays = build()
    else:
        settings = ["encoder", CODE_VERSION, tokenizer.fingerprint, max_length, by_words]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for example in examples:
            digest.update(json.dumps(example.text).encode() + b"\n")
        arrays = cached(cache_dir, digest.hexdigest(), build)
    return SampleSet(
        ids=[example.id for example in examples],
        targets=targets,
        kinds={field.name: field.kind for field in task.fields},
        pad_id=tokenizer.pad_id,
        **arrays,
    )


def check_stored_length(length: int, frame: Frame, path: Path) -> None:
    """Raise UserError if the longest document that a ``config.json`` states for its heads has no tokens of a text."""
    if length < frame.least:
        raise UserError(
            f"{path}: heads.max_length is {length}, but {frame.size} tokens are around every text, so it must be "
            f"{frame.least} or more. Restore the file, for example from the folder that this one was copied from."
        )


def _tokenize(examples: Sequence[Example], tokenizer: AnyTokenizer, max_length: int, by_words: bool) -> Arrays:
    frame = tokenizer.frame
    budget = (max_length - frame.size) // frame.readings  # tokens of a document
    chunks: list[list[int]] = []
    places: list[np.ndarray] = []
    documents = np.zeros(len(examples), dtype=np.int32)
    for i, example in enumerate(track(examples)):
        ids, first = tokenizer.encode_words(example.words) if by_words else (tokenizer.encode(example.text), [])
        documents[i] = len(ids)
        chunks.append(frame.around(ids[:budget]))
        place, start = np.array(first, dtype=np.int32), frame.start(min(len(ids), budget))
        places.append(np.where((place >= 0) & (place < budget), place + start, -1).astype(np.int32))
    flat = [token for chunk in chunks for token in chunk]
    return {
        "tokens": np.array(flat, dtype=np.int32),
        "end": np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64),
        "word_end": np.cumsum([len(place) for place in places], dtype=np.int64),
        "first_places": np.concatenate([np.zeros(0, dtype=np.int32), *places]),
        "document_tokens": documents,
        "truncated": documents > budget,
    }


def _targets(field: Field, examples: Sequence[Example]) -> np.ndarray:
    if isinstance(field, ClassField):
        number = {label: i for i, label in enumerate(field.labels)}
        return np.array([number[example.class_label(field.name)] for example in examples], dtype=np.int64)
    if isinstance(field, MultiField):
        sets = [set(example.label_set(field.name)) for example in examples]
        return np.array([[label in own for label in field.labels] for own in sets], dtype=bool).reshape(
            -1, len(field.labels)
        )
    number = {tag: i for i, tag in enumerate(tag_set(field))}
    return np.array([number[tag] for example in examples for tag in _tags(field, example)], dtype=np.int64)


def _tags(field: TokenField, example: Example) -> Sequence[str]:
    types = example.word_labels(field.name)
    tags = example.bio.get(field.name)
    if tags is not None:
        assert [tag[2:] or field.other for tag in tags] == list(types), f"{example.id}: brackets and types differ"
        return tags
    return [
        "O" if kind == field.other else f"{'I' if kind == before else 'B'}-{kind}"
        for before, kind in zip([None, *types], types, strict=False)
    ]
