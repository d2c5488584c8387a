"""Packing encoder samples: the layout of a packed row, and the indices that each head reads.

There is no prefix and no causal order: positions start at 0 in every document. Two documents of a task with a class
field and a token field, the second with a word (y) of two sub-words, padded to 10::

    index       0   1   2   3   4   5   6   7   8   9
    tokens     <s>  a   b  </s><s>  y  ##  </s> .   .
    positions   0   1   2   3   0   1   2   3   0   0
    doc_ids     1   1   1   1   2   2   2   2  -1  -1
    class       x               x                          index of the class field: 0 4
    token           x   x           x                      index of the token field: 1 2 5

``targets`` has one label number for each entry of ``index``, for a multi field, which has the index of a class field, a
row of 0 and 1 for its labels. A token of an encoder attends to all tokens of its document, one of a decoder with
heads to those before it, and to no others (`model/attention.py`), so the other documents in a row change nothing.

Shapes: ``B`` rows, ``T`` tokens in a row, ``N`` outputs of a field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from data import batch
from data.packing import PADDING_DOC, padded_length
from data.tasks import FieldKind

NONE = np.zeros(0, dtype=np.int64)


class RowSource(Protocol):
    """Tokenized documents from which rows are built; `data.encoder.samples.SampleSet` is one."""

    ids: list[str]
    kinds: dict[str, FieldKind]
    targets: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    lengths: np.ndarray
    pad_id: int

    def document(self, i: int) -> np.ndarray: ...

    def first(self, i: int) -> np.ndarray: ...

    def target(self, field: str, i: int) -> np.ndarray: ...


@dataclass
class Batch(batch.Batch):
    """One micro-batch of an encoder.

    Attributes:
        tokens: ``[B, T]`` int64.
        positions: ``[B, T]`` int64, from 0 in every document; 0 for padding.
        doc_ids: ``[B, T]`` int32: 1.. documents, -1 padding.
        index: by field, ``[N]`` int64, the flat indices ``b * T + t`` that its head reads, ascending: every document's
            first token (class, multi), the first sub-word of every word that has one (token). To a "mean" head
            and a decoder's the first token only says where the document begins.
        targets: by field, ``[N]`` int64 numbers of labels, for a multi field ``[N, labels]`` int64 0 or 1; empty if the
            samples were prepared without labels.
        sample_ids: ids of the samples, row by row.
        n_real_tokens: tokens that are not padding; 0 for a dummy.
        dummy: True for a batch that only keeps this rank in step with the others; every ``N`` is 0.
        weights: by class field that has weights, ``[N]`` fp32 weights of the targets in the loss.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    doc_ids: torch.Tensor
    index: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]
    sample_ids: list[str]
    n_real_tokens: int
    dummy: bool = False
    weights: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def forward(self, model: Callable[..., Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Run the model on the batch; return ``[N, labels]`` logits and the targets by field."""
        logits = model(self.tokens, self.positions, self.doc_ids, output_index=self.index)
        return {field: (logits[field], targets) for field, targets in self.targets.items()}

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return replace(
            self,
            tokens=change(self.tokens),
            positions=change(self.positions),
            doc_ids=change(self.doc_ids),
            index={name: change(index) for name, index in self.index.items()},
            targets={name: change(numbers) for name, numbers in self.targets.items()},
            weights={name: change(weights) for name, weights in self.weights.items()},
        )


def build_batch(samples: RowSource, rows: Sequence[Sequence[int]], length: int | None = None) -> Batch:
    """Lay samples into the rows of a micro-batch, as drawn at the top of this file.

    Args:
        samples: the source of token ids, words and targets.
        rows: each row's sample indices, in order.
        length: pad rows to this many tokens; None: the longest row, rounded up as `padded_length` does.
    """
    longest = max(int(samples.lengths[list(row)].sum()) for row in rows)
    T = padded_length(longest) if length is None else length
    assert longest <= T, f"{longest} tokens do not fit a row of {T}"
    tokens = np.full((len(rows), T), samples.pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), T), dtype=np.int64)
    doc_ids = np.full((len(rows), T), PADDING_DOC, dtype=np.int32)
    index: dict[str, list[np.ndarray]] = {field: [] for field in samples.kinds}
    numbers: dict[str, list[np.ndarray]] = {field: [] for field in samples.targets}
    for b, row in enumerate(rows):
        at = 0
        for doc, i in enumerate(row, start=1):
            ids, first = samples.document(i), samples.first(i)
            span = slice(at, at + len(ids))
            tokens[b, span], positions[b, span], doc_ids[b, span] = ids, np.arange(len(ids)), doc
            for field, kind in samples.kinds.items():
                offsets = np.zeros(1, dtype=np.int64) if kind != "token" else first[first >= 0]
                index[field].append(b * T + at + offsets)
            for field in samples.targets:
                numbers[field].append(samples.target(field, i))
            at += len(ids)
    targets = {field: _joined([samples.targets[field][:0], *arrays]) for field, arrays in numbers.items()}
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        doc_ids=torch.from_numpy(doc_ids),
        index={field: _joined([NONE, *arrays]) for field, arrays in index.items()},
        targets=targets,
        sample_ids=[samples.ids[i] for row in rows for i in row],
        n_real_tokens=int((doc_ids != PADDING_DOC).sum()),
        weights={field: torch.from_numpy(of)[targets[field]] for field, of in samples.weights.items()},
    )


def dummy_batch(samples: RowSource) -> Batch:
    """The smallest batch, for a rank that has run out of rows: only padding, no targets."""
    length = padded_length(1)
    return Batch(
        tokens=torch.full((1, length), samples.pad_id),
        positions=torch.zeros((1, length), dtype=torch.int64),
        doc_ids=torch.full((1, length), PADDING_DOC, dtype=torch.int32),
        index={field: _joined([NONE]) for field in samples.kinds},
        targets={field: _joined([targets[:0]]) for field, targets in samples.targets.items()},
        sample_ids=[],
        n_real_tokens=0,
        dummy=True,
    )


def _joined(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))
