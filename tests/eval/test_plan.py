"""``eval.py --plan``: weights, keys and values against arithmetic by hand, and what it says where things do not fit."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from checkpoints_tools.registry import MODELS
from data.errors import UserError
from eval.plan import Requests, decoder_memory, describe
from eval.resolve import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tp", [1, 8])
def test_weights_keys_and_values_by_hand(tp):
    """llama3_70b: 80 layers, 8 key/value heads of 128; three requests behind a prefix of 100 tokens."""
    config = MODELS["llama3_70b"].config
    requests = Requests(prefix=100, bodies=[50, 30, 20], limits=[10, 10, 10])
    found = decoder_memory(config, 70_553_706_496, 2, tp, requests, 1, batch_tokens=4096)
    a_token = 2 * 2 * 8 * 128 * 80 // tp  # keys and values, bf16
    assert found.parts["weights"] == 2 * 70_553_706_496 // tp
    assert found.parts["keys and values of the prefix"] == 100 * a_token
    assert found.parts["keys and values of a batch"] == 3 * (50 + 10) * a_token  # slots as long as the longest
    assert (found.n_batches, found.batch) == (1, (3, 180))
    assert found.prefill_tokens == 100 + 100 and found.decode_passes == 10
    alone = decoder_memory(config, 70_553_706_496, 2, tp, requests, 1, batch_tokens=1)
    assert alone.n_batches == 3 and alone.parts["keys and values of a batch"] == 60 * a_token


def plan(*words: object) -> str:
    return describe(load_config([*map(str, words), "--plan"]))[0]


def test_70b_needs_to_be_split(tmp_path):
    words = ["--model", "llama3_70b", "--task", "20ng_joint", "--checkpoint", tmp_path, "--row_length", 16_384]
    alone = plan(*words)
    assert "It does NOT fit" in alone and "What would fit: --tp 2" in alone
    split = plan(*words, "--tp", 8)
    assert "It fits" in split and "1 replica(s), each on 8" in split
    assert "assumed" in split and "no tokenizer" in split and "never measured on a GPU" in split
    with pytest.raises(UserError, match="divide"):
        plan(*words, "--tp", 16, "--gpus", 16)
    with pytest.raises(UserError, match="--task"):
        plan("--model", "llama3_8b", "--checkpoint", tmp_path)


def test_encoders_have_plans(tmp_path):
    text = plan("--model", "roberta_large", "--task", "massive_intent", "--checkpoint", tmp_path)
    assert "It fits" in text and "roberta_large" in text


def test_the_command_prints_its_plan(tmp_path, monkeypatch, capsys):
    words = ["--model", "llama3_8b", "--task", "massive_joint", "--checkpoint", str(tmp_path), "--plan"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *words])
    runpy.run_path(str(ROOT / "eval.py"), run_name="script")["main"]()
    printed = capsys.readouterr().out
    assert "Plan for scoring llama3_8b" in printed and "It fits" in printed
    monkeypatch.setattr(sys, "argv", ["eval.py", *words, "--model", "llama3_70b"])
    with pytest.raises(SystemExit, match="1"):  # for scripts that ask before they submit
        runpy.run_path(str(ROOT / "eval.py"), run_name="script")["main"]()
    assert "It does NOT fit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
