"""`inspect` describes every format without loading it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from checkpoints_tools.inspect import inspect, main


@pytest.fixture
def shown(capsys):
    def show(path, every_layer: bool = False) -> str:
        inspect(path, every_layer)
        return capsys.readouterr().out

    return show


def test_a_folder_that_must_not_be_read(tmp_path, capsys, monkeypatch):
    """Path.is_file raises this for a file in such a folder; the tests may run as root, who may read all."""
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(rf"error: {re.escape(str(tmp_path))}/[\w.]+: Permission denied\.\n", capsys.readouterr().err)


def test_hugging_face_folder(hf_folder, shown):
    folder, reference = hf_folder(rope_theta=777.0)
    text = shown(folder)
    assert "Hugging Face folder" in text and "777.0" in text and "every tensor fits" in text
    assert f"{sum(p.numel() for p in reference.parameters()):,} parameters" in text
    assert "layers.0.ffn.w2.weight" in text and "layers.1.ffn.w2.weight" not in text
    assert "layers.1.ffn.w2.weight" in shown(folder, every_layer=True)


def test_tensors_that_do_not_fit_are_shown(hf_folder, shown):
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.ones(48, 99)
    save_file(tensors, folder / "model.safetensors")
    text = shown(folder)
    assert "wrong shape: layers.1.ffn.w2.weight is [48, 99], the config says [48, 100]" in text.splitlines()[-1]
    assert "every tensor fits" not in text
    assert main([str(folder)]) == 1


def test_training_checkpoint(tmp_path, shown):
    state = {"model": {"layers.0.ffn.w1.weight": torch.ones(3, 5)}, "step": 7}
    dcp.save(state, checkpoint_id=tmp_path / "step_000007", no_dist=True)
    text = shown(tmp_path / "step_000007")
    assert "training checkpoint" in text and "model.layers.0.ffn.w1.weight" in text and "[3, 5]" in text
    (tmp_path / "step_000007" / ".metadata").write_bytes(b"x")
    assert main([str(tmp_path / "step_000007")]) == 2


def test_command_line(hf_folder, tmp_path, capsys):
    folder, _ = hf_folder()
    assert main([str(folder), "--all"]) == 0
    assert "Hugging Face folder" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
