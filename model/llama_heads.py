"""Llama with classification heads in place of its output matrix: it labels a text in one pass and writes nothing.

The blocks are those of `model/llama.py`. A document of a packed row attends to itself alone, causally. So a token knows
only what stands before it. The remedy is in the data (`data/encoder/read_twice.py`): every document is

    Rewrite the sentence: TEXT <newline> The rewritten sentence: TEXT <newline> The topic of this text, in one word: "

In the second reading every token has seen the entire text (Springer et al., 2024, "Repetition Improves Language Model
Embeddings"), and the last token is where the model would write the topic (Jiang et al., 2023, "Scaling Sentence
Embeddings with Large Language Models"). All heads are linear. What they read of the hidden states:

- a class or multi head: the mean over both readings of TEXT after four fifths of the layers, since the last ones serve
  the next token, beside the last token after all of them; both scaled to length sqrt(E): [2E]
- a token head: after all layers, the first sub-word of each word in its second reading: [E]

The tokens around the readings are left out of the mean. They are the same in every document, and the state of the first
is many times longer than all others (Xiao et al., 2024, "Efficient Streaming Language Models with Attention Sinks").

Single-device code, as `model/llama.py`.

Shapes: B rows, T tokens, E model width, N output positions of a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from model.attention import build_mask
from model.encoder import EncoderConfig, Head, HeadKind, document_lengths, head_logits
from model.llama import Block, LlamaConfig, RMSNorm, init_weights, row_context

FIRST_ALONE = (1, 0, 0)  # the frame of a model whose mean is of all tokens but the first, as the first exports' is


@dataclass(frozen=True)
class HeadedLlamaConfig(LlamaConfig):
    """The numbers of the Llama, and its heads.

    Attributes:
        tie_embeddings: as in the checkpoint; here there is no output matrix.
        heads: the fields to predict; empty for a checkpoint without heads.
        frame: tokens before, between and after the readings, which the mean leaves out.
        head: the kind of the heads of documents, as files have it; there is one.
    """

    family: ClassVar[Literal["llama_heads"]] = "llama_heads"  # type: ignore[assignment]
    head: ClassVar[HeadKind] = "linear"

    heads: tuple[Head, ...] = ()
    frame: tuple[int, int, int] = FIRST_ALONE


HeadedConfig = EncoderConfig | HeadedLlamaConfig
"""The config of any model with heads."""


class LinearHead(nn.Module):
    """Logits of one field, [N, width] -> [N, n_labels]."""

    def __init__(self, width: int, n_labels: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class HeadedLlama(nn.Module):
    """The blocks of a Llama with heads. See the file's docstring for what they read."""

    def __init__(self, config: HeadedLlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.inner = config.n_layers * 4 // 5  # the mean is of the states after so many layers
        self.heads = nn.ModuleDict(
            {head.key: LinearHead((1 + head.of_documents) * config.dim, head.n_labels) for head in config.heads}
        )
        assert len(self.heads) == len(config.heads), f"two heads have the same name: {[h.key for h in config.heads]}"

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        doc_ids: Tensor,
        output_index: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Compute every field's logits; arguments and results are those of `model.encoder.Encoder.forward`."""
        context = row_context(self.config, positions, build_mask(doc_ids))
        x = self.embed(tokens)  # [B, T, E]
        inner = x
        for n, layer in enumerate(self.layers, start=1):
            x = layer(x, context)
            inner = x if n == self.inner else inner
        x = self.norm(x)
        if output_index is None:
            return x
        read_documents = partial(_read_documents, inner, x, doc_ids, self.config.frame)
        return head_logits(self.config.heads, self.heads, x, output_index, read_documents)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize every parameter, e.g. after ``to_empty``; pretrained ones replace them. There are no buffers."""
        init_weights(self, self.config, generator)


def _read_documents(inner: Tensor, x: Tensor, doc_ids: Tensor, frame: tuple[int, int, int], first: Tensor) -> Tensor:
    """What the heads of documents read of the inner and the last hidden states, [B, T, E]: [N, 2E]."""
    lengths = document_lengths(doc_ids, first)
    before, between, after = (torch.full_like(lengths, n) for n in frame)
    readings = lengths - before - between - after
    once = readings // 2
    parts = torch.stack([before, once, between, readings - once, after], dim=1)  # [N, 5] tokens of each, in order
    states = inner.flatten(0, 1)[doc_ids.flatten() >= 0].float()
    sums = torch.segment_reduce(states, "sum", lengths=parts.flatten(), unsafe=True).unflatten(0, parts.shape)
    # Both are brought to one length, for which a sum is as good as a mean.
    read = torch.stack([sums[:, 1] + sums[:, 3], x.flatten(0, 1)[first + lengths - 1].float()], dim=1)  # [N, 2, E]
    return nn.functional.rms_norm(read, read.shape[-1:]).flatten(1).to(x.dtype)
