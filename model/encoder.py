"""RoBERTa and BERT in one file, with classification heads for documents and for words.

The encoder of Vaswani et al. (2017, "Attention Is All You Need") in the version of Devlin et al. (2019, "BERT"), which
Liu et al. (2019, "RoBERTa") kept:

- Learned embeddings of token, position and token type are summed and normalized.
- Each layer has attention and a two-matrix GELU network. Each of these is added to its input, and the sum is normalized
  (post-LayerNorm: the residual stream itself is normalized, so there is no final norm).
- All linear layers have biases. Dropout is on every sub-layer's output and on the attention weights.
- Every token attends to its complete document.

The two families differ in numbers only, except for the last line:

|                            | RoBERTa                            | BERT                                           |
|----------------------------|------------------------------------|------------------------------------------------|
| tokens                     | byte-level BPE, 50,265             | WordPiece, 30,522 (English, lower case)        |
| row of the first position  | padding_idx + 1 = 2 (from fairseq) | 0                                              |
| rows of the position table | 514, of which 512 are used         | 512                                            |
| token types                | 1                                  | 2: sentence A and B; one document is all A     |
| LayerNorm's epsilon        | 1e-5                               | 1e-12                                          |
| head="dense"               | a dense layer in every class head  | one pretrained pooler for all class heads      |

A head reads last hidden states: a class or multi head that of the document's first token (``<s>``, ``[CLS]``), a token
head those of each word's first sub-word. A class head and a multi head differ only in what their logits mean: a softmax
over the labels, a sigmoid for each. ``head`` is the kind of the class and multi heads; token heads are always linear:

- ``"linear"`` (the paper's §5.4): dropout and one linear layer.
- ``"dense"``: transformers' head for sequence classification.
- ``"mean"``: as linear, but reads the mean over the document's tokens, scaled to length sqrt(E). Encoders of sentences
  are trained to have the text's meaning there, in its direction (Reimers and Gurevych, 2019, "Sentence-BERT").

Single-device code: sharding, precision, activation checkpointing and compilation are applied from outside
(`train/parallel/parallelize.py`). The attention mask of a packed row: a token attends to its own document only
(`model/attention.py`).

Shapes: B rows, T tokens, E model width, H heads, D head width, F feed-forward width, N output positions of a field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SdpaMask, attention, build_bidirectional_mask

HeadKind = Literal["linear", "dense", "mean"]


@dataclass(frozen=True)
class Head:
    """One field to predict.

    Attributes:
        name: the field's name, key of the model's inputs and outputs.
        kind: "class" is one label a document, "multi" any number of labels a document, "token" one label a word.
        n_labels: number of labels, the width of the logits.
    """

    name: str
    kind: Literal["class", "multi", "token"]
    n_labels: int

    @property
    def of_documents(self) -> bool:
        """Whether it gives one answer a document, and not one a word."""
        return self.kind != "token"

    @property
    def key(self) -> str:
        """The field's name in parameter names.

        It is the field's name with two changes. A dot, which separates parts of parameter names, becomes "_". A name
        that is a method of `nn.ModuleDict` ("type", "items") gets a trailing "_".
        """
        key = self.name.replace(".", "_")
        return key + "_" if hasattr(nn.ModuleDict(), key) else key


@dataclass(frozen=True)
class EncoderConfig:
    """The numbers that define an encoder and its heads.

    Attributes:
        family: the architecture's key in `checkpoints_tools.registry`.
        dim: model width E.
        n_heads: attention heads H; the head width D is ``dim // n_heads``.
        ffn_dim: feed-forward width F.
        max_position: longest document in tokens, special tokens included.
        position_offset: row of the position table for a document's first token; the table has
            ``max_position + position_offset`` rows.
        n_token_types: rows of the token-type table; only the first is used.
        dropout: probability for embeddings, sub-layers and heads in training.
        attention_dropout: probability for the attention weights in training.
        head: type of the class and multi heads (see the file's docstring).
        heads: the fields to predict; empty for an encoder without heads.
    """

    family: Literal["roberta", "bert"]
    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    vocab_size: int
    max_position: int
    position_offset: int
    n_token_types: int
    norm_eps: float
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head: HeadKind = "linear"
    heads: tuple[Head, ...] = ()

    @property
    def head_dim(self) -> int:
        """D."""
        return self.dim // self.n_heads

    @property
    def tie_embeddings(self) -> bool:
        """False: no head is the embedding matrix."""
        return False


def _roberta(dim: int, n_layers: int, n_heads: int, vocab_size: int = 50_265, max_position: int = 512) -> EncoderConfig:
    return EncoderConfig(
        family="roberta",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        ffn_dim=4 * dim,
        vocab_size=vocab_size,
        max_position=max_position,
        position_offset=2,
        n_token_types=1,
        norm_eps=1e-5,
    )


# The shapes of the real checkpoints; Table 1 of the paper is misprinted.
ROBERTA_BASE = _roberta(dim=768, n_layers=12, n_heads=12)
ROBERTA_LARGE = _roberta(dim=1024, n_layers=24, n_heads=16)
# Small enough for tests on one CPU core.
ROBERTA_DEBUG = _roberta(dim=48, n_layers=2, n_heads=3, vocab_size=301, max_position=64)


class Embedding(nn.Module):
    """Token + position + token type, normalized."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.max_position, self.offset = config.max_position, config.position_offset
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_position + config.position_offset, config.dim)
        self.types = nn.Embedding(config.n_token_types, config.dim)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        longest = int(positions.max()) + 1
        assert longest <= self.max_position, f"a document of {longest} tokens; the limit is {self.max_position}"
        x = self.tokens(tokens) + self.types.weight[0] + self.positions(positions + self.offset)  # [B, T, E]
        return self.dropout(self.norm(x))


class Attention(nn.Module):
    """Multi-head self-attention within each document, without a causal mask."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        assert config.dim % config.n_heads == 0, f"{config.n_heads} heads do not divide a width of {config.dim}"
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.wq = nn.Linear(config.dim, config.dim)
        self.wk = nn.Linear(config.dim, config.dim)
        self.wv = nn.Linear(config.dim, config.dim)
        self.wo = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: SdpaMask) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (w(x).view(B, T, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))  # [B, T, H, D]
        out = attention(q, k, v, mask, dropout=self.dropout if self.training else 0.0)  # [B, T, H, D]
        return self.wo(out.flatten(2))


class FeedForward(nn.Module):
    """``w2(gelu(w1 x))`` with the exact GELU, computed with erf (Hendrycks and Gimpel, 2016)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim)
        self.w2 = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(x)))


class Block(nn.Module):
    """One encoder layer: attention, then feed-forward; each is added to its input, and the sum is normalized."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)
        self.ffn_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: SdpaMask) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class Classifier(nn.Module):
    """A head: logits of one field from hidden states of single tokens, [N, E] -> [N, n_labels]."""

    def __init__(self, config: EncoderConfig, head: Head) -> None:
        super().__init__()
        has_dense = config.head == "dense" and config.family == "roberta" and head.of_documents
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(config.dim, config.dim) if has_dense else None
        self.out = nn.Linear(config.dim, head.n_labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        if self.dense is not None:
            x = self.dropout(torch.tanh(self.dense(x)))
        return self.out(x)


def document_lengths(doc_ids: Tensor, first: Tensor) -> Tensor:
    """Tokens of each document, [N] int64, special tokens included; ``first`` as in `document_means`."""
    real = doc_ids.flatten() >= 0  # [B * T]; without padding, each document begins where the one before ends
    begin = (real.cumsum(0) - 1)[first]
    return torch.diff(begin, append=real.sum()[None])


def document_means(x: Tensor, doc_ids: Tensor, first: Tensor) -> Tensor:
    """The mean of each document's hidden states, special tokens included, at length sqrt(E): [B, T, E] -> [N, E].

    Args:
        first: [N] flat indices of all documents' first tokens, ascending.
    """
    tokens = x.flatten(0, 1)[doc_ids.flatten() >= 0].float()
    means = torch.segment_reduce(tokens, "mean", lengths=document_lengths(doc_ids, first), unsafe=True)
    return nn.functional.rms_norm(means, means.shape[-1:]).to(x.dtype)


def head_logits(
    heads: Sequence[Head],
    modules: nn.ModuleDict,
    x: Tensor,
    output_index: dict[str, Tensor],
    read_documents: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The logits of all heads, by field.

    Args:
        modules: by the heads' keys.
        x: [B, T, E], of which token heads read the words' states.
        output_index: as in `Encoder.forward`.
        read_documents: the documents' first tokens, [N] → what class and multi heads read, which is the same for all.
    """
    names = [head.name for head in heads]
    assert set(output_index) == set(names), f"indices for {sorted(output_index)}, but the heads are {sorted(names)}"
    documents: Tensor | None = None
    logits = {}
    for head in heads:
        index = output_index[head.name]
        if head.of_documents:
            documents = read_documents(index) if documents is None else documents
        logits[head.name] = modules[head.key](documents if head.of_documents else x.flatten(0, 1)[index])
    return logits


class Encoder(nn.Module):
    """The complete encoder with its heads. See the file's docstring for the architecture."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        # Only if a head uses it: else it would be a parameter without a gradient.
        has_pooler = config.head == "dense" and config.family == "bert" and any(h.of_documents for h in config.heads)
        self.pooler = nn.Linear(config.dim, config.dim) if has_pooler else None
        self.heads = nn.ModuleDict({head.key: Classifier(config, head) for head in config.heads})
        assert len(self.heads) == len(config.heads), f"two heads have the same name: {[h.key for h in config.heads]}"

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        doc_ids: Tensor,
        output_index: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Compute every field's logits.

        Args:
            tokens: [B, T] int64, each document with its special tokens.
            positions: [B, T] int64, each token's distance from the start of its document, in both families; 0 for
                padding.
            doc_ids: [B, T] int, the packed document that each token belongs to, -1 for padding.
            output_index: for each field, [N] indices in the flattened [B * T] batch at which its logits are computed:
                every document's first token (class and multi fields; head "mean" takes it as the document's begin), or
                every word's first sub-word (token field). N may be 0.

        Returns:
            For each field, [N, n_labels] logits in the compute dtype; without ``output_index`` the last hidden
            states, [B, T, E].
        """
        mask = build_bidirectional_mask(doc_ids)
        x = self.embed(tokens, positions)  # [B, T, E]
        for layer in self.layers:
            x = layer(x, mask)
        if output_index is None:
            return x
        read_documents = partial(self._read_documents, x, doc_ids)
        return head_logits(self.config.heads, self.heads, x, output_index, read_documents)

    def _read_documents(self, x: Tensor, doc_ids: Tensor, first: Tensor) -> Tensor:
        """What the heads of documents read of the hidden states x, [B, T, E]: [N, E]."""
        if self.config.head == "mean":
            return document_means(x, doc_ids, first)
        read = x.flatten(0, 1)[first]
        return torch.tanh(self.pooler(read)) if self.pooler is not None else read

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize every parameter, e.g. after ``to_empty``; there are no buffers. Pretrained weights replace them.

        | parameters                          | initial values                     |
        |-------------------------------------|------------------------------------|
        | matrices and embeddings             | normal, 0.02 (Devlin et al., 2019) |
        | norms                               | weight 1, bias 0                   |
        | all other biases                    | 0                                  |
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.02, generator=generator)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)
