"""A Llama of random weights on disk, as a Hugging Face folder and in Meta's format: something large to load.

The weights are no model's, but finite and of a usual size, and both folders hold the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints_tools.hf_config import write_config
from checkpoints_tools.key_maps import LLAMA_META, to_hf, to_theirs
from checkpoints_tools.source import expected_shapes
from checkpoints_tools.writer import ShardWriter
from model.llama import LlamaConfig

ROW_PARALLEL = ("wo", "w2")


def random_weight(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random bf16 numbers from 2^-7 to 2^-3, of either sign; drawn as bits, which takes a second a gigabyte."""
    n = int(np.prod(shape))
    bits = np.frombuffer(np.random.default_rng(seed).bytes(2 * n), dtype=np.uint16)
    bits = (bits & 0x81FF) | 0x3C00  # sign, the exponent's two last bits and the fraction; the rest is fixed
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16).view(shape)


def write_hf(folder: Path, config: LlamaConfig, shard_bytes: int) -> Path:
    """Write safetensors of at most ``shard_bytes`` and a config; no tokenizer."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, shard_bytes)
    for seed, (name, shape) in enumerate(expected_shapes(config).items()):
        writer.add(to_hf(name), random_weight(shape, seed))
    writer.close()
    write_config(folder, config, torch.bfloat16)
    return folder


def write_meta(folder: Path, config: LlamaConfig, n_parts: int, params: dict[str, object]) -> Path:
    """Write the same weights in ``n_parts`` parts, embedding by rows; ``params`` is what ``params.json`` says."""
    folder.mkdir(parents=True)
    for part in range(n_parts):
        held = {}
        for seed, (name, shape) in enumerate(expected_shapes(config).items()):
            weight, kind = random_weight(shape, seed), name.split(".")[-2]
            if kind in ("wq", "wk"):  # rows in halves -> interleaved
                weight = weight.view(-1, 2, config.head_width // 2, shape[1]).transpose(1, 2).reshape(shape)
            if len(shape) == 2:
                weight = weight.chunk(n_parts, 1 if kind in ROW_PARALLEL else 0)[part].clone()
            held[to_theirs(name, LLAMA_META)] = weight
        torch.save(held, folder / f"consolidated.{part:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder
