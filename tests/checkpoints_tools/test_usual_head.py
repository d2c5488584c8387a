"""The kind of class heads that a folder is for: its own heads', or what its pooling says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints_tools.heads import usual_head
from tests.launching import TICKETS
from train.resolve import describe_settings, load_config

HEADS = {"head": "dense", "fields": [{"name": "x", "kind": "class", "labels": ["a", "b"]}]}


@pytest.mark.parametrize(
    ("config", "pooling", "head"),
    [
        ({}, None, "linear"),
        ({}, {"pooling_mode_mean_tokens": True}, "mean"),
        ({}, {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "linear"),
        ({}, {"embedding_dimension": 384, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({}, {"embedding_dimension": 384, "pooling_mode": ["mean"]}, "mean"),
        ({}, {"embedding_dimension": 384, "pooling_mode": "cls"}, "linear"),
        ({}, {"embedding_dimension": 768, "pooling_mode": ["mean", "max"]}, "linear"),
        ({"heads": HEADS}, {"pooling_mode_mean_tokens": True}, "dense"),
        ({"architectures": ["RobertaForSequenceClassification"]}, None, "dense"),
        ({"architectures": ["RobertaForTokenClassification"]}, None, "linear"),
        ({"architectures": ["RobertaModel"]}, None, "linear"),
    ],
)
def test_the_folder_says_its_head(config: dict, pooling: dict | None, head: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert usual_head(tmp_path) == head
    argv = ["--model", "bert", "--task", str(TICKETS), "--checkpoint", str(tmp_path)]
    config = load_config(argv)
    assert config.model.head == head, "it is the recipe's"
    assert config.optim.lr == 1e-5
    assert ("head = " in describe_settings(config)) == (head != "linear")
    assert load_config([*argv, "--task", "massive_intent"]).model.head == "linear", "the paper's"
    assert load_config([*argv, "--head", "linear"]).model.head == "linear"


@pytest.mark.parametrize(("listed", "head"), [(True, "mean"), (False, "linear")])
def test_the_pooling_may_be_beside_the_models_folder(listed: bool, head: str, tmp_path: Path) -> None:
    for name, content in (("0_Transformer", {}), ("1_Pooling", {"pooling_mode_mean_tokens": True})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    if listed:  # else the two may have nothing to do with each other
        (tmp_path / "modules.json").write_text("[]")
    assert usual_head(tmp_path / "0_Transformer") == head


def test_what_cannot_be_read_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    assert usual_head(tmp_path / "missing") == "linear"
    (tmp_path / "config.json").write_text("{")
    assert usual_head(tmp_path) == "linear"
