"""The key maps name every parameter of the model, in both directions, and refuse what they do not know."""

from __future__ import annotations

import pytest
import torch

from checkpoints_tools.key_maps import (
    LLAMA_GGUF,
    LLAMA_HF,
    LLAMA_META,
    from_hf,
    rename_all,
    to_hf,
    to_ours,
    to_theirs,
)
from data.errors import UserError
from model.llama import Llama, LlamaConfig


def parameter_names(tied: bool) -> list[str]:
    with torch.device("meta"):
        model = Llama(LlamaConfig(8, 12, 2, 1, 8, 16, tie_embeddings=tied))
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("table", [LLAMA_HF, LLAMA_META, LLAMA_GGUF], ids=["hf", "meta", "gguf"])
def test_every_parameter_has_one_name_and_comes_back(table):
    names = parameter_names(tied=False)
    theirs = [to_theirs(name, table) for name in names]
    assert len(set(theirs)) == len(names) == 12 * 9 + 3
    assert [to_ours(name, table) for name in theirs] == names
    assert rename_all(theirs, table) == (dict(zip(names, theirs, strict=True)), [])
    assert len(set(table.values())) == len(table)


def test_two_digit_layers():
    assert to_hf("layers.11.ffn.w2.weight") == "model.layers.11.mlp.down_proj.weight"
    assert from_hf("model.layers.11.mlp.down_proj.weight") == "layers.11.ffn.w2.weight"


def test_unknown_names_are_errors_and_stored_frequencies_are_not():
    with pytest.raises(UserError, match="lora_A"):
        from_hf("model.layers.0.self_attn.q_proj.lora_A.weight")
    assert from_hf("model.layers.3.self_attn.rotary_emb.inv_freq") is None
    assert to_ours("rope.freqs", LLAMA_META) is None
    assert rename_all(["model.norm.weight", "x.y"], LLAMA_HF) == ({"norm.weight": "model.norm.weight"}, ["x.y"])
    with pytest.raises(AssertionError):
        to_hf("layers.0.attention.bias")
