"""Tensor names of RoBERTa and BERT checkpoints, as tables that can be read whole, and which tensor is for what.

The encoder's tensors are called the same in both families, behind ``roberta.`` or ``bert.`` where a head stands beside
the encoder, and behind nothing where the encoder was saved alone. One table (`ENCODER_HF`, used as in `key_maps`)
serves both directions. Heads have two layouts: transformers' own for one unnamed head, and ours, where every tensor
begins with ``heads.<field>.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from checkpoints_tools.encoder_config import UNNAMED, hf_architecture
from checkpoints_tools.key_maps import Matched, to_theirs, translate
from data.errors import UserError
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
# transformers' single head: ours, less "heads.<field>." -> theirs.
DENSE_HEAD = {"dense": "classifier.dense", "out": "classifier.out_proj"}
LINEAR_HEAD = {"out": "classifier"}

# In checkpoints, but in no model of ours: what predicted hidden words and next sentences, and counters.
IGNORED = re.compile(r"lm_head\..+|cls\.(predictions|seq_relationship)\..+|embeddings\.(position_ids|token_type_ids)")
PREFIXES = ("roberta.", "bert.")


def match_heads(stored: EncoderConfig, wanted: EncoderConfig, where: str) -> dict[str, str]:
    """Which head of a checkpoint becomes which of a model's: {the checkpoint's key: the model's key}.

    Heads go together by field; one head that does not tell its field (`UNNAMED`) goes with a model's only head of
    the same kind. The others have no partner: the checkpoint's are not read, the model's start fresh.

    Raises:
        UserError: partners of different sizes or different make.
    """
    partners = [(head, other) for head in stored.heads for other in wanted.heads if head.name == other.name]
    if not partners and len(wanted.heads) == 1 and [h.name for h in stored.heads] == [UNNAMED]:
        if stored.heads[0].kind == wanted.heads[0].kind:
            partners = [(stored.heads[0], wanted.heads[0])]
    problems = []
    for head, other in partners:
        whose = f"field '{other.name}'"
        if head.kind != other.kind:
            problems.append(
                f"{whose}: the head gives a label to each {_UNIT[head.kind]}, not to each {_UNIT[other.kind]}"
            )
        elif head.n_labels != other.n_labels:
            than = "More" if other.n_labels > head.n_labels else "Fewer"
            problems.append(
                f"{whose}: {than} labels than the head was trained for: {other.n_labels}, the head has {head.n_labels}"
            )
        elif head.kind == "class" and stored.head != wanted.head:
            problems.append(f"{whose}: the head is '{stored.head}', not '{wanted.head}': give --head {stored.head}")
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems)
        raise UserError(
            f"the heads in {where} do not fit the task:\n{listed}\nChoose the task it was trained for, or start from "
            "the checkpoint that it was itself trained from, which has no head yet."
        )
    return {head.key: other.key for head, other in partners}


_UNIT = {"class": "document", "token": "word"}


def match_encoder(tensors: Iterable[str], stored: EncoderConfig, wanted: EncoderConfig, where: str) -> Matched:
    """Say what each tensor of a checkpoint is to a model with the heads of ``wanted``.

    Args:
        tensors: the checkpoint's names.
        stored: what its config.json says.
        where: the folder, for messages.

    Raises:
        UserError: see `match_heads`.
    """
    heads = match_heads(stored, wanted, where)
    inverse = {theirs: ours for ours, theirs in ENCODER_HF.items()}
    uses_pooler = wanted.head == "dense" and wanted.family == "bert" and any(h.kind == "class" for h in wanted.heads)
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
        # TensorFlow's names, still in the checkpoints of 2018.
        bare = re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda m: f"{m[1]}.{_TENSORFLOW[m[2]]}", bare)
        ours = translate(bare, inverse)
        if IGNORED.fullmatch(bare) or (ours in ("pooler.weight", "pooler.bias") and not uses_pooler):
            found.ignored.append(name)
        elif ours is None or ours in found.names:
            found.unknown.append(name)
        else:
            found.names[ours] = name
    if "pooler.weight" not in found.names and {h for h in wanted.heads if h.kind == "class"} <= set(fresh):
        found.fresh += ("pooler.",)  # saved without it; no head has learned to read it yet
    return found


_TENSORFLOW = {"gamma": "weight", "beta": "bias"}


def _head_tensor(name: str, single: str | None) -> tuple[str, str] | None:
    """(the head's key, what follows it in our names) of a head's tensor; None for all others."""
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
    """Our parameter name -> the name in an export of a model of this config."""
    plain = hf_architecture(config).endswith("Model")
    if name.startswith("heads."):
        if plain:
            return name
        _, _, module, part = name.split(".")
        has_dense = config.family == "roberta" and config.head == "dense" and config.heads[0].kind == "class"
        return f"{(DENSE_HEAD if has_dense else LINEAR_HEAD)[module]}.{part}"
    theirs = to_theirs(name, ENCODER_HF)
    return theirs if plain else f"{config.family}.{theirs}"
