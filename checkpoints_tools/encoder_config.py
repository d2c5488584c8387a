"""``config.json`` of a RoBERTa or BERT folder ⇄ our `EncoderConfig`, heads included.

What transformers says of heads is one list of labels and the name of a class; it has no word for a model with several
fields, nor for a plain linear layer over RoBERTa's first token. So an export of ours says it once more, complete, under
a key that transformers leaves alone::

    "heads": {"head": "linear", "max_length": 512,
              "fields": [{"name": "intent", "kind": "class", "labels": ["alarm_set", ...]}, ...]}

``max_length`` is how many tokens of a document, special tokens included, the heads were trained to see. A folder from
elsewhere has no such key; the head that its architecture names is then called `UNNAMED`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch

from checkpoints_tools.json_files import write_json
from checkpoints_tools.writer import TrainedOn
from data.encoder.samples import output_labels
from data.encoder.tokenizer import Tokenizer
from data.errors import UserError
from data.tasks import ClassField, Task
from model.encoder import EncoderConfig, Head

FAMILIES = ("roberta", "bert")
# Name of a head in a checkpoint that does not tell which field it predicts.
UNNAMED = "classifier"
# Class in ``architectures``, less the family's prefix -> kind of its head; None: no head of ours (its own is ignored).
CLASSES = {
    "Model": None,
    "ForMaskedLM": None,
    "ForPreTraining": None,
    "ForNextSentencePrediction": None,
    "ForSequenceClassification": "class",
    "ForTokenClassification": "token",
}
CLASS_PREFIX = {"roberta": "Roberta", "bert": "Bert"}
# What transformers' own classes take where config.json is silent, and the one value that this code runs.
FIXED = {
    "hidden_act": ("gelu", "the feed-forward network here uses 'gelu' (the exact one)"),
    "position_embedding_type": ("absolute", "positions here are learned and absolute"),
    "is_decoder": (False, "an encoder sees the whole document"),
    "add_cross_attention": (False, "an encoder alone has nothing to cross-attend to"),
}


def parse_encoder_config(raw: dict[str, Any], where: str = "config.json") -> EncoderConfig:
    """Turn the contents of a ``config.json`` into an `EncoderConfig`; its heads are those that the checkpoint has.

    Raises:
        UserError: another architecture, or numbers that contradict each other: all of them in one message.
    """
    problems = _architecture_problems(raw)
    if problems:
        raise UserError(f"{where} is not an encoder we can run:\n" + "\n".join(f"  - {p}" for p in problems))
    family = raw["model_type"]

    def number(key: str, default: int | None = None, least: int = 1) -> int:
        value = default if raw.get(key) is None else raw[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{key} is {value!r}; it must be a whole number of at least {least}")
            return least
        return value

    def share(key: str, default: float) -> float:
        value = default if raw.get(key) is None else raw[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            problems.append(f"{key} is {value!r}; it must be a number from 0 to below 1")
            return default
        return float(value)

    dim, n_heads = number("hidden_size"), number("num_attention_heads")
    if dim % n_heads:
        problems.append(f"hidden_size {dim} is not a multiple of num_attention_heads {n_heads}")
    # fairseq numbered positions behind the padding token's id, and RoBERTa's checkpoints still do.
    offset = number("pad_token_id", default=1, least=0) + 1 if family == "roberta" else 0
    table = number("max_position_embeddings", default=512)
    if table <= offset:
        problems.append(
            f"max_position_embeddings is {table}, of which {offset} stand before the first token (pad_token_id + 1): "
            "no document fits"
        )
    dropout = share("hidden_dropout_prob", 0.1)
    of_heads = raw.get("classifier_dropout")
    if of_heads is not None and of_heads != dropout:
        problems.append(f"classifier_dropout is {of_heads!r}; heads here drop out as the layers do ({dropout})")
    head, heads = _read_heads(raw, problems)
    longest = read_max_length(raw) if heads else None
    if longest is not None and not (type(longest) is int and 3 <= longest <= table - offset):
        problems.append(
            f"heads is damaged: max_length is {longest!r}; it must be a whole number from 3 to {table - offset}, "
            "the model's positions"
        )
    norm_eps = share("layer_norm_eps", 1e-12)
    if norm_eps == 0:
        problems.append("layer_norm_eps is 0; it must be a small positive number such as 1e-5")
    values = dict(
        family=family,
        dim=dim,
        n_layers=number("num_hidden_layers"),
        n_heads=n_heads,
        ffn_dim=number("intermediate_size"),
        vocab_size=number("vocab_size"),
        max_position=table - offset,
        position_offset=offset,
        n_token_types=number("type_vocab_size", default=2),
        norm_eps=norm_eps,
        dropout=dropout,
        attention_dropout=share("attention_probs_dropout_prob", 0.1),
        head=head,
        heads=heads,
    )
    if problems:
        raise UserError(f"{where} contradicts itself:\n" + "\n".join(f"  - {p}" for p in problems))
    return EncoderConfig(**values)


def _architecture_problems(raw: dict[str, Any]) -> list[str]:
    family = raw.get("model_type")
    assert family in FAMILIES, family
    known = [CLASS_PREFIX[family] + suffix for suffix in CLASSES]
    problems = [
        f"architecture {name!r}; this code runs {', '.join(known)}"
        for name in raw.get("architectures") or []
        if name not in known
    ]
    for key, (value, why) in FIXED.items():
        if raw.get(key) not in (None, value):
            problems.append(f"{key} is {raw[key]!r}; {why}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        problems.append(f"the weights are quantized ({method}); full fine-tuning needs the unquantized checkpoint")
    return problems


def _read_heads(raw: dict[str, Any], problems: list[str]) -> tuple[str, tuple[Head, ...]]:
    """What class heads are made of, and the heads that the checkpoint has."""
    if "heads" in raw:
        try:
            fields = [(f["name"], f["kind"], list(f["labels"])) for f in raw["heads"]["fields"]]
            head = raw["heads"]["head"]
        except (KeyError, TypeError) as error:
            problems.append(f"heads is damaged ({error!r}); it must be as the export wrote it")
            return "linear", ()
        if head not in ("linear", "dense") or any(kind not in ("class", "token") for _, kind, _ in fields):
            problems.append("heads is damaged: head is 'linear' or 'dense', a field's kind 'class' or 'token'")
        return head, tuple(Head(name, kind, len(labels)) for name, kind, labels in fields)
    names = raw.get("architectures") or ["Model"]
    kind = CLASSES[names[0].removeprefix(CLASS_PREFIX[raw["model_type"]])]
    if kind is None:
        return "linear", ()
    if raw.get("problem_type") not in (None, "single_label_classification"):
        problems.append(f"problem_type is {raw['problem_type']!r}; a field here has exactly one label")
    labels = raw.get("id2label")
    n_labels = len(labels) if isinstance(labels, dict) and labels else raw.get("num_labels", 2)
    return "dense" if kind == "class" else "linear", (Head(UNNAMED, cast(Literal["class", "token"], kind), n_labels),)


def read_head_labels(raw: dict[str, Any]) -> dict[str, list[str]]:
    """Field -> its head's labels in order, as the contents of a ``config.json`` tell; {} for a bare encoder."""
    if "heads" in raw:
        return {field["name"]: list(field["labels"]) for field in raw["heads"]["fields"]}
    names = raw.get("architectures") or [""]
    if names[0].endswith(("ForSequenceClassification", "ForTokenClassification")) and raw.get("id2label"):
        return {UNNAMED: [raw["id2label"][key] for key in sorted(raw["id2label"], key=int)]}
    return {}


def read_max_length(raw: dict[str, Any]) -> int | None:
    """The longest document that the heads were trained on, as the contents of a ``config.json`` tell; None: untold."""
    return raw["heads"].get("max_length") if "heads" in raw else None


def hf_architecture(config: EncoderConfig) -> str:
    """The class in transformers that computes what the model computes; the bare encoder where there is none.

    There is one for a single token field, and for a single class field with the "dense" head; none for several fields
    and none for the "linear" head on a document's first token.
    """
    suffix = "Model"
    if len(config.heads) == 1:
        if config.heads[0].kind == "token":
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
        labels: field -> its head's labels in order; every head has them.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``. RoBERTa's padding id is not taken from here:
            transformers derives the positions from it.
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
        of_field = labels[config.heads[0].name]
        found["id2label"] = {str(i): label for i, label in enumerate(of_field)}
        found["label2id"] = {label: i for i, label in enumerate(of_field)}
    if config.heads:
        fields = [{"name": h.name, "kind": h.kind, "labels": list(labels[h.name])} for h in config.heads]
        found["heads"] = {"head": config.head, "max_length": max_length, "fields": fields}
    return found


def write_encoder_export(
    folder: Path, config: EncoderConfig, dtype: torch.dtype, tokenizer: Tokenizer, trained_on: TrainedOn
) -> None:
    """Write what an export holds beside its weights; ``labels`` are needed where the model has heads."""
    assert not config.heads or trained_on.labels is not None, "an encoder's heads need their labels"
    ids = {"pad_token_id": tokenizer.pad_id}
    if config.family == "roberta":
        ids |= {"bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    contents = to_hf_encoder_config(config, dtype, trained_on.labels or {}, ids, trained_on.max_length)
    write_json(folder / "config.json", contents)
    tokenizer.save(folder, trained_on.max_length)


def heads_for(task: Task) -> tuple[Head, ...]:
    """One head a field, in the task's order."""
    return tuple(
        Head(field.name, "class" if isinstance(field, ClassField) else "token", len(outputs))
        for field, outputs in zip(task.fields, output_labels(task).values(), strict=True)
    )


def check_roberta_tokenizer(config: EncoderConfig, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Check that positions are counted from the tokenizer's own padding id, as RoBERTa does.

    Raises:
        UserError: they are not.
    """
    if tokenizer.pad_id + 1 != config.position_offset:
        raise UserError(
            f"{folder}: the tokenizer's padding token has id {tokenizer.pad_id}, but pad_token_id in config.json, from "
            f"which RoBERTa counts positions, is {config.position_offset - 1}: files of two different checkpoints?"
        )
