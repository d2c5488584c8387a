"""The temporary copy of held-out scoring: whether it fits is asked of the same arithmetic as everywhere."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from checkpoints_tools.formats import CALIBRATION_FILE
from data.decoder.label_tokens import LabelTokens
from data.errors import UserError
from eval.held_out import HeldOutScoring
from eval.job import BATCH_TOKENS
from eval.memory import decoder_weights
from eval.score import batch_sizes, request_lengths
from tests.launching import TICKETS
from train.parallel.mesh import MeshShape
from train.resolve import load_config
from train.setup import open_run


def test_what_a_copy_needs(tiny_checkpoint, tmp_path):
    words = f"--model llama --checkpoint {tiny_checkpoint} --task {TICKETS} --holdout 0.5 --eval_every 1 --device cpu"
    words += f" --precision bf16 --row_length 1500 --steps 2 --output {tmp_path / 'run'} --cache_dir {tmp_path / 'c'}"
    config = load_config(words.split())
    setup = open_run(config)
    scoring = HeldOutScoring(config, setup, SimpleNamespace(device=torch.device("cpu")))
    scoring.copy_world = SimpleNamespace(shape=MeshShape(shard=2, tensor=3))
    model, job = setup.model_config, scoring._copy_job()
    assert job.max_batch_tokens == 3 * BATCH_TOKENS and len(job.examples) == len(setup.held_out) > 2
    lengths = request_lengths(job)
    a_token = 2 * 2 * model.n_layers * model.n_kv_heads * model.head_dim // 3
    largest = max(
        b.n_requests * b.slot_length for rank in batch_sizes("decoder", lengths, 2, 3 * BATCH_TOKENS) for b in rank
    )
    weights, caches = decoder_weights(model, torch.bfloat16, 3), a_token * (lengths.prefix + largest)
    peak = scoring._copy_peak()
    assert weights + caches < peak < weights + caches + 12 * (3 * model.dim + 3 * model.ffn_dim) * 2 * lengths.prefix
    assert peak > weights + 2 * model.vocab_size * model.dim, "while it is made, the largest tensor is there unsharded"


def test_where_there_is_nothing_to_calibrate_nothing_is_scored(tiny_checkpoint, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    words = f"--model llama --checkpoint {tiny_checkpoint} --holdout 0.5 --eval_every 1 --device cpu --data sample"
    words += f" --row_length 1500 --steps 2 --output {tmp_path / 'run'} --cache_dir {tmp_path / 'c'} --limit 4"
    monkeypatch.setattr(HeldOutScoring, "answer", lambda *_, **__: pytest.fail("it scored"))

    def calibrated(task):
        config = load_config([*words.split(), "--task", task])
        world = SimpleNamespace(device=torch.device("cpu"))
        return HeldOutScoring(config, open_run(config), world).calibrate(torch.nn.Identity(), lambda: False)

    calibrated("massive_slots").save(tmp_path)
    assert "calibration" not in caplog.text
    monkeypatch.setattr(LabelTokens, "_check", refuse)
    calibrated("massive_intent").save(tmp_path)
    assert "note: the exports have no calibration. a label that it cannot write" in caplog.text
    assert not (tmp_path / CALIBRATION_FILE).exists()


def refuse(*_: object) -> None:
    raise UserError("a label that it cannot write")
