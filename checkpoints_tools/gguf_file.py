"""Read a Llama from a GGUF file (llama.cpp's format): weights dequantized one at a time, config from metadata.

Besides the names, two things differ from a Hugging Face folder:

- Query and key rows are interleaved (llama.cpp's converter permutes them); `interleaved_to_half` undoes this.
- Llama 3.1's scaling of rotary frequencies is stored as a tensor of divisors, ``rope_freqs.weight``, not as its four
  numbers. The numbers are recognized by computing the divisors from them.

The file's format is in `gguf_header.py`, the tokenizer in `gguf_tokenizer.py`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.quants import dequantize
from msgspec import Struct, field

from checkpoints_tools.gguf_header import StoredTensor, read_gguf
from checkpoints_tools.gguf_tokenizer import read_special_ids, write_gguf_tokenizer
from checkpoints_tools.key_maps import LLAMA_GGUF, rename_all
from checkpoints_tools.shapes import Epsilon, Layers, Positions, Theta, Width
from checkpoints_tools.source import Source, TensorInfo, interleaved_to_half, name_problems, raise_problems
from data.errors import UserError
from data.files.documents import fields_of, shaped
from model.llama import LlamaConfig, RopeScaling, rope_frequencies

# What other models compute and a Llama does not: key -> the values that change nothing. A missing key changes nothing.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0,),
    "llama.attention.max_alibi_bias": (0,),
    "llama.attention.output_scale": (0, 1),
    "llama.attention.shared_kv_layers": (0,),
    "llama.attention.temperature_scale": (0,),
    "llama.attn_logit_softcapping": (0,),
    "llama.embedding_scale": (0, 1),
    "llama.expert_shared_count": (0,),
    "llama.final_logit_softcapping": (0,),
    "llama.logit_scale": (0, 1),
    "llama.residual_scale": (0, 1),
    "llama.rope.scaling.attn_factor": (0, 1),
    "llama.use_parallel_residual": (False,),
}


class GgufFile(Struct):
    """What is read of the metadata, tokenizer excepted."""

    dim: Width = field(name="llama.embedding_length")
    n_layers: Layers = field(name="llama.block_count")
    n_heads: Width = field(name="llama.attention.head_count")
    ffn_dim: Width = field(name="llama.feed_forward_length")
    norm_eps: Epsilon = field(name="llama.attention.layer_norm_rms_epsilon")
    max_position: Positions = field(name="llama.context_length")
    n_kv_heads: Width | None = field(name="llama.attention.head_count_kv", default=None)
    head_dim: Width | None = field(name="llama.attention.key_length", default=None)
    rotary: Width | None = field(name="llama.rope.dimension_count", default=None)
    rope_theta: Theta = field(name="llama.rope.freq_base", default=10_000.0)
    rope_scaling: str | None = field(name="llama.rope.scaling.type", default=None)
    rope_factor: float = field(name="llama.rope.scaling.factor", default=0.0)
    rope_linear: float = field(name="llama.rope.scale_linear", default=0.0)  # older files
    experts: int = field(name="llama.expert_count", default=0)
    scale: float = field(name="llama.attention.scale", default=0.0)  # 0: the usual one
    window: int = field(name="llama.attention.sliding_window", default=0)  # 0: none


class _Kind(Struct):
    """What the metadata says of the file as a whole."""

    architecture: str | None = field(name="general.architecture", default=None)
    parts: int = field(name="split.count", default=1)


def open_gguf(path: Path, with_tokenizer: bool = True) -> Source:
    """Open a GGUF file; weights are mapped, not read.

    Args:
        path: the file.
        with_tokenizer: whether ``write_tokenizer`` writes the file's tokenizer; False: it writes nothing.

    Raises:
        UserError: the file is truncated, one of several parts, not a Llama, has unknown tensors, asks for what a Llama
            does not compute, or names special tokens that it does not have.
    """
    metadata, by_name = read_gguf(path)
    kind: _Kind = shaped(metadata, str(path), _Kind)
    if kind.architecture != "llama":
        raise UserError(f"{path} holds a {kind.architecture!r} model, not a 'llama'")
    if kind.parts > 1:
        raise UserError(
            f"{path} is one of {kind.parts} parts; join them with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT`"
        )
    names, unknown = rename_all(list(by_name), LLAMA_GGUF)
    raise_problems(str(path), name_problems(unknown, LLAMA_GGUF))
    tensors = {ours: TensorInfo(by_name[theirs].shape, by_name[theirs].type.name) for ours, theirs in names.items()}
    config = _read_config(path, metadata, tensors)
    if "rope_freqs.weight" in by_name:
        config = dataclasses.replace(
            config, rope_scaling=_recognize_scaling(path, config, _unpacked(path, "rope_freqs.weight", by_name))
        )

    tokens = metadata.get("tokenizer.ggml.tokens")
    n_tokens = min(config.vocab_size, len(tokens)) if isinstance(tokens, list) else config.vocab_size
    special = read_special_ids(metadata, n_tokens, str(path), strict=with_tokenizer)

    def read(name: str) -> torch.Tensor:
        weight = _unpacked(path, names[name], by_name)
        if name.endswith("attention.wq.weight"):
            return interleaved_to_half(weight, config.n_heads)
        if name.endswith("attention.wk.weight"):
            return interleaved_to_half(weight, config.n_kv_heads)
        return weight

    def write_tokenizer(folder: Path) -> None:
        if with_tokenizer:
            write_gguf_tokenizer(metadata, special, folder, str(path))

    # Matrices stored in fp16 or bf16 keep their dtype, beside norms in fp32; only fp32 stores dequantized ones exactly.
    types = {info.dtype for name, info in tensors.items() if not name.endswith("norm.weight")}
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(types.pop() if len(types) == 1 else "", torch.float32)
    return Source("GGUF file", path, config, tensors, dtype, read, write_tokenizer, _token_ids(special))


def _unpacked(path: Path, name: str, tensors: dict[str, StoredTensor]) -> torch.Tensor:
    """A tensor dequantized to fp32."""
    shape, kind, content = tensors[name]
    try:
        values = dequantize(content, kind)
    except Exception as error:  # of the library: a type that it does not know, or its own failure
        raise UserError(f"{path}: {name} of type {kind.name} cannot be unpacked ({error}).") from None
    return torch.from_numpy(np.array(values, dtype=np.float32)).view(shape)


def _read_config(path: Path, metadata: dict[str, Any], tensors: dict[str, TensorInfo]) -> LlamaConfig:
    values, problems = fields_of(metadata, GgufFile)
    if "embed.weight" not in tensors or len(tensors["embed.weight"].shape) != 2:
        problems.append("the tensor token_embd.weight is missing, or is no matrix")
    if problems:
        raise UserError(f"{path} lacks what a Llama's GGUF file must have: {'; '.join(problems)}")
    if values.pop("experts") > 0:
        raise UserError(f"{path} is a mixture of experts; this code runs dense Llamas only")
    scaling, factor = values.pop("rope_scaling"), values.pop("rope_factor") or values.pop("rope_linear")
    values.pop("rope_linear", None)
    if scaling is None:  # llama.cpp then takes linear, by the factor
        scaling = "none" if factor in (0, 1) else "linear"
    if scaling != "none":
        raise UserError(f"{path} asks for rope scaling of type {scaling!r}; known: none, Llama 3.1's")
    # GGUF stores fp32, in which 1e-5 is 9.999999747e-06; the shortest decimal is the original number.
    values["norm_eps"] = float(str(np.float32(values["norm_eps"])))
    n_heads = values["n_heads"]
    values["n_kv_heads"] = values["n_kv_heads"] or n_heads
    values["head_dim"] = head_dim = values["head_dim"] or values["dim"] // n_heads
    rotary = values.pop("rotary") or head_dim
    if values["dim"] % n_heads or n_heads % values["n_kv_heads"] or rotary != head_dim or head_dim % 2:
        raise UserError(
            f"{path} contradicts itself: width {values['dim']}, {n_heads} heads, {values['n_kv_heads']} key/value "
            f"heads, head width {head_dim}, of which {rotary} rotary"
        )
    changes = [key for key, neutral in NEUTRAL.items() if metadata.get(key, neutral[0]) not in neutral]
    if (scale := values.pop("scale")) and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
        changes.append("llama.attention.scale")
    if (window := values.pop("window")) and window < values["max_position"]:
        changes.append("llama.attention.sliding_window")
    if changes:
        found = ", ".join(f"{key} = {metadata[key]}" for key in changes)
        raise UserError(f"{path} asks for what a Llama does not compute: {found}")
    return LlamaConfig(
        **values,
        vocab_size=tensors["embed.weight"].shape[0],
        tie_embeddings="head.weight" not in tensors,
    )


def _recognize_scaling(path: Path, config: LlamaConfig, divisors: torch.Tensor) -> RopeScaling | None:
    """The scaling that divides the rotary frequencies by ``divisors`` [D/2]; None if all are 1."""
    if divisors.shape != (config.head_dim // 2,):
        raise UserError(
            f"{path}: rope_freqs.weight has the shape {list(divisors.shape)}; it must have one number for each of the "
            f"{config.head_dim // 2} frequencies"
        )
    factor = float(divisors.max())
    if factor == 1.0:
        return None
    scaling = RopeScaling(round(factor, 4), 1.0, 4.0, 8192)  # Llama 3.1 to 3.3 differ only in the factor
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    wanted = rope_frequencies(plain) / rope_frequencies(scaled)
    if not torch.allclose(wanted, divisors, rtol=1e-4):
        raise UserError(f"{path} scales its rotary frequencies (rope_freqs.weight) in a way that is not Llama 3.1's")
    return scaling


def _token_ids(special: dict[str, int]) -> dict[str, int | list[int]]:
    """The ids for config.json; a model may have two ends: of a text, and of a turn."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found: dict[str, int | list[int]] = {ours: special[name] for ours, name in names.items() if name in special}
    if "eos" in special and special.get("eot", special["eos"]) != special["eos"]:
        found["eos_token_id"] = [special["eos"], special["eot"]]
    return found
