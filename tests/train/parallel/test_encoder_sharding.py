"""An encoder under FSDP2 and activation checkpointing computes what it computes without them, dropout included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from model.encoder import ROBERTA_DEBUG, Encoder, Head
from train.parallel.parallelize import parallelize

FAMILIES = {
    "roberta": replace(ROBERTA_DEBUG, head="dense", heads=(Head("topic", "class", 7), Head("slots", "token", 5))),
}
FAMILIES["bert"] = replace(FAMILIES["roberta"], family="bert", position_offset=0, n_token_types=2, norm_eps=1e-12)
DOC_IDS = torch.tensor([[1] * 6 + [2] * 20 + [-1] * 6, [1] * 16 + [2] * 16], dtype=torch.int32)
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ([6, 20, 6], [16, 16])])
INDEX = {"topic": torch.tensor([0, 6, 32, 48]), "slots": torch.tensor([1, 3, 8, 50])}


def step(net: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Logits and gradients of one training pass, always with the same dropout."""
    tokens = torch.randint(2, 301, DOC_IDS.shape, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    logits = net(tokens, POSITIONS, DOC_IDS, INDEX)
    sum(x.float().square().sum() for x in logits.values()).backward()
    grads = {n: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for n, p in net.named_parameters()}
    return {name: x.detach() for name, x in logits.items()}, grads


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parallelized_equals_plain(family: str, mode: str, world) -> None:
    config = FAMILIES[family]
    plain = Encoder(config)
    plain.init_weights(torch.Generator().manual_seed(0))
    expected, expected_grads = step(plain.train())
    net = parallelize(
        lambda: Encoder(config), world.mesh, world.device, precision="fp32", activation_checkpointing=mode, seed=0
    )
    logits, grads = step(net)
    assert logits.keys() == expected.keys() and grads.keys() == expected_grads.keys()
    for name, x in logits.items():
        assert torch.equal(x, expected[name]), name
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, expected_grads[name], atol=1e-6, rtol=1e-5, msg=name)
    quiet, _ = step(plain.eval())
    assert not torch.allclose(quiet["topic"], expected["topic"], atol=1e-3), "the case is about dropout"


def test_bf16_is_near_fp32(world) -> None:
    config = replace(FAMILIES["roberta"], dropout=0.0, attention_dropout=0.0)
    results = [
        step(parallelize(lambda: Encoder(config), world.mesh, world.device, precision=precision))
        for precision in ("fp32", "bf16")
    ]
    (full, full_grads), (half, half_grads) = results
    for field in full:
        assert half[field].dtype == torch.bfloat16
        torch.testing.assert_close(half[field].float(), full[field], atol=0.02, rtol=0.05)
    for name, gradient in full_grads.items():
        assert half_grads[name].dtype == torch.float32
        scale = full_grads[name].norm() + 1e-3
        assert (half_grads[name] - gradient).norm() < 0.1 * scale, name
