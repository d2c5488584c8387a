"""The encoders among the presets: shapes of the real checkpoints, and what tells them from decoders."""

from __future__ import annotations

import pytest
import torch

from model import MODELS, get_model_spec
from model.encoder import Encoder


def test_what_every_preset_is():
    kinds = {name: spec.kind for name, spec in MODELS.items()}
    encoders = {name for name, kind in kinds.items() if kind == "encoder"}
    assert encoders == {"roberta_base", "roberta_large", "roberta_debug", "roberta", "bert"}
    for name in encoders:
        spec = get_model_spec(name)
        assert spec.chat_template == "" and spec.family == name.partition("_")[0]
        assert (spec.default_checkpoint is None) == (spec.config is None)
        assert spec.config is None or (spec.config.family == spec.family and spec.config.heads == ())
    assert all(spec.family == "llama" for name, spec in MODELS.items() if name not in encoders)


@pytest.mark.parametrize(("name", "n_layers", "million"), [("roberta_base", 12, 124.06), ("roberta_large", 24, 354.31)])
def test_sizes_of_the_real_checkpoints(name, n_layers, million):
    with torch.device("meta"):
        model = Encoder(get_model_spec(name).config)
    assert len(model.layers) == n_layers
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == million
