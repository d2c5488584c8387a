"""What every preset is, and that one entry is all an architecture takes to be loaded, exported, planned and split."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from checkpoints_tools.architectures import ARCHITECTURES, costs_of
from checkpoints_tools.convert import convert
from checkpoints_tools.export import export_hf
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.key_maps import LLAMA_HF, Matched, rename_all, to_theirs
from checkpoints_tools.load import load_pretrained, open_checkpoint
from checkpoints_tools.registry import MODELS, ModelSpec, get_model_spec, model_names
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from eval.weights import Weights, model_config
from model.encoder import Encoder
from model.llama import Llama, LlamaConfig
from model.tensor_plans import LLAMA
from train.checkpointing.checkpoint import RunState
from train.parallel.tensor_parallel import check_divides
from train.planning.memory import count_parameters


def test_what_every_preset_is():
    kinds = {name: MODELS[name].kind for name in model_names()}
    encoders = {name for name, kind in kinds.items() if kind == "encoder"}
    assert encoders == {"roberta_base", "roberta_large", "roberta_debug", "roberta", "bert", "llama_heads"}
    assert MODELS["llama_heads"].family == "llama_heads", "a decoder's blocks, with heads"
    for name in encoders - {"llama_heads"}:
        spec = get_model_spec(name)
        assert spec.chat_template == "" and spec.family == name.partition("_")[0]
        assert (spec.default_checkpoint is None) == (spec.config is None)
        assert spec.config is None or (spec.config.family == spec.family and spec.config.heads == ())
    assert all(spec.family == "llama" for name, spec in MODELS.items() if kinds.get(name) == "decoder")


@pytest.mark.parametrize(("name", "n_layers", "million"), [("roberta_base", 12, 124.06), ("roberta_large", 24, 354.31)])
def test_sizes_of_the_real_checkpoints(name, n_layers, million):
    with torch.device("meta"):
        model = Encoder(get_model_spec(name).config)
    assert len(model.layers) == n_layers
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == million


@dataclass(frozen=True)
class NewConfig(LlamaConfig):
    """An architecture that the code has never heard of: a Llama that calls things by other names."""

    family: ClassVar[str] = "new"


NAMES = {ours: theirs.replace("model.", "backbone.") for ours, theirs in LLAMA_HF.items()}


def parse_new(raw: dict[str, Any], where: str) -> NewConfig:
    return NewConfig(**raw["numbers"])


def write_new(folder: Path, config: NewConfig, *_: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "new", "numbers": vars(config)}))


def write_new_export(folder: Path, config: NewConfig, dtype: torch.dtype, tokenizer: Any, trained_on: Any) -> None:
    write_new(folder, config)
    tokenizer.save(folder)


def match_new(tensors: Any, stored: NewConfig, wanted: NewConfig, where: str) -> Matched:
    return Matched(*rename_all(tensors, NAMES))


@pytest.fixture
def new_entry(monkeypatch: pytest.MonkeyPatch) -> NewConfig:
    entry = replace(
        ARCHITECTURES["llama"],
        config_type=NewConfig,
        parse_config=parse_new,
        write_config=write_new,
        write_export=write_new_export,
        match_tensors=match_new,
        to_theirs=lambda name, config: to_theirs(name, NAMES),
        tensor_plan=replace(LLAMA, divides={"ffn_dim": "experts"}),
    )
    monkeypatch.setitem(ARCHITECTURES, "new", entry)
    monkeypatch.setitem(MODELS, "new", ModelSpec("new", "new", None, "plain", "small"))
    return NewConfig(dim=24, n_layers=2, n_heads=3, n_kv_heads=1, ffn_dim=20, vocab_size=301)


def test_a_new_architecture_is_one_entry(new_entry: NewConfig, helpers, tmp_path: Path) -> None:
    helpers.tokenizer().save_pretrained(tmp_path / "tokenizer")
    model = Llama(new_entry)
    model.init_weights(torch.Generator().manual_seed(0))
    export_hf(model, new_entry, load_tokenizer(tmp_path / "tokenizer"), tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "again", "bf16")
    for folder, dtype in ((tmp_path / "out", torch.float32), (tmp_path / "again", torch.bfloat16)):
        source = open_checkpoint(folder, get_model_spec("new"))
        assert source.config == read_config(folder) == new_entry and source.dtype == dtype
        loaded = Llama(new_entry).to(dtype)
        load_pretrained(loaded, folder)
        for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
            assert torch.equal(ours.to(dtype), theirs), name
    with pytest.raises(UserError, match="architecture: new .expected llama."):
        load_pretrained(Llama(LlamaConfig(**vars(new_entry))), tmp_path / "out")
    assert count_parameters(get_model_spec("new"), new_entry).total == sum(p.numel() for p in model.parameters())
    assert costs_of(new_entry).logits_width == 301
    state = RunState(2, {"model": "new"}, {"model_config": vars(new_entry)}, {}, None, 1)
    (tmp_path / "step_000002").mkdir()
    state.write(tmp_path / "step_000002")
    weights = Weights(tmp_path / "step_000002", base=tmp_path / "out", is_training=True)
    assert model_config(weights, get_model_spec("new"), needed=False) == (new_entry, None)
    with pytest.raises(UserError, match="of the .new. architecture, --model roberta is of .roberta."):
        model_config(weights, get_model_spec("roberta"), needed=False)
    check_divides(new_entry, 4)
    with pytest.raises(UserError, match="--tp 3: 20 experts do not divide"):
        check_divides(new_entry, 3)
