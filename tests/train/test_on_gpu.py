"""Whole runs on a GPU against the same runs on the CPU, in fp32: training, resuming, scoring, labelling new text."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from data.source import load_examples
from tests.encoder_tokenizers import write_roberta
from tests.launching import ROOT
from train.checkpointing.checkpoint import step_folder
from train.optim.formats import OPTIMIZERS

pytestmark = pytest.mark.gpu
Launch = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def on_cpu(request: pytest.FixtureRequest, launch: Launch, tiny_tokenizer: Path, tmp_path_factory) -> list[str]:
    """Arguments of a run that has finished on the CPU, in the folder ``--output``."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "decoder":
        model, tokenizer = "llama_debug", tiny_tokenizer
    else:
        texts = [example.text for example in load_examples("massive", "train", "sample")]
        model, tokenizer = "roberta_debug", write_roberta(folder, texts, vocab_size=600)["files"]
    args = [
        "--model", model, "--init", "random", "--checkpoint", str(tokenizer), "--task", "massive_joint", "--data",
        "sample", "--cache_dir", str(folder / "cache"), "--limit", "60", "--steps", "6", "--batch_size", "6",
        "--row_length", "2048", "--precision", "fp32", "--export_dtype", "fp32", "--optim", "adamw", "--save_every",
        "3", "--output", str(folder / "run"),
    ]  # fmt: skip
    run(launch, [*args, "--device", "cpu"])
    return args


def run(launch: Launch, args: list[str], program: str = "train.py") -> str:
    done = launch(ROOT / program, *args)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def on_gpu(args: list[str], output: Path, *more: str) -> list[str]:
    return [*args[:-1], str(output), "--device", "cuda", *more]


def near(value: Any) -> Any:
    """The same JSON value, equal to what differs in the last digits of its numbers only."""
    if isinstance(value, dict):
        return {key: near(item) for key, item in value.items()}
    if isinstance(value, list):
        return [near(item) for item in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "lr" in record]


def is_encoder(args: list[str]) -> bool:
    return args[1] == "roberta_debug"


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--compile",
        "--activation_checkpointing selective",
        "--activation_checkpointing full --activation_offload",
        "--activation_checkpointing full --compile",
        "--no_packing",
        "--offload_states",
    ],
)
def test_a_run_equals_the_cpus(options: str, on_cpu: list[str], launch: Launch, tmp_path: Path) -> None:
    run(launch, on_gpu(on_cpu, tmp_path / "run", *options.split()))
    here, there = losses(tmp_path / "run"), losses(Path(on_cpu[-1]))
    if is_encoder(on_cpu):  # dropout draws other numbers on other devices
        assert here == pytest.approx(there, rel=0.1)
        return
    assert here == pytest.approx(there, rel=1e-3)
    weights, expected = (
        load_file(folder / "export" / "model.safetensors") for folder in (tmp_path / "run", Path(on_cpu[-1]))
    )
    for name, tensor in weights.items():
        assert (tensor - expected[name]).norm() < 0.02 * expected[name].norm(), name


def test_resumed_equals_uninterrupted(on_cpu: list[str], launch: Launch, tmp_path: Path) -> None:
    args = on_gpu(on_cpu, tmp_path / "run")
    run(launch, args)
    whole = losses(tmp_path / "run")
    shutil.rmtree(step_folder(tmp_path / "run" / "checkpoints", 6))
    run(launch, [*args, "--resume"])
    assert losses(tmp_path / "run") == pytest.approx([*whole, *whole[3:]], rel=1e-5)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_trains_in_bf16(optim: str, on_cpu: list[str], launch: Launch, tmp_path: Path) -> None:
    run(launch, on_gpu(on_cpu, tmp_path / "run", "--precision", "bf16", "--optim", optim))
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(Path(on_cpu[-1]))[0], rel=0.1)


def test_scores_and_predictions_equal_the_cpus(on_cpu: list[str], launch: Launch, tmp_path: Path) -> None:
    export = str(Path(on_cpu[-1]) / "export")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(e.text for e in load_examples("massive", "test", "sample")[:20]) + "\n")
    answers = []
    for device in ("cpu", "cuda"):
        common = ["--model", on_cpu[1], "--checkpoint", export, "--precision", "fp32", "--device", device]
        output = tmp_path / device
        data = ["--data", "sample", "--limit", "20", "--output", str(output), "--cache_dir", str(tmp_path / "cache")]
        run(launch, [*common, *data], "eval.py")
        scored = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
        run(launch, [*common[2:], "--input", str(texts), "--output", str(output / "labels.jsonl")], "predict.py")
        predicted = [json.loads(line) for line in (output / "labels.jsonl").read_text().splitlines()]
        answers.append([scored, predicted])
    assert answers[1] == near(answers[0])


def test_held_out_scoring(on_cpu: list[str], launch: Launch, tmp_path: Path) -> None:
    said = run(launch, on_gpu(on_cpu, tmp_path / "run", "--holdout", "0.2", "--eval_every", "3"))
    assert "held-out, step 6" in said
