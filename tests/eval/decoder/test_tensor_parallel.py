"""A tensor-parallel model gives the answers of the unsharded one, from any source of its slices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from data.decoder.templates import encode_pieces
from data.errors import UserError
from eval.setup import build_model
from tests.eval.decoder import tensor_parallel_run
from tests.launching import command, environment
from train.parallel.tensor_parallel import check_divides

N_RANKS = 4


def test_a_tensor_parallel_model_answers_as_the_unsharded_one(divisible_checkpoint: Path, tmp_path: Path) -> None:
    """2 replicas x 2 slices, and 1 x 4; read from an HF folder and from a training checkpoint, and copied."""
    start = command(Path(tensor_parallel_run.__file__), tmp_path, divisible_checkpoint, ranks=N_RANKS)
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(N_RANKS)]

    setup = tensor_parallel_run.setup_of(divisible_checkpoint)
    model = build_model(setup, "fp32", torch.device("cpu"))
    n_parameters = sum(p.numel() for p in model.parameters())
    assert setup.config.vocab_size % 2, "the head divides unevenly"
    n_prefix = len(encode_pieces(setup.prompt.build(setup.task).prefix, setup.tokenizer))
    with torch.no_grad():
        logits = model(torch.arange(setup.config.vocab_size)[None])
    alone = [tensor_parallel_run.score_some(setup, model, n) for n in tensor_parallel_run.N_EXAMPLES]
    assert len({p.raw for p in alone[0].predictions}) > 1
    for n in tensor_parallel_run.SLICES:
        for rank, found in enumerate(ranks):
            for mine, whole in zip(found[n], alone, strict=True):
                # The ranks of the first replica have all answers, the others the figures.
                assert mine.predictions == (whole.predictions if rank < n else []), (n, rank)
                assert mine.metrics == whole.metrics and mine.counts == whole.counts
                assert mine.cost["new_tokens"] == whole.cost["new_tokens"]
                n_prefixes = min(N_RANKS // n, len(whole.predictions))  # replicas that had anything to do
                more = mine.cost["computed_tokens"] - whole.cost["computed_tokens"]
                assert more * len(whole.predictions) == pytest.approx((n_prefixes - 1) * n_prefix)
            for precision in ("fp32", "bf16"):
                assert found[n, precision] == {"copied": True, "resumed": True}, (n, precision)
            assert found[n, "cached heads"] <= {4 // n}, "a rank caches its own heads only"
            torch.testing.assert_close(found[n, "logits"], logits, atol=1e-4, rtol=1e-4)
            assert found[n, "freed"]
            assert found[n, "parameters"] < 1.1 * n_parameters / n, "every matrix is split"
    assert any(found[2, "cached heads"] for found in ranks)
    with pytest.raises(UserError, match="--tp 3: 4 key/value heads and 100 hidden units.*that do: 1, 2, 4"):
        check_divides(setup.config, 3)
