"""From a Hugging Face folder into a model: every rank reads only its own slice of each tensor, straight from disk.

`check_folder` looks at names and sizes only and says what is wrong with a folder before anything else starts;
`check_fits_preset` says whether it is the model it is called by; `load_pretrained` fills a model; `open_hf` is the same
folder as a `Source`, for conversion and inspection.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import struct
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import track
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from checkpoints_tools.hf_config import differences, read_config, read_dtype, read_json, read_token_ids
from checkpoints_tools.key_maps import LLAMA_HF, rename_all
from checkpoints_tools.source import Source, TensorInfo, compare_tensors, raise_problems
from checkpoints_tools.tokenizer_files import copy_tokenizer
from data.errors import UserError

if TYPE_CHECKING:
    from data.tokenizer import Tokenizer
    from model import ModelSpec
    from model.llama import LlamaConfig

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# What wrappers put into parameter names (activation checkpointing, torch.compile).
_WRAPPERS = re.compile(r"_checkpoint_wrapped_module\.|_orig_mod\.")


@dataclass(frozen=True)
class Folder:
    """A checked Hugging Face folder: their tensor name → what is stored, and in which file."""

    path: Path
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]

    @property
    def n_bytes(self) -> int:
        return sum(file.stat().st_size for file in set(self.files.values()))


def check_folder(folder: Path | str, spec: ModelSpec | None = None) -> Folder:
    """Check that a Hugging Face folder is there and whole; reads names and sizes, no weights.

    Args:
        folder: holds config.json and safetensors.
        spec: whose weights are wanted; only makes the message say where to get them.

    Returns:
        what the folder holds.

    Raises:
        UserError: no such folder, no config.json, shards missing, empty or truncated, pointers instead of files.
            All damaged files are named at once, with how to get them.
    """
    folder = Path(folder)
    how = how_to_get(folder, spec)
    if not folder.is_dir():
        beside = sorted(str(p.parent) for p in folder.absolute().parent.glob("*/config.json"))
        found = f" Checkpoints beside it: {', '.join(beside)}." if beside else ""
        raise UserError(f"no checkpoint folder {folder}.{found}\n{how}")
    _refuse_other_formats(folder)
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
        raise UserError(f"{folder} has no config.json, so it is no checkpoint folder; it holds {there}.\n{how}")
    paths = _weight_files(folder, how)
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    problems: list[str] = []
    for path in paths:
        try:
            header = read_header(path)
        except UserError as error:
            problems.append(str(error))
            continue
        tensors |= header
        files |= dict.fromkeys(header, path)
    if problems:
        raise UserError(f"{folder} is not a whole checkpoint:\n" + "\n".join(f"  - {p}" for p in problems) + f"\n{how}")
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX)["weight_map"]
        raise_problems(
            str(folder), [f"{INDEX} lists {name}, {listed[name]} lacks it" for name in listed if name not in files]
        )
    kinds = sorted({info.dtype for info in tensors.values()} - SAFETENSORS_DTYPES.keys())
    if kinds:
        raise UserError(f"{folder} stores weights as {', '.join(kinds)}; full fine-tuning needs F32, BF16 or F16")
    return Folder(folder, tensors, files)


def check_fits_preset(
    config: LlamaConfig, tokenizer: Tokenizer, spec: ModelSpec, folder: Path | str, allow_mismatch: bool = False
) -> None:
    """Check that a checkpoint is the model it is called by, and that its tokenizer belongs to it.

    Args:
        config: the checkpoint's own numbers; ``max_position`` may differ from the preset's, and for debug models, which
            take the vocabulary of whatever tokenizer they are trained with, the vocabulary.
        tokenizer: its tokenizer; it may know fewer tokens than the model, not more.
        spec: the preset; one without numbers is whatever the checkpoint is.
        folder: for messages.
        allow_mismatch: take the checkpoint's numbers even where they differ from the preset's.

    Raises:
        UserError: names every number that differs, or both vocabularies.
    """
    ignore = ("max_position", "vocab_size") if spec.recipe == "debug" else ("max_position",)
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


def how_to_get(folder: Path | str, spec: ModelSpec | None = None) -> str:
    """How to download the weights of a model, in two lines; Llama's own are gated behind a licence."""
    repo = spec.hf_repo if spec is not None and spec.hf_repo else "meta-llama/Meta-Llama-3-8B-Instruct"
    gate = (
        f"Llama's weights are gated: accept the licence at https://huggingface.co/{repo}, then `hf auth login`.\n"
        if repo.startswith("meta-llama/")
        else ""
    )
    return f"{gate}To download (an Instruct variant): hf download {repo} --exclude 'original/*' --local-dir {folder}"


def _refuse_other_formats(folder: Path) -> None:
    kind = None
    if not any(folder.glob("*.safetensors")):
        if (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth")):
            kind = "a checkpoint in Meta's own format"
        elif any(folder.glob("*.gguf")):
            kind = "a GGUF file"
    if kind:
        raise UserError(
            f"{folder} holds {kind}; convert it first: python -m checkpoints_tools.convert {folder} NEW_FOLDER"
        )


def _weight_files(folder: Path, how: str) -> list[Path]:
    """The safetensors files that make up the checkpoint; UserError naming those that are missing."""
    partial = sorted(folder.glob(".cache/huggingface/download/*.incomplete"))
    note = f" ({len(partial)} unfinished downloads lie in {partial[0].parent})" if partial else ""
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    numbered = [m for name in there if (m := re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", name))]
    if (folder / INDEX).is_file():
        wanted = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        if not wanted:
            raise UserError(f"{folder / INDEX} lists no files: it is damaged.\n{how}")
    elif "model.safetensors" in there:
        wanted = ["model.safetensors"]
    elif numbered:  # without the index we can still tell whether all are there
        stem, width, total = numbered[0][1], len(numbered[0][2]), numbered[0][3]
        wanted = [f"{stem}-{k:0{width}d}-of-{total}.safetensors" for k in range(1, int(total) + 1)]
    elif len(there) == 1:
        wanted = there
    else:
        bins = any(folder.glob("*.bin"))
        hint = " (it has .bin files; get the safetensors of the same repository)" if bins else ""
        found = f"{len(there)} unrelated safetensors files" if there else "no safetensors file"
        raise UserError(f"{folder} has {found}{hint}{note}.\n{how}")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise UserError(
            f"{folder} is half downloaded: {len(missing)} of its {len(wanted)} weight files are missing: {names}{note}."
            f"\n{how}"
        )
    return [folder / name for name in wanted]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes in a safetensors file, checked against the file's size.

    The format: 8 bytes little-endian N, N bytes of JSON, then the data the JSON's offsets point into.

    Raises:
        UserError: empty, a git-lfs pointer, truncated, or not safetensors at all.
    """
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes): the download stopped, or the disk was full")
    with open(path, "rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise UserError(f"{path} is a git-lfs pointer of {size} bytes, not the weights: run `git lfs pull` there")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length < 2 or length > 100_000_000:
            raise UserError(f"{path} is not a safetensors file (it begins with {start!r})")
        if 8 + length > size:
            raise UserError(f"{path} is truncated: its header alone takes {8 + length:,} bytes, the file has {size:,}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = {name: TensorInfo(tuple(x["shape"]), x["dtype"]) for name, x in header.items()}
            end = 8 + length + max((x["data_offsets"][1] for x in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} has a damaged safetensors header ({error!r})") from None
    if end != size:
        what = "truncated" if end > size else "damaged"
        raise UserError(f"{path} is {what}: {size:,} bytes where its header says {end:,}")
    return found


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
) -> None:
    """Fill a model's parameters from a Hugging Face folder, cast to the parameters' own dtype.

    Every rank calls this, with the same folder; there is no communication. Of a sharded parameter (a DTensor, as
    FSDP2 and tensor parallelism make them) a rank reads only its own slice, so at no time does any rank hold more
    than its slice of one tensor beside the model.

    Args:
        model: ours, its parameters allocated (``to_empty``, then ``init_weights`` for the buffers); plain or sharded.
        folder: see `check_folder`.
        spec: whose weights these are, for messages.
        check_config: also demand that ``config.json`` describes the same model: shapes alone would not notice
            another rope_theta. ``max_position`` may differ.
        key_map: our names → the folder's.

    Raises:
        UserError: a bad folder, or tensors missing, unexpected or misshapen (all of them are named).
    """
    start = time.perf_counter()
    checkpoint = check_folder(folder, spec)
    if check_config:
        found = differences(read_config(folder), model.config, ignore=("max_position",))
        if found:
            raise UserError(f"{folder}/config.json describes another model than the one to load: {'; '.join(found)}")
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    names, unknown = rename_all(list(checkpoint.tensors), key_map)
    shapes = {ours: checkpoint.tensors[theirs].shape for ours, theirs in names.items()}
    tied = "head.weight" not in parameters
    problems = [f"unexpected: {name} {list(checkpoint.tensors[name].shape)}" for name in unknown]
    problems += compare_tensors(shapes, {name: tuple(p.shape) for name, p in parameters.items()}, tied)
    raise_problems(str(folder), problems)
    if tied and "head.weight" in names:
        _check_tied(checkpoint, names["embed.weight"], names["head.weight"])

    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in parameters:
        by_file[checkpoint.files[names[name]]].append(name)
    work = [(path, name) for path in sorted(by_file) for name in by_file[path]]
    quiet = int(os.environ.get("RANK", "0")) != 0 or checkpoint.n_bytes < 2e9
    handle, opened = None, None
    n_read = 0
    for path, name in track(work, description="loading weights", disable=quiet):
        if path != opened:
            handle, opened = safe_open(path, framework="pt"), path
        n_read += _fill(parameters[name], handle, names[name])
    seconds = time.perf_counter() - start
    if int(os.environ.get("RANK", "0")) == 0:
        log.info("loaded %s: %.2f GB read in %.1f s (%.2f s/GB)", folder, n_read / 1e9, seconds, seconds / n_read * 1e9)


@torch.no_grad()
def _fill(parameter: Tensor, handle: safe_open, name: str) -> int:
    """Copy a parameter's slice (all of it, unless it is sharded) from an open file; returns the bytes read."""
    local, where = local_slice(parameter)
    assert not local.is_meta, f"{name}: materialize the model (to_empty) before loading"
    if local.numel() == 0:
        return 0
    stored = handle.get_slice(name)[where]
    local.copy_(stored)
    return stored.numel() * stored.element_size()


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
    with safe_open(checkpoint.files[embed], "pt") as a, safe_open(checkpoint.files[head], "pt") as b:
        left, right = a.get_slice(embed), b.get_slice(head)
        for begin in range(0, left.get_shape()[0], rows):
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
    names, unknown = rename_all(list(checkpoint.tensors), LLAMA_HF)
    raise_problems(str(folder), [f"unexpected: {name} {list(checkpoint.tensors[name].shape)}" for name in unknown])
    if config.tie_embeddings and {"head.weight", "embed.weight"} <= names.keys():
        _check_tied(checkpoint, names["embed.weight"], names["head.weight"])
    tensors = {ours: checkpoint.tensors[theirs] for ours, theirs in names.items()}
    handles: dict[Path, safe_open] = {}

    def read(name: str) -> Tensor:
        path = checkpoint.files[names[name]]
        if path not in handles:
            handles.clear()  # one mapped file at a time
            handles[path] = safe_open(path, framework="pt")
        return handles[path].get_tensor(names[name])

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
