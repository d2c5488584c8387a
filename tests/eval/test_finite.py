"""NaN and infinity are never scored, written or chosen from: errors that name the example and the tensor."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools.checksums import write_checksums
from checkpoints_tools.heads import heads_for
from data.encoder.tokenizer import load_tokenizer
from data.source import load_examples
from data.tasks import TASKS
from eval.finite import finite_rows
from eval.job import ScoringJob
from eval.predict.classifier import Classifier
from eval.score import score
from model.encoder import ROBERTA_DEBUG, Encoder
from tests.encoder_tokenizers import write_bert
from tests.eval.test_eval_cli import run_eval
from train.errors import NotFinite

NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_with_one_wrong_value(dtype):
    logits = torch.linspace(-9, 9, 60, dtype=dtype).view(6, 10)
    assert finite_rows(logits).all() and finite_rows(logits[:0]).shape == (0,)
    for row, value in ((1, "nan"), (2, "inf"), (4, "-inf")):
        logits[row, 7 - row] = float(value)
    assert finite_rows(logits).tolist() == [True, False, False, True, False, True]


def damaged_copy(checkpoint, folder, name, value):
    """A copy with one wrong value in one tensor."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_checksums(folder)  # the tensor was written so
    return folder


def test_a_decoder_with_a_nan_is_not_scored(tiny_checkpoint, tmp_path):
    folder = damaged_copy(tiny_checkpoint, tmp_path / "damaged", NORM, float("nan"))
    where = ("--task", "massive_intent", "--data", "sample", "--limit", "3", "--cache_dir", tmp_path / "cache")
    done = run_eval("--model", "llama_debug", "--checkpoint", folder, *where, "--output", tmp_path / "scored")
    assert done.returncode == 2 and not (tmp_path / "scored").exists(), done.stdout
    assert "Traceback" not in done.stderr and f"NaN or infinite values are in the weights: {NORM}." in done.stderr
    assert "error: example massive/test/" in done.stderr


def test_a_text_without_finite_logits_gets_no_label(tiny_checkpoint, tmp_path):
    folder = damaged_copy(tiny_checkpoint, tmp_path / "damaged", NORM, float("inf"))
    classifier = Classifier.load(folder, task="massive_intent", device="cpu", precision="fp32")
    with pytest.raises(NotFinite, match=f"'wake me at nine'.*{NORM}"):
        classifier(["wake me at nine"])


def small_encoder(folder, task, examples):
    """A random BERT for the task, and its tokenizer."""
    tokenizer = load_tokenizer(write_bert(folder, [example.text for example in examples], vocab_size=300))
    config = replace(ROBERTA_DEBUG, family="bert", position_offset=0, n_token_types=2, heads=heads_for(task))
    model = Encoder(replace(config, vocab_size=tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    return model, tokenizer


@pytest.mark.parametrize("name", ["massive_intent", "massive_slots"])
def test_an_encoder_with_a_nan_is_not_scored(name, tmp_path):
    task = TASKS[name]
    examples = load_examples(task, "test", "sample")[:6]
    model, tokenizer = small_encoder(tmp_path, task, examples)
    job = ScoringJob(task, tokenizer, examples, 48, max_batch_tokens=1)
    assert len(score(model, job).predictions) == len(examples)
    tokens = [set(tokenizer.encode(example.text)) for example in examples]
    (token, *_) = tokens[2].difference(*tokens[:2], *tokens[3:])
    with torch.no_grad():
        model.embed.tokens.weight[token, 2] = float("nan")
    with pytest.raises(NotFinite, match=f"example {examples[2].id} .*embeddings.word_embeddings.weight"):
        score(model, job)


def test_finite_weights_that_overflow_are_said_to_be_finite(tmp_path):
    task = TASKS["massive_intent"]
    examples = load_examples(task, "test", "sample")[:2]
    model, tokenizer = small_encoder(tmp_path, task, examples)
    with torch.no_grad():
        model.heads["intent"].out.weight.fill_(3e38)
    with pytest.raises(NotFinite, match="All weights are finite: the model computes values that float32 cannot hold"):
        score(model, ScoringJob(task, tokenizer, examples, 48))
