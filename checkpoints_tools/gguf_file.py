"""Read a Llama from a GGUF file (llama.cpp's format): weights dequantized one at a time, config from metadata.

Besides the names, two things differ from a Hugging Face folder:

- Query and key rows are interleaved (llama.cpp's converter permutes them); `interleaved_to_half` undoes this.
- Llama 3.1's scaling of rotary frequencies is stored as a tensor of divisors, ``rope_freqs.weight``, not as its four
  numbers. The numbers are recognized by computing the divisors from them.

The tokenizer is in `gguf_tokenizer.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from checkpoints_tools.gguf_tokenizer import read_special_ids, write_gguf_tokenizer
from checkpoints_tools.key_maps import LLAMA_GGUF, rename_all
from checkpoints_tools.source import Source, TensorInfo, interleaved_to_half, name_problems, raise_problems
from data.errors import UserError
from model.llama import LlamaConfig, RopeScaling, rope_frequencies

# LlamaConfig's fields <- GGUF metadata that every file must have.
METADATA = {
    "dim": "llama.embedding_length",
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "ffn_dim": "llama.feed_forward_length",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "max_position": "llama.context_length",
}


def open_gguf(path: Path, with_tokenizer: bool = True) -> Source:
    """Open a GGUF file; weights are mapped, not read.

    Args:
        path: the file.
        with_tokenizer: whether ``write_tokenizer`` writes the file's tokenizer; False: it writes nothing.

    Raises:
        UserError: the file is truncated, one of several parts, not a Llama, has unknown tensors, or names special
            tokens that it does not have.
    """
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({error}); download it again") from None
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    if metadata.get("general.architecture") != "llama":
        raise UserError(f"{path} holds a {metadata.get('general.architecture')!r} model, not a 'llama'")
    if metadata.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of {metadata['split.count']} parts; join them with llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART OUT`"
        )
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    names, unknown = rename_all(list(by_name), LLAMA_GGUF)
    raise_problems(str(path), name_problems(unknown, LLAMA_GGUF))
    stored = {ours: by_name[theirs] for ours, theirs in names.items()}
    # GGUF lists dimensions fastest first.
    tensors = {
        ours: TensorInfo(tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name) for ours, t in stored.items()
    }
    config = _read_config(path, metadata, tensors)
    if "rope_freqs.weight" in by_name:
        divisors = torch.from_numpy(np.array(by_name["rope_freqs.weight"].data, dtype=np.float32))
        config = dataclasses.replace(config, rope_scaling=_recognize_scaling(path, config, divisors))

    n_tokens = min(config.vocab_size, len(metadata.get("tokenizer.ggml.tokens", range(config.vocab_size))))
    special = read_special_ids(metadata, n_tokens, str(path), strict=with_tokenizer)

    def read(name: str) -> torch.Tensor:
        tensor = stored[name]
        values = dequantize(np.asarray(tensor.data), tensor.tensor_type)  # fp32, rows first
        weight = torch.from_numpy(np.array(values, dtype=np.float32)).view(tensors[name].shape)
        if name.endswith("attention.wq.weight"):
            return interleaved_to_half(weight, config.n_heads)
        if name.endswith("attention.wk.weight"):
            return interleaved_to_half(weight, config.n_kv_heads)
        return weight

    def write_tokenizer(folder: Path) -> None:
        if with_tokenizer:
            write_gguf_tokenizer(metadata, special, folder, str(path))

    # Weights stored in fp16 or bf16 keep their dtype; only fp32 stores dequantized ones exactly.
    types = {info.dtype for name, info in tensors.items() if not name.endswith("norm.weight")}
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(types.pop() if len(types) == 1 else "", torch.float32)
    return Source("GGUF file", path, config, tensors, dtype, read, write_tokenizer, _token_ids(special))


def _read_config(path: Path, metadata: dict[str, Any], tensors: dict[str, TensorInfo]) -> LlamaConfig:
    missing = [key for key in METADATA.values() if key not in metadata]
    if "embed.weight" not in tensors:
        missing.append("the tensor token_embd.weight")
    if missing:
        raise UserError(f"{path} lacks what a Llama's GGUF file must have: {', '.join(missing)}")
    kind = metadata.get("llama.rope.scaling.type", "none")
    if metadata.get("llama.expert_count", 0) > 0:
        raise UserError(f"{path} is a mixture of experts; this code runs dense Llamas only")
    if kind != "none":
        raise UserError(f"{path} asks for rope scaling of type {kind!r}; known: none, Llama 3.1's")
    values = {ours: metadata[key] for ours, key in METADATA.items()}
    # GGUF stores fp32, in which 1e-5 is 9.999999747e-06; the shortest decimal is the original number.
    values["norm_eps"] = float(str(np.float32(values["norm_eps"])))
    n_heads = values["n_heads"]
    values["n_kv_heads"] = metadata.get("llama.attention.head_count_kv", n_heads)
    for key in ("n_heads", "n_kv_heads"):
        if not isinstance(values[key], int) or values[key] < 1:
            raise UserError(f"{path} has {key} = {values[key]!r}; it must be one positive integer")
    head_dim = metadata.get("llama.attention.key_length", values["dim"] // n_heads)
    rotary = metadata.get("llama.rope.dimension_count", head_dim)
    if values["dim"] % n_heads or n_heads % values["n_kv_heads"] or rotary != head_dim:
        raise UserError(
            f"{path} contradicts itself: width {values['dim']}, {n_heads} heads, {values['n_kv_heads']} key/value "
            f"heads, head width {head_dim}, of which {rotary} rotary"
        )
    return LlamaConfig(
        **values,
        head_dim=head_dim,
        vocab_size=tensors["embed.weight"].shape[0],
        rope_theta=float(metadata.get("llama.rope.freq_base", 10_000.0)),
        tie_embeddings="head.weight" not in tensors,
    )


def _recognize_scaling(path: Path, config: LlamaConfig, divisors: torch.Tensor) -> RopeScaling | None:
    """The scaling that divides the rotary frequencies by ``divisors`` [D/2]; None if all are 1."""
    factor = float(divisors.max())
    if factor == 1.0:
        return None
    scaling = RopeScaling(round(factor, 4), 1.0, 4.0, 8192)  # Llama 3.1 to 3.3 differ only in the factor
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    wanted = rope_frequencies(plain) / rope_frequencies(scaled)
    if wanted.shape != divisors.shape or not torch.allclose(wanted, divisors, rtol=1e-4):
        raise UserError(f"{path} scales its rotary frequencies (rope_freqs.weight) in a way that is not Llama 3.1's")
    return scaling


def _token_ids(special: dict[str, int]) -> dict[str, int | list[int]]:
    """The ids for config.json; a model may have two ends: of a text, and of a turn."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found: dict[str, int | list[int]] = {ours: special[name] for ours, name in names.items() if name in special}
    if "eos" in special and special.get("eot", special["eos"]) != special["eos"]:
        found["eos_token_id"] = [special["eos"], special["eot"]]
    return found
