"""One training step of the whole llama3_70b as rank 0 of 8: all shapes and collectives, no memory and no peers."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory_trace import fake_model, fake_ranks
from checkpoints_tools.registry import MODELS
from data.decoder.rows import ANSWER, PackedRow, collate
from model.attention import build_mask
from train.loss import batch_loss
from train.optim.optimizer import build_optimizer, clip_gradients
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import PRECISIONS


class Collectives(TorchDispatchMode):
    """Counts collectives by name, and the elements that each kind moves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(t is DTensor for t in types):
            return NotImplemented  # counted once it has come down to local tensors
        name = func._schema.name.removeprefix("c10d::").removeprefix("_c10d_functional::")
        if "gather" in name or "reduce" in name:
            if "c10d" in func._schema.name:
                tensor = next(a for a in args if isinstance(a, torch.Tensor))
                self.calls[name] += 1
                self.elements[name] += tensor.numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_a_step_of_llama3_70b_on_eight_ranks():
    spec, T, N = MODELS["llama3_70b"], 1024, 40
    config, ranks = spec.config, 8
    targets = np.full(T, -100, dtype=np.int64)
    targets[::25][:N] = 7
    n_targets = int((targets >= 0).sum())
    documents = (np.arange(T) // 256).astype(np.int32)  # a prefix and three samples
    row = PackedRow(np.full(T, 5), np.arange(T) % 256, documents, targets, ["a", "b", "c"])
    batch = collate([row])
    mask = build_mask(batch.doc_ids)  # real: it is cut by what it holds
    mode, mesh = FakeTensorMode(allow_non_fake_inputs=True), MeshShape(shard=ranks)
    with fake_ranks(ranks), mock.patch("model.llama.build_mask", lambda doc_ids: mask):
        model = fake_model(config, mesh, mode, PRECISIONS["bf16"], "full")
        before = {name: p.shape for name, p in model.named_parameters()}
        with mode:
            optimizer = build_optimizer(model, lr=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
            with Collectives() as seen:
                loss = batch_loss(model, batch, {ANSWER: n_targets})
                loss.backward()
            norm = clip_gradients(model, 0.0)  # measured; to scale, it would have to know its value
            optimizer.step()
            states = optimizer.state[model.head.weight]
            exp_avg = states["exp_avg"]
            # Every parameter is a shard of an eighth, with a gradient and states of the same shape.
            for name, parameter in model.named_parameters():
                assert parameter.shape == before[name] and parameter.grad.shape == before[name], name
                assert parameter.to_local().numel() * ranks == parameter.numel(), name
                assert parameter.grad.to_local().shape == parameter.to_local().shape, name
    assert loss.shape == () and norm.shape == ()
    assert exp_avg.to_local().shape == (config.vocab_size // ranks, config.dim)
    # Each of 80 blocks is gathered for its forward and again for its backward pass, embedding and head once for both;
    # and every group's gradients are reduced once.
    gathers, scatters = _only(seen.calls, "gather"), _only(seen.calls, "reduce_scatter")
    assert gathers == 2 * 80 + 1 and scatters == 80 + 1, seen.calls
    E, F, V, A, KV = 8192, 28_672, 128_256, 8192, 1024
    block, root = 2 * E * (A + KV) + 3 * E * F + 2 * E, 2 * V * E + E
    assert _only(seen.elements, "gather") == 2 * 80 * block + root
    assert _only(seen.elements, "reduce_scatter") == (80 * block + root) // ranks  # what each rank receives


def _only(counts: Counter[str], part: str) -> int:
    return sum(n for name, n in counts.items() if part in name)
