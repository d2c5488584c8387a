"""Our Llama against transformers' LlamaForCausalLM: every preset's real settings, scaled down, in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checkpoints_tools.registry import MODELS, get_model_spec
from data.errors import UserError
from model.llama import Llama, LlamaConfig, RopeScaling, rope_frequencies
from tests.reference import OURS_FROM_HF, ours_from, reference


def scaled_down(config: LlamaConfig) -> LlamaConfig:
    """The preset's own grouping, ratios, theta and tying, with few and narrow layers.

    Heads are 8 wide and together as wide as the model, unless they are not in the preset either.
    """
    group = config.n_heads // config.n_kv_heads
    heads = 2 * group if config.n_kv_heads > 1 else group
    kv = heads // group
    return replace(
        config,
        dim=heads * 8,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=8 if config.n_heads * config.head_dim == config.dim else config.head_dim,
        ffn_dim=heads * 20,
        vocab_size=97,
    )


@pytest.mark.parametrize(
    "name", [name for name, spec in MODELS.items() if spec.kind == "decoder" and spec.config is not None]
)
def test_logits_and_gradients_equal_transformers(name: str) -> None:
    config = scaled_down(MODELS[name].config)
    hf = reference(config)
    ours = ours_from(hf, config)
    tokens = torch.randint(0, config.vocab_size, (2, 33))

    expected = hf(tokens).logits
    logits = ours(tokens)
    assert expected.std() > 0.1  # not a model whose logits are all alike
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)

    weight = torch.randn_like(logits)
    (expected * weight).sum().backward()
    (logits * weight).sum().backward()
    theirs = {n: p.grad for n, p in hf.named_parameters()}
    mine = {n: p.grad for n, p in ours.named_parameters()}
    assert len(theirs) == len(mine)
    for their_name, gradient in theirs.items():
        name = their_name
        for old, new in OURS_FROM_HF.items():
            name = name.replace(old, new)
        scale = gradient.abs().max().item()
        torch.testing.assert_close(mine[name], gradient, atol=1e-5 * max(1.0, scale), rtol=1e-4)


def test_rope_scaling_equals_transformers() -> None:
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
    config = LlamaConfig(
        dim=64, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=100, vocab_size=97, rope_theta=500.0, rope_scaling=scaling
    )
    hf = reference(config, scaling)
    ours = ours_from(hf, config)
    tokens = torch.randint(0, config.vocab_size, (1, 200))
    torch.testing.assert_close(ours(tokens), hf(tokens).logits, atol=1e-5, rtol=1e-5)
    unscaled = rope_frequencies(replace(config, rope_scaling=None))
    ratio = rope_frequencies(config) / unscaled
    # kept, blended and divided frequencies all occur
    assert (
        (ratio == 1).any() and ((ratio < 1) & (ratio > 0.126)).any() and torch.isclose(ratio, torch.tensor(1 / 8)).any()
    )


def test_output_index_picks_the_same_logits() -> None:
    config = scaled_down(MODELS["llama3_8b"].config)
    model = ours_from(reference(config), config)
    tokens = torch.randint(0, config.vocab_size, (2, 20))
    index = torch.tensor([3, 19, 20, 39])
    torch.testing.assert_close(model(tokens, output_index=index), model(tokens).flatten(0, 1)[index])


def test_positions_far_beyond_the_trained_context_are_told_apart() -> None:
    """Rotary angles stay in fp32 however the model is cast: in bf16 neighbours at 10,000 would collapse."""
    config = scaled_down(MODELS["llama_debug"].config)
    model = ours_from(reference(config), config).to(torch.bfloat16)
    tokens = torch.randint(0, config.vocab_size, (1, 8))
    near = model(tokens).float()
    far = model(tokens, positions=torch.arange(8)[None] + 10_000).float()
    # Attention depends on differences of positions only.
    assert (near - far).abs().max() < 0.15 * near.abs().max()


def test_presets_have_the_real_checkpoints_sizes() -> None:
    """Parameter counts as published in the checkpoints' own indexes (total_size / 2 bytes)."""
    published = {
        "llama2_7b": 6_738_415_616,
        "llama2_70b": 68_976_648_192,
        "llama3_8b": 8_030_261_248,
        "llama3_70b": 70_553_706_496,
        "smollm2_135m": 134_515_008,
    }
    for name, count in published.items():
        with torch.device("meta"):
            model = Llama(MODELS[name].config)
        assert sum(p.numel() for p in model.parameters()) == count, name


def test_init_weights_fills_everything_after_to_empty() -> None:
    config = MODELS["llama_debug"].config
    with torch.device("meta"):
        model = Llama(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    model.init_weights(torch.Generator().manual_seed(1))
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown model 'llama3-70b'.*Did you mean 'llama3_70b'"):
        get_model_spec("llama3-70b")
