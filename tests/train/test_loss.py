"""The loss against PyTorch's own, and its independence of how label positions are spread over passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from train.loss import label_loss


def test_equals_the_mean_of_torch() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 50), torch.randint(0, 50, (7,))
    torch.testing.assert_close(label_loss(logits, targets, 7), F.cross_entropy(logits, targets))


def test_unequal_passes_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 50, requires_grad=True), torch.randint(0, 50, (9,))
    F.cross_entropy(logits, targets).backward()
    want, logits.grad = logits.grad, None
    parts = [label_loss(logits[a:b], targets[a:b], 9) for a, b in ((0, 1), (1, 1), (1, 9))]
    sum(parts).backward()
    torch.testing.assert_close(logits.grad, want)
    mean_of_means = (F.cross_entropy(logits[:1], targets[:1]) + F.cross_entropy(logits[1:], targets[1:])) / 2
    assert abs(mean_of_means - sum(parts)) > 1e-3, "the case would not tell a mean of means apart"


def test_targets_of_0_and_1_are_decided_each_by_itself() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 5, requires_grad=True), torch.randint(0, 2, (7, 5))
    loss = F.binary_cross_entropy_with_logits(logits, targets.float()) * 5  # torch's is the mean of the labels too
    loss.backward()
    want, logits.grad = logits.grad, None
    parts = [label_loss(logits[a:b], targets[a:b], 7) for a, b in ((0, 2), (2, 2), (2, 7))]
    sum(parts).backward()
    torch.testing.assert_close(logits.grad, want)
    torch.testing.assert_close(sum(parts), loss)


def test_softmax_is_taken_in_fp32() -> None:
    logits = torch.tensor([[20.0, 0.0, 0.125]], dtype=torch.bfloat16)
    want = F.cross_entropy(logits.double(), torch.tensor([1]))
    torch.testing.assert_close(label_loss(logits, torch.tensor([1]), 1).double(), want, rtol=1e-6, atol=0)


def test_weights_are_those_of_torch_however_passes_are_cut() -> None:
    torch.manual_seed(0)
    logits, targets, by_label = torch.randn(9, 5, requires_grad=True), torch.randint(0, 5, (9,)), torch.rand(5)
    F.cross_entropy(logits, targets, weight=by_label).backward()
    want, logits.grad = logits.grad, None
    weights = by_label[targets]
    total = float(weights.sum())
    parts = [label_loss(logits[a:b], targets[a:b], total, weights[a:b]) for a, b in ((0, 1), (1, 1), (1, 9))]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), F.cross_entropy(logits, targets, weight=by_label))
    torch.testing.assert_close(logits.grad, want)


def test_without_weights_nothing_is_rounded_otherwise() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 50), torch.randint(0, 50, (7,))
    assert label_loss(logits, targets, 7) == F.cross_entropy(logits, targets, reduction="sum") / 7
