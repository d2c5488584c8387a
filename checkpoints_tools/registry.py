"""The registry: every model by name.

A model is one entry of `MODELS`: an architecture (`architectures.py`), its config, its chat template and its recipe.
Or, if its weights are not published, the server that answers for it (`ApiModel`). `PORTING.md` describes how to add the
first.

A checkpoint's ``config.json`` overrides the numbers here. If the two differ, loading is an error unless
``--allow_mismatch`` is given. Tables 1 and 2 of the paper are misprinted (`docs/architecture.md`); the shapes here are
those of the real checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from checkpoints_tools.architectures import ARCHITECTURES, Architecture, ModelConfig
from data.decoder.templates import MESSAGES
from data.errors import UserError, nearest
from model.encoder import ROBERTA_BASE, ROBERTA_DEBUG, ROBERTA_LARGE
from model.llama import LlamaConfig


@dataclass(frozen=True)
class ModelSpec:
    """A model by name.

    Attributes:
        name: value of ``--model``.
        family: key into `ARCHITECTURES`, set even if ``config`` is None.
        config: the model's config; None: the config is read from the checkpoint folder.
        chat_template: key into ``data.decoder.templates.TEMPLATES``; empty for encoders, which have no prompt.
        recipe: key into ``train.config.RECIPES``: the settings for a model of this kind and size.
        hf_repo: where the weights are published, for messages; empty for models without published weights.
    """

    name: str
    family: str
    config: ModelConfig | None
    chat_template: str
    recipe: str
    hf_repo: str = ""

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.family]

    @property
    def kind(self) -> Literal["decoder", "encoder"]:
        """Whether it writes its answers (decoder) or has a head for each field (encoder)."""
        return self.architecture.kind

    @property
    def build(self) -> type[nn.Module]:
        """The module class, ``build(config)``."""
        return self.architecture.build

    @property
    def default_checkpoint(self) -> Path | None:
        """The folder of the weights if ``--checkpoint`` is omitted; None for a model without a config."""
        return Path("checkpoints") / self.name if self.config is not None else None


@dataclass(frozen=True)
class ApiModel:
    """A model that a server answers for, through the OpenAI chat API (`eval/api`). It can be scored, nothing else.

    Attributes:
        name: value of ``--model``.
        base_url: its server, unless ``--base_url`` names another; empty: ``--base_url`` is needed, and ``--api_model``,
            the model's name there. Otherwise that name is ``name``.
        context: maximum tokens of prompt and answer together; None: not known.
        vocabulary: tiktoken's name of its vocabulary; empty: not known.
    """

    kind: ClassVar[Literal["api"]] = "api"
    chat_template: ClassVar[str] = MESSAGES

    name: str
    base_url: str = ""
    context: int | None = None
    vocabulary: str = ""


OPENAI = "https://api.openai.com/v1"


def _llama2(**numbers: Any) -> LlamaConfig:
    return LlamaConfig(vocab_size=32_000, rope_theta=10_000.0, max_position=4096, norm_eps=1e-5, **numbers)


def _llama3(**numbers: Any) -> LlamaConfig:
    return LlamaConfig(vocab_size=128_256, rope_theta=500_000.0, max_position=8192, norm_eps=1e-5, **numbers)


MODELS: dict[str, ModelSpec | ApiModel] = {
    spec.name: spec
    for spec in [
        ModelSpec(
            "llama2_7b",
            "llama",
            _llama2(dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, ffn_dim=11_008),
            "llama2",
            "small",
            "meta-llama/Llama-2-7b-chat-hf",
        ),
        ModelSpec(
            "llama2_70b",
            "llama",
            _llama2(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28_672),
            "llama2",
            "large",
            "meta-llama/Llama-2-70b-chat-hf",
        ),
        ModelSpec(
            "llama3_8b",
            "llama",
            _llama3(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=14_336),
            "llama3",
            "small",
            "meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        ModelSpec(
            "llama3_70b",
            "llama",
            _llama3(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28_672),
            "llama3",
            "large",
            "meta-llama/Meta-Llama-3-70B-Instruct",
        ),
        ModelSpec(
            "smollm2_135m",
            "llama",
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
            "smollm2",
            "smollm2",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        # Any other checkpoint of the Llama architecture, with the config and chat template of its folder and the
        # paper's recipe for small models.
        ModelSpec("llama", "llama", None, "plain", "small"),
        # The same with heads in place of the output matrix.
        ModelSpec("llama_heads", "llama_heads", None, "", "decoder_heads"),
        # Small enough for tests on one CPU core. Its widths are odd so that nothing divides by accident, and
        # n_heads * head_dim is not dim (16 is the smallest head width that FlexAttention supports).
        ModelSpec(
            "llama_debug",
            "llama",
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
            "plain",
            "debug",
        ),
        # Encoders. Their heads depend on the task, so the configs here have none.
        ModelSpec("roberta_base", "roberta", ROBERTA_BASE, "", "encoder", "FacebookAI/roberta-base"),
        ModelSpec("roberta_large", "roberta", ROBERTA_LARGE, "", "encoder", "FacebookAI/roberta-large"),
        ModelSpec("roberta_debug", "roberta", ROBERTA_DEBUG, "", "encoder_debug"),
        # Any other checkpoint of the architecture, with the config of its folder.
        ModelSpec("roberta", "roberta", None, "", "encoder"),
        ModelSpec("bert", "bert", None, "", "encoder"),
    ]
} | {
    spec.name: spec
    for spec in [
        ApiModel("gpt-3.5-turbo", OPENAI, 16_385, "cl100k_base"),
        ApiModel("gpt-4", OPENAI, 8192, "cl100k_base"),
        ApiModel("gpt-4o", OPENAI, 128_000, "o200k_base"),
        ApiModel("api"),  # any model of any server
    ]
}


def model_names(api: bool = False) -> list[str]:
    """The names of the models with weights; with ``api``, also of those that a server answers for."""
    return [name for name, spec in MODELS.items() if api or spec.kind != "api"]


def get_model(name: str) -> ModelSpec | ApiModel:
    """Look up a model by name.

    Raises:
        UserError: unknown name; the message suggests the nearest known one.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}'.{nearest(name, model_names(api=True))}")
    return MODELS[name]


def get_model_spec(name: str) -> ModelSpec:
    """Look up a model with weights by name.

    Raises:
        UserError: unknown name, or a model that a server answers for.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}'.{nearest(name, model_names())}")
    spec = MODELS[name]
    if isinstance(spec, ApiModel):
        raise UserError(
            f"model {name} has no weights here: a server answers for it. It can be scored (eval.py --model {name}), "
            f"not trained or loaded. With weights: {', '.join(model_names())}."
        )
    return spec
