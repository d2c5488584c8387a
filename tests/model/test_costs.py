"""FLOPs against PyTorch's own count, and attended pairs against the masks that attention uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from checkpoints_tools.architectures import architecture_of, costs_of
from data.loader import StepLoader
from data.packing import PADDING_DOC
from model.attention import allowed
from model.llama import Llama
from tests.encoder_samples import make_encoder_samples
from tests.train.tiny_encoder_run import BERT, LLAMA, MULTI, QUIET
from tests.train.tiny_run import TIED, TINY, make_samples


@pytest.mark.parametrize("config", [TINY, TIED])
def test_a_decoders_flops_equal_pytorchs_count(config) -> None:
    T = 24
    model = Llama(config)
    model.init_weights()
    # The counter does not know the CPU's fused attention; the plain one is two batched products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.randint(0, config.vocab_size, (1, T)))
    # Masked or not, it takes all T * T pairs. Backward is twice forward.
    costs = costs_of(config)
    assert costs.step_flops(T, costs.divide_outputs(T), T * T) == 3 * counter.get_total_flops()


OF_ENCODERS = [QUIET, *(replace(c, head="dense", heads=MULTI.heads) for c in (QUIET, BERT))]


@pytest.mark.parametrize("config", [*OF_ENCODERS, LLAMA])
def test_the_flops_of_a_model_with_heads_equal_pytorchs_count(config) -> None:
    model = architecture_of(config).build(config).eval()
    model.init_weights()
    T, index = 24, {"topic": torch.tensor([0]), "slots": torch.arange(1, 9), "marks": torch.tensor([0])}
    index = {head.name: index[head.name] for head in config.heads}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, T, dtype=torch.long), torch.arange(T)[None], torch.ones(1, T, dtype=torch.int32), index)
    expected = costs_of(config).step_flops(T, {name: len(outputs) for name, outputs in index.items()}, T * T)
    assert expected == 3 * counter.get_total_flops()


def test_heads_take_the_place_of_the_output_matrix() -> None:
    costs = costs_of(LLAMA)
    assert costs.logits_width == max(head.n_labels for head in LLAMA.heads) and costs.output_matrix == 0
    assert costs.divide_outputs(9) == {"topic": 3, "slots": 3, "marks": 3}


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_a_decoders_pairs_are_the_masks(share: bool, packing: bool, world_size: int) -> None:
    options = {"batch_size": 8, "row_length": 128, "share_prefix": share, "packing": packing}
    ranks = [
        StepLoader(make_samples(), rank=rank, world_size=world_size, **options).step(0) for rank in range(world_size)
    ]
    seen = 0
    for batch in (batch for step in ranks for batch in step.batches if not batch.dummy):
        real = batch.doc_ids != PADDING_DOC
        seen += int((allowed(batch.doc_ids) & real[:, :, None] & real[:, None, :]).sum())
    for step in ranks:  # each knows the whole step
        assert costs_of(TINY).attended_pairs(step.row_prefix, step.row_lengths) == seen > 0


def test_an_encoders_pairs_are_the_masks() -> None:
    step = StepLoader(make_encoder_samples(12), batch_size=12, row_length=128).step(0)
    seen, several = 0, False
    for batch in step.batches:
        real = batch.doc_ids != PADDING_DOC
        seen += int(((batch.doc_ids[:, :, None] == batch.doc_ids[:, None, :]) & real[:, :, None]).sum())
        several |= int(batch.doc_ids.max()) > 1
    assert several, "a row of several documents"
    assert costs_of(QUIET).attended_pairs(step.row_prefix, step.row_lengths) == seen > 0
