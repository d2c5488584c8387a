"""Encoders with random weights whose answers depend on the document, in memory and as exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.export import export_hf
from checkpoints_tools.heads import heads_for
from data.encoder.samples import output_labels
from data.encoder.tokenizer import load_tokenizer
from data.source import load_examples
from data.tasks import Task
from model.encoder import Encoder, EncoderConfig
from tests.encoder_tokenizers import write_roberta


def random_encoder(config: EncoderConfig) -> Encoder:
    """As initialized, the answer would hardly depend on the document: these weights are ten times as large."""
    model = Encoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return model


def write_encoder(folder: Path, task: Task, config: EncoderConfig, **options: Any) -> Path:
    """An export with the heads of a built-in task, and a tokenizer that is trained on its sample. Returns its folder.

    Args:
        config: its vocabulary and heads are replaced.
        options: of `export_hf`.
    """
    texts = [example.text for example in load_examples(task, "train", "sample")]
    tokenizer = load_tokenizer(write_roberta(folder, texts, vocab_size=600)["files"])
    config = replace(config, vocab_size=tokenizer.vocab_size, heads=heads_for(task))
    out = folder / "export"
    export_hf(random_encoder(config), config, tokenizer, out, labels=output_labels(task), **options)
    return out
