"""config.json: both generations of transformers are read, ours is read by transformers, contradictions are listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from checkpoints_tools.hf_config import differences, read_config, read_dtype, read_token_ids
from checkpoints_tools.llama_config import parse_llama_config, write_llama_config
from checkpoints_tools.registry import MODELS
from data.errors import UserError
from model.llama import LlamaConfig, RopeScaling

SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)

# As published with Llama 3.1 8B (transformers 4), abridged.
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**LLAMA31, **changes}


def test_reads_what_transformers_4_and_5_write():
    old = parse_llama_config(LLAMA31)
    assert old == LlamaConfig(
        4096, 32, 32, 8, 14336, 128256, 128, 1e-5, 500_000.0, SCALING, max_position=131072, tie_embeddings=False
    )
    new = changed(rope_parameters={**LLAMA31["rope_scaling"], "rope_theta": 500000.0})
    del new["rope_scaling"], new["rope_theta"]
    assert parse_llama_config(new) == old
    assert parse_llama_config(changed(rope_parameters=new["rope_parameters"])) == old, "both, and the same"
    numbers = {
        key: value for key, value in LLAMA31["rope_scaling"].items() if key != "original_max_position_embeddings"
    }
    assert parse_llama_config(changed(rope_scaling=numbers, original_max_position_embeddings=8192)) == old


def test_scaling_is_off_unless_asked_for():
    assert parse_llama_config(changed(rope_scaling=None)).rope_scaling is None
    plain = changed(rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert parse_llama_config(plain).rope_scaling is None
    llama2 = changed(rope_scaling=None)
    del llama2["rope_theta"]  # Llama 2's first config.json did not have it
    assert parse_llama_config(llama2).rope_theta == 10_000.0


@pytest.mark.parametrize("scaling", [None, SCALING])
@pytest.mark.parametrize(
    "name", [name for name, spec in MODELS.items() if spec.kind == "decoder" and spec.config is not None]
)
def test_transformers_reads_what_we_write(tmp_path, name, scaling):
    config = LlamaConfig(**{**vars(MODELS[name].config), "rope_scaling": scaling})
    write_llama_config(tmp_path, config, torch.bfloat16, {"bos_token_id": 1, "eos_token_id": [2, 3]})
    assert differences(read_config(tmp_path), config) == []
    assert read_dtype(tmp_path) == torch.bfloat16
    assert read_token_ids(tmp_path) == {"bos_token_id": 1, "eos_token_id": [2, 3]}
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.rope_parameters["rope_type"] == ("llama3" if scaling else "default")
    if scaling:
        assert theirs.rope_parameters["factor"] == 8.0
        assert theirs.rope_parameters["original_max_position_embeddings"] == 8192
    assert (theirs.hidden_size, theirs.head_dim) == (config.dim, config.head_dim)
    assert theirs.tie_word_embeddings == config.tie_embeddings
    assert theirs.dtype == torch.bfloat16
    # and what transformers 5 makes of it, when it saves it again, is the same to us
    theirs.save_pretrained(tmp_path / "again")
    assert "rope_parameters" in json.loads((tmp_path / "again" / "config.json").read_text())
    assert differences(read_config(tmp_path / "again"), config) == []


def test_all_contradictions_are_reported_together():
    bad = changed(
        hidden_size=4097,
        num_key_value_heads=5,
        vocab_size="many",
        num_hidden_layers=0,
        rms_norm_eps=2,
        rope_scaling={"rope_type": "yarn", "factor": 4.0},
        rope_parameters={"rope_theta": 10000.0},
    )
    with pytest.raises(UserError) as error:
        parse_llama_config(bad, "there/config.json")
    message = str(error.value)
    for part in [
        "there/config.json",
        "hidden_size 4097 is not a multiple of num_attention_heads 32",
        "num_attention_heads 32 is not a multiple of num_key_value_heads 5",
        "vocab_size must be a whole number; it is 'many'",
        "num_hidden_layers must be a whole number, at least 1; it is 0",
        "rms_norm_eps must be a number, below 1; it is 2",
        "'yarn'",
        "rope_theta has two values: [10000.0, 500000.0]",
    ]:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"head_dim": 63}, "head_dim 63 is odd"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {**LLAMA31["rope_scaling"], "high_freq_factor": 1.0}}, "must be above"),
        ({"rope_theta": 0.5}, "rope_theta must be a number, above 1; it is 0.5"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"is_causal": False}, "is_causal"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_scaling and rope_parameters are both there and differ"),
        ({"rope_parameters": {**LLAMA31["rope_scaling"], "factor": 2.0}}, "rope_scaling and rope_parameters are both"),
        ({"original_max_position_embeddings": 64}, "original_max_position_embeddings is 64, but rope_scaling has 8192"),
        ({"rope_theta": None, "rope_parameters": {**LLAMA31["rope_scaling"], "rope_theta": 5e5}}, "are both there"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": "gptq"}, "quantization_config must be an object; it is 'gptq'"),
        ({"architectures": 3}, "architectures must be a list; it is 3"),
        ({"rope_scaling": 3}, "rope_scaling must be an object; it is 3"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta must be a number or null; it is 'x'"),
        (
            {"rope_scaling": {**LLAMA31["rope_scaling"], "factor": "eight"}},
            "rope_scaling.factor must be a number; .*'eight'",
        ),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be a whole number, at most 1,000; it is 1000000000000"),
        ({"hidden_size": 10**30}, "hidden_size must be a whole number, at most 1,048,576; it is 10{30}"),
        ({"vocab_size": 10**9}, "vocab_size must be a whole number, at most 16,777,216; it is 1000000000"),
        ({"hidden_size": None}, "hidden_size must be a whole number; it is None"),
    ],
)
def test_each_contradiction(changes, part):
    with pytest.raises(UserError, match=part):
        parse_llama_config(changed(**changes))


OTHERS = {
    "sliding_window": 64,
    "attention_multiplier": 1,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "clip_qkv": 8.0,
    "scale_emb": 12.0,
    "scale_depth": 1.4,
    "partial_rotary_factor": 0.5,
}


@pytest.mark.parametrize("key", OTHERS)
def test_what_a_llama_does_not_compute(key):
    with pytest.raises(UserError, match=f"{key} is {OTHERS[key]}.*; a Llama does not compute it"):
        parse_llama_config(changed(**{key: OTHERS[key]}))


def test_rotation_of_a_part_as_transformers_5_writes_it():
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(UserError, match="partial_rotary_factor is 0.5; a Llama does not compute it"):
        parse_llama_config(changed(rope_theta=None, rope_scaling=None, rope_parameters=rope))


def test_what_changes_nothing_of_a_llama():
    neutral = dict.fromkeys(OTHERS) | {"use_sliding_window": None}
    ones = {"embedding_multiplier": 1, "residual_multiplier": 1.0, "logits_scaling": 1.0}
    plain = parse_llama_config(changed())
    usual = {**ones, "attention_multiplier": plain.head_dim**-0.5, "sliding_window": plain.max_position}
    for changes in (neutral, usual, {"sliding_window": 64, "use_sliding_window": False}):
        assert parse_llama_config(changed(**changes)) == plain


def test_a_wrong_type_is_named_by_its_path():
    scaling = {**LLAMA31["rope_scaling"], "factor": "eight"}
    with pytest.raises(UserError, match="config.json(.|\n)*rope_scaling.factor must be a number; it is 'eight'"):
        parse_llama_config(changed(rope_scaling=scaling))
