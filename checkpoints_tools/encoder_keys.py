"""Tensor names of RoBERTa and BERT checkpoints as one table, and the matching of a checkpoint's heads with a model's.

The encoder's tensors have the same names in both families. They begin with ``roberta.`` or ``bert.`` if the checkpoint
has a head, and have no prefix if the encoder was saved alone. One table (`ENCODER_HF`, used as in `key_maps`) serves
both directions. Heads have two layouts: transformers' own for one unnamed head, and ours, where every name begins with
``heads.<field>.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from checkpoints_tools.encoder_config import hf_architecture
from checkpoints_tools.heads import match_heads
from checkpoints_tools.key_maps import Matched, to_theirs, translate
from model.encoder import EncoderConfig

_LAYER = {
    "attention.wq": "attention.self.query",
    "attention.wk": "attention.self.key",
    "attention.wv": "attention.self.value",
    "attention.wo": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn.w1": "intermediate.dense",
    "ffn.w2": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
ENCODER_HF = {
    "embed.tokens.weight": "embeddings.word_embeddings.weight",
    "embed.positions.weight": "embeddings.position_embeddings.weight",
    "embed.types.weight": "embeddings.token_type_embeddings.weight",
    "embed.norm.weight": "embeddings.LayerNorm.weight",
    "embed.norm.bias": "embeddings.LayerNorm.bias",
    **{
        f"layers.{{i}}.{ours}.{part}": f"encoder.layer.{{i}}.{theirs}.{part}"
        for ours, theirs in _LAYER.items()
        for part in ("weight", "bias")
    },
    "pooler.weight": "pooler.dense.weight",
    "pooler.bias": "pooler.dense.bias",
}
# transformers' single head: our name without "heads.<field>." -> theirs.
DENSE_HEAD = {"dense": "classifier.dense", "out": "classifier.out_proj"}
LINEAR_HEAD = {"out": "classifier"}

# Stored in checkpoints but used by no model of ours: pretraining heads (masked words, next sentence) and counters.
IGNORED = re.compile(r"lm_head\..+|cls\.(predictions|seq_relationship)\..+|embeddings\.(position_ids|token_type_ids)")
PREFIXES = ("roberta.", "bert.")
# The head for masked words has the embedding's matrix, which safetensors stores under one of its names.
TIED = ("lm_head.decoder.weight", "cls.predictions.decoder.weight")


def match_encoder(tensors: Iterable[str], stored: EncoderConfig, wanted: EncoderConfig, where: str) -> Matched:
    """Match a checkpoint's tensors with the parameters of a model that has the heads of ``wanted``.

    Args:
        tensors: the checkpoint's names.
        stored: config of the checkpoint.
        wanted: config of the model.
        where: the folder, for messages.

    Raises:
        UserError: see `match_heads`.
    """
    heads = match_heads(stored, wanted, where)
    inverse = {theirs: ours for ours, theirs in ENCODER_HF.items()}
    uses_pooler = wanted.head == "dense" and wanted.family == "bert" and any(h.of_documents for h in wanted.heads)
    fresh = [head for head in wanted.heads if head.key not in heads.values()]
    found = Matched(fresh=tuple(f"heads.{head.key}." for head in fresh))
    single = stored.heads[0].key if len(stored.heads) == 1 else None
    for name in tensors:
        head = _head_tensor(name, single)
        if head is not None:
            key, rest = head
            if key in heads:
                found.names[f"heads.{heads[key]}.{rest}"] = name
            elif key in {head.key for head in stored.heads}:
                found.ignored.append(name)
            else:
                found.unknown.append(name)
            continue
        bare = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        # TensorFlow's names, in checkpoints of 2018.
        bare = re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda m: f"{m[1]}.{_TENSORFLOW[m[2]]}", bare)
        ours = translate(bare, inverse)
        if IGNORED.fullmatch(bare) or (ours in ("pooler.weight", "pooler.bias") and not uses_pooler):
            found.ignored.append(name)
        elif ours is None or ours in found.names:
            found.unknown.append(name)
        else:
            found.names[ours] = name
    if "embed.tokens.weight" not in found.names:
        shared = next((name for name in found.ignored if name in TIED), None)
        if shared is not None:
            found.names["embed.tokens.weight"] = shared
            found.ignored.remove(shared)
    if "pooler.weight" not in found.names and {h for h in wanted.heads if h.of_documents} <= set(fresh):
        found.fresh += ("pooler.",)  # saved without it; all heads that use it are new, so none was trained on it
    return found


_TENSORFLOW = {"gamma": "weight", "beta": "bias"}


def _head_tensor(name: str, single: str | None) -> tuple[str, str] | None:
    """Split the name of a head's tensor into the head's key and our name's rest; None for other tensors."""
    named = re.fullmatch(r"heads\.([^.]+)\.(.+)", name)
    if named:
        return named[1], named[2]
    if single is not None:
        module, _, part = name.rpartition(".")
        for ours, theirs in (*DENSE_HEAD.items(), *LINEAR_HEAD.items()):
            if module == theirs:
                return single, f"{ours}.{part}"
    return None


def encoder_to_theirs(name: str, config: EncoderConfig) -> str:
    """Our parameter name -> the tensor's name in an export."""
    plain = hf_architecture(config).endswith("Model")
    if name.startswith("heads."):
        if plain:
            return name
        _, _, module, part = name.split(".")
        has_dense = config.family == "roberta" and config.head == "dense" and config.heads[0].of_documents
        return f"{(DENSE_HEAD if has_dense else LINEAR_HEAD)[module]}.{part}"
    theirs = to_theirs(name, ENCODER_HF)
    return theirs if plain else f"{config.family}.{theirs}"
