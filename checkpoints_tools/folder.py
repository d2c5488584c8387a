"""A Hugging Face checkpoint folder: is it complete, which tensors does it hold, and how is one of them read?

`check_folder` checks the files and lists the tensors under their stored names. `open_hf` opens the folder as a `Source`
with our names. Weights are safetensors or, if there are none, PyTorch's older ``pytorch_model.bin``. Both are
memory-mapped, so that reading a slice of a tensor reads only that slice. In ``.bin`` files from before PyTorch 1.6
storages are not aligned: these are read completely. `safetensors_header` and `torch_files` check the files' own words.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec import Struct
from safetensors import safe_open

from checkpoints_tools.architectures import ARCHITECTURES, ModelConfig, architecture_of, as_family
from checkpoints_tools.carried import read_carried
from checkpoints_tools.checked_tensors import CheckedTensors
from checkpoints_tools.checksums import CheckedFile, check_small_files, checked_file, read_checksums
from checkpoints_tools.formats import GGUF_NAMES, is_file_name
from checkpoints_tools.hf_config import read_config, read_dtype, read_token_ids
from checkpoints_tools.key_maps import Matched, is_rotary
from checkpoints_tools.other_folders import describe, describe_adapter, is_of_a_run
from checkpoints_tools.registry import ModelSpec
from checkpoints_tools.safetensors_header import read_header
from checkpoints_tools.source import (
    SAFETENSORS_DTYPES,
    Slices,
    Source,
    TensorInfo,
    check_dtypes,
    dtype_name,
    raise_problems,
)
from checkpoints_tools.tokenizer_files import copy_tokenizer
from checkpoints_tools.torch_files import load_tensors
from data.errors import UserError
from data.files import limits
from data.files.documents import read_json
from data.files.listing import files_found

log = logging.getLogger(__name__)

# Of each format: suffix of its files, name of a single file, name of the index of several files.
SAFETENSORS = ("safetensors", "model.safetensors", "model.safetensors.index.json")
BIN = ("bin", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Counters that old versions of transformers stored like weights; they are never read.
COUNTERS = ("embeddings.position_ids", "embeddings.token_type_ids")


class _Index(Struct):
    """An index: stored tensor name → file."""

    weight_map: dict[str, str] = {}


@dataclass(frozen=True)
class Folder:
    """A checked Hugging Face folder: stored tensor name → shape and dtype, and → file."""

    path: Path
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]


def check_folder(folder: Path | str, spec: ModelSpec | None = None) -> Folder:
    """Check that a Hugging Face folder exists and is complete; reads names and sizes, no weights.

    Args:
        folder: holds config.json and safetensors (or pytorch_model.bin).
        spec: the model to load; used only to say in messages where to get its weights.

    Returns:
        the folder's tensors.

    Raises:
        UserError: no such folder; no config.json; files missing, empty, truncated or git-lfs pointers. The message
            names all damaged files and says how to get them. Or a file differs from the folder's checksums.
    """
    folder = Path(folder)
    others = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    if any(folder.glob(GGUF_NAMES)) and not others:
        raise UserError(
            f"{folder} holds a GGUF file; convert it first: python -m checkpoints_tools.convert {folder} NEW_FOLDER"
        )
    if not (folder / "config.json").is_file():
        raise UserError(_no_checkpoint(folder, spec))
    check_small_files(folder)
    how = how_to_complete(folder, spec)
    paths, index = _weight_files(folder, how)
    sums = read_checksums(folder)
    for path in paths:
        if path.name in sums:
            CheckedFile(path, sums[path.name]).check(0, 1)  # the header, and the size
    headers: dict[Path, dict[str, TensorInfo]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            headers[path] = read_header(path) if path.suffix == ".safetensors" else _read_bin_header(path)
        except UserError as error:
            problems.append(str(error))
    if problems:
        listing = "\n".join(f"  - {p}" for p in problems)
        raise UserError(f"{folder} is not a complete checkpoint:\n{listing}\n{how}")
    listed = read_json(folder / index, _Index).weight_map if index is not None else {}
    files = _file_of_each(folder, headers, listed)
    raise_problems(
        str(folder),
        [f"{index} lists {name}, but {listed[name]} lacks it" for name in listed if name not in files],
    )
    tensors = {name: headers[path][name] for name, path in files.items()}
    check_dtypes(folder, {name: info for name, info in tensors.items() if not _is_unread(name)})
    return Folder(folder, tensors, files)


def _is_unread(name: str) -> bool:
    return name.endswith(COUNTERS) or is_rotary(name)


def _file_of_each(folder: Path, headers: dict[Path, dict[str, TensorInfo]], listed: dict[str, str]) -> dict[str, Path]:
    """The file to read each tensor from; of several, the one that the index lists. (transformers reads the last.)

    Raises:
        UserError: several files have a tensor, and the index lists none of them.
    """
    holders: dict[str, list[Path]] = {}
    for path, header in headers.items():
        for name in header:
            holders.setdefault(name, []).append(path)
    several = {name: paths for name, paths in holders.items() if len(paths) > 1 and not _is_unread(name)}
    by_index = {name: folder / file for name, file in listed.items() if folder / file in holders.get(name, ())}
    raise_problems(
        str(folder),
        [
            f"{' and '.join(path.name for path in paths)} have {name}; remove the wrong one"
            for name, paths in several.items()
            if name not in by_index
        ],
    )
    if several:
        name, places = next(iter(several.items()))
        log.warning("warning: %s: %d tensor(s) are in several files, such as %s in %s; reading those that the index "
                    "lists.", folder, len(several), name, " and ".join(path.name for path in places))  # fmt: skip
    return {name: by_index.get(name, paths[0]) for name, paths in holders.items()}


def _no_checkpoint(folder: Path, spec: ModelSpec | None) -> str:
    """The message for a path without a config.json. It advises a download only into a new or an empty folder."""
    what = describe(folder)
    if what is not None:
        return f"{what}."
    how_to_fill = how_to_get(folder, spec)
    if is_of_a_run(folder):
        how_to_fill = "A training writes a folder of this name; a download there would be taken for what was trained."
    if folder.is_dir():
        if not any(folder.iterdir()):
            return f"{folder} is empty.\n{how_to_fill}"
        weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
        how = f"\n{how_to_complete(folder, spec)}" if weights else ""
        return f"{folder} has no config.json, so it is not a checkpoint folder; it holds {files_found(folder)}.{how}"
    around = folder.absolute().parent
    beside = sorted(
        str(p.parent) for name in ("config", "params") for p in around.glob(f"*/{name}.json") if p.is_file()
    )
    found = f" Checkpoints beside it: {', '.join(beside)}." if beside else ""
    if any(is_of_a_run(Path(other)) for other in beside) and not is_of_a_run(folder):
        how_to_fill = "A run wrote one of these: is the name misspelt?"
    return f"no checkpoint folder {folder}.{found}\n{how_to_fill}"


def how_to_get(folder: Path | str, spec: ModelSpec | None = None) -> str:
    """How to download the weights of a model, in at most two lines; Llama's are gated by a licence."""
    download = (spec.architecture if spec is not None else ARCHITECTURES["llama"]).download
    is_preset = spec is not None and bool(spec.hf_repo)
    repo = spec.hf_repo if spec is not None and is_preset else download.repo
    gate = (
        f"Llama's weights are gated: accept the licence at https://huggingface.co/{repo}, then `hf auth login`.\n"
        if repo.startswith("meta-llama/")
        else ""
    )
    example = "" if is_preset else ", for example"
    return f"{gate}To download{example}{download.which}: hf download {repo} {download.options} --local-dir {folder}"


def how_to_complete(folder: Path | str, spec: ModelSpec | None = None) -> str:
    """How to get the files that an existing folder lacks. Only a preset's repository is known."""
    if spec is not None and spec.hf_repo:
        return how_to_get(folder, spec)
    return f"To complete it, from the repository that it came from: hf download REPOSITORY --local-dir {folder}"


def _weight_files(folder: Path, how: str) -> tuple[list[Path], str | None]:
    """The weight files of the checkpoint, and the name of their index if they have one.

    A whole file beside an index is the checkpoint, as for transformers: the index may be of older files.

    Raises:
        UserError: files are missing (they are named), or belong to different checkpoints.
    """
    partial = sorted(folder.glob(".cache/huggingface/download/*.incomplete"))
    note = f" ({len(partial)} unfinished downloads in {partial[0].parent})" if partial else ""
    ending, single, index = BIN if _is_bin(folder) else SAFETENSORS
    pattern = "pytorch_model*.bin" if ending == "bin" else "*.safetensors"
    there = sorted(path.name for path in folder.glob(pattern) if not path.name.startswith("adapter_model."))
    if (adapter := describe_adapter(folder, bool(there or [*folder.glob("pytorch_model*.bin")]))) is not None:
        raise UserError(f"{adapter}.")
    numbered = [m for name in there if (m := re.fullmatch(rf"(.+)-(\d+)-of-(\d+)\.{ending}", name))]
    has_index = (folder / index).is_file()
    wanted = sorted(set(read_json(folder / index, _Index).weight_map.values())) if has_index else []
    if elsewhere := [name for name in wanted if not is_file_name(name)]:
        raise UserError(f"{folder / index} lists {elsewhere[0][:100]!r}, which is not the name of a file beside it.")
    if single in there and wanted != [single]:
        if has_index:
            log.warning("warning: %s: reading %s, not the files that %s lists.", folder, single, index)
        wanted, has_index = [single], False
    elif has_index:
        if not wanted:
            raise UserError(f"{folder / index} lists no files: it is damaged.\n{how}")
    elif numbered:  # there is no index, but the file names say how many there must be
        sets = sorted({(m[1], m[3], len(m[2])) for m in numbered})
        if len(sets) > 1:
            listed = " and ".join(f"{stem}-*-of-{total}.{ending}" for stem, total, _ in sets)
            raise UserError(f"{folder} holds files of {len(sets)} checkpoints and no {index}: {listed}. Keep one.")
        stem, total, width = sets[0]
        if int(total) > limits.WEIGHT_FILES:
            raise UserError(
                f"{folder}: {there[0]} is one of {int(total):,} files; the limit is {limits.WEIGHT_FILES:,}."
            )
        wanted = [f"{stem}-{k:0{width}d}-of-{total}.{ending}" for k in range(1, int(total) + 1)]
    elif len(there) == 1:
        wanted = there
    else:
        others = any(folder.glob("*.bin"))
        hint = " (it has .bin files, none of which is called pytorch_model.bin)" if others else ""
        found = f"{len(there)} unrelated {ending} files" if there else "no safetensors file"
        raise UserError(f"{folder} has {found}{hint}{note}.\n{how}")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        names = files_found(folder, missing[:8] + ["..."] * (len(missing) > 8))
        raise UserError(
            f"{folder} is incomplete: {len(missing)} of its {len(wanted)} weight files are missing: {names}{note}."
            f"\n{how}"
        )
    return [folder / name for name in wanted], index if has_index else None


def _is_bin(folder: Path) -> bool:
    """Whether the weights are in PyTorch's files: these are there and no safetensors are, nor still to come."""
    if any(folder.glob("*.safetensors")) or not any(folder.glob("pytorch_model*.bin*")):  # other .bin: trainers' states
        return False
    if not (folder / SAFETENSORS[2]).is_file():
        return True
    whole = (folder / BIN[1]).is_file()
    if whole:
        log.warning("warning: %s: reading %s; no file that %s lists is there.", folder, BIN[1], SAFETENSORS[2])
    return whole


def open_hf(folder: Path | str, spec: ModelSpec | None = None, wanted: ModelConfig | None = None) -> Source:
    """Open a Hugging Face folder as a `Source`.

    Args:
        spec: the model to load; messages say where to get its weights.
        wanted: config of the model to fill, with whose heads the folder's are matched. None: the folder's config. The
            folder's config becomes one of the architecture of either, if that can start from such a folder.

    Raises:
        UserError: see `check_folder` and `read_config`; or the folder's heads do not fit those of ``wanted``.
    """
    checkpoint = check_folder(folder, spec)
    config = read_config(folder)
    if (model := wanted or spec) is not None:
        config = as_family(config, model.family)
    if wanted is None or wanted.family != config.family:
        wanted = config
    matched = architecture_of(config).match_tensors(checkpoint.tensors, config, wanted, str(folder))
    return _as_source(checkpoint, config, matched)


def _as_source(checkpoint: Folder, config: ModelConfig, matched: Matched) -> Source:
    theirs = matched.names | {name: name for name in matched.unknown}
    ours = {name: own for own, name in theirs.items()}
    tensors = {ours[name]: info for name, info in checkpoint.tensors.items() if name in ours}  # in the files' order
    opened: dict[Path, Callable[[str], Slices]] = {}

    def read(name: str) -> Slices:
        path = checkpoint.files[theirs[name]]
        if path not in opened:
            opened.clear()  # one mapped file at a time
            opened[path] = open_tensors(path)
        return opened[path](theirs[name])

    stored = {SAFETENSORS_DTYPES[info.dtype] for info in tensors.values()}
    dtype = stored.pop() if len(stored) == 1 else read_dtype(checkpoint.path) or torch.float32
    copy = functools.partial(copy_tokenizer, checkpoint.path)
    ids = read_token_ids(checkpoint.path)
    about = matched.fresh, matched.ignored, read_carried(checkpoint.path)
    return Source("Hugging Face folder", checkpoint.path, config, tensors, dtype, read, copy, ids, *about)


def open_tensors(path: Path) -> Callable[[str], Slices]:
    """Open a weight file; return a function: tensor name → object that returns the tensor, or a slice, when indexed.

    Indexing returns a view of the mapped file; nothing is read before the view is copied. (A slice of columns has a few
    bytes of each row. Copying it holds only these in memory but reads nearly every page of the tensor.)

    If the folder has checksums, indexing first checks the chunks of the rows; a ``.bin`` file is checked when it is
    opened, because its tensors are in no particular place.
    """
    checked = checked_file(path)
    if path.suffix == ".safetensors":
        try:
            opened = safe_open(path, framework="pt")
        except Exception as error:  # of the library, which checks the header once more
            raise UserError(f"{path} cannot be read as safetensors ({error}).") from None
        return opened.get_slice if checked is None else CheckedTensors(opened, checked).get_slice
    if checked is not None:
        checked.check()
    return load_tensors(path).__getitem__


def _read_bin_header(path: Path) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(x.shape), dtype_name(x.dtype)) for name, x in load_tensors(path).items()}
