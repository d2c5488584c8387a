"""The temporary copy of held-out scoring: whether it fits is asked of the same arithmetic as everywhere."""

from __future__ import annotations

from types import SimpleNamespace

import torch

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
