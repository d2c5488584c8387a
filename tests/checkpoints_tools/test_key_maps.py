"""The key maps name every parameter of the model, in both directions, and refuse what they do not know."""

from __future__ import annotations

import pytest
import torch

from checkpoints_tools.key_maps import (
    LLAMA_GGUF,
    LLAMA_HF,
    LLAMA_META,
    rename_all,
    to_theirs,
)
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
    assert rename_all(theirs, table) == (dict(zip(names, theirs, strict=True)), [])
    assert len(set(table.values())) == len(table)


def test_two_digit_layers():
    ours, theirs = "layers.11.ffn.w2.weight", "model.layers.11.mlp.down_proj.weight"
    assert to_theirs(ours, LLAMA_HF) == theirs
    assert rename_all([theirs], LLAMA_HF) == ({ours: theirs}, [])


def test_unknown_names_are_told_and_stored_frequencies_are_not():
    lora = "model.layers.0.self_attn.q_proj.lora_A.weight"
    names = ["model.norm.weight", lora, "model.layers.3.self_attn.rotary_emb.inv_freq"]
    assert rename_all(names, LLAMA_HF) == ({"norm.weight": "model.norm.weight"}, [lora])
    assert rename_all(["rope.freqs"], LLAMA_META) == ({}, [])
    with pytest.raises(AssertionError, match="no entry in the key map"):
        to_theirs("layers.0.attention.bias", LLAMA_HF)
