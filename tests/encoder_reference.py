"""transformers' RoBERTa and BERT with random weights, and our encoder with the same ones.

The two share no code and no exporter: weights are copied over by the table below.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from model.encoder import Encoder, EncoderConfig, Head

CLASSES = {
    "roberta": (RobertaConfig, RobertaModel, RobertaForSequenceClassification, RobertaForTokenClassification),
    "bert": (BertConfig, BertModel, BertForSequenceClassification, BertForTokenClassification),
}
PAD = {"roberta": 1, "bert": 0}  # transformers counts RoBERTa's positions by this id: no document may hold it

OURS_FROM_HF = {  # applied in this order
    "roberta.": "",
    "bert.": "",
    "embeddings.word_embeddings": "embed.tokens",
    "embeddings.position_embeddings": "embed.positions",
    "embeddings.token_type_embeddings": "embed.types",
    "embeddings.LayerNorm": "embed.norm",
    "encoder.layer.": "layers.",
    "attention.self.query": "attention.wq",
    "attention.self.key": "attention.wk",
    "attention.self.value": "attention.wv",
    "attention.output.dense": "attention.wo",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn.w1",
    "output.dense": "ffn.w2",
    "output.LayerNorm": "ffn_norm",
    "pooler.dense": "pooler",
    "classifier.dense": "heads.FIELD.dense",
    "classifier.out_proj": "heads.FIELD.out",
    "classifier.": "heads.FIELD.out.",
}


def our_name(name: str, field: str) -> str:
    for theirs, ours in OURS_FROM_HF.items():
        name = name.replace(theirs, ours)
    return name.replace("FIELD", field)


def reference(config: EncoderConfig) -> PreTrainedModel:
    """The transformers model that predicts the config's one field, or the bare encoder where it has none.

    A linear class head is the token head of transformers, read at the first token.
    """
    hf_config, bare, for_sequences, for_tokens = CLASSES[config.family]
    hf = hf_config(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        intermediate_size=config.ffn_dim,
        max_position_embeddings=config.max_position + config.position_offset,
        type_vocab_size=config.n_token_types,
        layer_norm_eps=config.norm_eps,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        pad_token_id=PAD[config.family],
        num_labels=config.heads[0].n_labels if config.heads else 2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    if not config.heads:
        model = bare(hf, add_pooling_layer=False)
    elif config.heads[0].of_documents and config.head == "dense":
        model = for_sequences(hf)
    else:
        model = for_tokens(hf)
    with torch.no_grad():
        for parameter in model.parameters():  # far from init: biases and norms that matter, uneven attention
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def ours_from(hf: PreTrainedModel, config: EncoderConfig) -> Encoder:
    """Our model with the reference's weights; ``config`` has the same one field, or none."""
    field = config.heads[0].key if config.heads else ""
    model = Encoder(config)
    model.load_state_dict({our_name(name, field): tensor.clone() for name, tensor in hf.state_dict().items()})
    return model.eval()


def scaled_down(config: EncoderConfig, *heads: Head, head: str = "linear") -> EncoderConfig:
    """The preset's own ratios, offset, token types and epsilon, with few and narrow layers."""
    n_heads = config.n_heads // 4 if config.n_heads % 4 == 0 else config.n_heads
    return replace(
        config,
        dim=8 * n_heads,
        n_heads=n_heads,
        ffn_dim=8 * n_heads * config.ffn_dim // config.dim,
        n_layers=2,
        vocab_size=97,
        max_position=24,
        heads=heads,
        head=head,
    )
