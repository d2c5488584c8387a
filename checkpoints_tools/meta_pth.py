"""Reading a Llama from a folder in Meta's own format: ``params.json`` and ``consolidated.00.pth`` to ``NN.pth``.

Meta trains and ships its larger models split over N "model-parallel" parts (fairscale's layers). Each part holds a
slice of every matrix, and all of every norm:

    wq wk wv w1 w3 output    split by rows      (column-parallel: each part computes some of the outputs)
    wo w2                    split by columns   (row-parallel: each part takes some of the inputs)
    tok_embeddings           Llama 2: by columns; Llama 3: by rows. The shapes tell.
    norms                    whole, the same in every part

Query and key rows are in interleaved order and are put into ours. ``params.json`` says less than a config.json: the
feed-forward width is computed, the vocabulary is read off the embedding (-1 in Llama 2), and the context length is
known from the generation only.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_tools.hf_config import read_json
from checkpoints_tools.key_maps import LLAMA_META, rename_all
from checkpoints_tools.meta_tokenizer import write_meta_tokenizer
from checkpoints_tools.source import Source, TensorInfo, interleaved_to_half, raise_problems
from data.errors import UserError
from model.llama import LlamaConfig, RopeScaling

log = logging.getLogger(__name__)

# The dimension along which the parts of a tensor are joined; None: every part holds all of it.
SPLIT_DIM: dict[str, int | None] = {
    "attention_norm.weight": None,
    "attention.wq.weight": 0,
    "attention.wk.weight": 0,
    "attention.wv.weight": 0,
    "attention.wo.weight": 1,
    "ffn_norm.weight": None,
    "ffn.w1.weight": 0,
    "ffn.w3.weight": 0,
    "ffn.w2.weight": 1,
    "norm.weight": None,
    "head.weight": 0,
}
# What Meta's code says Llama 3.1 scales its rotary frequencies by (``use_scaled_rope``).
LLAMA31_SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)


def open_meta(folder: Path) -> Source:
    """Open a folder of Meta's; the parts are mapped, not read.

    Raises:
        UserError: parts missing, truncated or unequal; files with anything but tensors in them; numbers that
            contradict each other.
    """
    if not (folder / "params.json").is_file():
        raise UserError(f"{folder} has consolidated.*.pth but no params.json; it comes with the same download")
    params = read_json(folder / "params.json")
    parts = [_load_part(path) for path in _part_files(folder)]
    names, unknown = rename_all(list(parts[0]), LLAMA_META)
    raise_problems(str(folder), [f"unexpected: {name}" for name in unknown])
    for i, part in enumerate(parts[1:], start=1):
        if part.keys() != parts[0].keys():
            odd = sorted(part.keys() ^ parts[0].keys())
            raise UserError(f"{folder}: parts 00 and {i:02d} hold different tensors: {', '.join(odd[:5])}")
    if "embed.weight" not in names:
        raise UserError(f"{folder} has no tok_embeddings.weight: not a whole Llama")

    n = len(parts)
    embed_dim = _embedding_split(folder, params, parts[0][names["embed.weight"]], n)

    def split_dim(name: str) -> int | None:
        return embed_dim if name == "embed.weight" else SPLIT_DIM[re.sub(r"^layers\.\d+\.", "", name)]

    def shape(name: str) -> tuple[int, ...]:
        sizes = list(parts[0][names[name]].shape)
        dim = split_dim(name)
        if dim is not None:
            sizes[dim] = sum(part[names[name]].shape[dim] for part in parts)
        return tuple(sizes)

    tensors = {name: TensorInfo(shape(name), str(parts[0][names[name]].dtype)[6:]) for name in names}
    tied = "head.weight" not in names or all(
        torch.equal(part[names["head.weight"]], part[names["embed.weight"]]) for part in parts
    )
    config = _read_params(folder, params, tensors["embed.weight"].shape[0], tied)
    if "layers.0.attention.wq.weight" in tensors:
        rows = tensors["layers.0.attention.wq.weight"].shape[0]
        if rows != config.dim:
            raise UserError(
                f"{folder}: its {n} parts of the queries have {rows} rows together, params.json says dim {config.dim}; "
                f"that makes {config.dim * n / rows:g} parts. Is a consolidated.NN.pth missing?"
            )

    def read(name: str) -> Tensor:
        pieces = [part[names[name]] for part in parts]
        dim = split_dim(name)
        if dim is not None:
            whole = torch.cat(pieces, dim) if n > 1 else pieces[0]
        else:
            whole = pieces[0]
            if not all(torch.equal(whole, piece) for piece in pieces[1:]):
                raise UserError(f"{folder}: the parts disagree on {names[name]}; they are not of one checkpoint")
        if name.endswith("attention.wq.weight"):
            return interleaved_to_half(whole, config.n_heads)
        if name.endswith("attention.wk.weight"):
            return interleaved_to_half(whole, config.n_kv_heads)
        return whole

    llama3 = config.vocab_size > 100_000
    ids: dict[str, int | list[int]] = (
        {"bos_token_id": 128_000, "eos_token_id": [128_001, 128_009]}
        if llama3
        else {"bos_token_id": 1, "eos_token_id": 2}
    )

    def write_tokenizer(to: Path) -> None:
        write_meta_tokenizer(folder, to, config.max_position)

    dtype = parts[0][names["embed.weight"]].dtype
    kind = f"Meta folder ({n} part{'s' if n > 1 else ''})"
    return Source(kind, folder, config, tensors, dtype, read, write_tokenizer, ids)


def _part_files(folder: Path) -> list[Path]:
    found = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"consolidated\.(\d+)\.pth", p.name))}
    if not found:
        raise UserError(f"{folder} has params.json but no consolidated.NN.pth: the weights were not downloaded")
    missing = sorted(set(range(max(found) + 1)) - found.keys())
    if missing:
        names = ", ".join(f"consolidated.{i:02d}.pth" for i in missing)
        raise UserError(
            f"{folder} is half downloaded: {names} missing, though consolidated.{max(found):02d}.pth is there"
        )
    return [found[i] for i in sorted(found)]


def _load_part(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} ({path.stat().st_size:,} bytes) is truncated, or not a file of torch.save's")
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} holds more than tensors, which could run code; refused ({reason})") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); download it again") from None
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise UserError(f"{path} is not a table of tensors, as Meta's checkpoints are")
    return found


def _embedding_split(folder: Path, params: dict[str, Any], part: Tensor, n: int) -> int | None:
    """0 (rows, Llama 3) or 1 (columns, Llama 2): how the embedding is split over ``n`` parts; None when it is whole."""
    dim = params.get("dim")
    rows, columns = part.shape
    if n == 1:
        return None
    if columns == dim:
        return 0
    if columns * n == dim:
        return 1
    raise UserError(
        f"{folder}: tok_embeddings.weight is [{rows}, {columns}] in each of {n} parts, which fits dim {dim} "
        "neither split by rows nor by columns. Is a consolidated.NN.pth missing?"
    )


def _read_params(folder: Path, params: dict[str, Any], vocab_size: int, tied: bool) -> LlamaConfig:
    """``params.json`` as a `LlamaConfig`; see the file's docstring for what it leaves out."""
    problems = []
    for key in ("dim", "n_layers", "n_heads"):
        if not isinstance(params.get(key), int) or params[key] < 1:
            problems.append(f"{key} is {params.get(key)!r}; it must be a positive whole number")
    if problems:
        raise UserError(f"{folder}/params.json: " + "; ".join(problems))
    dim, n_heads = params["dim"], params["n_heads"]
    n_kv_heads = params.get("n_kv_heads") or n_heads
    if dim % n_heads or n_heads % n_kv_heads:
        problems.append(f"dim {dim}, n_heads {n_heads} and n_kv_heads {n_kv_heads} do not divide")
    stated = params.get("vocab_size", -1)
    if stated not in (-1, vocab_size):
        problems.append(f"vocab_size is {stated}, the embedding has {vocab_size} rows")
    for key in ("vision_model", "quantization_args", "lora_args", "moe"):
        if params.get(key):
            problems.append(f"it has {key}; this code runs plain Llama 2 and 3")
    if problems:
        raise UserError(f"{folder}/params.json: " + "; ".join(problems))
    theta = float(params.get("rope_theta", 10_000.0))
    scaled = bool(params.get("use_scaled_rope", False))
    if scaled and tied:
        log.warning(
            "%s: rotary frequencies are scaled by %g, as in Meta's code; Hugging Face's Llama 3.2 uses 32",
            folder,
            LLAMA31_SCALING.factor,
        )
    return LlamaConfig(
        dim=dim,
        n_layers=params["n_layers"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=ffn_width(dim, params.get("multiple_of", 256), params.get("ffn_dim_multiplier")),
        vocab_size=vocab_size,
        norm_eps=float(params.get("norm_eps", 1e-5)),
        rope_theta=theta,
        rope_scaling=LLAMA31_SCALING if scaled else None,
        max_position=131_072 if scaled else 8192 if theta >= 500_000 else 4096,
        tie_embeddings=tied,
    )


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's rule: two thirds of 4·dim, times a multiplier (Llama 2 70B: 1.3), rounded up to a multiple."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of
