"""Scoring during training: decoding through FSDP on ranks with unequal work equals decoding with a whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.decoder.decode import greedy_decode
from model.llama import Llama
from tests.train import decode_run


def test_sharded_ranks_with_unequal_work_decode_as_one_process(launch, tmp_path: Path) -> None:
    done = launch(Path(decode_run.__file__), tmp_path, ranks=2, timeout=120)
    assert done.returncode == 0, done.stderr
    model = Llama(decode_run.CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))  # as `parallelize` draws them
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for name, shares in decode_run.SHARES.items():
        for rank, share in enumerate(shares):
            bodies = [decode_run.BODIES[i] for i in share]
            alone = greedy_decode(model, decode_run.PREFIX, bodies, decode_run.LIMIT, decode_run.STOP)
            assert ranks[rank][name] == [[d.tokens, d.stopped] for d in alone], (name, rank)
    lengths = {len(tokens) for tokens, _ in ranks[0]["lopsided"]}
    assert max(lengths) > 0  # something was decoded
    expected = decode_run.gradients(model.train())
    for rank in ranks:
        for name, value in expected.items():
            # Two ranks each run the whole batch, and gradients are summed over ranks.
            assert rank["gradients"][name] == pytest.approx([2 * v for v in value], rel=1e-3, abs=1e-6), name
