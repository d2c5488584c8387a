"""Fit an encoder's new heads before training, on the encoder as it is: ``--fit_heads``.

A new head is random, and so are the first gradients that it sends into the encoder. With few examples they spoil what
the encoder knows before the head has learned anything. A head that already separates the labels sends small ones
(Kumar et al., 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").

What a linear head reads is computed once, without dropout. The head is then the logistic regression on it, by
scikit-learn. Training goes on from there with everything.

Shapes: N targets of a field, E model width, V labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from checkpoints_tools.load import clean_name, fill
from checkpoints_tools.registry import config_of
from checkpoints_tools.slices import local_slice
from data.encoder.samples import SampleSet
from data.packing import pack, padded_length
from data.progress import track
from model.encoder import EncoderConfig
from train.parallel.parallelize import reshard

log = logging.getLogger(__name__)

TARGETS = 10_000  # at most, of examples drawn by seed: with more, fitting takes long and changes little
PENALTY = 10.0  # scikit-learn's C, for inputs of length 1; that of eval.baselines
RARE = 5.0  # how much less likely than any other label one without examples is, as a difference of logits


def fittable(model: nn.Module, fresh: Container[str]) -> list[str]:
    """The fields whose head is new, among the parameters ``fresh``, and one linear layer on pretrained weights."""
    names = {clean_name(name) for name, _ in model.named_parameters()}
    return [
        head.name
        for head in cast(EncoderConfig, config_of(model)).heads
        if f"heads.{head.key}.out.weight" in fresh
        and f"heads.{head.key}.dense.weight" not in names
        and not (head.of_documents and "pooler.weight" in fresh)
    ]


@torch.no_grad()
def fit_heads(model: nn.Module, fresh: Container[str], samples: object, row_length: int, seed: int) -> None:
    """Fit an encoder's new heads on the training samples. All ranks call this, and each reads all the samples.

    Args:
        model: `model.encoder.Encoder`, sharded or not, with pretrained weights.
        fresh: the names of the parameters that are new.
        samples: the encoder's samples, with their weights in the loss, if they have any.
        row_length: tokens of a row that is computed at once.
    """
    assert isinstance(samples, SampleSet), "only encoders have heads, and the options are refused for others"
    fields = fittable(model, fresh)
    if not fields:
        log.info("note: --fit_heads fits a new head of one linear layer; the model has none.")
        return
    order = np.random.default_rng(seed).permutation(len(samples))
    chosen = order[: max(1, int((samples.label_lengths[order].cumsum() <= TARGETS).sum()))]
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    keys = {head.name: head.key for head in cast(EncoderConfig, config_of(model)).heads if head.name in fields}
    inputs, targets = _inputs(model, keys, samples, chosen, row_length)
    for name, key in keys.items():
        if not len(targets[name]):  # a token field of texts without words
            continue
        n_labels = parameters[f"heads.{key}.out.weight"].shape[0]
        fitted = fit(inputs[name], targets[name], n_labels, samples.weights.get(name))
        for part, values in zip(("weight", "bias"), fitted, strict=True):
            parameter = parameters[f"heads.{key}.out.{part}"]
            values = values.to(parameter.device)
            dist.broadcast(values, 0)  # all ranks have fitted the same numbers, but perhaps on processors of two kinds
            local, where = local_slice(parameter)
            fill(local, values, where)
    log.info("heads fitted before the first step, on %s examples: %s", f"{len(chosen):,}", ", ".join(keys))


def _inputs(
    model: nn.Module, keys: Mapping[str, str], samples: SampleSet, chosen: np.ndarray, row_length: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By field, what its head reads of the chosen samples, [N, E] fp32, and the targets, [N] or [N, V]."""
    heads = cast(nn.ModuleDict, model.heads)
    device = next(model.parameters()).device
    read: dict[str, list[Tensor]] = {name: [] for name in keys}
    targets: dict[str, list[Tensor]] = {name: [] for name in keys}

    def keeping(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, args: read[name].append(args[0].float().cpu())

    hooks = [heads[key].register_forward_pre_hook(keeping(name)) for name, key in keys.items()]
    was_training = model.training
    model.eval()
    try:
        for row in track(pack(samples.lengths[chosen], row_length), "reading for the heads"):
            batch = samples.batch([chosen[row].tolist()], False, padded_length(int(samples.lengths[chosen[row]].sum())))
            for name in keys:
                targets[name].append(batch.targets[name])
            batch.to(device).forward(model)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    reshard(model)
    joined = [{name: torch.cat(parts).numpy() for name, parts in found.items()} for found in (read, targets)]
    return joined[0], joined[1]


def fit(
    inputs: np.ndarray, targets: np.ndarray, n_labels: int, label_weights: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """The logistic regression of targets on inputs, as weight [V, E] and bias [V] of a linear layer.

    A softmax over the labels, for a multi field a sigmoid for each. A label that no target has gets no weight, and a
    bias below all others.

    Args:
        inputs: [N, E].
        targets: [N] numbers of labels; for a multi field [N, V] 0 or 1.
        label_weights: [V], how much each label's targets count.
    """
    scale = float(np.linalg.norm(inputs, axis=1).mean())  # so that the penalty means the same for any encoder
    weight, bias = np.zeros((n_labels, inputs.shape[1])), np.zeros(n_labels)
    if targets.ndim == 2:
        for label, column in enumerate(targets.T):
            if column.min() == column.max():
                bias[label] = RARE if column[0] else -RARE
            else:
                rows, intercepts = _regression(inputs / scale, column)
                weight[label], bias[label] = rows[1] - rows[0], intercepts[1] - intercepts[0]
    else:
        seen = np.unique(targets)
        weight[seen], bias[seen] = _regression(inputs / scale, targets, label_weights)
        bias[np.setdiff1d(np.arange(n_labels), seen)] = bias[seen].min() - RARE
    return torch.from_numpy(weight / scale).float(), torch.from_numpy(bias).float()


def _regression(
    inputs: np.ndarray, targets: np.ndarray, label_weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [K, E] and intercepts [K] of the K labels that are among the targets, in the order of their numbers."""
    if targets.min() == targets.max():
        return np.zeros((1, inputs.shape[1])), np.zeros(1)
    counts = None if label_weights is None else label_weights[targets]
    found = LogisticRegression(C=PENALTY, max_iter=1000).fit(inputs, targets, sample_weight=counts)
    if len(found.coef_) > 1:
        return found.coef_, found.intercept_
    halves = np.array([[-0.5], [0.5]])  # of two labels it gives the second's logit minus the first's
    return halves * found.coef_, halves[:, 0] * found.intercept_
