"""The models by name: every preset, its numbers and how it is prompted and trained, in one dict.

A checkpoint's own ``config.json`` always wins over the numbers here; where the two differ, loading stops and says so
unless asked not to. Tables 1 and 2 of the paper are misprinted (`docs/architecture.md`): these are the shapes of the
real checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.errors import UserError, nearest
from model.encoder import ROBERTA_BASE, ROBERTA_DEBUG, ROBERTA_LARGE, Encoder, EncoderConfig
from model.llama import Llama, LlamaConfig


@dataclass(frozen=True)
class ModelSpec:
    """All that the rest of the code needs to know about a model by name.

    Attributes:
        config: the shape, given to ``build``; None takes whatever the checkpoint folder's ``config.json`` says.
        build: the module class, ``build(config)``.
        chat_template: key into ``data.decoder.prompts.TEMPLATES``; empty for encoders, which are not prompted.
        recipe: key into ``train.config.RECIPES``: the paper's settings for a model of this size.
        hf_repo: where the weights come from, for messages; empty for models that have none.
        family: which architecture it is, also where ``config`` is None.
    """

    name: str
    config: LlamaConfig | EncoderConfig | None
    build: type[Llama] | type[Encoder]
    chat_template: str
    recipe: str
    hf_repo: str = ""
    family: Literal["llama", "roberta", "bert"] = "llama"

    @property
    def kind(self) -> Literal["decoder", "encoder"]:
        """Whether it writes its answers (decoder) or has a head for each field (encoder)."""
        return "encoder" if self.build is Encoder else "decoder"

    @property
    def default_checkpoint(self) -> Path | None:
        """Where a preset's weights are looked for unless a folder is named; None for a model that could be any."""
        return Path("checkpoints") / self.name if self.config is not None else None


def _llama2(**numbers: int) -> LlamaConfig:
    return LlamaConfig(vocab_size=32_000, rope_theta=10_000.0, max_position=4096, norm_eps=1e-5, **numbers)


def _llama3(**numbers: int) -> LlamaConfig:
    return LlamaConfig(vocab_size=128_256, rope_theta=500_000.0, max_position=8192, norm_eps=1e-5, **numbers)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in [
        ModelSpec(
            "llama2_7b",
            _llama2(dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, ffn_dim=11_008),
            Llama,
            "llama2",
            "small",
            "meta-llama/Llama-2-7b-chat-hf",
        ),
        ModelSpec(
            "llama2_70b",
            _llama2(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28_672),
            Llama,
            "llama2",
            "large",
            "meta-llama/Llama-2-70b-chat-hf",
        ),
        ModelSpec(
            "llama3_8b",
            _llama3(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=14_336),
            Llama,
            "llama3",
            "small",
            "meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        ModelSpec(
            "llama3_70b",
            _llama3(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28_672),
            Llama,
            "llama3",
            "large",
            "meta-llama/Meta-Llama-3-70B-Instruct",
        ),
        ModelSpec(
            "smollm2_135m",
            LlamaConfig(
                dim=576,
                n_layers=30,
                n_heads=9,
                n_kv_heads=3,
                ffn_dim=1536,
                vocab_size=49_152,
                rope_theta=100_000.0,
                max_position=8192,
                norm_eps=1e-5,
                tie_embeddings=True,
            ),
            Llama,
            "smollm2",
            "smollm2",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        # Any other checkpoint of the Llama architecture, from its own config.json, with the paper's recipe for small
        # models and the chat template that its tokenizer tells of.
        ModelSpec("llama", None, Llama, "plain", "small"),
        # Small enough for tests on one CPU core; odd widths so that nothing divides by accident, and heads whose widths
        # do not add up to the model's (16 is the least that FlexAttention takes).
        ModelSpec(
            "llama_debug",
            LlamaConfig(
                dim=48,
                n_layers=2,
                n_heads=6,
                n_kv_heads=3,
                ffn_dim=100,
                vocab_size=301,
                head_dim=16,
                max_position=2048,
                tie_embeddings=True,
            ),
            Llama,
            "plain",
            "debug",
        ),
        # Encoders. The task decides which heads they get, so the configs here have none.
        ModelSpec("roberta_base", ROBERTA_BASE, Encoder, "", "encoder", "FacebookAI/roberta-base", "roberta"),
        ModelSpec("roberta_large", ROBERTA_LARGE, Encoder, "", "encoder", "FacebookAI/roberta-large", "roberta"),
        ModelSpec("roberta_debug", ROBERTA_DEBUG, Encoder, "", "encoder_debug", family="roberta"),
        # Any other checkpoint of the family, from its own config.json.
        ModelSpec("roberta", None, Encoder, "", "encoder", family="roberta"),
        ModelSpec("bert", None, Encoder, "", "encoder", family="bert"),
    ]
}


def get_model_spec(name: str) -> ModelSpec:
    """Look a model up by name.

    Raises:
        UserError: unknown name; the message gives the nearest known one.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}'.{nearest(name, MODELS)}")
    return MODELS[name]
