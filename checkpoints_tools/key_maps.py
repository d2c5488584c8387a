"""Tensor names of a Llama checkpoint in every format that we read, one table per format.

Each table maps our parameter name to the format's name; ``{i}`` is the layer number. One table serves both
directions (`to_theirs`, `rename_all`). A name that is in no table is an error. The exceptions are in ``IGNORED``:
stored tensors that can be computed from the config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from model.llama import LlamaConfig

LLAMA_HF = {
    "embed.weight": "model.embed_tokens.weight",
    "layers.{i}.attention_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.attention.wq.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "layers.{i}.attention.wk.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "layers.{i}.attention.wv.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "layers.{i}.attention.wo.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "layers.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.ffn.w1.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "layers.{i}.ffn.w3.weight": "model.layers.{i}.mlp.up_proj.weight",
    "layers.{i}.ffn.w2.weight": "model.layers.{i}.mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

LLAMA_META = {
    "embed.weight": "tok_embeddings.weight",
    "layers.{i}.attention_norm.weight": "layers.{i}.attention_norm.weight",
    "layers.{i}.attention.wq.weight": "layers.{i}.attention.wq.weight",
    "layers.{i}.attention.wk.weight": "layers.{i}.attention.wk.weight",
    "layers.{i}.attention.wv.weight": "layers.{i}.attention.wv.weight",
    "layers.{i}.attention.wo.weight": "layers.{i}.attention.wo.weight",
    "layers.{i}.ffn_norm.weight": "layers.{i}.ffn_norm.weight",
    "layers.{i}.ffn.w1.weight": "layers.{i}.feed_forward.w1.weight",
    "layers.{i}.ffn.w3.weight": "layers.{i}.feed_forward.w3.weight",
    "layers.{i}.ffn.w2.weight": "layers.{i}.feed_forward.w2.weight",
    "norm.weight": "norm.weight",
    "head.weight": "output.weight",
}

LLAMA_GGUF = {
    "embed.weight": "token_embd.weight",
    "layers.{i}.attention_norm.weight": "blk.{i}.attn_norm.weight",
    "layers.{i}.attention.wq.weight": "blk.{i}.attn_q.weight",
    "layers.{i}.attention.wk.weight": "blk.{i}.attn_k.weight",
    "layers.{i}.attention.wv.weight": "blk.{i}.attn_v.weight",
    "layers.{i}.attention.wo.weight": "blk.{i}.attn_output.weight",
    "layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
    "layers.{i}.ffn.w1.weight": "blk.{i}.ffn_gate.weight",
    "layers.{i}.ffn.w3.weight": "blk.{i}.ffn_up.weight",
    "layers.{i}.ffn.w2.weight": "blk.{i}.ffn_down.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}

# Rotary frequencies: a function of the config, stored by some versions of each format.
IGNORED = frozenset(
    {
        "model.layers.{i}.self_attn.rotary_emb.inv_freq",  # Hugging Face, 2023
        "rope.freqs",  # Meta, Llama 2
        "rope_freqs.weight",  # GGUF, Llama 3.1 (read by gguf_file.py for the scaling it implies)
    }
)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def template(name: str) -> str:
    """``"layers.12.ffn.w1.weight"`` → ``"layers.{i}.ffn.w1.weight"``."""
    return _NUMBER.sub("{i}", name, count=1)


def translate(name: str, table: dict[str, str]) -> str | None:
    """Translate a name by a table of templates; None if the table lacks it."""
    found = table.get(template(name))
    number = _NUMBER.search(name)
    return found if found is None or number is None else found.replace("{i}", number.group())


def to_theirs(name: str, table: dict[str, str]) -> str:
    """Our parameter name → the format's. The table must have every parameter of the model."""
    found = translate(name, table)
    assert found is not None, f"parameter {name!r} has no entry in the key map"
    return found


def rename_all(names: Iterable[str], table: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Rename all tensors of a checkpoint.

    Returns:
        {our name: the format's name}, and the names that are not in the table.
    """
    inverse = {theirs: ours for ours, theirs in table.items()}
    found: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        if template(name) in IGNORED:
            continue
        ours = translate(name, inverse)
        if ours is None:
            unknown.append(name)
        else:
            found[ours] = name
    return found, unknown


@dataclass
class Matched:
    """A model's parameters and the tensors of a Hugging Face checkpoint, matched.

    Attributes:
        names: our parameter name → the checkpoint's tensor.
        unknown: tensors that match nothing, which is an error.
        ignored: known tensors that the model does not use.
        fresh: name prefixes of the parameters that the checkpoint may lack because they are new: heads.
    """

    names: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    fresh: tuple[str, ...] = ()


def match_llama(tensors: Iterable[str], stored: LlamaConfig, wanted: LlamaConfig, where: str) -> Matched:
    """Match a Llama folder's tensors with our parameters; this does not depend on the configs."""
    return Matched(*rename_all(tensors, LLAMA_HF))


def llama_to_theirs(name: str, config: LlamaConfig) -> str:
    """Our parameter name → the tensor's name in an export."""
    return to_theirs(name, LLAMA_HF)
