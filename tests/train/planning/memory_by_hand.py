"""A plan's bytes for the four Llama presets by arithmetic of its own, from the numbers of each published config."""

from __future__ import annotations

import torch

from train.optim.formats import OPTIMIZERS

# From the config.json of each repository: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
# intermediate_size, vocab_size; head width 128 and untied embeddings throughout. Last, their parameters as published.
PUBLISHED = {
    "llama2_7b": (4096, 32, 32, 32, 11008, 32000, 6_738_415_616),
    "llama2_70b": (8192, 80, 64, 8, 28672, 32000, 68_976_648_192),
    "llama3_8b": (4096, 32, 32, 8, 14336, 128256, 8_030_261_248),
    "llama3_70b": (8192, 80, 64, 8, 28672, 128256, 70_553_706_496),
}
STATES = {"fp32": 8, "bf16": 4}


def states(E: int, L: int, H: int, K: int, F: int, V: int, format: str) -> int:
    """Bytes of both moments. In eight bits every matrix has one fp32 scale a block of 256 (w2 of Llama 2 7B, whose rows
    of 11,008 have no eighth that 256 divides: 32), and the norms' weights stay in fp32."""
    block = 2 * E * 128 * (H + K) + 3 * E * F
    norms = (2 * L + 1) * E
    n = L * block + 2 * V * E + norms
    if format != "8bit":
        return n * STATES[format]
    w2 = L * E * F
    scales = (n - norms - w2) // 256 + w2 // (256 if F // 8 % 256 == 0 else 32 if F == 11_008 else 256)
    return 2 * (n - norms + 4 * scales) + 8 * norms


def by_hand(name: str, optim: str, tokens: int, outputs: int, ranks: int) -> dict[str, float]:
    """Bytes a GPU under full activation checkpointing with bf16 compute, one packed row, more than one rank."""
    E, L, H, K, F, V, known = PUBLISHED[name]
    block = 2 * E * 128 * (H + K) + 3 * E * F + 2 * E
    root = 2 * V * E + E
    assert L * block + root == known
    formats = OPTIMIZERS[optim]
    weight = 4 if formats.weights == torch.float32 else 2
    own = (L * block + root) / ranks
    # One block computed anew: two norms (fp32 input, bf16 normalized, bf16 result), q, k, v and output, one fp32 number
    # a head, four of the feed-forward network; two more of those widest; the gradient that came in; w2's gradient.
    anew = tokens * (2 * 8 * E + 2 * 2 * 128 * (H + K) + 4 * H + 4 * 2 * F + 2 * 2 * F + 2 * E) + 2 * E * F
    done = 2 * block + 2 * 2 * E * tokens
    return {
        "weights": own * weight,
        "gradients": own * weight,
        "states": states(E, L, H, K, F, V, formats.states) / ranks,
        "saved": L * tokens * E * 2,
        "gathered": 2 * (root + 2 * block),
        "reduced": weight * block,
        "head": 2 * V * E,
        "block": max(anew, done),
        "logits": 12 * outputs * V + 8 * outputs * E,
        "root reduce": max((2 + weight) * root, (weight + weight / ranks) * root + 2 * V * E),
    }
