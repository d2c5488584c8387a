"""Rows of the output matrix for labels, from folders with and without one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from checkpoints_tools.output_rows import rows_of_labels
from data.encoder.read_twice import TwiceTokenizer, load_tokenizer
from tests.checkpoints_tools.test_llama_heads import base as base
from tests.checkpoints_tools.test_llama_heads import export, headed

LABELS = {"mood": ["good", "not good"]}


def means(matrix: torch.Tensor, tokenizer: TwiceTokenizer, labels: list[str]) -> torch.Tensor:
    return torch.stack([matrix[tokenizer.encode(label)].mean(0) for label in labels])


def test_rows_of_the_matrix_that_writes(base: tuple[Path, torch.nn.Module]) -> None:
    folder, _ = base
    stored, tokenizer = load_file(folder / "model.safetensors"), load_tokenizer(folder)
    matrix = stored.get("lm_head.weight", stored["model.embed_tokens.weight"])
    found = rows_of_labels(folder, tokenizer, LABELS)
    assert found.keys() == {"mood"} and found["mood"].dtype == torch.float32
    torch.testing.assert_close(found["mood"], means(matrix, tokenizer, LABELS["mood"]))
    assert len(tokenizer.encode("good")) > 1 and rows_of_labels(folder, tokenizer, {}) == {}


def test_an_export_has_them_if_its_embedding_writes(base: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder, _ = base
    model = headed(folder)
    with torch.no_grad():
        model.embed.weight.mul_(2)  # as if trained
    found = rows_of_labels(export(model, folder, tmp_path / "out"), load_tokenizer(folder), LABELS)
    if model.config.tie_embeddings:
        expected = means(model.embed.weight.detach(), load_tokenizer(folder), LABELS["mood"])
        torch.testing.assert_close(found["mood"], expected)
    else:
        assert found == {}
