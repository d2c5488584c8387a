"""From a Hugging Face folder into a model: every rank reads only its own slice of each tensor, straight from disk.

`check_fits_preset` says whether a folder is the model it is called by; `load_pretrained` fills a model; `open_hf` is
the same folder as a `Source`, for conversion and inspection. Whether a folder is whole is said by
`checkpoints_tools.folder`.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from checkpoints_tools.encoder_keys import match_tensors
from checkpoints_tools.folder import SAFETENSORS_DTYPES, Folder, check_folder, open_tensors
from checkpoints_tools.hf_config import differences, family_of, read_config, read_dtype, read_token_ids
from checkpoints_tools.key_maps import LLAMA_HF, rename_all
from checkpoints_tools.source import Source, compare_tensors, is_tied, raise_problems
from checkpoints_tools.tokenizer_files import copy_tokenizer
from data.errors import UserError
from model.encoder import Encoder, EncoderConfig

if TYPE_CHECKING:
    from data.encoder_tokenizer import EncoderTokenizer
    from data.tokenizer import Tokenizer
    from model import ModelSpec
    from model.llama import LlamaConfig

log = logging.getLogger(__name__)

# What wrappers put into parameter names (activation checkpointing, torch.compile).
_WRAPPERS = re.compile(r"_checkpoint_wrapped_module\.|_orig_mod\.")
# What an encoder's config says of training and of heads: not a property of the pretrained weights.
_OF_THE_TASK = ("heads", "head", "dropout", "attention_dropout")


def check_family(config: LlamaConfig | EncoderConfig, spec: ModelSpec, folder: Path | str) -> None:
    """Raise UserError where a checkpoint is of another architecture than the model; before its tokenizer is opened,
    whose complaint would be about a format."""
    if family_of(config) != spec.family:
        raise UserError(
            f"{folder} holds a model of the '{family_of(config)}' architecture, --model {spec.name} is of "
            f"'{spec.family}'. --model {family_of(config)} takes any checkpoint of that architecture."
        )


def check_fits_preset(
    config: LlamaConfig | EncoderConfig,
    tokenizer: Tokenizer | EncoderTokenizer,
    spec: ModelSpec,
    folder: Path | str,
    allow_mismatch: bool = False,
) -> None:
    """Check that a checkpoint is the model it is called by, and that its tokenizer belongs to it.

    Args:
        config: the checkpoint's own numbers; ``max_position`` may differ from the preset's, and for debug models, which
            take the vocabulary of whatever tokenizer they are trained with, the vocabulary; so may what an encoder's
            task decides: its heads and dropout.
        tokenizer: its tokenizer; it may know fewer tokens than the model, not more.
        spec: the preset; one without numbers is whatever the checkpoint is.
        folder: for messages.
        allow_mismatch: take the checkpoint's numbers even where they differ from the preset's.

    Raises:
        UserError: another architecture, whatever is allowed; else names every number that differs, or both
            vocabularies.
    """
    check_family(config, spec, folder)
    ignore = ("max_position", "vocab_size") if spec.recipe.endswith("debug") else ("max_position",)
    ignore += _OF_THE_TASK if spec.kind == "encoder" else ()
    found = differences(config, spec.config, ignore=ignore) if spec.config is not None else []
    if found and not allow_mismatch:
        raise UserError(
            f"{folder} holds another model than --model {spec.name}: {'; '.join(found)}. Name the model that fits, or "
            "give --allow_mismatch to take the checkpoint's own numbers."
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model's embedding only "
            f"{config.vocab_size:,}: files of two different checkpoints?"
        )
    if family_of(config) == "roberta" and tokenizer.pad_id + 1 != config.position_offset:
        raise UserError(
            f"{folder}: the tokenizer's padding token has id {tokenizer.pad_id}, but pad_token_id in config.json, from "
            f"which RoBERTa counts positions, is {config.position_offset - 1}: files of two different checkpoints?"
        )


def clean_name(name: str) -> str:
    """A parameter's name without what activation checkpointing and compilation add to it."""
    return _WRAPPERS.sub("", name)


def load_pretrained(
    model: nn.Module,
    folder: Path | str,
    spec: ModelSpec | None = None,
    *,
    check_config: bool = True,
    key_map: dict[str, str] = LLAMA_HF,
    seed: int = 0,
) -> None:
    """Fill a model's parameters from a Hugging Face folder, cast to the parameters' own dtype.

    Every rank calls this, with the same folder; there is no communication. Of a sharded parameter (a DTensor, as
    FSDP2 and tensor parallelism make them) a rank reads only its own slice, so at no time does any rank hold more
    than its slice of one tensor beside the model.

    An encoder's heads are read where the folder has heads for the same fields; the others start fresh, and the log
    says so, as it says what in the folder was not read.

    Args:
        model: ours, its parameters allocated (``to_empty``, then ``init_weights`` for the buffers); plain or sharded.
        folder: see `check_folder`.
        spec: whose weights these are, for messages.
        check_config: also demand that ``config.json`` describes the same model: shapes alone would not notice
            another rope_theta. A Llama's ``max_position`` may differ. Encoders are always checked.
        key_map: our names → the folder's, for a Llama.
        seed: of fresh heads, which are the same on any number of ranks.

    Raises:
        UserError: a bad folder, tensors missing, unexpected or misshapen (all of them are named), or heads for the
            same fields that are of other sizes.
    """
    start = time.perf_counter()
    checkpoint = check_folder(folder, spec)
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    if isinstance(model.config, EncoderConfig):
        names, fresh = _match_encoder(checkpoint, model.config, parameters)
    else:
        if check_config:
            _check_same(read_config(folder), model.config, folder, ignore=("max_position",))
        names, fresh = _match_llama(checkpoint, parameters, key_map), {}

    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in parameters.keys() - fresh.keys():
        by_file[checkpoint.files[names[name]]].append(name)
    work = [(path, name) for path in sorted(by_file) for name in sorted(by_file[path])]
    is_main = int(os.environ.get("RANK", "0")) == 0
    read, opened = None, None
    n_read = 0
    for path, name in track(work, description="loading weights", disable=not is_main or checkpoint.n_bytes < 2e9):
        if path != opened:
            read, opened = open_tensors(path), path
        n_read += _fill(parameters[name], read(names[name]))
    whole = new_heads(model.config, seed) if fresh else {}
    for name, parameter in fresh.items():
        _fill(parameter, whole[name])
    seconds = time.perf_counter() - start
    if is_main:
        if fresh:
            log.info("fresh weights, as %s has none: %s", folder, ", ".join(fresh))
        log.info("loaded %s: %.2f GB read in %.1f s (%.2f s/GB)", folder, n_read / 1e9, seconds, seconds / n_read * 1e9)


def _check_same(
    found: LlamaConfig | EncoderConfig, wanted: LlamaConfig | EncoderConfig, folder: Path | str, ignore: tuple[str, ...]
) -> None:
    lines = differences(found, wanted, ignore)
    if lines:
        raise UserError(f"{folder}/config.json describes another model than the one to load: {'; '.join(lines)}")


def _match_llama(checkpoint: Folder, parameters: dict[str, Tensor], key_map: dict[str, str]) -> dict[str, str]:
    """{our name: the folder's}; UserError naming all tensors that do not fit."""
    names, unknown = rename_all(list(checkpoint.tensors), key_map)
    shapes = {ours: checkpoint.tensors[theirs].shape for ours, theirs in names.items()}
    tied = "head.weight" not in parameters
    problems = [f"unexpected: {name} {list(checkpoint.tensors[name].shape)}" for name in unknown]
    problems += compare_tensors(shapes, {name: tuple(p.shape) for name, p in parameters.items()}, tied)
    raise_problems(str(checkpoint.path), problems)
    if tied and "head.weight" in names:
        _check_tied(checkpoint, names["embed.weight"], names["head.weight"])
    return names


def _match_encoder(
    checkpoint: Folder, config: EncoderConfig, parameters: dict[str, Tensor]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """{our name: the folder's}, and the parameters that the folder rightly lacks; UserError for all that do not fit."""
    folder = checkpoint.path
    stored = read_config(folder)
    _check_same(stored, config, folder, ignore=_OF_THE_TASK)
    matched = match_tensors(checkpoint.tensors, stored, config, str(folder))
    starts = tuple(f"heads.{head.key}." for head in matched.fresh)
    if "pooler.weight" not in matched.names and {h for h in config.heads if h.kind == "class"} <= set(matched.fresh):
        starts += ("pooler.",)  # saved without it; no head has learned to read it yet
    fresh = {name: p for name, p in parameters.items() if name.startswith(starts)}
    shapes = {ours: checkpoint.tensors[theirs].shape for ours, theirs in matched.names.items()}
    problems = [f"unexpected: {name} {list(checkpoint.tensors[name].shape)}" for name in matched.unknown]
    expected = {name: tuple(p.shape) for name, p in parameters.items() if name not in fresh}
    raise_problems(str(folder), problems + compare_tensors(shapes, expected, tied=False))
    if matched.ignored and int(os.environ.get("RANK", "0")) == 0:
        listed = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", name) for name in matched.ignored)
        log.info("not read, as the model has no use for it: %s of %s", ", ".join(sorted(listed)), folder)
    return matched.names, fresh


def new_heads(config: EncoderConfig, seed: int) -> dict[str, Tensor]:
    """Parameter name → its start, for all that stands on top of the encoder; depends on the seed alone."""
    with torch.device("meta"):  # nothing is drawn from the global random state
        top = Encoder(replace(config, n_layers=0, vocab_size=1, max_position=1))
    top.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(seed))
    return {name: p.detach() for name, p in top.named_parameters() if name.startswith(("heads.", "pooler."))}


@torch.no_grad()
def _fill(parameter: Tensor, stored: Tensor) -> int:
    """Copy a parameter's slice (all of it, unless it is sharded) from what the whole is stored in; returns the bytes.

    Args:
        stored: a tensor, or what `safetensors` gives for one: something to index.
    """
    local, where = local_slice(parameter)
    assert not local.is_meta, "materialize the model (to_empty) before loading"
    if local.numel() == 0:
        return 0
    piece = stored[where]
    local.copy_(piece)
    return piece.numel() * piece.element_size()


def local_slice(parameter: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """The part of a parameter that this rank holds, as a plain tensor that shares its memory, and where it lies.

    Works for any placements made of ``Shard`` and ``Replicate``, evenly divided or not.
    """
    if not isinstance(parameter, DTensor):
        return parameter, tuple(slice(0, n) for n in parameter.shape)
    for placement in parameter.placements:
        assert type(placement) in (Shard, Replicate), f"cannot read one contiguous slice for {placement}"
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    local = parameter.to_local()
    assert tuple(local.shape) == tuple(shape), (local.shape, shape)
    return local, tuple(slice(begin, begin + n) for begin, n in zip(offset, shape, strict=True))


def _check_tied(checkpoint: Folder, embed: str, head: str, rows: int = 8192) -> None:
    """UserError when a tied model's checkpoint stores a head that is not the embedding."""
    left = open_tensors(checkpoint.files[embed])(embed)
    right = open_tensors(checkpoint.files[head])(head)
    for begin in range(0, checkpoint.tensors[embed].shape[0], rows):
        if not torch.equal(left[begin : begin + rows], right[begin : begin + rows]):
            raise UserError(
                f"{checkpoint.path}: config.json ties the head to the embedding, but {head} differs from {embed}. "
                "If the head was trained separately, set tie_word_embeddings to false"
            )


def open_hf(folder: Path) -> Source:
    """A Hugging Face folder as a `Source`.

    Raises:
        UserError: see `check_folder` and `read_config`; tensors with unknown names.
    """
    checkpoint = check_folder(folder)
    config = read_config(folder)
    if isinstance(config, EncoderConfig):
        matched = match_tensors(checkpoint.tensors, config, config, str(folder))
        names, unknown = matched.names, matched.unknown
    else:
        names, unknown = rename_all(list(checkpoint.tensors), LLAMA_HF)
    raise_problems(str(folder), [f"unexpected: {name} {list(checkpoint.tensors[name].shape)}" for name in unknown])
    if is_tied(config) and {"head.weight", "embed.weight"} <= names.keys():
        _check_tied(checkpoint, names["embed.weight"], names["head.weight"])
    tensors = {ours: checkpoint.tensors[theirs] for ours, theirs in names.items()}
    handles: dict[Path, Callable[[str], Tensor]] = {}

    def read(name: str) -> Tensor:
        path = checkpoint.files[names[name]]
        if path not in handles:
            handles.clear()  # one mapped file at a time
            handles[path] = open_tensors(path)
        return handles[path](names[name])[:]

    stored = {SAFETENSORS_DTYPES[info.dtype] for info in tensors.values()}
    dtype = stored.pop() if len(stored) == 1 else read_dtype(folder) or torch.float32
    return Source(
        "Hugging Face folder",
        folder,
        config,
        tensors,
        dtype,
        read,
        functools.partial(copy_tokenizer, folder),
        read_token_ids(folder),
    )
