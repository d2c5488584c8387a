"""What splitting matrices over ranks costs in communication. What it computes: test_mesh_runs.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from data.errors import UserError
from model import tensor_plans
from model.encoder import ROBERTA_DEBUG
from model.llama import Llama, LlamaConfig
from train.parallel.parallelize import checkpoint_activations
from train.parallel.tensor_parallel import apply_tensor_parallel, check_divides

NET = dict(dim=16, n_layers=3, n_heads=4, n_kv_heads=4, ffn_dim=24, vocab_size=50)


class Collectives(TorchDispatchMode):
    """Counts sums and gathers over ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"all_reduce": 0, "all_gather_into_tensor": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        if func.namespace == "_c10d_functional" and name in self.counts:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Rank 0 of two, of which the other is made believe: collectives do nothing."""
    assert not dist.is_initialized(), "another test left its process group behind"
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("tensor",))
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_block_costs_two_sums_forward_and_two_backward(tied: bool, recompute: bool, mesh: DeviceMesh) -> None:
    model = Llama(LlamaConfig(**NET, tie_embeddings=tied))
    model.init_weights()
    apply_tensor_parallel(model, mesh)
    if recompute:
        for block in model.layers:
            checkpoint_activations(block, "full")
    n, vocabulary = NET["n_layers"], 0 if tied else 1  # an embedding that is the head as well is whole everywhere
    with Collectives() as forward:
        logits = model(torch.arange(8)[None])
    assert logits.shape == (1, 8, 50)
    assert forward.counts == {"all_reduce": 2 * n + vocabulary, "all_gather_into_tensor": vocabulary}
    with Collectives() as backward:
        logits.float().sum().backward()
    # q, k and v share one sum, and so do w1 and w3. Recomputing a block ends before its last one.
    assert backward.counts == {"all_reduce": 2 * n + vocabulary + n * recompute, "all_gather_into_tensor": 0}


def test_a_name_in_the_plan_that_matches_nothing_fails(mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensor_plans.LLAMA.block, "attention.wqkv", "by output")
    with pytest.raises(AttributeError, match="wqkv"):
        apply_tensor_parallel(Llama(LlamaConfig(**NET)), mesh)


def test_key_value_heads_and_hidden_units_must_divide() -> None:
    grouped = LlamaConfig(**NET | {"n_heads": 16, "n_kv_heads": 8, "ffn_dim": 12})
    check_divides(grouped, 4)
    check_divides(ROBERTA_DEBUG, 1)
    with pytest.raises(UserError, match="--tp 2: there is no plan .* 'roberta'"):
        check_divides(ROBERTA_DEBUG, 2)
    with pytest.raises(UserError, match=r"--tp 3: 8 key/value heads and 12 hidden units.* that do: 1, 2, 4\."):
        check_divides(grouped, 3)
