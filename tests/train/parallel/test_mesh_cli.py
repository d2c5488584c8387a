"""``train.py --tp``, from a pretrained folder to an export, with held-out scoring and a resumption between."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_tools.export import export_hf
from data.decoder.tokenizer import load_tokenizer
from model.llama import Llama, LlamaConfig
from tests.launching import ROOT, TICKETS


def run_files(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The export's tensors, and the lines of the log by step."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return load_file(folder / "export" / "model.safetensors"), records


@pytest.mark.slow
def test_a_run_on_split_matrices_is_the_run_of_one_process(
    tiny_tokenizer: Path, tmp_path: Path, launch: Callable[..., subprocess.CompletedProcess]
) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)
    config = LlamaConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=54, vocab_size=tokenizer.vocab_size, max_position=2048
    )
    model = Llama(config)
    model.init_weights(torch.Generator().manual_seed(0))
    export_hf(model, config, tokenizer, tmp_path / "start")

    def train(name: str, *more: str, ranks: int) -> None:
        done = launch(
            ROOT / "train.py", "--model", "llama", "--checkpoint", tmp_path / "start", "--task", TICKETS,
            "--cache_dir", tmp_path / "cache", "--output", tmp_path / name, "--device", "cpu", "--precision", "fp32",
            "--steps", "4", "--save_every", "2", "--batch_size", "4", "--row_length", "1024", "--lr", "1e-3", "--eps",
            "1e-4", "--holdout", "0.1", "--eval_every", "4", "--max_new_tokens", "4", "--export_dtype", "fp32", *more,
            ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    train("alone", ranks=1)
    train("split", "--tp", "2", ranks=4)
    (tensors, records), (split_tensors, split_records) = run_files(tmp_path / "alone"), run_files(tmp_path / "split")
    for record, other in zip(records, split_records, strict=True):
        assert record.get("event") == other.get("event")
        for key in {"loss", "grad_norm", "examples", "label_tokens", "score"} & record.keys():
            assert other[key] == pytest.approx(record[key], rel=1e-5), (key, record, other)
    assert any(record.get("event") == "score" for record in records)
    start = load_file(tmp_path / "start" / "model.safetensors")
    assert max((tensors[name] - start[name]).abs().max() for name in start) > 1e-3, "nothing was learned"
    for name, tensor in tensors.items():
        torch.testing.assert_close(split_tensors[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    files = (tmp_path / name / "export" / "calibration.json" for name in ("alone", "split"))
    one, other = (json.loads(file.read_text()) for file in files)
    assert one["n_examples"] == 2 and other["examples"] == one["examples"] and other["prompt"] == one["prompt"]
    for name, own in one["fields"].items():
        assert other["fields"][name]["temperature"] == pytest.approx(own["temperature"], rel=1e-3)

    # From its middle, on two ranks: one copy on each of two machines that are not there.
    (tmp_path / "split" / "checkpoints" / "step_000004").rename(tmp_path / "gone")
    for folder in ("export", "best"):
        (tmp_path / "split" / folder).rename(tmp_path / f"old_{folder}")
    train("split", "--resume", "--sharding", "hybrid", "--nodes", "2", ranks=2)
    again, records = run_files(tmp_path / "split")
    assert [r["step"] for r in records if r.get("event") == "resume"] == [2]
    for name, tensor in tensors.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
