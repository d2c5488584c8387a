"""What the loader and the trainer need of samples and batches, whether a decoder's or an encoder's: two protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch

Row = list[int]  # sample indices that stand in one row


class Batch(Protocol):
    """One micro-batch, a decoder's (`data.decoder.rows`) or an encoder's (`data.encoder.rows`).

    Attributes:
        tokens, positions, doc_ids: ``[B, T]``.
        sample_ids: ids of the samples, row by row.
        n_real_tokens: tokens that are not padding; 0 for a dummy.
        dummy: work that only keeps this rank in step with the others; it carries no target.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    doc_ids: torch.Tensor
    sample_ids: list[str]
    n_real_tokens: int
    dummy: bool

    def forward(self, model: Callable[..., Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Run the batch through a model: by field, ``[N, V]`` logits and the ``[N]`` targets that they should give."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The batch on ``device``; from pinned memory the copy does not block."""
        ...

    def pin_memory(self) -> Self:
        """The batch in pinned memory."""
        ...


class Samples(Protocol):
    """What the loader needs of samples, a decoder's (`data.decoder.samples`) or an encoder's (`data.encoder.samples`).

    Attributes:
        ids: the examples' ids.
        prefix: token ids that all samples begin with, which a row may hold once.
        costs: ``[S]`` tokens that each sample takes in a row beside the prefix.
        label_lengths: ``[S]`` positions of each sample at which something is predicted.
    """

    ids: list[str]
    prefix: np.ndarray
    costs: np.ndarray
    label_lengths: np.ndarray

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[Row], share_prefix: bool, length: int) -> Batch:
        """Lay rows of samples into one micro-batch, padded to ``length`` tokens."""
        ...

    def dummy(self) -> Batch:
        """The least a forward pass takes, without anything to predict."""
        ...

    def count_targets(self, indices: Sequence[int]) -> dict[str, int]:
        """By field, positions of these samples at which something is predicted."""
        ...
