"""What every checkpoint format is turned into while it is read: a `Source`, in our names and our layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from checkpoints_tools.registry import ModelConfig, architecture_of
from data.errors import UserError


class Slices(Protocol):
    """A stored tensor of which nothing is in memory but what it is indexed for."""

    def __getitem__(self, where: slice | tuple[slice, ...], /) -> torch.Tensor: ...


# What safetensors calls the dtypes that can be fine-tuned.
SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype, as far as we have use for it; else its name in PyTorch."""
    names = {ours: name for name, ours in SAFETENSORS_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor; the dtype as safetensors calls it, or (GGUF) llama.cpp (``"Q4_1"``)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass
class Source:
    """An opened checkpoint, whatever its format. Nothing but metadata is in memory until ``read``.

    Attributes:
        format: what was recognized, for people: "Hugging Face folder", "Meta folder (8 parts)", "GGUF file".
        tensors: our parameter name → what is stored, in the order in which reading is fastest. What is none of the
            architecture's stands under its own name, so that `compare_tensors` calls it unexpected.
        dtype: dtype the weights have, or are unpacked to; what ``--dtype keep`` writes.
        read: our parameter name → what gives the tensor, on the CPU and in our (half-rotation) layout, when indexed
            with slices: ``read(name)[:]`` all of it, ``read(name)[0:8, 4:6]`` no more than that (a GGUF file, which
            has to be unpacked, gives all of it at once).
        write_tokenizer: writes the tokenizer's files and the chat template into a folder.
        token_ids: bos_token_id, eos_token_id, pad_token_id, as far as stated.
        fresh, ignored: see `checkpoints_tools.key_maps.Matched`.
    """

    format: str
    path: Path
    config: ModelConfig
    tensors: dict[str, TensorInfo]
    dtype: torch.dtype
    read: Callable[[str], Slices]
    write_tokenizer: Callable[[Path], None]
    token_ids: dict[str, int | list[int]] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    ignored: list[str] = field(default_factory=list)


@functools.cache
def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameter name → shape, for a model of this config (built on the meta device: costs nothing)."""
    with torch.device("meta"):
        model = architecture_of(config).build(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def compare_tensors(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], tied: bool) -> list[str]:
    """Every missing, unexpected and misshapen tensor, one line each; a tied model may store ``head.weight`` too."""
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    for name, shape in found.items():
        if name not in expected:
            if not (tied and name == "head.weight" and shape == expected["embed.weight"]):
                problems.append(f"unexpected: {name} {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"wrong shape: {name} is {list(shape)}, the config says {list(expected[name])}")
    return problems


def check_dtypes(where: Path, tensors: dict[str, TensorInfo]) -> None:
    """UserError when weights are stored in numbers that cannot be fine-tuned."""
    kinds = sorted({info.dtype for info in tensors.values()} - SAFETENSORS_DTYPES.keys())
    if kinds:
        raise UserError(f"{where} stores weights as {', '.join(kinds)}; full fine-tuning needs F32, BF16 or F16")


def raise_problems(where: str, problems: list[str], limit: int = 20) -> None:
    """Raise one UserError that lists the problems (the first ``limit``), or do nothing when there are none."""
    if problems:
        more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
        lines = "\n".join(f"  - {p}" for p in problems[:limit] + more)
        raise UserError(f"the tensors of {where} do not fit the model ({len(problems)} problems):\n{lines}")


def check_source(source: Source) -> None:
    """UserError naming every tensor of the source that does not fit its own config."""
    shapes = {name: info.shape for name, info in source.tensors.items()}
    problems = compare_tensors(shapes, expected_shapes(source.config), source.config.tie_embeddings)
    raise_problems(str(source.path), problems)


def check_tied(source: Source, rows: slice = slice(None)) -> None:
    """UserError when a checkpoint that ties the head to the embedding stores a head that is not the embedding.

    Args:
        rows: which to compare. Loading compares a rank's own: together the ranks have then seen all, once.
    """
    if not (source.config.tie_embeddings and "head.weight" in source.tensors):
        return
    if not torch.equal(source.read("embed.weight")[rows], source.read("head.weight")[rows]):
        raise UserError(
            f"{source.path}: config.json ties the head to the embedding, but the stored head differs from it. "
            "If the head was trained separately, set tie_word_embeddings to false"
        )


def interleaved_to_half(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key matrix from interleaved pairs to halves.

    Meta's code rotates neighbouring rows (2j, 2j+1) of a head together, ours and Hugging Face's rows (j, j+D/2).
    GGUF files store Llama's queries and keys in Meta's order. The attention scores are the same either way.

    Args:
        weight: ``[n_heads·D, E]``.
        n_heads: number of heads in ``weight`` (the KV heads for keys).
    """
    rows, width = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
