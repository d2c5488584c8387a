"""Load a checkpoint folder into a model: every rank reads only its own slice of each tensor from disk.

The folder is Hugging Face's or Meta's (`open_checkpoint`). `check_fits_preset` checks that its config is the named
model's; `load_pretrained` fills a model that may be sharded.

While a rank loads, its memory holds its part of the model and at most a slice of one tensor. Files are memory-mapped.
Their pages are in the system's page cache, which all ranks of a machine share and which the system frees when memory is
short.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from checkpoints_tools.architectures import ModelConfig, Tokenizer, architecture_of, config_of
from checkpoints_tools.folder import open_hf
from checkpoints_tools.formats import is_meta_folder
from checkpoints_tools.hf_config import differences
from checkpoints_tools.key_maps import template
from checkpoints_tools.meta_pth import open_meta
from checkpoints_tools.progress import ByteProgress
from checkpoints_tools.registry import MODELS, ModelSpec
from checkpoints_tools.slices import local_slice
from checkpoints_tools.source import (
    SAFETENSORS_DTYPES,
    Slices,
    Source,
    check_source,
    check_tied,
    expected_shapes,
    find_problems,
    raise_problems,
)
from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from data.errors import UserError
from model.meta import allocate, meta_device

log = logging.getLogger(__name__)

# Bytes of a parameter to copy at once: they fit a processor's cache and are much less than a large model's tensors.
COPY_BYTES = 4_000_000
# What wrappers add to parameter names (activation checkpointing, torch.compile).
_WRAPPERS = re.compile(r"_checkpoint_wrapped_module\.|_orig_mod\.")


def open_checkpoint(folder: Path | str, spec: ModelSpec | None = None, wanted: ModelConfig | None = None) -> Source:
    """Open and check a folder for training or scoring: Hugging Face's, or a Llama in Meta's format.

    Reads names, sizes and config, no weights.

    Args:
        spec, wanted: see `open_hf`.

    Raises:
        UserError: see `open_hf` and `open_meta`; or tensors are missing, unexpected, or do not fit ``config.json`` or
            ``params.json``. (Of an encoder without ``wanted``: missing or misshapen below the heads.)
    """
    if is_meta_folder(Path(folder)):
        refuse_meta(folder, spec)
        source = open_meta(Path(folder))
    else:
        source = open_hf(Path(folder), spec, wanted)
    if not architecture_of(source.config).task_decides_heads:
        check_source(source)
    elif wanted is None:  # the task's heads decide which other tensors it needs; `load_pretrained` checks these
        body = expected_shapes(replace(cast(Any, source.config), heads=()))
        raise_problems(str(folder), [p for p in find_problems(source, body) if not p.startswith("unexpected")])
    return source


def refuse_meta(folder: Path | str, spec: ModelSpec | None) -> None:
    """Raise UserError for a folder in Meta's format for a decoder with heads."""
    if spec is not None and spec.architecture.is_decoder_with_heads:
        raise UserError(
            f"{folder} is in Meta's format, which --model {spec.name} does not read. Convert it first: "
            f"python -m checkpoints_tools.convert {folder} NEW_FOLDER"
        )


def check_family(config: ModelConfig, spec: ModelSpec, folder: Path | str) -> None:
    """Raise UserError if a checkpoint has another architecture than the model.

    Call this before opening the tokenizer, whose error would only mention a file format.
    """
    if config.family != spec.family:
        raise UserError(
            f"{folder} holds a model of the '{config.family}' architecture, --model {spec.name} is of "
            f"'{spec.family}'. --model {config.family} takes any checkpoint of the '{config.family}' architecture."
        )


def preset_of(config: ModelConfig) -> str:
    """The ``--model`` of a checkpoint: the first preset with its numbers, else its architecture."""
    presets = [spec for spec in MODELS.values() if isinstance(spec, ModelSpec) and spec.config is not None]
    fits = (spec.name for spec in presets if spec.family == config.family and not _mismatches(config, spec))
    return next(fits, config.family)


def _mismatches(config: ModelConfig, spec: ModelSpec) -> list[str]:
    """In what a checkpoint differs from a preset where it must not; nothing if the preset has no config."""
    ignore: tuple[str, ...] = ("max_position",)
    ignore += ("vocab_size",) if spec.recipe.endswith("debug") else ()
    ignore += spec.architecture.free_fields
    return differences(config, spec.config, ignore=ignore) if spec.config is not None else []


def check_fits_preset(
    config: ModelConfig,
    tokenizer: Tokenizer,
    spec: ModelSpec,
    folder: Path | str,
    allow_mismatch: bool | None = False,
) -> None:
    """Check that a checkpoint is the named model and that its tokenizer belongs to it.

    Three things may differ from the preset: ``max_position``; a debug model's vocabulary, which is that of its
    tokenizer; and the architecture's ``free_fields``, such as an encoder's heads and dropout.

    Args:
        config: the checkpoint's config.
        tokenizer: the checkpoint's tokenizer; it may have fewer tokens than the model, not more, except for a decoder's
            padding token, which fine-tuning elsewhere often adds.
        spec: the preset; one without a config accepts any checkpoint of its architecture.
        folder: for messages.
        allow_mismatch: accept a checkpoint whose config differs from the preset's; None: there is no such option.

    Raises:
        UserError: another architecture (also with ``allow_mismatch``); numbers that differ, all of them named; or a
            tokenizer with more tokens than the embedding.
    """
    check_family(config, spec, folder)
    found = _mismatches(config, spec)
    if found and not allow_mismatch:
        other = "" if allow_mismatch is None else ", or give --allow_mismatch to take the checkpoint's own numbers"
        raise UserError(
            f"{folder} holds another model than --model {spec.name}: {'; '.join(found)}. "
            f"Name the model that fits{other}."
        )
    if tokenizer.vocab_size > config.vocab_size and _only_padding_is_beyond(config, tokenizer, spec):
        log.warning("warning: %s: the tokenizer's padding token (id %d) is beyond the model's embedding of %d tokens. "
                    "It is never used.", folder, config.vocab_size, config.vocab_size)  # fmt: skip
    elif tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model's embedding only "
            f"{config.vocab_size:,}. Are these files of two checkpoints?"
        )
    spec.architecture.check_tokenizer(config, tokenizer, folder)


def _only_padding_is_beyond(config: ModelConfig, tokenizer: Tokenizer, spec: ModelSpec) -> bool:
    """Whether the one token without an embedding is a padding token. Encoders need theirs, decoders pad by position."""
    beyond = config.vocab_size
    tokenizer = getattr(tokenizer, "decoder", tokenizer)  # of a decoder with heads
    if isinstance(tokenizer, EncoderTokenizer) or tokenizer.vocab_size != beyond + 1:
        return False
    others = (getattr(tokenizer, name, None) for name in ("bos_id", "eos_id"))
    return getattr(tokenizer, "pad_id", None) == beyond and beyond not in others


def clean_name(name: str) -> str:
    """A parameter's name without the prefixes of activation checkpointing and torch.compile."""
    return _WRAPPERS.sub("", name)


def load_pretrained(
    model: nn.Module,
    folder: Path | str,
    spec: ModelSpec | None = None,
    *,
    check_config: bool = True,
    seed: int = 0,
) -> list[str]:
    """Fill a model's parameters from a checkpoint folder, cast to the parameters' dtype.

    Every rank calls this with the same folder; there is no communication. Of a sharded parameter (a DTensor of FSDP2 or
    tensor parallelism) a rank reads only its own slice. So it never holds more than a slice of one tensor beside the
    model.

    An encoder's heads are read if the folder has heads for the same fields; the others are initialized from ``seed``.
    The log lists the initialized parameters and the tensors that were not read.

    Args:
        model: our module with allocated parameters (``to_empty``), sharded or not.
        folder: see `open_checkpoint`.
        spec: the model to load, for messages.
        check_config: also compare the configs: the shapes alone do not show another rope_theta. Only
            `Architecture.free_fields` may differ.
        seed: for new heads, which are the same on any number of ranks.

    Returns:
        The names of the parameters that the folder does not have: new heads.

    Raises:
        UserError: a bad folder; missing, unexpected or misshapen tensors (all are named); heads for the same fields
            with other sizes; or, on the ranks that see it, a tied head that differs from the embedding.
    """
    start = time.perf_counter()
    config, parameters = config_of(model), {clean_name(name): p for name, p in model.named_parameters()}
    source = open_checkpoint(folder, spec, config)
    if check_config or source.config.family != config.family:
        lines = differences(source.config, config, architecture_of(config).free_fields)
        if lines:
            raise UserError(f"{folder} holds another model than the one to load: {'; '.join(lines)}")
    fresh = {name: p for name, p in parameters.items() if name.startswith(source.fresh)}
    expected = {name: tuple(p.shape) for name, p in parameters.items() if name not in fresh}
    raise_problems(str(folder), find_problems(source, expected))
    if config.tie_embeddings:
        check_tied(source, local_slice(parameters["embed.weight"])[1][0])

    is_main = os.environ.get("RANK", "0") == "0"
    places = {name: local_slice(parameters[name]) for name in source.tensors if name in parameters}
    sizes = {
        name: local.numel() * SAFETENSORS_DTYPES[source.tensors[name].dtype].itemsize
        for name, (local, _) in places.items()
    }
    with ByteProgress("loading weights", sum(sizes.values()), show=is_main) as progress:
        for name, (local, where) in places.items():
            if sizes[name]:
                fill(local, source.read(name), where)
                progress.advance(sizes[name])
    initialized = _fresh_weights(config, seed) if fresh else {}
    for name, parameter in fresh.items():
        local, where = local_slice(parameter)
        fill(local, initialized[name], where)
    if is_main:
        if source.ignored:
            listed = dict.fromkeys(template(re.sub(r"\.(weight|bias)$", "", name)) for name in source.ignored)
            log.info("not read, because the model does not use it: %s of %s", ", ".join(sorted(listed)), folder)
        if fresh:
            log.info("fresh weights, because %s has none: %s", folder, ", ".join(fresh))
        seconds, gb = time.perf_counter() - start, sum(sizes.values()) / 1e9
        log.info("loaded %s: %.2f GB read in %.1f s (%.2f s/GB)", folder, gb, seconds, seconds / gb)
    return list(fresh)


def _fresh_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Parameter name → initial weights, for heads and pooler; they depend only on the seed."""
    with meta_device():  # so that the constructor draws nothing from the global random state
        top = architecture_of(config).build(replace(config, n_layers=0, vocab_size=1, max_position=1))
    allocate(top, torch.device("cpu"))
    assert callable(top.init_weights)
    top.init_weights(torch.Generator().manual_seed(seed))
    return {name: p.detach() for name, p in top.named_parameters()}


@torch.no_grad()
def fill(local: Tensor, stored: Slices, where: tuple[slice, ...]) -> None:
    """Copy a slice of a stored tensor into a parameter's local part and cast it, some rows at a time.

    Rows that are joined from several files or reordered are copied first, and a GPU needs space to cast rows:
    `COPY_BYTES` bounds both.
    """
    assert not local.is_meta, "materialize the model (to_empty) before loading"
    n_rows = max(1, COPY_BYTES * len(local) // max(1, local.numel() * local.element_size()))
    for begin in range(0, len(local), n_rows):
        end = min(begin + n_rows, len(local))
        piece = stored[slice(where[0].start + begin, where[0].start + end), *where[1:]]
        if local.is_cuda:
            piece = piece.to(
                local.device
            )  # sent in the stored dtype and cast on the GPU: half the bytes for bf16 to fp32
        local[begin:end].copy_(piece)
