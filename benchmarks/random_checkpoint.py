"""Write a Llama with random weights, as a Hugging Face folder and in Meta's format, for measurements of loading.

The weights are finite and of a usual size; both folders hold the same ones. `load_everything` loads them without
slicing, for comparison.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints_tools.key_maps import LLAMA_HF, LLAMA_META, to_theirs
from checkpoints_tools.llama_config import write_llama_config
from checkpoints_tools.load import fill, open_checkpoint
from checkpoints_tools.meta_pth import ffn_width
from checkpoints_tools.slices import local_slice
from checkpoints_tools.source import expected_shapes
from checkpoints_tools.writer import ShardWriter
from model.llama import LlamaConfig

ROW_PARALLEL = ("wo", "w2")


def random_weight(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random bf16 numbers from 2^-7 to 2^-3 of either sign, drawn as bits, which takes a second for a gigabyte."""
    n = int(np.prod(shape))
    bits = np.frombuffer(np.random.default_rng(seed).bytes(2 * n), dtype=np.uint16)
    bits = (bits & 0x81FF) | 0x3C00  # random: sign, the exponent's two lowest bits and the fraction
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16).view(shape)


def write_both(folder: Path, sizes: dict[str, int], vocab_size: int, shard_bytes: int, n_parts: int = 2) -> None:
    """Write ``folder/hf`` and ``folder/meta``, without tokenizers.

    Args:
        sizes: dim, n_layers, n_heads and n_kv_heads.
        shard_bytes: largest safetensors file.
        n_parts: number of Meta's files; the embedding is split by rows.
    """
    multiple_of, theta = 256, 500_000.0
    ffn_dim = ffn_width(sizes["dim"], multiple_of, None)
    config = LlamaConfig(**sizes, ffn_dim=ffn_dim, vocab_size=vocab_size, rope_theta=theta, max_position=8192)
    weights = {name: (shape, seed) for seed, (name, shape) in enumerate(expected_shapes(config).items())}

    hf = folder / "hf"
    hf.mkdir(parents=True)
    writer = ShardWriter(hf, shard_bytes)
    for name, drawn in weights.items():
        writer.add(to_theirs(name, LLAMA_HF), random_weight(*drawn))
    writer.close()
    write_llama_config(hf, config, torch.bfloat16)

    meta = folder / "meta"
    meta.mkdir()
    for part in range(n_parts):
        held = {}
        for name, drawn in weights.items():
            weight, kind = random_weight(*drawn), name.split(".")[-2]
            if kind in ("wq", "wk"):  # rows in halves -> interleaved
                weight = weight.view(-1, 2, config.head_dim // 2, config.dim).transpose(1, 2).reshape(weight.shape)
            if weight.dim() == 2:
                weight = weight.chunk(n_parts, 1 if kind in ROW_PARALLEL else 0)[part].clone()
            held[to_theirs(name, LLAMA_META)] = weight
        torch.save(held, meta / f"consolidated.{part:02d}.pth")
    params = {**sizes, "multiple_of": multiple_of, "rope_theta": theta, "norm_eps": 1e-5, "vocab_size": vocab_size}
    (meta / "params.json").write_text(json.dumps(params))


def load_everything(model: nn.Module, folder: Path) -> None:
    """Every rank reads the unsharded model, then keeps its shards."""
    source = open_checkpoint(folder)
    unsharded = {name: source.read(name)[:].clone() for name in source.tensors}
    for name, parameter in model.named_parameters():
        local, where = local_slice(parameter)
        fill(local, unsharded[name], where)
