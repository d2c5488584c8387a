"""``config.json`` of a RoBERTa or BERT folder ⇄ our `EncoderConfig`, heads included.

transformers describes heads by one list of labels and the name of a class. It cannot describe a model with several
fields, or a plain linear layer on RoBERTa's first token or on the mean of all. So our exports describe all heads under
a separate key, which transformers ignores::

    "heads": {"head": "linear", "max_length": 512,
              "fields": [{"name": "intent", "kind": "class", "labels": ["alarm_set", ...]}, ...]}

``max_length`` is the longest document in tokens, special tokens included, that the heads were trained on. Folders that
others wrote have no ``heads`` key; the head that their architecture names is then called `UNNAMED`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from msgspec import Meta, Struct

from checkpoints_tools.json_files import write_json
from checkpoints_tools.shapes import Epsilon, Fraction, Layers, Positions, Vocabulary, Width
from checkpoints_tools.writer import TrainedOn
from data.encoder.samples import output_labels
from data.encoder.tokenizer import Tokenizer
from data.errors import UserError
from data.files import limits
from data.files.documents import fields_of, read_json
from data.tasks import Task
from model.encoder import EncoderConfig, Head, HeadKind
from model.llama_heads import HeadedConfig

log = logging.getLogger(__name__)

FAMILIES = ("roberta", "bert")
# Name of a head in a checkpoint that does not say which field it predicts.
UNNAMED = "classifier"
LABELS_SHOWN = 5  # in an error message
# Kind of a head -> what it gives, in words.
GIVES = {"class": "a label to each document", "multi": "any number of labels to each document",
         "token": "a label to each word"}  # fmt: skip
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


class HeadFile(Struct):
    """One of the ``fields`` of a folder's heads."""

    name: str
    kind: Literal["class", "multi", "token"]
    labels: Annotated[list[str], Meta(min_length=1)]


class HeadsFile(Struct):
    """``heads`` of a ``config.json``; see this file's docstring."""

    head: HeadKind
    fields: list[HeadFile]
    max_length: Annotated[int, Meta(ge=3)] | None = None
    frame: list[str] | None = None


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


def stated_heads(stated: HeadsFile, problems: list[str]) -> tuple[Head, ...]:
    """The heads that our key of a ``config.json`` names; what is wrong with them is added to ``problems``."""
    heads = tuple(Head(field.name, field.kind, len(field.labels)) for field in stated.fields)
    if len({head.key for head in heads}) < len(heads):
        problems.append(f"heads is damaged: two fields of one name ({', '.join(head.name for head in heads)})")
    return heads


class _Labels(Struct):
    """What a ``config.json`` says of the labels of its heads."""

    heads: HeadsFile | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None


def read_head_labels(path: Path) -> dict[str, list[str]]:
    """Field -> its head's labels in order, from a ``config.json``; {} for an encoder without heads.

    Raises:
        UserError: the file cannot be read, or says something else of its labels.
    """
    found = read_json(path, _Labels)
    if found.heads is not None:
        return {field.name: field.labels for field in found.heads.fields}
    names = found.architectures or [""]
    if names[0].endswith(("ForSequenceClassification", "ForTokenClassification")) and found.id2label:
        return {UNNAMED: [str(found.id2label.get(str(i))) for i in range(len(found.id2label))]}
    return {}


def read_max_length(path: Path) -> int | None:
    """Longest document in tokens that the heads were trained on, from a ``config.json``; None: it does not say."""
    found = read_json(path, _Labels)
    return found.heads.max_length if found.heads is not None else None


class _Pooling(Struct):
    """What sentence-transformers' ``config.json`` of its pooling says; other kinds of pooling are not run here.

    Its releases 5.7 and 6.2 write the second key, older ones the first.
    """

    pooling_mode_mean_tokens: bool = False
    pooling_mode: Any = None

    @property
    def is_mean(self) -> bool:
        return self.pooling_mode_mean_tokens or self.pooling_mode in ("mean", ["mean"])


def usual_head(folder: Path) -> HeadKind:
    """The kind of class heads that an encoder's folder is for.

    It is that of the heads that it has. A folder of sentence-transformers whose pooling is the mean is for "mean", also
    where the pooling is beside the model's folder and not in it. Any other is for "linear", and so is a folder that
    cannot be read; whoever opens it says what is wrong.
    """
    try:
        found = read_json(folder / "config.json", _Labels)
        if found.heads is not None:
            return found.heads.head
        if (found.architectures or [""])[0].endswith("ForSequenceClassification"):
            return "dense"
        top = folder.resolve().parent if (folder.resolve().parent / "modules.json").is_file() else folder
        poolings = sorted(path for path in top.glob("*_Pooling/config.json") if path.is_file())
        return "mean" if any(read_json(path, _Pooling).is_mean for path in poolings) else "linear"
    except UserError:
        return "linear"


def how_labels_differ(stored: list[str], own: list[str]) -> str:
    """How a head's labels differ from those of a task; empty if they are the same in the same order."""
    if stored == own:
        return ""
    differ = [label for label in dict.fromkeys([*stored, *own]) if (label in own) != (label in stored)]
    return f"only one of the two has {', '.join(differ[:LABELS_SHOWN])}" if differ else "their order differs"


def check_head_labels(labels: dict[str, list[str]], pairs: Iterable[tuple[str, str]], task: Task, where: str) -> None:
    """Check that a checkpoint's heads number their outputs as the task does, before training goes on from them.

    Heads whose labels are only numbered (transformers' ``LABEL_0``) or have entirely other names are taken by number;
    of the latter the log says so.

    Args:
        labels: `read_head_labels` of the checkpoint.
        pairs: field of the checkpoint and field of the task, of each head that is taken.

    Raises:
        UserError: the labels have another order, or are partly the same.
    """
    for name, field in pairs:
        own = output_labels(task)[field]
        stored = labels.get(name, own)
        how = how_labels_differ(stored, own)
        if not how or all(re.fullmatch(r"LABEL_\d+", label) for label in stored):
            continue
        listed, wanted = (", ".join(some[:LABELS_SHOWN]) for some in (stored, own))
        if not set(stored) & set(own) - {"O"}:
            log.warning("warning: the head of field '%s' in %s is for other labels (%s, ...); training starts from it, "
                        "and its outputs become %s, ...", field, where, listed, wanted)  # fmt: skip
            continue
        reorder = ", or list the task's labels in the head's order" if task.custom is not None else ""
        raise UserError(
            f"{where}: the labels of field '{field}' are not those of task {task.name}: {how}. They number the head's "
            f"outputs: {listed}, ...; the task's are {wanted}, ... Start from the checkpoint before fine-tuning, which "
            f"has no heads{reorder}."
        )


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


def heads_entry(
    config: HeadedConfig, labels: dict[str, list[str]], max_length: int | None, frame: list[str] | None = None
) -> dict[str, Any]:
    """The key ``heads`` of a ``config.json``, if the model has heads; arguments as of `to_hf_encoder_config`.

    Args:
        frame: the texts around both readings of a document (`data.encoder.read_twice`); None: it is read once.
    """
    if not config.heads:
        return {}
    fields = [{"name": h.name, "kind": h.kind, "labels": list(labels[h.name])} for h in config.heads]
    found = {"head": config.head, "max_length": max_length, "fields": fields}
    return {"heads": found if frame is None else found | {"frame": frame}}


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


def heads_for(task: Task) -> tuple[Head, ...]:
    """One head per field, in the task's order."""
    return tuple(
        Head(field.name, field.kind, len(outputs))
        for field, outputs in zip(task.fields, output_labels(task).values(), strict=True)
    )


def check_roberta_tokenizer(config: EncoderConfig, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Check that the config counts positions from the tokenizer's padding id, as RoBERTa does.

    Raises:
        UserError: the two padding ids differ.
    """
    if tokenizer.pad_id + 1 != config.position_offset:
        raise UserError(
            f"{folder}: the tokenizer's padding token has id {tokenizer.pad_id}, but pad_token_id in config.json is "
            f"{config.position_offset - 1}. RoBERTa counts positions from it. Are these files of two checkpoints?"
        )
