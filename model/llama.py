"""Llama 2 and 3 in one file.

The decoder of Touvron et al. (2023, "Llama 2") and Dubey et al. (2024, "The Llama 3 Herd of Models"): RMSNorm before
each sub-layer, rotary positions, grouped-query attention, a SwiGLU feed-forward network, and an output head that may
be tied to the embedding. Any checkpoint of this architecture fits (SmolLM2, TinyLlama, ...): see `LlamaConfig`.

Single-device code: sharding, precision, activation checkpointing and compilation are applied from outside
(`train/parallel/parallelize.py`). The attention mask of a packed row is causal, and a token attends only to its own
document and the shared prefix (`model/attention.py`).

Rotary layout: the two halves of a head's width form the pairs, (x[i], x[i + D/2]), as in Hugging Face checkpoints.
Meta's and GGUF's checkpoints pair neighbours, (x[2i], x[2i + 1]); `checkpoints_tools` permutes their q and k rows. A
mix of the two gives fluent nonsense.

Shapes: B rows, T tokens, E model width, H heads, K key/value heads, D head width, F feed-forward width,
V vocabulary, N output positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import PackedMask, attention, build_mask


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of the rotary frequencies for contexts longer than in pretraining (Dubey et al., 2024).

    Off unless a checkpoint's config asks for it. Frequencies with wavelengths above
    ``original_max_position / low_freq_factor`` tokens are divided by ``factor``. Those with wavelengths below
    ``original_max_position / high_freq_factor`` are unchanged, and those in between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers that define a Llama-architecture model.

    Attributes:
        dim: model width E.
        n_heads, n_kv_heads: query heads H and key/value heads K; K divides H.
        ffn_dim: feed-forward width F.
        head_dim: head width D; 0 (None in runs of older code) is replaced by ``dim // n_heads``.
        max_position: context length the checkpoint was trained for, in tokens. Longer rows run, with a warning.
        tie_embeddings: the output head is the embedding matrix.
    """

    family: ClassVar[Literal["llama"]] = "llama"

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int = 0
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position: int = 4096
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_dim", self.head_dim or self.dim // self.n_heads)


class Cache(Protocol):
    """A key/value cache: ``attend`` stores the call's keys and values and returns masked attention, [B, T, H, D]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RowContext:
    """Inputs that all blocks share in one forward pass: rotary tables, mask and cache.

    The rotary tables are fp32 for every compute dtype (`train/parallel/parallelize.py` keeps FSDP from casting them).
    """

    cos: Tensor  # [B, T, 1, D/2] fp32
    sin: Tensor  # [B, T, 1, D/2] fp32
    mask: PackedMask
    cache: Cache | None


def rope_frequencies(config: LlamaConfig, device: torch.device | None = None) -> Tensor:
    """Rotary frequencies in radians per token, [D/2] fp32 (Su et al., 2021; scaling as in Llama 3.1)."""
    D = config.head_dim
    freq = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, dtype=torch.float32, device=device) / D)
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    turns = scaling.original_max_position * freq / (2 * math.pi)  # full rotations over the original context
    # 0: the frequency is divided by the factor; 1: it is unchanged; in between: linear interpolation.
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return freq * (keep + (1.0 - keep) / scaling.factor)


def row_context(config: LlamaConfig, positions: Tensor, mask: PackedMask, cache: Cache | None = None) -> RowContext:
    """The inputs that all blocks share; ``positions``: [B, T] int64."""
    # Computed here, not stored as a buffer: a buffer would be garbage after `to_empty` and lose precision in
    # `model.to(torch.bfloat16)`.
    angles = positions[..., None, None].float() * rope_frequencies(config, positions.device)  # [B, T, 1, D/2]
    return RowContext(angles.cos(), angles.sin(), mask, cache)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) by its position's angle. x: [B, T, heads, D]; computed in fp32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square normalization (Zhang and Sennrich, 2019), computed in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * y.type_as(x)


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al., 2023) with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = D = config.head_dim
        self.wq = nn.Linear(config.dim, config.n_heads * D, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * D, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * D, bias=False)
        self.wo = nn.Linear(config.n_heads * D, config.dim, bias=False)

    def forward(self, x: Tensor, context: RowContext) -> Tensor:
        B, T, _ = x.shape
        q = self.wq(x).view(B, T, -1, self.head_dim)  # [B, T, H, D]
        k = self.wk(x).view(B, T, -1, self.head_dim)  # [B, T, K, D]
        v = self.wv(x).view(B, T, -1, self.head_dim)  # [B, T, K, D]
        q = rotate(q, context.cos, context.sin)
        k = rotate(k, context.cos, context.sin)
        if context.cache is None:
            out = attention(q, k, v, context.mask)  # [B, T, H, D]
        else:
            out = context.cache.attend(self.layer, q, k, v)
        return self.wo(out.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020): ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)  # gate
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)  # up
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)  # down

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One decoder layer: attention, then feed-forward, each with a norm before it and a residual connection."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, context: RowContext) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.ffn(self.ffn_norm(x))


class Llama(nn.Module):
    """The complete decoder. See the file's docstring for the architecture."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        output_index: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Compute next-token logits.

        Args:
            tokens: [B, T] int64.
            positions: [B, T] int64, each token's distance from the start of its own prompt; None means 0, 1, 2, ...
            doc_ids: [B, T], the packed document that each token belongs to (`model/attention.py`); None means that
                each row is one document.
            output_index: [N] indices in the flattened [B * T] batch at which logits are computed; None means all.
                The head is the model's largest matrix, and a packed row needs few logits.
            cache: holds earlier keys and values and applies the mask (`eval/decoder/kv_cache.py`); requires
                ``positions``.

        Returns:
            [N, V] logits, or [B, T, V] without ``output_index``, in the compute dtype.
        """
        if positions is None:
            assert cache is None, "a cache does not know the positions of its rows: give positions"
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        context = row_context(self.config, positions, build_mask(doc_ids) if cache is None else None, cache)

        x = self.embed(tokens)  # [B, T, E]
        for layer in self.layers:
            x = layer(x, context)
        if output_index is not None:
            x = x.flatten(0, 1)[output_index]  # [N, E]
        x = self.norm(x)
        return F.linear(x, self.embed.weight) if self.head is None else self.head(x)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize every parameter, e.g. after ``to_empty``; pretrained ones replace them. There are no buffers."""
        init_weights(self, self.config, generator)


@torch.no_grad()
def init_weights(model: nn.Module, config: LlamaConfig, generator: torch.Generator | None = None) -> None:
    """Initialize every parameter of a model of Llama's blocks.

    | parameters                    | initial values                                  |
    |-------------------------------|-------------------------------------------------|
    | norms                         | 1                                               |
    | wo, w2 (write to the residual)| normal, 0.02 / sqrt(2 * n_layers) (as in GPT-2) |
    | all other matrices            | normal, 0.02                                    |
    | biases (of heads)             | 0                                               |
    """
    residual_std = 0.02 / math.sqrt(2 * max(1, config.n_layers))
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, 0.02, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    for module in model.modules():
        if isinstance(module, Block):
            for linear in (module.attention.wo, module.ffn.w2):
                linear.weight.normal_(0.0, residual_std, generator=generator)
