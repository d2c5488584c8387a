"""Random checkpoints in Meta's format, and what Meta's own code computes with them.

The reference here is written after Meta's model.py (complex rotations, whole matrices) and shares no code with ours.
The parts are cut as fairscale's layers cut them.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PARAMS = dict(dim=64, n_layers=2, n_heads=16, n_kv_heads=8, multiple_of=16, norm_eps=1e-5, rope_theta=500.0)
VOCAB = 304  # 8 parts of 38
FFN = 176  # ffn_width(64, 16, None)
COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL = ("wo", "w2")


def random_weights(tied: bool = False, vocab: int = VOCAB) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.15 * torch.randn(shape, generator=generator)

    dim, kv = PARAMS["dim"], PARAMS["dim"] // PARAMS["n_heads"] * PARAMS["n_kv_heads"]
    weights = {"tok_embeddings.weight": normal(vocab, dim), "norm.weight": 1 + normal(dim)}
    weights["output.weight"] = weights["tok_embeddings.weight"].clone() if tied else normal(vocab, dim)
    for i in range(PARAMS["n_layers"]):
        shapes = {
            "attention.wq": (dim, dim),
            "attention.wk": (kv, dim),
            "attention.wv": (kv, dim),
            "attention.wo": (dim, dim),
            "feed_forward.w1": (FFN, dim),
            "feed_forward.w3": (FFN, dim),
            "feed_forward.w2": (dim, FFN),
        }
        weights |= {f"layers.{i}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        weights |= {f"layers.{i}.{name}.weight": 1 + normal(dim) for name in ("attention_norm", "ffn_norm")}
    return weights


def meta_logits(weights: dict[str, Tensor], tokens: Tensor, scaled: bool = False) -> Tensor:
    """The forward pass of Meta's model.py, in fp32."""
    H, K = PARAMS["n_heads"], PARAMS["n_kv_heads"]
    D = PARAMS["dim"] // H
    B, T = tokens.shape
    freqs = [PARAMS["rope_theta"] ** (-2 * j / D) for j in range(D // 2)]
    if scaled:  # apply_scaling, written out for one frequency
        low, high, factor, old = 1.0, 4.0, 8.0, 8192
        for j, freq in enumerate(freqs):
            wavelength = 2 * math.pi / freq
            if wavelength > old / low:
                freqs[j] = freq / factor
            elif wavelength >= old / high:
                smooth = (old / wavelength - low) / (high - low)
                freqs[j] = (1 - smooth) * freq / factor + smooth * freq
    turns = torch.polar(torch.ones(T, D // 2), torch.outer(torch.arange(T).float(), torch.tensor(freqs)))

    def rotate(x: Tensor) -> Tensor:  # [B, T, heads, D]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], D // 2, 2))
        return torch.view_as_real(pairs * turns[:, None]).flatten(3)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + PARAMS["norm_eps"]) * weights[name]

    x = weights["tok_embeddings.weight"][tokens]
    future = torch.full((T, T), float("-inf")).triu(1)
    for i in range(PARAMS["n_layers"]):
        w = {name: weights[f"layers.{i}.attention.{name}.weight"] for name in ("wq", "wk", "wv", "wo")}
        y = norm(x, f"layers.{i}.attention_norm.weight")
        q = rotate((y @ w["wq"].T).view(B, T, H, D)).transpose(1, 2)
        k = rotate((y @ w["wk"].T).view(B, T, K, D)).repeat_interleave(H // K, 2).transpose(1, 2)
        v = (y @ w["wv"].T).view(B, T, K, D).repeat_interleave(H // K, 2).transpose(1, 2)
        scores = (q @ k.transpose(2, 3) / math.sqrt(D) + future).softmax(-1)
        x = x + (scores @ v).transpose(1, 2).reshape(B, T, -1) @ w["wo"].T
        f = {name: weights[f"layers.{i}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3")}
        y = norm(x, f"layers.{i}.ffn_norm.weight")
        x = x + (F.silu(y @ f["w1"].T) * (y @ f["w3"].T)) @ f["w2"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


def write_meta_folder(
    folder: Path, weights: dict[str, Tensor], n_parts: int = 1, embedding_dim: int = 0, **params: object
) -> Path:
    """Cut the weights as fairscale does and save them as Meta does; without a tokenizer."""
    folder.mkdir()
    for part in range(n_parts):
        held = {}
        for name, weight in weights.items():
            kind = name.split(".")[-2]
            dim = 0 if kind in COLUMN_PARALLEL else 1 if kind in ROW_PARALLEL else None
            if kind == "tok_embeddings":
                dim = embedding_dim
            held[name] = (weight if dim is None else weight.chunk(n_parts, dim)[part]).clone()
        held["rope.freqs"] = torch.ones(2)  # as in Llama 2's files
        torch.save(held, folder / f"consolidated.{part:02d}.pth")
    (folder / "params.json").write_text(json.dumps({**PARAMS, "vocab_size": -1, **params}))
    return folder


def write_rank_file(folder: Path) -> None:
    """A ``tokenizer.model`` like Llama 3's that knows bytes only: 256 of them and 256 special tokens."""
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")
