"""A process group of one for this process, and torchrun for the tests that need several."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.launching import ROOT, TICKETS, command, environment
from train import stopping
from train.stopping import Stop


@pytest.fixture(scope="module")
def world() -> Iterator:
    from train.parallel.distributed import start

    assert not dist.is_initialized(), "another test left its process group behind"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield start(torch.device("cpu"))
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """What a run in this process looks at; set ``signum`` to tell it to stop."""
    stop = Stop()
    monkeypatch.setattr(stopping, "_stop", stop)
    return stop


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess]:
    """Run a script of ours to its end: ``launch(script, *args, ranks=2)``."""

    def run(script: Path, *args: object, ranks: int = 1, timeout: int = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(script, *args, ranks=ranks),
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer of 500 tokens, which knows the prompt of the sample task 'tickets'."""
    from tokenizers import ByteLevelBPETokenizer

    from data.decoder.prompts import build_prompt
    from data.decoder.templates import Text
    from data.tasks import get_task

    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = ByteLevelBPETokenizer()
    text = [piece.text for piece in build_prompt(get_task(TICKETS), "plain").prefix if isinstance(piece, Text)] * 2
    bpe.train_from_iterator(text, vocab_size=500, special_tokens=["<|end|>"], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return folder


@pytest.fixture
def train_args(tiny_tokenizer: Path, tmp_path: Path) -> list[str]:
    """Arguments of a short run of ``train.py`` on the sample task, into ``tmp_path / "run"``."""
    return [
        "--model", "llama_debug", "--init", "random", "--checkpoint", str(tiny_tokenizer), "--task", str(TICKETS),
        "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--steps", "6", "--log_every", "1",
        "--batch_size", "4", "--row_length", "1024", "--device", "cpu", "--export_dtype", "fp32",
    ]  # fmt: skip
