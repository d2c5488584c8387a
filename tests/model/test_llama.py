"""Our Llama against transformers' LlamaForCausalLM: every preset's real settings, scaled down, in fp32.

The two share no code and no exporter: the reference's random weights are copied over by the table below.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from data.errors import UserError
from model import MODELS, get_model_spec
from model.llama import Llama, LlamaConfig, RopeScaling, rope_frequencies

OURS_FROM_HF = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "ffn.w1",
    "mlp.up_proj": "ffn.w3",
    "mlp.down_proj": "ffn.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "embed",
    "model.norm": "norm",
    "model.layers": "layers",
    "lm_head": "head",
}


def scaled_down(config: LlamaConfig) -> LlamaConfig:
    """The preset's own grouping, ratios, theta and tying, with few and narrow layers."""
    group = config.n_heads // config.n_kv_heads
    heads = 2 * group if config.n_kv_heads > 1 else group
    kv = heads // group
    return replace(
        config,
        dim=heads * 8,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=kv,
        ffn_dim=heads * 20,
        vocab_size=97,
    )


def reference(config: LlamaConfig, scaling: RopeScaling | None = None) -> LlamaForCausalLM:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    torch.manual_seed(0)
    hf = HfConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        head_dim=config.head_width,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(hf).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from init: norms that matter, attention that is not uniform
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ours_from(hf: LlamaForCausalLM, config: LlamaConfig) -> Llama:
    state = {}
    for name, tensor in hf.state_dict().items():
        for theirs, mine in OURS_FROM_HF.items():
            name = name.replace(theirs, mine)
        state[name] = tensor.clone()
    if config.tie_embeddings:
        state.pop("head.weight", None)
    model = Llama(config)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.config is not None])
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
