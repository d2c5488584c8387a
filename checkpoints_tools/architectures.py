"""Every architecture, in one entry each.

An entry of `ARCHITECTURES` names everything that the rest of the code needs of an architecture. `registry.py` has the
models by name; `PORTING.md` describes how to add an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from checkpoints_tools.encoder_config import check_encoder_tokenizer, parse_encoder_config, write_encoder_export
from checkpoints_tools.encoder_keys import encoder_to_theirs, match_encoder
from checkpoints_tools.heads import checked_heads, heads_for
from checkpoints_tools.key_maps import Matched, llama_to_theirs, match_llama
from checkpoints_tools.llama_config import check_llama_tokenizer, write_llama_config, write_llama_export
from checkpoints_tools.llama_heads import (
    check_headed_llama_tokenizer,
    headed_llama_to_theirs,
    match_headed_llama,
    parse_llama,
    without_heads,
    write_headed_llama_export,
)
from data.decoder.tokenizer import Tokenizer as DecoderTokenizer
from data.decoder.tokenizer import load_tokenizer as load_decoder_tokenizer
from data.encoder.read_twice import TwiceTokenizer
from data.encoder.read_twice import load_tokenizer as load_twice_tokenizer
from data.encoder.samples import LONGEST_DOCUMENT
from data.encoder.samples import AnyTokenizer as EncoderTokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.tasks import Task
from model import tensor_plans
from model.costs import Costs, DecoderCosts, EncoderCosts, HeadedDecoderCosts
from model.encoder import Encoder, EncoderConfig, HeadKind
from model.llama import Llama, LlamaConfig
from model.llama_heads import HeadedConfig, HeadedLlama, HeadedLlamaConfig
from model.tensor_plans import TensorPlan

ModelConfig = LlamaConfig | HeadedConfig
Tokenizer = DecoderTokenizer | EncoderTokenizer


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

    @property
    def is_decoder_with_heads(self) -> bool:
        """Whether the blocks below the heads are a decoder's: each text is read twice, and positions have no limit."""
        return self.kind == "encoder" and bool(self.starts_from)


def _with_heads(config: EncoderConfig, task: Task, head: HeadKind, folder: Path | str) -> EncoderConfig:
    return checked_heads(config, replace(config, head=head, heads=heads_for(task)), task, folder)


def _with_linear_heads(config: HeadedLlamaConfig, task: Task, head: HeadKind, folder: Path | str) -> HeadedLlamaConfig:
    if head != config.head:
        raise UserError(f"head = {head} is for encoders: the heads of a decoder are of one kind. Omit it.")
    return checked_heads(config, replace(config, heads=heads_for(task)), task, folder)


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
    check_tokenizer=check_encoder_tokenizer,
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
    check_tokenizer=check_llama_tokenizer,
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
        check_tokenizer=check_headed_llama_tokenizer,
        tensor_plan=None,
        task_decides_heads=True,
        row_bounds_input=False,
        free_fields=("max_position", "heads", "frame"),
        longest_document=4 * LONGEST_DOCUMENT,  # it reads each text twice, and has the positions
        starts_from={"llama": without_heads},
    ),
    "roberta": replace(
        _ENCODER,
        download=replace(_ENCODER.download, repo="FacebookAI/roberta-base"),
    ),
    "bert": _ENCODER,
}


def architecture_of(config: ModelConfig) -> Architecture:
    """The registry entry of a config's architecture."""
    return ARCHITECTURES[config.family]


def with_frame(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The config of a model that is to be trained: first heads of a decoder leave the frame out of the mean."""
    if isinstance(config, HeadedLlamaConfig) and isinstance(tokenizer, TwiceTokenizer) and not config.heads:
        return replace(config, frame=tokenizer.frame.sizes)
    return config


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
