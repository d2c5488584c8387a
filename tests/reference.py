"""transformers' Llama with random weights, and ours with the same ones: what the tests of model and decoder compare.

The two share no code and no exporter: weights are copied over by the table below.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from model.llama import Llama, LlamaConfig, RopeScaling

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
        head_dim=config.head_dim,
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
