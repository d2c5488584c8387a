"""Packing decoder samples: the layout of a packed row, with the instruction prefix once at its start.

A sample is ``prefix + body + label``. The prefix (chat opening, instruction, label list, shots) is the same for every
sample of a run. ``body`` is the document and the end of the prompt, ``label`` is the answer and the end-of-turn token.
The label's last token is only a target, so a sample adds ``len(body) + len(label) - 1`` tokens to a row.

With ``share_prefix`` the prefix is document 0 and is in the row once; every sample's positions continue from its end.
Here the prefix is P0 P1 P2, sample 1 has body a b and label X E, sample 2 has body c and label Y Z E (E = end of turn),
and the row is padded to 12::

    index       0   1   2   3   4   5   6   7   8   9  10  11
    tokens     P0  P1  P2   a   b   X   c   Y   Z   .   .   .
    positions   0   1   2   3   4   5   3   4   5   0   0   0
    doc_ids     0   0   0   1   1   1   2   2   2  -1  -1  -1
    targets     -   -   -   -   X   E   Y   Z   E   -   -   -      (- is IGNORE, -100)

One rule defines attention: ``i attends to j  <=>  j <= i and (doc[j] == doc[i] or doc[j] == 0)``. * marks the pairs
that it allows. Every sample has exactly the context it would have alone::

            P0 P1 P2  a  b  X  c  Y  Z
        P0   *
        P1   *  *
        P2   *  *  *
        a    *  *  *  *
        b    *  *  *  *  *
        X    *  *  *  *  *  *
        c    *  *  *  .  .  .  *
        Y    *  *  *  .  .  .  *  *
        Z    *  *  *  .  .  .  *  *  *

Without sharing there is no document 0. Each sample is a document ``prefix + body + label`` with positions from 0,
and documents are numbered from 1. The same rule gives the ordinary block-diagonal causal mask. Padding is document -1,
which attends to itself so that no softmax row is empty. Nothing is masked by token id.

Which samples share a row is decided in `data.packing` and `data.loader`.
Shapes: ``B`` rows, ``T`` tokens in a row, ``N`` label tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from data import batch
from data.packing import IGNORE, PADDING_DOC, SHARED_DOC, padded_length

# The name of a decoder's only field, the answer. It is empty, unlike the names of a task's fields.
ANSWER = ""


class RowSource(Protocol):
    """Tokenized samples from which rows are built; `data.decoder.samples.SampleSet` is one."""

    prefix: np.ndarray
    ids: list[str]

    def body(self, i: int) -> np.ndarray: ...

    def label(self, i: int) -> np.ndarray: ...

    def cost(self, i: int) -> int: ...

    def weights(self, i: int) -> np.ndarray | None: ...


@dataclass
class PackedRow:
    """One row as numpy arrays, each ``[T]``, before rows are stacked into a ``Batch``.

    ``weights`` are the targets' in the loss; None: all are 1.
    """

    tokens: np.ndarray
    positions: np.ndarray
    doc_ids: np.ndarray
    targets: np.ndarray
    sample_ids: list[str]
    weights: np.ndarray | None = None

    @property
    def n_real_tokens(self) -> int:
        return int((self.doc_ids != PADDING_DOC).sum())


@dataclass
class Batch(batch.Batch):
    """One micro-batch: the input of one forward and backward pass.

    Attributes:
        tokens: ``[B, T]`` int64.
        positions: ``[B, T]`` int64, from 0 in every document; after a shared prefix, from its length.
        doc_ids: ``[B, T]`` int32: 0 shared prefix, 1.. samples, -1 padding.
        targets: ``[B, T]`` int64, already shifted, ``IGNORE`` where nothing is predicted.
        target_index: ``[N]`` int64, the flat indices ``b * T + t`` that have a target, ascending. Computed here on the
            CPU, because ``nonzero`` in the model would synchronize with the GPU. ``N`` is 0 in a dummy.
        sample_ids: ids of the samples, row by row.
        n_real_tokens: tokens that are not padding, a shared prefix counted once per row; 0 for a dummy.
        dummy: True for a batch without targets that only keeps this rank in step with the others.
        weights: ``[N]`` fp32 weights of the targets in the loss, under the only field, `ANSWER`; empty: all are 1.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    doc_ids: torch.Tensor
    targets: torch.Tensor
    target_index: torch.Tensor
    sample_ids: list[str]
    n_real_tokens: int
    dummy: bool = False
    weights: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def forward(self, model: Callable[..., Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Run the model on the batch; return ``[N, V]`` logits and ``[N]`` targets of the only field, `ANSWER`."""
        logits = model(self.tokens, self.positions, self.doc_ids, output_index=self.target_index)
        return {ANSWER: (logits, self.targets.flatten()[self.target_index])}

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return replace(
            self,
            tokens=change(self.tokens),
            positions=change(self.positions),
            doc_ids=change(self.doc_ids),
            targets=change(self.targets),
            target_index=change(self.target_index),
            weights={name: change(weights) for name, weights in self.weights.items()},
        )


def build_row(samples: RowSource, indices: Sequence[int], share_prefix: bool, length: int | None = None) -> PackedRow:
    """Lay ``samples[indices]`` end to end in one row, as drawn at the top of this file.

    Args:
        samples: the source of the token ids.
        indices: the row's samples, in order.
        share_prefix: True: the prefix once, as document 0; False: at the start of every sample.
        length: pad to this many tokens; None: no padding.
    """
    prefix = samples.prefix
    n_prefix = len(prefix)
    head = 0 if share_prefix else n_prefix  # prefix tokens in every document
    size = (n_prefix if share_prefix else 0) + sum(head + samples.cost(i) for i in indices)
    total = size if length is None else length
    assert size <= total, f"{size} tokens do not fit a row of {total}"

    tokens = np.zeros(total, dtype=np.int64)
    positions = np.zeros(total, dtype=np.int64)
    doc_ids = np.full(total, PADDING_DOC, dtype=np.int32)
    targets = np.full(total, IGNORE, dtype=np.int64)
    weights: np.ndarray | None = None
    at = 0
    if share_prefix:
        tokens[:n_prefix] = prefix
        positions[:n_prefix] = np.arange(n_prefix)
        doc_ids[:n_prefix] = SHARED_DOC
        at = n_prefix
    for doc, i in enumerate(indices, start=1):
        body, label = samples.body(i), samples.label(i)
        start = at  # the document's first index in the row
        if not share_prefix:
            tokens[at : at + n_prefix] = prefix
            at += n_prefix
        tokens[at : at + len(body)] = body
        at += len(body)
        tokens[at : at + len(label) - 1] = label[:-1]
        if len(label):
            # The last body token predicts the label's first token, and so on to the end of turn.
            targets[at - 1 : at - 1 + len(label)] = label
            if (of_label := samples.weights(i)) is not None:
                weights = np.ones(total, dtype=np.float32) if weights is None else weights
                weights[at - 1 : at - 1 + len(label)] = of_label
            at += len(label) - 1
        first = n_prefix if share_prefix else 0
        positions[start:at] = np.arange(first, first + at - start)
        doc_ids[start:at] = doc
    return PackedRow(tokens, positions, doc_ids, targets, [samples.ids[i] for i in indices], weights)


def collate(rows: Sequence[PackedRow]) -> Batch:
    """Stack rows into a micro-batch; shorter ones are padded to the longest."""
    length = max(len(row.tokens) for row in rows)

    def stack(name: str, fill: float) -> torch.Tensor:  # [B, T]
        padded = [np.pad(a, (0, length - len(a)), constant_values=fill) for a in (getattr(r, name) for r in rows)]
        return torch.from_numpy(np.stack(padded))

    targets = stack("targets", IGNORE)
    index = torch.nonzero(targets.reshape(-1) != IGNORE).reshape(-1)
    weighted = all(row.weights is not None for row in rows)
    return Batch(
        tokens=stack("tokens", 0),
        positions=stack("positions", 0),
        doc_ids=stack("doc_ids", PADDING_DOC),
        targets=targets,
        target_index=index,
        sample_ids=[i for row in rows for i in row.sample_ids],
        n_real_tokens=sum(row.n_real_tokens for row in rows),
        weights={ANSWER: stack("weights", 1).flatten()[index]} if weighted else {},
    )


def build_batch(samples: RowSource, rows: Sequence[Sequence[int]], share_prefix: bool, length: int) -> Batch:
    """The micro-batch of these rows of sample indices, each padded to ``length`` tokens."""
    return collate([build_row(samples, row, share_prefix, length) for row in rows])


def dummy_batch() -> Batch:
    """The smallest batch, for a rank that has run out of rows: one document of one token, no target."""
    length = padded_length(1)
    row = PackedRow(
        tokens=np.zeros(length, dtype=np.int64),
        positions=np.zeros(length, dtype=np.int64),
        doc_ids=np.where(np.arange(length) == 0, 1, PADDING_DOC).astype(np.int32),
        targets=np.full(length, IGNORE, dtype=np.int64),
        sample_ids=[],
    )
    return replace(collate([row]), n_real_tokens=0, dummy=True)
