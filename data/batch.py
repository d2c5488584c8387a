"""Two protocols: the samples and batches of decoders and encoders, as the loader and the trainer use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch

Row = list[int]  # sample indices of one row


class Batch(Protocol):
    """One micro-batch, a decoder's (`data.decoder.rows`) or an encoder's (`data.encoder.rows`).

    Attributes:
        tokens, positions, doc_ids: ``[B, T]``.
        sample_ids: ids of the samples, row by row.
        n_real_tokens: tokens that are not padding; 0 for a dummy.
        dummy: True for a batch without targets that only keeps this rank in step with the others.
        weights: by field, ``[N]`` fp32 weights of the targets in the loss; no entry: all are 1.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    doc_ids: torch.Tensor
    sample_ids: list[str]
    n_real_tokens: int
    dummy: bool
    weights: dict[str, torch.Tensor]

    def forward(self, model: Callable[..., Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Run the model on the batch; return ``[N, V]`` logits and ``[N]`` targets by field."""
        ...

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with ``change`` applied to every tensor."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Copy the batch to ``device``; from pinned memory without blocking."""
        return self.map_tensors(lambda t: t.to(device, non_blocking=t.is_pinned()))

    def pin_memory(self) -> Self:
        """Copy the batch to pinned memory."""
        return self.map_tensors(lambda t: t.pin_memory())


class Samples(Protocol):
    """Tokenized samples, a decoder's (`data.decoder.samples`) or an encoder's (`data.encoder.samples`).

    Attributes:
        ids: the examples' ids.
        prefix: token ids at the start of all samples, which the samples of a row can share.
        costs: ``[S]`` tokens that each sample adds to a row, without the prefix.
        label_lengths: ``[S]`` number of output positions of each sample.
    """

    ids: list[str]
    prefix: np.ndarray
    costs: np.ndarray
    label_lengths: np.ndarray

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[Row], share_prefix: bool, length: int) -> Batch:
        """Build one micro-batch from rows of samples, padded to ``length`` tokens."""
        ...

    def dummy(self) -> Batch:
        """The smallest batch for a forward pass, without targets."""
        ...

    def count_targets(self, indices: Sequence[int]) -> dict[str, int]:
        """By field, the number of output positions of these samples."""
        ...

    def sum_weights(self, indices: Sequence[int]) -> dict[str, float]:
        """By field, the weights of these samples' targets in the loss, summed; without weights, their number."""
        ...
