"""The registry: every architecture, and every model by name.

An architecture is one entry of `ARCHITECTURES`, which names everything that the rest of the code needs of it. A model
is one entry of `MODELS`: an architecture, its config, its chat template and its recipe; or, if its weights are not
published, the server that answers for it (`ApiModel`). `PORTING.md` describes how to add the first two.

A checkpoint's ``config.json`` overrides the numbers here. If the two differ, loading is an error unless
``--allow_mismatch`` is given. Tables 1 and 2 of the paper are misprinted (`docs/architecture.md`); the shapes here are
those of the real checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from torch import nn

from checkpoints_tools.encoder_config import (
    check_head_labels,
    check_roberta_tokenizer,
    heads_for,
    parse_encoder_config,
    read_head_labels,
    write_encoder_export,
)
from checkpoints_tools.encoder_keys import encoder_to_theirs, match_encoder, match_heads
from checkpoints_tools.key_maps import Matched, llama_to_theirs, match_llama
from checkpoints_tools.llama_config import write_llama_config, write_llama_export
from checkpoints_tools.llama_heads import (
    headed_llama_to_theirs,
    match_headed_llama,
    parse_llama,
    without_heads,
    write_headed_llama_export,
)
from data.decoder.templates import MESSAGES
from data.decoder.tokenizer import Tokenizer as DecoderTokenizer
from data.decoder.tokenizer import load_tokenizer as load_decoder_tokenizer
from data.encoder.read_twice import load_tokenizer as load_twice_tokenizer
from data.encoder.samples import LONGEST_DOCUMENT
from data.encoder.samples import AnyTokenizer as EncoderTokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError, nearest
from data.tasks import Task
from model import tensor_plans
from model.costs import Costs, DecoderCosts, EncoderCosts, HeadedDecoderCosts
from model.encoder import ROBERTA_BASE, ROBERTA_DEBUG, ROBERTA_LARGE, Encoder, EncoderConfig, HeadKind
from model.llama import Llama, LlamaConfig
from model.llama_heads import HeadedConfig, HeadedLlama, HeadedLlamaConfig
from model.tensor_plans import TensorPlan

ModelConfig = LlamaConfig | HeadedConfig
Tokenizer = DecoderTokenizer | EncoderTokenizer
_C = TypeVar("_C", EncoderConfig, HeadedLlamaConfig)


@dataclass(frozen=True)
class Download:
    """How to download the weights of an architecture, for messages.

    Attributes:
        repo: the repository to name if the model could be any of the architecture.
        options: for ``hf download``, because repositories hold the same weights more than once.
        which: the variant to download if there are several; else empty.
    """

    repo: str
    options: str
    which: str = ""


@dataclass(frozen=True)
class Architecture:
    """Everything that the rest of the code needs of an architecture.

    Attributes:
        kind: "decoder" writes its answers, "encoder" has a head for each field (also a decoder's blocks with heads).
        build: the module class, ``build(config)``; its modules have ``layers``, ``config`` and ``init_weights``.
        config_type: the class of its configs, a dataclass.
        costs: ``costs(config)``, see `model.costs.Costs`.
        parse_config: (contents of a ``config.json``, its path for messages) → config. Raises UserError.
        write_config: writes ``config.json`` and ``generation_config.json`` from (folder, config, dtype, token ids), for
            `checkpoints_tools.convert`. None: `convert` refuses the architecture.
        write_export: writes an export's config and tokenizer from (folder, config, dtype, tokenizer, `TrainedOn`).
        match_tensors: (names of a folder's tensors, the folder's config, config of the model to fill, the folder for
            messages) → `Matched`. Raises UserError if heads do not fit.
        to_theirs: (our parameter name, config) → name in an export.
        load_tokenizer: folder → tokenizer. Raises UserError.
        with_task: (config, task, ``--head``, the config's folder) → config of a model for the task. Raises
            UserError if the folder's heads are not the task's, or number their outputs differently.
        check_tokenizer: (config, tokenizer, folder for messages) → None, for checks that only this architecture needs.
            Raises UserError if config and tokenizer do not belong together.
        tensor_plan: how its matrices are split over ranks; None: tensor parallelism is refused.
        task_decides_heads: True if the tensors that it needs depend on the task, not on its config.json alone.
        row_bounds_input: True if ``--row_length`` limits the input too, so that shorter rows truncate documents; False
            if ``--max_length`` does.
        free_fields: fields of the config in which a checkpoint may differ from the model that it is loaded into.
        download: how to download its weights.
        longest_document: tokens to which documents are cut, without ``--max_length`` and in longer rows.
        starts_from: by the family of another architecture, what makes its config one of this: training may start from
            such a folder.
    """

    kind: Literal["decoder", "encoder"]
    build: type[nn.Module]
    config_type: type[Any]
    costs: Callable[[Any], Costs]
    parse_config: Callable[[dict[str, Any], str], ModelConfig]
    write_config: Callable[..., None] | None
    write_export: Callable[..., None]
    match_tensors: Callable[..., Matched]
    to_theirs: Callable[[str, Any], str]
    load_tokenizer: Callable[[Path], Tokenizer]
    with_task: Callable[..., ModelConfig]
    check_tokenizer: Callable[..., None]
    tensor_plan: TensorPlan | None
    task_decides_heads: bool
    row_bounds_input: bool
    free_fields: tuple[str, ...]
    download: Download
    longest_document: int = LONGEST_DOCUMENT
    starts_from: Mapping[str, Callable[[Any], ModelConfig]] = field(default_factory=dict)


def _with_heads(config: EncoderConfig, task: Task, head: HeadKind, folder: Path | str) -> EncoderConfig:
    return _checked_heads(config, replace(config, head=head, heads=heads_for(task)), task, folder)


def _with_linear_heads(config: HeadedLlamaConfig, task: Task, head: HeadKind, folder: Path | str) -> HeadedLlamaConfig:
    if head != config.head:
        raise UserError(f"head = {head} is for encoders: the heads of a decoder are of one kind. Omit it.")
    return _checked_heads(config, replace(config, heads=heads_for(task)), task, folder)


def _checked_heads(config: _C, wanted: _C, task: Task, folder: Path | str) -> _C:
    """The wanted config, if the heads that the folder has fit it."""
    if config.heads:
        pairs = match_heads(config, wanted, str(folder))
        by_key = {head.key: head.name for head in (*config.heads, *wanted.heads)}
        labels = read_head_labels(Path(folder) / "config.json")
        check_head_labels(labels, [(by_key[key], by_key[other]) for key, other in pairs.items()], task, str(folder))
    return wanted


def _no_check(*_: object) -> None:
    """For architectures whose tokenizers need no further check."""


_ENCODER = Architecture(
    kind="encoder",
    build=Encoder,
    config_type=EncoderConfig,
    costs=EncoderCosts,
    parse_config=parse_encoder_config,
    write_config=None,  # encoders come as Hugging Face folders, which training reads without conversion
    write_export=write_encoder_export,
    match_tensors=match_encoder,
    to_theirs=encoder_to_theirs,
    load_tokenizer=load_encoder_tokenizer,
    with_task=_with_heads,
    check_tokenizer=_no_check,
    tensor_plan=None,
    task_decides_heads=True,
    row_bounds_input=False,
    free_fields=("heads", "head", "dropout", "attention_dropout"),
    download=Download(
        "google-bert/bert-base-uncased", "--include '*.json' --include '*.txt' --include '*.safetensors'"
    ),
)

_LLAMA = Architecture(
    kind="decoder",
    build=Llama,
    config_type=LlamaConfig,
    costs=DecoderCosts,
    parse_config=parse_llama,
    write_config=write_llama_config,
    write_export=write_llama_export,
    match_tensors=match_llama,
    to_theirs=llama_to_theirs,
    load_tokenizer=load_decoder_tokenizer,
    with_task=lambda config, *_: config,
    check_tokenizer=_no_check,
    tensor_plan=tensor_plans.LLAMA,
    task_decides_heads=False,
    row_bounds_input=True,
    free_fields=("max_position",),
    download=Download("meta-llama/Meta-Llama-3-8B-Instruct", "--exclude 'original/*'", which=" (an Instruct variant)"),
)

# ``family`` of our configs -> architecture. It is ``model_type`` of config.json, where "llama" with a key ``heads`` is
# "llama_heads".
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "llama_heads": replace(
        _LLAMA,
        kind="encoder",
        build=HeadedLlama,
        config_type=HeadedLlamaConfig,
        costs=HeadedDecoderCosts,
        write_config=None,
        write_export=write_headed_llama_export,
        match_tensors=match_headed_llama,
        to_theirs=headed_llama_to_theirs,
        load_tokenizer=load_twice_tokenizer,
        with_task=_with_linear_heads,
        tensor_plan=None,
        task_decides_heads=True,
        row_bounds_input=False,
        free_fields=("max_position", "heads"),
        longest_document=4 * LONGEST_DOCUMENT,  # it reads each text twice, and has the positions
        starts_from={"llama": without_heads},
    ),
    "roberta": replace(
        _ENCODER,
        check_tokenizer=check_roberta_tokenizer,
        download=replace(_ENCODER.download, repo="FacebookAI/roberta-base"),
    ),
    "bert": _ENCODER,
}


def architecture_of(config: ModelConfig) -> Architecture:
    """The registry entry of a config's architecture."""
    return ARCHITECTURES[config.family]


def as_family(config: ModelConfig, family: str) -> ModelConfig:
    """A folder's config as that of the architecture that is to be loaded, if this can start from such a folder."""
    change = ARCHITECTURES[family].starts_from.get(config.family)
    return config if change is None else change(config)


def config_of(model: nn.Module) -> ModelConfig:
    """The config that one of our models was built from."""
    return cast(ModelConfig, model.config)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The layers of one of our models, in order: the units of sharding, activation checkpointing and compilation."""
    return cast(nn.ModuleList, model.layers)


def costs_of(config: ModelConfig) -> Costs:
    """The costs of a model with this config."""
    return architecture_of(config).costs(config)


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
