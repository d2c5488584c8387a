"""Read a Llama from a folder in Meta's format: ``params.json`` and ``consolidated.00.pth`` to ``NN.pth``.

Meta trains and publishes its larger models in N "model-parallel" parts (fairscale's layers). Each part holds a slice of
every matrix and a copy of every norm:

    wq wk wv w1 w3 output    split by rows      (column-parallel: each part computes some of the outputs)
    wo w2                    split by columns   (row-parallel: each part reads some of the inputs)
    tok_embeddings           Llama 2: by columns; Llama 3: by rows. The shapes show which.
    norms                    replicated in every part

Query and key rows are interleaved and are reordered to our layout. ``params.json`` says less than a config.json. The
feed-forward width is computed, the vocabulary size is that of the embedding (Llama 2 states -1), and the context length
follows from θ and ``use_scaled_rope``.

Files are memory-mapped: training and scoring read slices from them (`JoinedTensor`). Reading a slice reads only the
parts, rows and columns that it covers.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor

from checkpoints_tools.key_maps import LLAMA_META, rename_all
from checkpoints_tools.llama_config import not_computed
from checkpoints_tools.meta_tokenizer import write_meta_tokenizer
from checkpoints_tools.shapes import Epsilon, Layers, Positive, Theta, Width
from checkpoints_tools.source import (
    Source,
    TensorInfo,
    check_dtypes,
    dtype_name,
    interleaved_to_half,
    name_problems,
    raise_problems,
)
from checkpoints_tools.torch_files import load_tensors
from data.errors import UserError
from data.files import limits
from data.files.documents import fields_of, read_json
from model.llama import LlamaConfig, RopeScaling

log = logging.getLogger(__name__)

# The dimension along which the parts of a tensor are concatenated; None: every part has a copy of it.
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
# Llama 3.1's scaling of rotary frequencies in Meta's code (``use_scaled_rope``).
LLAMA31_SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor in several files that is indexed with slices as if it were one (see `Source.read`).

    Indexing returns a view of a mapped file if one part has the slice in our row order, else a copy of the slice.

    Example: wq of two parts with two heads of four rows each, so rows 0 to 7 are in part 0 and 8 to 15 in part 1. Our
    rows 8 to 11 are head 2 in half layout, which are Meta's rows 8, 10, 9, 11. So ``order[8:12]`` is these numbers, and
    ``[8:12]`` reads rows 0, 2, 1, 3 of part 1.

    Attributes:
        name: for messages.
        parts: in order; memory-mapped.
        dim: dimension of the concatenation; None: every part is a copy of the tensor.
        order: [rows] for each of our rows the row of the concatenated parts, always in the same part; None: identity.
    """

    name: str
    parts: list[Tensor]
    dim: int | None
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self.parts[0].shape)
        if self.dim is not None:
            sizes[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return tuple(sizes)

    def __getitem__(self, where: slice | tuple[slice, ...]) -> Tensor:
        where = where if isinstance(where, tuple) else (where,)
        if self.dim is None:
            first_copy = self.parts[0][where]
            if not all(torch.equal(first_copy, part[where]) for part in self.parts[1:]):
                raise UserError(f"the parts disagree on {self.name}; they are not of one checkpoint")
            return first_copy
        where += (slice(None),) * (self.dim + 1 - len(where))
        begin, end, step = where[self.dim].indices(self.shape[self.dim])
        assert step == 1, where
        pieces, offset = [], 0
        for part in self.parts:
            first, last = max(begin, offset), min(end, offset + part.shape[self.dim])
            if first < last:
                inside = where[: self.dim] + (slice(first - offset, last - offset),) + where[self.dim + 1 :]
                if self.order is None:
                    pieces.append(part[inside])
                else:
                    pieces.append(part[(slice(None), *where[1:])].index_select(0, self.order[first:last] - offset))
            offset += part.shape[self.dim]
        if not pieces:
            return self.parts[0][where[: self.dim] + (slice(0, 0),) + where[self.dim + 1 :]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dim)


def open_meta(folder: Path) -> Source:
    """Open a folder in Meta's format; the parts are memory-mapped, not read.

    The exception is the head: ``params.json`` does not say whether it is tied, so it is compared with the embedding.

    Raises:
        UserError: parts are missing, truncated, or of different checkpoints; files hold more than tensors; numbers
            contradict each other.
    """
    if not (folder / "params.json").is_file():
        raise UserError(f"{folder} has consolidated.*.pth but no params.json; it comes with the same download")
    params = _read_params(folder)
    parts = _load_parts(folder)
    names, unknown = rename_all(list(parts[0]), LLAMA_META)
    raise_problems(str(folder), name_problems(unknown, LLAMA_META))
    for i, part in enumerate(parts[1:], start=1):
        if part.keys() != parts[0].keys():
            odd = sorted(part.keys() ^ parts[0].keys())
            raise UserError(f"{folder}: parts 00 and {i:02d} hold different tensors: {', '.join(odd[:5])}")
    if "embed.weight" not in names:
        raise UserError(f"{folder} has no tok_embeddings.weight: not a complete Llama")

    n = len(parts)
    embed_dim = _embedding_split(folder, params["dim"], parts[0][names["embed.weight"]], n)

    def joined(name: str) -> JoinedTensor:
        dim = embed_dim if name == "embed.weight" else SPLIT_DIM[re.sub(r"^layers\.\d+\.", "", name)]
        return JoinedTensor(f"{names[name]} of {folder}", [part[names[name]] for part in parts], dim)

    tensors = {name: TensorInfo(joined(name).shape, dtype_name(parts[0][names[name]].dtype)) for name in names}
    check_dtypes(folder, tensors)
    tied = "head.weight" not in names or all(
        torch.equal(part[names["head.weight"]], part[names["embed.weight"]]) for part in parts
    )
    config = _config(folder, params, tensors["embed.weight"].shape[0], tied)
    if "layers.0.attention.wq.weight" in tensors:
        rows = tensors["layers.0.attention.wq.weight"].shape[0]
        if rows < config.dim:
            raise UserError(
                f"{folder}: the query matrices of its {n} parts have {rows} rows together, but params.json says dim "
                f"{config.dim}; that makes {config.dim * n / rows:g} parts. Is a consolidated.NN.pth missing?"
            )
    if tied:  # the embedding is enough
        tensors.pop("head.weight", None)
    orders = {
        matrix: interleaved_to_half(torch.arange(n_heads * config.head_dim)[:, None], n_heads).flatten()
        for matrix, n_heads in (("wq", config.n_heads), ("wk", config.n_kv_heads))
    }
    split_heads = [
        theirs
        for ours, theirs in names.items()
        if ours.split(".")[-2] in orders and any(part[theirs].shape[0] % config.head_dim for part in parts)
    ]
    if split_heads:
        raise UserError(
            f"{folder}: its {n} parts split heads of width {config.head_dim}, so their rows cannot be reordered: "
            f"{', '.join(split_heads[:5])}"
        )

    def read(name: str) -> JoinedTensor:
        return dataclasses.replace(joined(name), order=orders.get(name.split(".")[-2]))

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
    if max(found) >= limits.WEIGHT_FILES:
        raise UserError(f"{found[max(found)]} is one of more than {limits.WEIGHT_FILES:,} parts, the limit.")
    missing = sorted(set(range(max(found) + 1)) - found.keys())
    if missing:
        names = ", ".join(f"consolidated.{i:02d}.pth" for i in missing)
        raise UserError(f"{folder} is incomplete: {names} missing, but consolidated.{max(found):02d}.pth exists")
    return [found[i] for i in sorted(found)]


def _load_parts(folder: Path) -> list[dict[str, Tensor]]:
    """The tensors of each part; UserError naming every part that cannot be read."""
    parts, problems = [], []
    for path in _part_files(folder):
        try:
            parts.append(load_tensors(path))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return parts


def _embedding_split(folder: Path, dim: int, part: Tensor, n: int) -> int | None:
    """By which dimension the embedding is split over ``n`` parts: 0 (rows, Llama 3), 1 (columns, Llama 2) or None."""
    if part.ndim != 2:
        raise UserError(f"{folder}: tok_embeddings.weight has the shape {list(part.shape)}; it must be a matrix.")
    rows, columns = part.shape
    if n == 1:
        return None
    if columns == dim:
        return 0
    if columns * n == dim:
        return 1
    raise UserError(
        f"{folder}: tok_embeddings.weight is [{rows}, {columns}] in each of {n} parts, which does not fit dim {dim}, "
        "split by rows or by columns. Is a consolidated.NN.pth missing?"
    )


class ParamsFile(Struct):
    """What is read of a ``params.json``; this file's docstring lists what it does not state."""

    dim: Width
    n_layers: Layers
    n_heads: Width
    n_kv_heads: Width | None = None
    vocab_size: int = -1
    norm_eps: Epsilon = 1e-5
    rope_theta: Theta = 10_000.0
    multiple_of: Width = 256
    ffn_dim_multiplier: Positive | None = None
    use_scaled_rope: bool = False


def _read_params(folder: Path) -> dict[str, Any]:
    """The values of `ParamsFile`, or one UserError with all that is wrong with them."""
    path = folder / "params.json"
    raw = read_json(path)
    values, problems = fields_of(raw, ParamsFile)
    dim, n_heads = values.get("dim", 0), values.get("n_heads", 0)  # 0: it is wrong
    n_kv_heads = values.get("n_kv_heads") or n_heads
    if n_heads and (dim % n_heads or n_heads % n_kv_heads):
        problems.append(f"dim {dim}, n_heads {n_heads} and n_kv_heads {n_kv_heads} do not divide")
    elif n_heads and dim // n_heads % 2:
        problems.append(f"dim {dim} and n_heads {n_heads} make heads of width {dim // n_heads}; it must be even")
    for key in ("vision_model", "quantization_args", "lora_args", "moe"):
        if raw.get(key):
            problems.append(f"it has {key}; this code runs Llama 2 and 3 without it")
    problems += not_computed(raw, dim // n_heads if n_heads else 0, _context(values))
    if not problems:
        multiple_of, multiplier = values["multiple_of"], values["ffn_dim_multiplier"]
        values |= {"n_kv_heads": n_kv_heads, "ffn_dim": ffn_width(dim, multiple_of, multiplier)}
        if not 1 <= values["ffn_dim"] <= limits.WIDTH:
            problems.append(
                f"dim {dim}, multiple_of {multiple_of} and ffn_dim_multiplier {multiplier} make a feed-forward width "
                f"of {values['ffn_dim']:,}; it must be from 1 to {limits.WIDTH:,}"
            )
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return values


def _config(folder: Path, params: dict[str, Any], vocab_size: int, tied: bool) -> LlamaConfig:
    """The config of a folder, from the values of its ``params.json`` and what its tensors show."""
    stated, scaled = params["vocab_size"], params["use_scaled_rope"]
    if stated not in (-1, vocab_size):
        raise UserError(f"{folder}/params.json: vocab_size is {stated}, but the embedding has {vocab_size} rows")
    if scaled and tied:
        log.warning(
            "%s: rotary frequencies are scaled by %g, as in Meta's code; Hugging Face's Llama 3.2 uses 32",
            folder,
            LLAMA31_SCALING.factor,
        )
    return LlamaConfig(
        **{key: params[key] for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "norm_eps")},
        vocab_size=vocab_size,
        rope_theta=params["rope_theta"],
        rope_scaling=LLAMA31_SCALING if scaled else None,
        max_position=_context(params),
        tie_embeddings=tied,
    )


def _context(params: dict[str, Any]) -> int:
    """The context length, which ``params.json`` does not state."""
    if params.get("use_scaled_rope"):
        return 131_072
    return 8192 if params.get("rope_theta", 0) >= 500_000 else 4096


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's rule: two thirds of 4·dim, times ``multiplier`` (Llama 2 70B: 1.3), rounded up to ``multiple_of``."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of
