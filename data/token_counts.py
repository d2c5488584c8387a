"""The tokens of examples and labels, counted with the tokenizer of a checkpoint folder, as training would.

The prompt is that of ``train.py`` without options about it. Only the folder's tokenizer files and, in its
``config.json``, the model type and the longest input are read, no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from data.decoder import samples as decoder_samples
from data.decoder.prompts import build_prompt
from data.decoder.round_trip import lost_labels
from data.decoder.templates import Prompt, encode_pieces, template_for
from data.decoder.tokenizer import Tokenizer
from data.decoder.tokenizer import load_tokenizer as load_decoder_tokenizer
from data.encoder import read_twice
from data.encoder import samples as encoder_samples
from data.encoder.frame import Frame
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.example import Example
from data.files.documents import read_json, readable
from data.findings import SHOWN, Finding
from data.progress import TRACKED_FROM, Rate, Regular
from data.readers.label_sets import label_of
from data.tasks import Task

ENCODERS = ("roberta", "bert")  # values of model_type in config.json; all other models are decoders
ROW_LENGTH = 2048  # of training, without --row_length
CHUNK = 1000  # examples that are tokenized at a time; fewer than `track` shows

log = logging.getLogger("data")


class _Heads(msgspec.Struct):
    """What is read of the heads of a folder that was fine-tuned here."""

    max_length: int | None = None


class _Config(msgspec.Struct):
    """What is read of every ``config.json``."""

    model_type: str = ""
    heads: _Heads | None = None


class _Positions(msgspec.Struct):
    """What is read of the ``config.json`` of an encoder and of a decoder with heads."""

    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1)] | None = None
    pad_token_id: int | None = 1


@dataclass(frozen=True)
class Counter:
    """Counts the tokens of a task's examples for one tokenizer.

    Attributes:
        prompt: of a decoder; None for an encoder.
        longest_row: how many tokens an example may have.
    """

    task: Task
    tokenizer: Tokenizer | encoder_samples.AnyTokenizer
    prompt: Prompt | None
    longest_row: int

    def describe(self) -> str:
        """What a count includes."""
        if self.prompt is None:
            assert isinstance(self.tokenizer, encoder_samples.AnyTokenizer)
            read = "" if self.tokenizer.frame.readings == 1 else ", which is read twice"
            return f"tokens of a text{read}, {self.tokenizer.frame.size} around it included"
        assert not isinstance(self.tokenizer, encoder_samples.AnyTokenizer)
        around = len(encode_pieces((*self.prompt.prefix, *self.prompt.suffix), self.tokenizer))
        return f"tokens of an example, {around:,} of the prompt included"

    def lost(self) -> list[Finding]:
        """The labels that a decoder could never write; of an encoder none."""
        if self.prompt is None:
            return []
        assert not isinstance(self.tokenizer, encoder_samples.AnyTokenizer)
        lost = list(lost_labels(self.task, self.prompt, self.tokenizer))
        found = []
        for name in dict.fromkeys(label.field for label in lost):
            own = [label for label in lost if label.field == name]
            shown = ", ".join(f"{own_label.label!r} becomes {ascii(own_label.decoded)}" for own_label in own[:SHOWN])
            more = f", ... ({len(own) - SHOWN:,} more)" if len(own) > SHOWN else ""
            found.append(Finding(True, f"the tokenizer cannot write {len(own):,} of the {label_of(name)}s: the answer "
                                       f"with {shown}{more}. Rename them."))  # fmt: skip
        return found

    def count(self, examples: Sequence[Example], what: str) -> np.ndarray:
        """``[N]`` int64 tokens that the examples need, before anything is cut.

        Args:
            what: the split, for the bar.

        Raises:
            UserError: a row has no space for a document beside the prompt.
        """
        columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        found = [np.zeros(0, dtype=np.int64)]
        with Regular(f"tokenizing {what}", len(examples), len(examples) >= TRACKED_FROM, *columns) as progress:
            for start in range(0, len(examples), CHUNK):
                chunk = examples[start : start + CHUNK]
                found.append(self._count(chunk))
                progress.advance(len(chunk))
        return np.concatenate(found)

    def _count(self, examples: Sequence[Example]) -> np.ndarray:
        if self.prompt is None:
            assert isinstance(self.tokenizer, encoder_samples.AnyTokenizer)
            encoded = encoder_samples.prepare(examples, self.task, self.tokenizer, self.longest_row, with_labels=False)
            frame = self.tokenizer.frame
            return frame.readings * encoded.document_tokens.astype(np.int64) + frame.size
        assert not isinstance(self.tokenizer, encoder_samples.AnyTokenizer)
        samples = decoder_samples.prepare(examples, self.task, self.prompt, self.tokenizer, self.longest_row)
        around = len(samples.prefix) + len(encode_pieces(self.prompt.suffix, self.tokenizer))
        return samples.document_tokens.astype(np.int64) + samples.label_lengths + around


def open_counter(folder: Path, task: Task, row_length: int | None) -> Counter:
    """A counter for the tokenizer of a checkpoint folder.

    Args:
        row_length: how many tokens an example may have; None: what training takes by default, and of a folder with
            heads what these were trained on, which scoring takes.

    Raises:
        UserError: no such folder, no tokenizer in it, or one that cannot be read.
    """
    with readable(folder):
        is_folder, has_config = folder.is_dir(), (folder / "config.json").is_file()
    if not is_folder:
        raise UserError(
            f"--checkpoint: there is no folder {folder}. It must be one with a tokenizer, such as an export."
        )
    config = read_json(folder / "config.json", _Config) if has_config else _Config()
    if config.model_type not in ENCODERS and config.heads is None:
        tokenizer = load_decoder_tokenizer(folder)
        return Counter(task, tokenizer, build_prompt(task, template_for(tokenizer)), row_length or ROW_LENGTH)
    with_heads = (load_encoder_tokenizer if config.model_type in ENCODERS else read_twice.load_tokenizer)(folder)
    return Counter(task, with_heads, None, row_length or _longest_document(folder, config, with_heads.frame))


def _longest_document(folder: Path, config: _Config, frame: Frame) -> int:
    """Tokens to which documents are cut: in scoring as the heads were trained; without heads as in training."""
    if config.heads is not None and config.heads.max_length is not None:
        encoder_samples.check_stored_length(config.heads.max_length, frame, folder / "config.json")
        return config.heads.max_length
    usual = encoder_samples.LONGEST_DOCUMENT if config.model_type in ENCODERS else ROW_LENGTH
    found = read_json(folder / "config.json", _Positions)
    unused = (found.pad_token_id or 0) + 1 if config.model_type == "roberta" else 0
    return min(usual, (found.max_position_embeddings or usual) - unused)
