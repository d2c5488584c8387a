"""What the names of labels are to a decoder: rows of its output matrix, read from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_tools.folder import open_hf
from data.encoder.read_twice import TwiceTokenizer


def rows_of_labels(folder: Path, tokenizer: TwiceTokenizer, labels: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """By field, for each label the mean of its tokens' rows of the output matrix, [V, E] fp32.

    Only these rows are read. Empty for a folder without that matrix: an export of a model with heads, unless its
    embedding is the output matrix too.

    Args:
        labels: by field, the V labels.

    Raises:
        UserError: see `open_hf`.
    """
    source = open_hf(folder)
    tied = ("embed.weight",) if source.config.tie_embeddings else ()
    matrix = next((name for name in ("head.weight", *tied) if name in source.tensors), None)
    if matrix is None:
        return {}
    stored = source.read(matrix)
    ids = {label: tokenizer.encode(label) for own in labels.values() for label in own}
    rows = {i: stored[i : i + 1].float() for i in sorted(set().union(*ids.values()))}  # [1, E] each
    means = {label: torch.cat([rows[i] for i in own]).mean(0) for label, own in ids.items()}
    return {field: torch.stack([means[label] for label in own]) for field, own in labels.items()}
