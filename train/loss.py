"""The training loss: summed cross-entropy at label positions, divided by the sum of their weights in the step.

A position weighs 1, or what ``--class_weights`` gives its label. A mean of means would weigh a row with few label
tokens as much as one with many. So every pass on every rank sums over its own label positions and divides by the same
global sum of weights. The losses and gradients of all passes add up to those of the step, for any packing, number of
ranks and number of accumulation passes, up to the rounding of the sum (bf16 weights: docs/optimizers.md). A decoder's
answer is one field. An encoder's fields have a head, a sum and a loss each, and the losses are added with equal weights
(the paper's §5.4).

In a multi field each label of a document is decided by itself. Its loss at a document's position is the binary
cross-entropy summed over the labels: like that of a class field, the negative logarithm of the answer's probability.

Shapes: N label positions of a pass, V vocabulary, or labels of an encoder's field.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Batch


def label_loss(logits: Tensor, targets: Tensor, total: float, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy in fp32, summed over these label positions and divided by the step's total.

    Args:
        logits: [N, V], in any dtype; N may be 0.
        targets: [N] token ids; for a multi field [N, V] 0 or 1, without weights.
        total: the weights of the step's label positions, summed over all ranks and passes; without weights, their
            number.
        weights: [N] of these positions; None: all are 1.

    Returns:
        A scalar; summed over all ranks and passes it is the weighted mean over the step's label positions.
    """
    if targets.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum") / total
    if weights is None:
        return F.cross_entropy(logits.float(), targets, reduction="sum") / total
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum() / total


def field_losses(model: nn.Module, batch: Batch, totals: Mapping[str, float]) -> Tensor:
    """Run one packed batch through the model and return its part of the step's loss, field by field.

    A dummy batch runs forward and backward like any other, because all ranks must take part in the collectives. It has
    no targets and contributes exactly zero.

    Args:
        totals: by field, the step's label positions, each by its weight (`data.loader.StepBatch.total_weights`).

    Returns:
        [fields], in the order of ``totals``; a decoder's answer is its one field. Their sum is the training loss.
    """
    outputs = batch.forward(model)
    assert outputs.keys() == totals.keys(), (outputs.keys(), totals.keys())
    # A step may have no word for a token field, or weigh all its labels 0. The sum is 0 then, and so is the loss.
    parts = [label_loss(*outputs[name], total or 1, batch.weights.get(name)) for name, total in totals.items()]
    return torch.stack(parts)


def batch_loss(model: nn.Module, batch: Batch, totals: Mapping[str, float]) -> Tensor:
    """The sum of `field_losses`, a scalar."""
    return field_losses(model, batch, totals).sum()
