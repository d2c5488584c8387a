"""The options of ``predict.py`` with their defaults; `load_config` reads and checks them.

This file does not import PyTorch, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from data.errors import UserError
from data.files.paths import PathText
from data.readers.encoding import check_encoding
from data.readers.tables import PLAIN, Dialect, read_delimiter
from data.tasks import get_task
from eval.config import DECODER_ONLY, ENCODER_ONLY, abstain_problems
from train import options

if TYPE_CHECKING:
    from checkpoints_tools.registry import ModelSpec

DESCRIPTION = """Label new texts with a fine-tuned model, or with any decoder and --task. Run alone or under torchrun.

The output has every column of the input, then one for each label."""


@dataclass(frozen=True)
class PredictConfig:
    config: Path | None = None
    """TOML file with options; the command line overrides it."""
    checkpoint: Path | None = None
    """Export of a run (runs/NAME/export), a run's checkpoints/step_N folder, or any model with --task."""
    input: PathText = ""
    """File with the texts: .csv, .tsv, .jsonl, .json, .conll, .conllu, or .txt with one text per line, also with .gz;
    .parquet, .arrow, or a folder that `datasets` saved. '-': standard input."""
    output: PathText = "-"
    """File to write, .jsonl or .csv; it must not exist. '-': standard output. An interrupted run leaves OUTPUT.partial;
    the same command continues it."""
    text_column: str | None = None
    """Column with the texts, or with lists of their words; default: that of the task, or what its template makes of
    several; else 'text'."""
    format: Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "arrow", "lines", "conll", "conllu"] = "auto"
    """Format of the input; auto: by the file's ending, and lines for standard input."""
    delimiter: str = PLAIN.delimiter
    """Character that separates the cells of CSV."""
    encoding: str = PLAIN.encoding
    """Encoding of the input, such as utf-16 or windows-1252; not for Parquet and Arrow."""
    conll_columns: tuple[str, ...] = ()
    """Names of the columns of CoNLL; default: those of the task, else tokens, 2, 3, ..., tags."""
    tsv_quoting: bool = False
    """Quotation marks in TSV mean what they mean in CSV; default: they are characters of the text."""
    output_format: Literal["auto", "jsonl", "csv"] = "auto"
    """Format of the output; auto: by the file's ending, and jsonl for standard output."""
    prefix: str = "predicted_"
    """Start of the names of the new columns."""
    task: PathText = ""
    """Task name or TOML file; default: the task that the checkpoint was fine-tuned on."""
    model: str = ""
    """Name of a model preset; default: read from the checkpoint."""
    slot_answer: Literal["list", "spans"] | None = None
    """Only for a model that was never fine-tuned; see train.py --help."""
    list_labels: tyro.conf.DisallowNone[bool | None] = None
    """List the labels in the instruction; default: as in fine-tuning, else on."""
    template: str = "auto"
    """Chat template, if the checkpoint stores no prompt; auto: the checkpoint's own."""
    row_length: int | None = None
    """Maximum tokens of prompt and answer together; default: as in fine-tuning, else the recipe's."""
    max_length: int | None = None
    """Maximum document length of an encoder in tokens; default: as in fine-tuning."""
    max_new_tokens: int | None = None
    """Maximum answer length in tokens; default: each text's longest valid answer, in any form that is read."""
    decode: Literal["labels", "free"] | None = None
    """What a decoder may write. labels (default): valid answers only, and the probabilities of a class field's labels.
    free: anything, as eval.py does by default."""
    abstain_below: float | None = None
    """Do not give labels of class fields that are less probable than this, in (0, 1]: they are in a column of their own
    instead."""
    batch_tokens: int = 4096
    """Maximum tokens in a batch. More may be faster and need more memory."""
    tp: int = 1
    """Tensor parallelism: number of ranks that split each matrix. Further ranks share the texts."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of weights and compute; auto: bf16 with hardware support for it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.delimiter, self.encoding, self.tsv_quoting, conll_columns=self.conll_columns or None)


def load_config(argv: Sequence[str]) -> PredictConfig:
    """Resolve the options from the command line and the TOML file below it.

    Raises:
        UserError: one message with every problem found.
    """
    problems: list[str] = []
    from_toml, from_argv = options.read_layers(PredictConfig, argv, problems)
    config = options.expand_paths(options.parse(PredictConfig, [*from_toml, *from_argv]), problems)
    if config.checkpoint is None:
        problems.append("no --checkpoint given: the folder of a model, such as a run's export.")
    spec = _model(config, problems)
    if not config.input:
        problems.append("no --input given: a file with texts, or - for standard input.")
    if config.task:
        try:
            get_task(config.task, slot_answer=config.slot_answer)
        except UserError as error:
            problems.append(str(error))
    try:
        config = replace(config, delimiter=read_delimiter(config.delimiter))
        check_encoding(config.encoding)
    except UserError as error:
        problems.append(str(error))
    for name, bound in {"batch_tokens": 1, "tp": 1, "row_length": 16, "max_length": 3, "max_new_tokens": 1}.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            problems.append(f"{name} = {value}: must be at least {bound}.")
    is_encoder = spec is not None and spec.kind == "encoder"
    problems += abstain_problems(config.abstain_below, None if is_encoder else config.decode)
    options.report(problems + options.text_problems(config))
    return config


def _model(config: PredictConfig, problems: list[str]) -> ModelSpec | None:
    """The model, with ``problems`` about it; None if it is unknown, or the checkpoint does not say it.

    Why the checkpoint does not say it is reported when it is opened.
    """
    if not config.model and config.checkpoint is None:
        return None
    from checkpoints_tools.registry import get_model_spec  # these import PyTorch
    from eval.predict.classifier import model_name
    from train.resolve import problems_of_kind

    name = config.model
    if not name and config.checkpoint is not None:
        with suppress(UserError):
            name = model_name(config.checkpoint)
    if not name:
        return None
    try:
        spec = get_model_spec(name)
    except UserError as error:
        problems.append(str(error))
        return None
    own = options.flatten(config)
    decoder_only, encoder_only = ([name for name in names if name in own] for names in (DECODER_ONLY, ENCODER_ONLY))
    problems += problems_of_kind(config, spec, decoder_only, encoder_only)
    return spec
