"""config.json, whatever the architecture: files that are none, models we cannot run, and how two configs differ."""

from __future__ import annotations

import json

import pytest

from checkpoints_tools.hf_config import differences, read_config
from checkpoints_tools.registry import MODELS
from data.errors import UserError


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", ')
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="config.json: the document must be an object"):
        read_config(tmp_path)


def test_differences_names_fields():
    a, b = MODELS["llama2_7b"].config, MODELS["llama3_8b"].config
    found = differences(a, b)
    assert "n_kv_heads: 32 (expected 8)" in found
    assert "rope_theta: 10000.0 (expected 500000.0)" in found
    assert not any(line.startswith("max_position") for line in differences(a, b, ignore=("max_position",)))
    assert differences(a, MODELS["roberta_base"].config) == ["architecture: llama (expected roberta)"]


def test_an_architecture_that_is_not_in_the_registry(tmp_path):
    contents = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with pytest.raises(
        UserError, match=r"'gpt2' and architectures \['GPT2LMHeadModel'\].* runs 'llama', 'roberta', 'bert'"
    ):
        read_config(tmp_path)
