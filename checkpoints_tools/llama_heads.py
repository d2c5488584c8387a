"""Folders of a Llama with heads ⇄ `model.llama_heads`: configs, tensor names and exports.

A run starts from the folder of any Llama, without its output matrix. Exports have the config and the tensor names of
transformers' ``LlamaModel``, which computes the same hidden states. The heads are beside it: their tensors as
``heads.<field>.out.*``, and their labels under the key ``heads`` of ``config.json``, as in an encoder's export
(`checkpoints_tools/encoder_config.py`). There ``frame`` has the texts around both readings of a document, and
``frame_tokens`` how many tokens each is, which the mean leaves out. The first exports do not have these numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from checkpoints_tools.heads import HeadsFile, heads_entry, match_heads, stated_heads
from checkpoints_tools.json_files import write_json
from checkpoints_tools.key_maps import LLAMA_HF, Matched, is_rotary, to_theirs, translate
from checkpoints_tools.llama_config import check_llama_tokenizer, parse_llama_config, to_hf_llama_config, token_ids
from checkpoints_tools.writer import TrainedOn
from data.encoder.read_twice import AFTER, BEFORE, BETWEEN, TwiceTokenizer
from data.errors import UserError
from data.files.documents import fields_of
from model.llama import LlamaConfig
from model.llama_heads import FIRST_ALONE, HeadedLlamaConfig

FRAME = [BEFORE, BETWEEN, AFTER]
_THEIRS = {name.removeprefix("model."): ours for ours, name in LLAMA_HF.items()}  # of LlamaModel


class _File(Struct):
    """What a ``config.json`` says of heads."""

    heads: HeadsFile | None = None


def parse_llama(raw: dict[str, Any], where: str = "config.json") -> LlamaConfig:
    """The config of a Llama's ``config.json``, with heads if it has the key.

    Raises:
        UserError: see `parse_llama_config`; or damaged heads.
    """
    if raw.get("heads") is None:
        return parse_llama_config(raw, where)
    base = parse_llama_config(raw | {"architectures": ["LlamaForCausalLM"]}, where)
    values, problems = fields_of(raw, _File)
    heads = stated_heads(values["heads"], problems) if "heads" in values else ()
    if heads and (frame := values["heads"].frame) != FRAME:
        problems.append(f"heads was trained on texts in another frame than this code's: {frame}, not {FRAME}")
    if problems:
        raise UserError(f"{where} is not a model we can run:\n" + "\n".join(f"  - {p}" for p in problems))
    frame_tokens = (values["heads"].frame_tokens if heads else None) or FIRST_ALONE
    return dataclasses.replace(without_heads(base), heads=heads, frame=frame_tokens)


def without_heads(config: LlamaConfig) -> HeadedLlamaConfig:
    """The config of a Llama to which heads can be added."""
    numbers = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return HeadedLlamaConfig(**numbers)


def check_headed_llama_tokenizer(config: HeadedLlamaConfig, tokenizer: TwiceTokenizer, folder: Path | str) -> None:
    """Check that in a folder that was fine-tuned here the frame has as many tokens as in training.

    Raises:
        UserError: it has not; or see `check_llama_tokenizer`.
    """
    check_llama_tokenizer(config, tokenizer, folder)
    if config.heads and config.frame not in (FIRST_ALONE, tokenizer.frame.sizes):
        raise UserError(
            f"{folder}: in training {list(config.frame)} tokens were before, between and after the readings of a text "
            f"(heads.frame_tokens in config.json); by the tokenizer's files there are {list(tokenizer.frame.sizes)}. "
            "Restore both, for example from the folder that this one was copied from."
        )


def match_headed_llama(
    tensors: Iterable[str], stored: HeadedLlamaConfig, wanted: HeadedLlamaConfig, where: str
) -> Matched:
    """Match a folder's tensors with the parameters of a model that has the heads of ``wanted``.

    Raises:
        UserError: see `match_heads`.
    """
    heads = match_heads(stored, wanted, where)
    fresh = [head for head in wanted.heads if head.key not in heads.values()]
    found = Matched(fresh=tuple(f"heads.{head.key}." for head in fresh))
    for name in tensors:
        head = re.fullmatch(r"heads\.([^.]+)\.(out\.(?:weight|bias))", name)
        ours = translate(name.removeprefix("model."), _THEIRS)
        if head is not None and head[1] in heads:
            found.names[f"heads.{heads[head[1]]}.{head[2]}"] = name
        elif ours == "head.weight" or is_rotary(name) or (head and head[1] in {own.key for own in stored.heads}):
            found.ignored.append(name)
        elif ours is None or ours in found.names:
            found.unknown.append(name)
        else:
            found.names[ours] = name
    if stored.tie_embeddings and "embed.weight" not in found.names and "lm_head.weight" in found.ignored:
        found.names["embed.weight"] = "lm_head.weight"  # one matrix; safetensors stores it under one of its names
        found.ignored.remove("lm_head.weight")
    return found


def headed_llama_to_theirs(name: str, config: HeadedLlamaConfig) -> str:
    """Our parameter name → the tensor's name in an export."""
    return name if name.startswith("heads.") else to_theirs(name, LLAMA_HF).removeprefix("model.")


def write_headed_llama_export(
    folder: Path, config: HeadedLlamaConfig, dtype: torch.dtype, tokenizer: TwiceTokenizer, trained_on: TrainedOn
) -> None:
    """Write an export's config and tokenizer; ``trained_on.labels`` are needed if the model has heads."""
    contents = to_hf_llama_config(config, dtype, token_ids(tokenizer.decoder, None))
    contents["architectures"] = ["LlamaModel"]
    frame = {"frame": FRAME, "frame_tokens": list(config.frame)}
    contents |= heads_entry(config, trained_on.labels or {}, trained_on.max_length, **frame)
    write_json(folder / "config.json", contents)
    tokenizer.save(folder)
