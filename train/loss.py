"""The training loss: summed cross-entropy at label positions, divided by the number of these positions in the step.

A mean of means would weigh a row with few label tokens as much as one with many. So every pass on every rank sums over
its own label positions and divides by the same global count. The losses and gradients of all passes add up to those of
the step, for any packing, number of ranks and number of accumulation passes. A decoder's answer is one field. An
encoder's fields have a head, a count and a loss each, and the losses are added with equal weights (the paper's §5.4).

In a multi field each label of a document is decided by itself. Its loss at a document's position is the binary
cross-entropy summed over the labels: like that of a class field, the negative logarithm of the answer's probability.

Shapes: N label positions of a pass, V vocabulary, or labels of an encoder's field.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Batch


def label_loss(logits: Tensor, targets: Tensor, n_label_tokens: int) -> Tensor:
    """Cross-entropy in fp32, summed over these label positions and divided by the step's count.

    Args:
        logits: [N, V], in any dtype; N may be 0.
        targets: [N] token ids; for a multi field [N, V] 0 or 1.
        n_label_tokens: label positions of the step, over all ranks and passes.

    Returns:
        A scalar; summed over all ranks and passes it is the mean over the step's label positions.
    """
    if targets.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum") / n_label_tokens
    return F.cross_entropy(logits.float(), targets, reduction="sum") / n_label_tokens


def field_losses(model: nn.Module, batch: Batch, n_label_tokens: dict[str, int]) -> Tensor:
    """Run one packed batch through the model and return its part of the step's loss, field by field.

    A dummy batch runs forward and backward like any other, because all ranks must take part in the collectives. It has
    no targets and contributes exactly zero.

    Args:
        n_label_tokens: the step's count by field.

    Returns:
        [fields], in the order of ``n_label_tokens``; a decoder's answer is its one field. Their sum is the training
        loss.
    """
    outputs = batch.forward(model)
    assert outputs.keys() == n_label_tokens.keys(), (outputs.keys(), n_label_tokens.keys())
    # If no utterance of a step has a word, a token field has no label positions: its loss is 0 / 1.
    return torch.stack([label_loss(*outputs[name], max(n, 1)) for name, n in n_label_tokens.items()])


def batch_loss(model: nn.Module, batch: Batch, n_label_tokens: dict[str, int]) -> Tensor:
    """The sum of `field_losses`, a scalar."""
    return field_losses(model, batch, n_label_tokens).sum()
