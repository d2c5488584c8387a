"""Tensor names of a Llama checkpoint in every format that we read, one table per format.

Each table maps our parameter name to the format's name; ``{i}`` is the layer number. One table serves both
directions (`to_theirs`, `rename_all`). A name that is in no table is an error. The exceptions (`is_rotary`) are stored
tensors that can be computed from the config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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

# Rotary frequencies, or tables of their sines and cosines: a function of the config, stored by some versions of each
# format under various names, such as model.layers.0.self_attn.rotary_emb.inv_freq (Hugging Face, 2023), rope.freqs
# (Meta, Llama 2) and rope_freqs.weight (GGUF, Llama 3.1; read by gguf_file.py for the scaling it implies).
_ROTARY = re.compile(
    r"(.+\.)?((original_)?inv_freq|freqs\w*|(cos|sin)(_sin)?(_cached?)?|rope_cache|rope_freqs\.weight"
    r"|(rotary\w*|rope)\.(?!(weight|bias)$)\w+)"
)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def is_rotary(name: str) -> bool:
    """Whether a tensor that no table has is a buffer of rotary embeddings."""
    return _ROTARY.fullmatch(name) is not None


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
    """Rename all tensors of a checkpoint; buffers of rotary embeddings are left out.

    Returns:
        {our name: the format's name}, and the names that are not in the table.
    """
    inverse = {theirs: ours for ours, theirs in table.items()}
    found: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        ours = translate(name, inverse)
        if ours is not None:
            found[ours] = name
        elif not is_rotary(name):
            unknown.append(name)
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
    """Match a Llama folder's tensors with our parameters."""
    tensors = list(tensors)
    names, unknown = rename_all(tensors, LLAMA_HF)
    if stored.tie_embeddings and "embed.weight" not in names and "head.weight" in names:
        names["embed.weight"] = names.pop("head.weight")  # one matrix; safetensors stores it under one of its names
    used = {*names.values(), *unknown}
    return Matched(names, unknown, ignored=[name for name in tensors if name not in used])


def llama_to_theirs(name: str, config: LlamaConfig) -> str:
    """Our parameter name → the tensor's name in an export."""
    return to_theirs(name, LLAMA_HF)


def explain_names(unknown: Iterable[str], missing: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Find the one way in which a checkpoint's names differ from those that it should have.

    Wrappers rename what they wrap: torch.compile puts ``_orig_mod.`` in front, DistributedDataParallel ``module.``, and
    activation checkpointing ``_checkpoint_wrapped_module.`` inside. A model that was saved without its head lacks
    ``model.``.

    Args:
        unknown: the checkpoint's names that match nothing.
        missing: the format's names that the checkpoint lacks → our names.

    Returns:
        A sentence, and {the checkpoint's name: our name}. Both are empty if nothing explains half of the missing names.
    """
    unknown = set(unknown)
    guesses: dict[
        str, dict[str, str]
    ] = {}  # what is wrong with the names -> {the checkpoint's name: the format's name}
    for name in unknown:
        parts = name.split(".")
        for i, part in enumerate(parts):
            for guess, rest in (
                (f"have '{'.'.join(parts[:i])}.' in front", ".".join(parts[i:])),
                (f"have '{part}.' inside", ".".join(p for p in parts if p != part)),
            ):
                if rest in missing:
                    guesses.setdefault(guess, {})[name] = rest
    for name in missing:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if (rest := ".".join(parts[i:])) in unknown:
                guesses.setdefault(f"lack '{'.'.join(parts[:i])}.' in front", {})[rest] = name
    if not guesses:
        return "", {}
    guess, found = max(guesses.items(), key=lambda item: (len(item[1]), "in front" in item[0], -len(item[0])))
    if len(found) < 2 or 2 * len(found) < len(missing):
        return "", {}
    theirs, known = next(iter(sorted(found.items())))
    return (
        f"{len(found)} names {guess} ({theirs}; the model has {known}): rename these tensors, or save the model again "
        "as it was before it was wrapped",
        {name: missing[known] for name, known in found.items()},
    )


def all_names(table: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    """A table without templates (the format's name → our name), for every number in ``names``."""
    numbers = {part for name in names for part in name.split(".") if part.isdigit()}
    return {
        theirs.replace("{i}", i): ours.replace("{i}", i)
        for ours, theirs in table.items()
        for i in sorted(numbers) or "0"
    }
