"""The key maps name every parameter of the model, in both directions, and refuse what they do not know."""

from __future__ import annotations

import pytest
import torch

from checkpoints_tools.key_maps import (
    LLAMA_GGUF,
    LLAMA_HF,
    LLAMA_META,
    all_names,
    explain_names,
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
    for name in ("model.rotary_emb.inv_freq", "model.layers.9.self_attn.rotary_emb.cos_cached", "model.freqs_cis",
                 "layers.1.attention.inner_attention.rope.freqs", "rotary_pos_emb.original_inv_freq",
                 "model.rotary_emb.cos_sin_cache", "layers.0.rope.cache", "rope_cache", "freqs_cis_real", "cos",
                 "rope.freqs_complex", "model.layers.0.rotary_emb.embed_positions"):  # fmt: skip
        assert rename_all([name], LLAMA_HF) == rename_all([name], LLAMA_META) == ({}, []), name
    for name in ("rope_factors_long.weight", "model.layers.0.europe.weight", "model.cos.weight",
                 "model.layers.0.rope.q_proj.weight", "model.layers.0.rotary_q.weight"):  # fmt: skip
        assert rename_all([name], LLAMA_GGUF) == ({}, [name])
    with pytest.raises(AssertionError, match="no entry in the key map"):
        to_theirs("layers.0.attention.bias", LLAMA_HF)


def known_names(table: dict[str, str]) -> dict[str, str]:
    return {to_theirs(name, table): name for name in parameter_names(tied=True)}


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (lambda name: f"_orig_mod.{name}", "have '_orig_mod.' in front"),
        (lambda name: f"module._orig_mod.{name}", "have 'module._orig_mod.' in front"),
        (lambda name: name.replace("self_attn", "_wrapped.self_attn").replace("mlp", "_wrapped.mlp"), "'_wrapped.' in"),
        (lambda name: f"_orig_mod.{name.replace('mlp', '_orig_mod.mlp')}", "have '_orig_mod.' inside"),
        (lambda name: name.removeprefix("model."), "lack 'model.' in front"),
    ],
)
def test_what_all_names_have_too_much_or_too_little(rename, says):
    known = known_names(LLAMA_HF)
    changed = {rename(name): ours for name, ours in known.items() if rename(name) != name}
    missing = {name: ours for name, ours in known.items() if ours in changed.values()}
    line, names = explain_names(changed, missing)
    assert says in line and line.startswith(f"{len(changed)} names") and names == changed
    example = min(changed)
    assert f"({example}; the model has {to_theirs(changed[example], LLAMA_HF)})" in line


def test_names_of_another_model_are_not_explained():
    known = known_names(LLAMA_HF)
    assert explain_names(["teacher.model.norm.weight", "score.weight"], known) == ("", {})
    assert explain_names([f"transformer.h.{i}.attn.c_attn.weight" for i in range(12)], known) == ("", {})
    assert explain_names([f"teacher.{name}" for name in known], {}) == ("", {})  # nothing is missing
    assert all_names(LLAMA_META, ["x.11.y"])["layers.11.feed_forward.w2.weight"] == "layers.11.ffn.w2.weight"
