"""The comparison of the plan with a traced step, as somebody who ports an architecture starts it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import memory_trace
from checkpoints_tools.architectures import ARCHITECTURES
from checkpoints_tools.registry import MODELS, ModelSpec
from tests.launching import ROOT

SIZES = {"dim": 128, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 256, "vocab_size": 1000}


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture in a file of its own, which the registry knows without a preset: its file is Llama's."""
    spec = importlib.util.spec_from_file_location("ported_llama", ROOT / "model" / "llama.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ported_llama", module)
    spec.loader.exec_module(module)
    config_type = module.LlamaConfig
    monkeypatch.setattr(config_type, "family", "ported")
    own = dataclasses.replace(
        ARCHITECTURES["llama"],
        build=module.Llama,
        config_type=config_type,
        parse_config=lambda read, path: config_type(**{name: read[name] for name in SIZES}),
    )
    monkeypatch.setitem(ARCHITECTURES, "ported", own)
    monkeypatch.setitem(MODELS, "ported", ModelSpec("ported", "ported", None, "plain", "small"))
    return "ported"


def trace(folder: Path, *words: str) -> int:
    return memory_trace.main(["--ranks", "2", *words, "--row_length", "4096", "--output", str(folder / "page.md")])


def test_a_port_is_traced_with_the_config_of_a_folder(port: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": port, **SIZES}))
    assert trace(tmp_path, "--models", port, "--checkpoint", str(tmp_path), "--layers", "2") == 0
    page = (tmp_path / "page.md").read_text()
    off = re.findall(r"\| ([+-]\d+\.\d+)% \|", page)
    assert len(off) == 8 and "ported, adamw, 4,096 tokens" in page
    assert all(abs(float(percent)) < 1 for percent in off), page


def test_mistakes_are_told_in_one_line(
    port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": port, **SIZES}))
    monkeypatch.delattr(sys.modules["ported_llama"], "attention")
    for words, message in [
        (["--models", port], "model = ported takes its config from --checkpoint, but no checkpoint was given."),
        (["--models", "llama3_8", "--layers", "1"], "unknown model 'llama3_8'. Did you mean 'llama3_8b'?"),
        (["--models", "gpt-4"], "model gpt-4 has no weights here"),
        (["--models", "bert"], "--models bert: an encoder, whose heads depend on the task."),
        (["--models", "llama3_8b", "--checkpoint", str(tmp_path / "none")], "it is no folder with a config.json."),
        (["--models", "llama3_8b", "--ranks", "0"], "--ranks 0: must be at least 1."),
        (["--models", "llama3_8b", "--layers", "0"], "--layers 0: must be at least 1."),
        (
            ["--models", port, "--checkpoint", str(tmp_path)],
            "replaces the attention of ported_llama, which must import",
        ),
    ]:
        assert trace(tmp_path, *words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said and said.count("\n") == 1, said
    assert not (tmp_path / "page.md").exists()
