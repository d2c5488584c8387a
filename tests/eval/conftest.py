"""A complete checkpoint that fits into a second: tiny random Llama, tiny byte-level tokenizer, as a folder on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from checkpoints_tools.export import export_hf
from checkpoints_tools.registry import get_model_spec
from data.decoder.prompts import build_prompt
from data.decoder.templates import Text
from data.decoder.tokenizer import load_tokenizer
from data.tasks import TASKS

MODEL = "llama_debug"


def write_tokenizer(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    pieces = build_prompt(TASKS["massive_joint"], "plain").prefix
    bpe = ByteLevelBPETokenizer()
    text = [piece.text for piece in pieces if isinstance(piece, Text)] * 2
    bpe.train_from_iterator(text, vocab_size=600, special_tokens=["<|end|>"], show_progress=False)
    folder.mkdir(parents=True)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')


def write_checkpoint(folder: Path, unused_tokens: int = 0, **numbers: int) -> Path:
    write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    spec = get_model_spec(MODEL)
    config = dataclasses.replace(spec.config, vocab_size=tokenizer.vocab_size + unused_tokens, **numbers)
    model = spec.build(config)
    torch.manual_seed(0)
    model.init_weights()
    with torch.no_grad():  # as initialized, the model repeats its last token whatever the document
        for block in model.layers:
            for parameter in block.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(15.0)
    export_hf(model, config, tokenizer, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def divisible_checkpoint(tmp_path_factory) -> Path:
    """One that divides by 4, for tensor parallelism, but for its vocabulary."""
    shape = {"dim": 56, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 100, "tie_embeddings": False}
    return write_checkpoint(tmp_path_factory.mktemp("divisible"), unused_tokens=1, **shape)
