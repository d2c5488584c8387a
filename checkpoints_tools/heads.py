"""Heads in a ``config.json``: what our exports say of them, what others' folders say, and whether they are a task's.

transformers describes heads by one list of labels and the name of a class. It cannot describe a model with several
fields, a plain linear layer on RoBERTa's first token or on the mean of all, or a Llama with several. So our exports
describe all heads under a separate key, which transformers ignores::

    "heads": {"head": "linear", "max_length": 512,
              "fields": [{"name": "intent", "kind": "class", "labels": ["alarm_set", ...]}, ...]}

``max_length`` is the longest document in tokens, special tokens included, that the heads were trained on. That of a
decoder has more (`checkpoints_tools/llama_heads.py`). Folders that others wrote have no ``heads`` key; the head that
their architecture names is then called `UNNAMED`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from data.encoder.samples import output_labels
from data.errors import UserError
from data.files.documents import read_json
from data.tasks import Task
from model.encoder import EncoderConfig, Head, HeadKind
from model.llama_heads import HeadedConfig, HeadedLlamaConfig

log = logging.getLogger(__name__)

_C = TypeVar("_C", EncoderConfig, HeadedLlamaConfig)

# Name of a head in a checkpoint that does not say which field it predicts.
UNNAMED = "classifier"
LABELS_SHOWN = 5  # in an error message
# Kind of a head -> what it gives, in words.
GIVES = {"class": "a label to each document", "multi": "any number of labels to each document",
         "token": "a label to each word"}  # fmt: skip


_Tokens = Annotated[int, Meta(ge=0)]


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
    frame_tokens: tuple[_Tokens, _Tokens, _Tokens] | None = None


class _Labels(Struct):
    """What a ``config.json`` says of the labels of its heads."""

    heads: HeadsFile | None = None
    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None


class _Pooling(Struct):
    """What sentence-transformers' ``config.json`` of its pooling says; other kinds of pooling are not run here.

    Its releases 5.7 and 6.2 write the second key, older ones the first.
    """

    pooling_mode_mean_tokens: bool = False
    pooling_mode: Any = None

    @property
    def is_mean(self) -> bool:
        return self.pooling_mode_mean_tokens or self.pooling_mode in ("mean", ["mean"])


def heads_for(task: Task) -> tuple[Head, ...]:
    """One head per field, in the task's order."""
    return tuple(
        Head(field.name, field.kind, len(outputs))
        for field, outputs in zip(task.fields, output_labels(task).values(), strict=True)
    )


def heads_entry(
    config: HeadedConfig, labels: dict[str, list[str]], max_length: int | None, **more: object
) -> dict[str, Any]:
    """The key ``heads`` of a ``config.json``, if the model has heads; arguments as of `to_hf_encoder_config`.

    Args:
        more: what else the architecture states.
    """
    if not config.heads:
        return {}
    fields = [{"name": h.name, "kind": h.kind, "labels": list(labels[h.name])} for h in config.heads]
    return {"heads": {"head": config.head, "max_length": max_length, "fields": fields, **more}}


def stated_heads(stated: HeadsFile, problems: list[str]) -> tuple[Head, ...]:
    """The heads that our key of a ``config.json`` names; what is wrong with them is added to ``problems``."""
    heads = tuple(Head(field.name, field.kind, len(field.labels)) for field in stated.fields)
    if len({head.key for head in heads}) < len(heads):
        problems.append(f"heads is damaged: two fields of one name ({', '.join(head.name for head in heads)})")
    return heads


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


def match_heads(stored: HeadedConfig, wanted: HeadedConfig, where: str) -> dict[str, str]:
    """Match a checkpoint's heads with a model's: {the checkpoint's key: the model's key}.

    Heads match by field name. A checkpoint's `UNNAMED` head matches the model's only head if both are of one kind.
    Heads without a match: the checkpoint's are not read, the model's are initialized.

    Raises:
        UserError: matched heads differ in kind, number of labels or type ("linear", "dense" or "mean").
    """
    pairs = [(head, other) for head in stored.heads for other in wanted.heads if head.name == other.name]
    if not pairs and len(wanted.heads) == 1 and [h.name for h in stored.heads] == [UNNAMED]:
        if stored.heads[0].kind == wanted.heads[0].kind:
            pairs = [(stored.heads[0], wanted.heads[0])]
    problems = []
    for head, other in pairs:
        field = f"field '{other.name}'"
        if head.kind != other.kind:
            problems.append(f"{field}: the head gives {GIVES[head.kind]}, not {GIVES[other.kind]}")
        elif head.n_labels != other.n_labels:
            than = "More" if other.n_labels > head.n_labels else "Fewer"
            problems.append(
                f"{field}: {than} labels than the head was trained for: {other.n_labels}, the head has {head.n_labels}"
            )
        elif head.of_documents and stored.head != wanted.head:
            problems.append(f"{field}: the head is '{stored.head}', not '{wanted.head}': give --head {stored.head}")
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems)
        raise UserError(
            f"the heads in {where} do not fit the task:\n{listed}\nChoose the task that they were trained for, or "
            "start from the checkpoint before fine-tuning, which has no heads."
        )
    return {head.key: other.key for head, other in pairs}


def checked_heads(config: _C, wanted: _C, task: Task, folder: Path | str) -> _C:
    """The wanted config, if the heads that the folder has fit it."""
    if config.heads:
        pairs = match_heads(config, wanted, str(folder))
        by_key = {head.key: head.name for head in (*config.heads, *wanted.heads)}
        labels = read_head_labels(Path(folder) / "config.json")
        check_head_labels(labels, [(by_key[key], by_key[other]) for key, other in pairs.items()], task, str(folder))
    return wanted
