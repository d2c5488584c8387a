"""Whether a model fits is said before it is loaded, and with how many GPUs it would."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from checkpoints_tools.registry import MODELS
from data.errors import UserError
from eval.config import EvalConfig
from eval.memory import check_fits, check_plan_fits, scoring_memory
from eval.setup import make_plan
from model.llama import Llama

LARGE = MODELS["llama3_70b"].config
BF16 = torch.bfloat16
A100 = 79 * 2**30  # free on an empty one of 80 GB


@pytest.mark.parametrize("name", ["llama2_7b", "llama2_70b", "llama3_8b", "llama3_70b", "smollm2_135m", "llama_debug"])
def test_weights_are_those_of_the_model(name: str) -> None:
    with torch.device("meta"):
        model = Llama(MODELS[name].config)
    n_bytes = sum(2 * p.numel() for p in model.parameters())
    assert scoring_memory(model.config, BF16, 1, 0, 1).weights == n_bytes


def test_70b_over_8_gpus() -> None:
    """By hand: 141.1 GB of weights; 80 layers x 8 heads x 128 x 2 x 2 bytes are 327,680 a token."""
    whole, split = (scoring_memory(LARGE, BF16, n, 1000, 4096) for n in (1, 8))
    assert whole.weights / 1e9 == pytest.approx(141.1, abs=0.05) and whole.cache == 327_680 * 5096
    assert split.weights / 1e9 == pytest.approx(17.6, abs=0.05) and split.cache * 8 == whole.cache


def test_a_model_that_does_not_fit_says_how_many_gpus_it_needs() -> None:
    check_fits(MODELS["llama3_8b"].config, BF16, 1, 1000, 4096, A100, "llama3_8b")
    check_fits(LARGE, BF16, 8, 1000, 16_384, A100, "llama3_70b")
    with pytest.raises(UserError, match="needs 141.1 GB of weights, .* 84.8 GB are free.*--nproc_per_node 2 .*--tp 2"):
        check_fits(LARGE, BF16, 1, 0, 1, A100, "llama3_70b")
    with pytest.raises(UserError, match="llama3_70b is too large.*--tp 4"):  # half of the weights alone is 70.6 GB
        check_fits(LARGE, BF16, 1, 3000, 16_384, 70 * 2**30, "llama3_70b")
    with pytest.raises(UserError, match="on each of 4 GPUs.*Even split over 8 GPUs"):
        check_fits(LARGE, torch.float32, 4, 0, 1, 24 * 2**30, "llama3_70b")
    odd = dataclasses.replace(LARGE, n_kv_heads=2)
    with pytest.raises(UserError, match="Even split over 2 GPUs"):
        check_fits(odd, BF16, 1, 0, 1, 60 * 2**30, "odd")


def test_what_eval_is_about_to_do_is_checked(tiny_checkpoint: Path) -> None:
    options = EvalConfig(model="llama_debug", checkpoint=tiny_checkpoint, task="massive_intent", data="sample", limit=1)
    plan = make_plan(options)
    dtype = torch.float32
    check_plan_fits(plan, options, dtype, 3 * 2**30)
    with pytest.raises(UserError, match="llama_debug is too large.*to pass over 4,096 tokens"):
        check_plan_fits(plan, options, dtype, 2**30)
    with pytest.raises(UserError, match="to pass over 100,000 tokens"):
        check_plan_fits(plan, dataclasses.replace(options, batch_tokens=100_000), dtype, 2**30)
