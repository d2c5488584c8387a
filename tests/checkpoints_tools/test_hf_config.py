"""config.json, whatever the architecture: files that are none, models we cannot run, and how two configs differ."""

from __future__ import annotations

import json

import pytest

from checkpoints_tools.hf_config import differences, read_config, read_token_ids
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


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"model_type": ["llama"]}, r"config.json: model_type must be .*text.*; it is \['llama'\]"),
        ({"model_type": "gpt2", "architectures": 3}, "config.json: architectures must be a list or null; it is 3"),
        ({"model_type": "llama", "mine": float("inf")}, "NaN, Infinity"),
    ],
)
def test_wrong_types_are_named(contents, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_token_ids_of_a_wrong_type_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 2], "pad_token_id": null}')
    assert read_token_ids(tmp_path) == {"eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, "x"]}')
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id\[1\] must be a whole number; it is 'x'"):
        read_token_ids(tmp_path)


def test_differences_names_fields():
    a, b = MODELS["llama2_7b"].config, MODELS["llama3_8b"].config
    found = differences(a, b)
    assert "n_kv_heads: 32 (expected 8)" in found
    assert "rope_theta: 10000.0 (expected 500000.0)" in found
    assert not any(line.startswith("max_position") for line in differences(a, b, ignore=("max_position",)))
    assert differences(a, MODELS["roberta_base"].config) == ["architecture: llama (expected roberta)"]


@pytest.mark.parametrize(
    ("architectures", "likely"), [(["BertModel"], "bert"), (["RobertaForMaskedLM"], "roberta"), (None, "llama")]
)
def test_a_config_without_its_model_type(tmp_path, architectures, likely):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    with pytest.raises(UserError, match=rf'model_type is None .*add it to the file, as in "model_type": "{likely}"$'):
        read_config(tmp_path)


def test_an_architecture_that_is_not_in_the_registry(tmp_path):
    contents = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with pytest.raises(
        UserError, match=r"'gpt2' and architectures \['GPT2LMHeadModel'\].* runs 'llama', 'roberta', 'bert'"
    ):
        read_config(tmp_path)
