"""``config.json`` of a RoBERTa or BERT folder ⇄ our `EncoderConfig`, heads included.

How heads are described: `checkpoints_tools/heads.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from msgspec import Meta, Struct

from checkpoints_tools.heads import UNNAMED, HeadsFile, heads_entry, read_max_length, stated_heads
from checkpoints_tools.json_files import write_json
from checkpoints_tools.shapes import Epsilon, Fraction, Layers, Positions, Vocabulary, Width
from checkpoints_tools.tokenizer_files import RESTORE
from checkpoints_tools.writer import TrainedOn
from data.encoder.tokenizer import Tokenizer
from data.errors import UserError
from data.files import limits
from data.files.documents import fields_of
from model.encoder import EncoderConfig, Head, HeadKind

FAMILIES = ("roberta", "bert")
# transformers' ``problem_type`` of a head for sequence classification -> the kind of the head.
PROBLEMS = {None: "class", "single_label_classification": "class", "multi_label_classification": "multi"}
# Class in ``architectures`` without the family's prefix -> kind of its head; None: a head that we ignore, or none.
CLASSES = {
    "Model": None,
    "ForMaskedLM": None,
    "ForPreTraining": None,
    "ForNextSentencePrediction": None,
    "ForSequenceClassification": "class",
    "ForTokenClassification": "token",
}
CLASS_PREFIX = {"roberta": "Roberta", "bert": "Bert"}
# Key of config.json -> the only value that this code runs, which is also transformers' default; and why.
FIXED = {
    "hidden_act": ("gelu", "this code's feed-forward network uses 'gelu' (the exact one)"),
    "position_embedding_type": ("absolute", "this code's positions are learned and absolute"),
    "is_decoder": (False, "an encoder's attention is not causal"),
    "is_causal": (False, "an encoder's attention is not causal"),
    "add_cross_attention": (False, "an encoder has no cross-attention"),
}


class EncoderFile(Struct):
    """What is read of an encoder's ``config.json``."""

    hidden_size: Width
    num_attention_heads: Width
    num_hidden_layers: Layers
    intermediate_size: Width
    vocab_size: Vocabulary
    max_position_embeddings: Positions = 512
    pad_token_id: Annotated[int, Meta(ge=0, le=limits.VOCABULARY)] = 1
    type_vocab_size: Width = 2
    layer_norm_eps: Epsilon = 1e-12
    hidden_dropout_prob: Fraction = 0.1
    attention_probs_dropout_prob: Fraction = 0.1
    architectures: list[str] = []
    problem_type: str | None = None
    num_labels: Vocabulary = 2
    id2label: dict[str, Any] = {}
    heads: HeadsFile | None = None
    quantization_config: dict[str, Any] = {}


def parse_encoder_config(raw: dict[str, Any], where: str = "config.json") -> EncoderConfig:
    """Turn the contents of a ``config.json`` into an `EncoderConfig` with the checkpoint's heads.

    Raises:
        UserError: another architecture, or wrong or contradictory values, all in one message.
    """
    family = raw.get("model_type")
    assert family in FAMILIES, family
    values, problems = fields_of(raw, EncoderFile)
    other = _architecture_problems(raw, family, values)
    if other:
        raise UserError(f"{where} is not an encoder we can run:\n" + "\n".join(f"  - {p}" for p in other))
    dim, n_heads = (values.get(key, 0) for key in ("hidden_size", "num_attention_heads"))  # 0: it is wrong
    if n_heads and dim % n_heads:
        problems.append(f"hidden_size {dim} is not a multiple of num_attention_heads {n_heads}")
    # In fairseq, and so in RoBERTa's checkpoints, the first position is the padding token's id + 1.
    offset = values.get("pad_token_id", 1) + 1 if family == "roberta" else 0
    table = values.get("max_position_embeddings", offset + 1)
    if table <= offset:
        problems.append(
            f"max_position_embeddings is {table}, of which {offset} are unused (pad_token_id + 1): no document fits"
        )
    head, heads = _read_heads(values, family, problems)
    stated = values.get("heads")
    if stated is not None and stated.max_length is not None and heads and stated.max_length > table - offset:
        problems.append(
            f"heads is damaged: max_length is {stated.max_length}; it must be an integer from 3 to {table - offset}, "
            "the number of the model's positions"
        )
    if problems:
        raise UserError(f"{where} is not an encoder we can run:\n" + "\n".join(f"  - {p}" for p in problems))
    return EncoderConfig(
        family=family,
        dim=dim,
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        ffn_dim=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        max_position=table - offset,
        position_offset=offset,
        n_token_types=values["type_vocab_size"],
        norm_eps=values["layer_norm_eps"],
        dropout=values["hidden_dropout_prob"],
        attention_dropout=values["attention_probs_dropout_prob"],
        head=head,
        heads=heads,
    )


def _architecture_problems(raw: dict[str, Any], family: str, values: dict[str, Any]) -> list[str]:
    known = [CLASS_PREFIX[family] + suffix for suffix in CLASSES]
    problems = [
        f"architecture {name!r}; this code runs {', '.join(known)}"
        for name in values.get("architectures", [])
        if name not in known
    ]
    for key, (value, why) in FIXED.items():
        if raw.get(key) not in (None, value):
            problems.append(f"{key} is {raw[key]!r}; {why}")
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown")
        problems.append(f"the weights are quantized ({method}); full fine-tuning needs the unquantized checkpoint")
    return problems


def _read_heads(values: dict[str, Any], family: str, problems: list[str]) -> tuple[HeadKind, tuple[Head, ...]]:
    """Type of the class heads, and the checkpoint's heads; what is wrong with them is added to ``problems``."""
    stated: HeadsFile | None = values.get("heads")
    if stated is not None:
        return stated.head, stated_heads(stated, problems)
    names = values.get("architectures") or ["Model"]
    kind = CLASSES[names[0].removeprefix(CLASS_PREFIX[family])]
    if kind is None:
        return "linear", ()
    problem = values.get("problem_type")
    if problem not in PROBLEMS or (kind == "token" and PROBLEMS[problem] != "class"):
        problems.append(f"problem_type is {problem!r}; this code's heads choose labels, for words exactly one")
    elif kind == "class":
        kind = PROBLEMS[problem]
    labels = values.get("id2label")
    if labels and labels.keys() != set(map(str, range(len(labels)))):
        problems.append(f"id2label: its keys must be the numbers from 0 to {len(labels) - 1}")
    n_labels = len(labels) if labels else values.get("num_labels", 2)
    head = Head(UNNAMED, cast(Literal["class", "multi", "token"], kind), n_labels)
    return "dense" if head.of_documents else "linear", (head,)


def hf_architecture(config: EncoderConfig) -> str:
    """The transformers class that computes the same as the model; the encoder without heads if there is none.

    There is one for a single token field and for a single class or multi field with the "dense" head. There is none for
    several fields or for the "linear" and "mean" heads of documents.
    """
    suffix = "Model"
    if len(config.heads) == 1:
        if not config.heads[0].of_documents:
            suffix = "ForTokenClassification"
        elif config.head == "dense":
            suffix = "ForSequenceClassification"
    return CLASS_PREFIX[config.family] + suffix


def to_hf_encoder_config(
    config: EncoderConfig,
    dtype: torch.dtype,
    labels: dict[str, list[str]],
    token_ids: dict[str, int] | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Contents of a ``config.json`` for these weights, readable by transformers 4 and 5.

    Args:
        labels: field -> its head's labels in order, for every head.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``. RoBERTa's padding id comes from ``config``
            instead, because transformers derives the positions from it.
        max_length: longest document in tokens, special tokens included, that the heads were trained on.
    """
    for head in config.heads:
        assert len(labels[head.name]) == head.n_labels, (head, len(labels[head.name]))
    ids = dict(token_ids or {})
    if config.family == "roberta":
        ids["pad_token_id"] = config.position_offset - 1
    found: dict[str, Any] = {
        "architectures": [hf_architecture(config)],
        "model_type": config.family,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position + config.position_offset,
        "type_vocab_size": config.n_token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "initializer_range": 0.02,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **ids,
    }
    if len(config.heads) == 1:
        head_labels = labels[config.heads[0].name]
        found["id2label"] = {str(i): label for i, label in enumerate(head_labels)}
        found["label2id"] = {label: i for i, label in enumerate(head_labels)}
        if config.heads[0].kind == "multi":
            found["problem_type"] = "multi_label_classification"
    return found | heads_entry(config, labels, max_length)


def write_encoder_export(
    folder: Path, config: EncoderConfig, dtype: torch.dtype, tokenizer: Tokenizer, trained_on: TrainedOn
) -> None:
    """Write an export's config and tokenizer; ``trained_on.labels`` are needed if the model has heads."""
    assert not config.heads or trained_on.labels is not None, "an encoder's heads need their labels"
    ids = {"pad_token_id": tokenizer.pad_id}
    if config.family == "roberta":
        ids |= {"bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    contents = to_hf_encoder_config(config, dtype, trained_on.labels or {}, ids, trained_on.max_length)
    write_json(folder / "config.json", contents)
    tokenizer.save(folder, trained_on.max_length)


def check_encoder_tokenizer(config: EncoderConfig, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Check that an export still has all of its tokenizer, and that RoBERTa's positions begin behind its padding id.

    ``tokenizer_config.json`` may name the special tokens, and say whether capitals count. Every export has it.

    Raises:
        UserError: the file is missing; or RoBERTa's config counts positions from another id than the tokenizer's.
    """
    path = Path(folder) / "config.json"
    if path.is_file() and read_max_length(path) is not None and "tokenizer_config.json" not in tokenizer.files:
        raise UserError(
            f"{folder} was fine-tuned here (heads.max_length in config.json says so), but has no "
            f"tokenizer_config.json: without it texts may get other tokens, and other labels. {RESTORE}"
        )
    if config.family == "roberta" and tokenizer.pad_id + 1 != config.position_offset:
        raise UserError(
            f"{folder}: the tokenizer's padding token has id {tokenizer.pad_id}, but pad_token_id in config.json is "
            f"{config.position_offset - 1}. RoBERTa counts positions from it. Are these files of two checkpoints?"
        )
