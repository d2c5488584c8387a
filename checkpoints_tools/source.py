"""The common interface to all checkpoint formats: a `Source`, with our names and our layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.carried import Carried
from checkpoints_tools.key_maps import all_names, explain_names
from data.errors import UserError
from model.meta import meta_device


class Slices(Protocol):
    """A stored tensor; indexing it with slices reads only these."""

    def __getitem__(self, where: slice | tuple[slice, ...], /) -> torch.Tensor: ...


# safetensors' names of the dtypes that can be fine-tuned.
SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype that can be fine-tuned; PyTorch's name of any other."""
    names = {ours: name for name, ours in SAFETENSORS_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor; the dtype under safetensors' name, or llama.cpp's for GGUF (``"Q4_1"``)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass
class Source:
    """An opened checkpoint of any format. Only metadata is in memory until ``read`` is called.

    Attributes:
        format: the recognized format, to be shown: "Hugging Face folder", "Meta folder (8 parts)", "GGUF file".
        path: the folder or file.
        config: the checkpoint's config.
        tensors: our parameter name → shape and dtype, in the order in which reading is fastest. Tensors that the
            architecture does not have keep their own names, so that `compare_tensors` reports them.
        dtype: dtype of the weights, or of the dequantized weights. Some tensors may have another: ``--dtype keep``
            writes those that this one would round as ``read`` returns them.
        read: our parameter name → the tensor, to be indexed with slices: ``read(name)[:]``, ``read(name)[0:8, 4:6]``.
            Indexing returns it on the CPU in our (half-rotation) layout and reads only the slice (of a GGUF file, which
            must be dequantized, the complete tensor).
        write_tokenizer: writes the tokenizer's files and the chat template into a folder.
        token_ids: those of bos_token_id, eos_token_id and pad_token_id that the checkpoint states.
        fresh, ignored: see `checkpoints_tools.key_maps.Matched`.
        carried: the contents of config.json and generation_config.json, of which `config` has what we use.
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
    carried: Carried = Carried()


@functools.cache
def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameter name → shape, for a model of this config (built on the meta device, without memory)."""
    with meta_device():
        model = architecture_of(config).build(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def compare_tensors(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], tied: bool) -> list[str]:
    """One line per missing, unexpected or misshapen tensor. A tied model may store ``head.weight`` as well."""
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    for name, shape in found.items():
        if name not in expected:
            if not (tied and name == "head.weight" and shape == expected["embed.weight"]):
                problems.append(f"unexpected: {name} {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"wrong shape: {name} is {list(shape)}, the config says {list(expected[name])}")
    return problems


def check_dtypes(where: Path, tensors: dict[str, TensorInfo]) -> None:
    """Raise UserError if weights are stored in a dtype that cannot be fine-tuned."""
    kinds = sorted({info.dtype for info in tensors.values()} - SAFETENSORS_DTYPES.keys())
    if kinds:
        raise UserError(f"{where} stores weights as {', '.join(kinds)}; full fine-tuning needs F32, BF16 or F16")


def find_problems(source: Source, expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Compare a source's tensors with those of a model: one line for each that does not fit.

    If wrong names explain the problems, one line says what is wrong with them, and the others are about what remains.
    """
    architecture, family = architecture_of(source.config), source.config.family
    shapes = {name: info.shape for name, info in source.tensors.items()}
    theirs = {architecture.to_theirs(name, source.config): name for name in expected if name not in shapes}
    theirs |= {name.removeprefix(f"{family}."): ours for name, ours in theirs.items()}  # encoders are stored both ways
    line, names = explain_names([name for name in shapes if name not in expected], theirs)
    found = {names.get(name, name): shape for name, shape in shapes.items()}
    return [line] * bool(line) + compare_tensors(found, expected, source.config.tie_embeddings)


def name_problems(unknown: list[str], table: dict[str, str]) -> list[str]:
    """As `find_problems`, for names that are not in a format's table."""
    line, names = explain_names(unknown, all_names(table, unknown))
    return [line] * bool(line) + [f"unexpected: {name}" for name in unknown if name not in names]


def raise_problems(where: str, problems: list[str], limit: int = 20) -> None:
    """Raise one UserError that lists about ``limit`` problems, some of each kind; do nothing if there are none."""
    if not problems:
        return
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kind, colon, _ = problem.partition(": ")
        kinds.setdefault(kind if colon else "", []).append(problem)
    share = max(1, limit // len(kinds))
    lines = []
    for kind, listed in kinds.items():
        more = len(listed) - share
        lines += listed[:share] + [f"... and {more} more {kind}".rstrip()] * (more > 0)
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    listing = "\n".join(f"  - {line}" for line in lines)
    raise UserError(f"the tensors of {where} do not fit the model ({count}):\n{listing}")


def check_source(source: Source) -> None:
    """Raise a UserError that names the tensors of the source that do not fit its config."""
    raise_problems(str(source.path), find_problems(source, expected_shapes(source.config)))


def check_tied(source: Source, rows: slice = slice(None)) -> None:
    """Raise UserError if a checkpoint with a tied head stores a head that differs from the embedding.

    Args:
        source: the checkpoint.
        rows: the rows to compare. In loading each rank compares its own, so that all ranks together compare all rows.
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

    Meta's code rotates neighbouring rows (2j, 2j+1) of a head as a pair; Hugging Face's and ours rotate rows
    (j, j+D/2). GGUF files store Llama's queries and keys in Meta's order. The attention scores are equal.

    Args:
        weight: ``[n_heads·D, E]``.
        n_heads: number of heads in ``weight`` (the KV heads for keys).
    """
    rows, width = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
