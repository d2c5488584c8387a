"""Fit a model's new heads before training, on the model as it is: ``--fit_heads``.

A new head is random, and so are the first gradients that it sends into the model. With few examples they spoil what
the model knows before the head has learned anything. A head that already separates the labels sends small ones
(Kumar et al., 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").

What a linear head reads is computed once, without dropout. The head is then the logistic regression on it, by
scikit-learn. Training goes on from there with everything. A decoder's states have a few directions that are much longer
than the others and say little of the text, so that its inputs are brought to mean 0 and deviation 1 first.

A decoder also knows what the labels' names mean: its own logit of a name, after a frame that asks for the topic, says
more than chance about the label. A small part of it is added to the fitted logits. It decides where few texts do not.

Shapes: N targets of a field, E width of what a head reads, V labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from checkpoints_tools.architectures import architecture_of, config_of
from checkpoints_tools.load import clean_name, fill
from checkpoints_tools.slices import local_slice
from data.encoder.samples import SampleSet
from data.packing import pack, padded_length
from data.progress import track
from model.llama_heads import HeadedConfig
from train.errors import NotFinite
from train.parallel.parallelize import reshard

log = logging.getLogger(__name__)

TARGETS = 10_000  # of a field, of examples drawn by seed: with more, fitting takes long and changes little
# scikit-learn's C, for inputs of length 1: an encoder's, and a decoder's, which are standardized (docs/few_labels.md).
PENALTY = 3.0
PENALTY_STANDARDIZED = 7.0
NAMES = 0.1  # share of the labels' names in a decoder's logits (docs/few_labels.md)
CONSTANT = 1e-5  # a deviation below this share of the values is rounding in fp32; a real model's are above 0.01
RARE = 5.0  # how much less likely than any other label one without examples is, as a difference of logits


def fittable(model: nn.Module, fresh: Container[str]) -> tuple[list[str], list[str]]:
    """The fields with a new head, by the parameters ``fresh``: those that one regression fits, and the others."""
    names = {clean_name(name) for name, _ in model.named_parameters()}
    fits: list[str] = []
    others: list[str] = []  # a new dense layer comes before their last one
    for head in cast(HeadedConfig, config_of(model)).heads:
        if f"heads.{head.key}.out.weight" in fresh:
            is_deep = f"heads.{head.key}.dense.weight" in names or (head.of_documents and "pooler.weight" in fresh)
            (others if is_deep else fits).append(head.name)
    return fits, others


@torch.no_grad()
def fit_heads(
    model: nn.Module,
    fields: Container[str],
    samples: object,
    row_length: int,
    seed: int,
    names: Mapping[str, Tensor] | None = None,
) -> None:
    """Fit the heads of these fields on the training samples. All ranks call this, and each reads all the samples.

    Args:
        model: one with heads, sharded or not, with pretrained weights.
        fields: some of the first of `fittable`.
        samples: those of a model with heads, with their weights in the loss, if they have any.
        row_length: tokens of a row that is computed at once.
        names: by field of a decoder, rows of its output matrix for the labels
            (`checkpoints_tools.output_rows.rows_of_labels`).

    Raises:
        NotFinite: what the model gives for the samples is NaN or infinite.
    """
    assert isinstance(samples, SampleSet), "the options are refused for models without heads"
    order = np.random.default_rng(seed).permutation(len(samples))
    heads = {head.name: head.key for head in cast(HeadedConfig, config_of(model)).heads if head.name in fields}
    needed = {name: _count_needed(samples.n_outputs(name)[order]) for name in heads}
    for n in sorted(set(needed.values())):
        keys = {name: key for name, key in heads.items() if needed[name] == n}
        inputs, targets = _inputs(model, keys, samples, order[:n], row_length)
        for name, key in keys.items():
            if not np.isfinite(inputs[name]).all():
                raise NotFinite(
                    f"--fit_heads: the values computed for {name} are NaN or infinite, though all weights "
                    "are finite. Try --precision fp32; if that does not help, the checkpoint is damaged."
                )
            rows = (names or {}).get(name)
            _fit_head(model, key, inputs[name], targets[name], samples.weights.get(name), rows)
        log.info("heads fitted before the first step, on %s of %s examples: %s", f"{n:,}", f"{len(order):,}",
                 ", ".join(keys))  # fmt: skip


def _count_needed(outputs: np.ndarray) -> int:
    """How many of the samples, in their order, have `TARGETS` targets; ``outputs``: [S] targets of each."""
    return min(len(outputs), int(np.searchsorted(outputs.cumsum(), TARGETS)) + 1)


def _fit_head(
    model: nn.Module,
    key: str,
    inputs: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
    names: Tensor | None,
) -> None:
    """Fit one head on rank 0 and give it to all ranks."""
    if not len(targets):  # a token field of texts without words
        return
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    weight, bias = (parameters[f"heads.{key}.out.{part}"] for part in ("weight", "bias"))
    fitted = [torch.zeros(p.shape) for p in (weight, bias)]
    if dist.get_rank() == 0:
        is_decoder = architecture_of(config_of(model)).is_decoder_with_heads
        fitted = list(fit(inputs, targets, weight.shape[0], weights, standardize=is_decoder))
        if names is not None:
            fitted = [own + more for own, more in zip(fitted, toward_names(inputs, targets, names), strict=True)]
    for parameter, values in zip((weight, bias), fitted, strict=True):
        values = values.to(parameter.device)
        dist.broadcast(values, 0)
        local, where = local_slice(parameter)
        fill(local, values, where)


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
    inputs: np.ndarray,
    targets: np.ndarray,
    n_labels: int,
    label_weights: np.ndarray | None = None,
    *,
    standardize: bool = False,
) -> tuple[Tensor, Tensor]:
    """The logistic regression of targets on inputs, as weight [V, E] and bias [V] of a linear layer.

    A softmax over the labels, for a multi field a sigmoid for each. A label that no target has gets no weight, and a
    bias below all others.

    Args:
        inputs: [N, E].
        targets: [N] numbers of labels; for a multi field [N, V] 0 or 1.
        label_weights: [V], how much each label's targets count.
        standardize: bring each dimension to mean 0 and deviation 1 over the targets, for the regression.
    """
    mean, deviation = np.zeros(inputs.shape[1]), np.ones(inputs.shape[1])
    if standardize:
        mean, deviation = inputs.mean(0), inputs.std(0)
        # What differs by rounding alone is no difference, and is left out.
        size = np.abs(mean) + np.sqrt(np.mean(inputs**2))
        deviation = np.where(deviation > CONSTANT * size, deviation, np.inf)
        inputs = (inputs - mean) / deviation
    scale = float(np.linalg.norm(inputs, axis=1).mean()) or 1.0  # so that the penalty means the same for any model
    inputs = inputs / scale
    weight, bias = np.zeros((n_labels, inputs.shape[1])), np.zeros(n_labels)
    penalty = PENALTY_STANDARDIZED if standardize else PENALTY
    if targets.ndim == 2:
        for label, column in enumerate(targets.T):
            if column.min() == column.max():
                bias[label] = RARE if column[0] else -RARE
            else:
                rows, intercepts = _regression(inputs, column, penalty)
                weight[label], bias[label] = rows[1] - rows[0], intercepts[1] - intercepts[0]
    else:
        seen = np.unique(targets)
        weight[seen], bias[seen] = _regression(inputs, targets, penalty, label_weights)
        bias[np.setdiff1d(np.arange(n_labels), seen)] = bias[seen].min() - RARE
    weight /= scale * deviation
    return torch.from_numpy(weight).float(), torch.from_numpy(bias - weight @ mean).float()


def toward_names(inputs: np.ndarray, targets: np.ndarray, names: Tensor) -> tuple[Tensor, Tensor]:
    """What the labels' names add to a head: weight [V, W] and bias [V].

    The model's own logit of a name is the product of the document's last state and the name's row of the output matrix.
    Each label's logits are brought to mean 0 and deviation 1 over the targets, since some names are likely after any
    text. One regression of all labels on them tells how much they say: nothing if the names are mere codes. The share
    `NAMES` of its logits is added.

    Args:
        inputs: [N, W] what the head reads; the last E are the last state.
        targets: as `fit`'s.
        names: [V, E].
    """
    n_labels, width = names.shape
    logits = torch.from_numpy(inputs[:, -width:]) @ names.T  # [N, V]
    mean, deviation = logits.mean(0), logits.std(0, correction=0)
    scale = torch.where(deviation > CONSTANT * logits.abs().max(), 1 / deviation, 0.0)
    is_label = targets if targets.ndim == 2 else np.eye(n_labels, dtype=np.int64)[targets]
    rows, _ = _regression(((logits - mean) * scale).numpy().reshape(-1, 1), is_label.reshape(-1), PENALTY)
    scale *= NAMES * max(0.0, float(rows[-1, 0] - rows[0, 0]))
    weight = torch.zeros(n_labels, inputs.shape[1])
    weight[:, -width:] = scale[:, None] * names
    return weight, -scale * mean


def _regression(
    inputs: np.ndarray, targets: np.ndarray, penalty: float, label_weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [K, E] and intercepts [K] of the K labels that are among the targets, in the order of their numbers."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    if targets.min() == targets.max():
        return np.zeros((1, inputs.shape[1])), np.zeros(1)
    counts = None if label_weights is None else label_weights[targets]
    found = LogisticRegression(C=penalty, max_iter=1000).fit(inputs, targets, sample_weight=counts)
    if len(found.coef_) > 1:
        return found.coef_, found.intercept_
    halves = np.array([[-0.5], [0.5]])  # of two labels it gives the second's logit minus the first's
    return halves * found.coef_, halves[:, 0] * found.intercept_
