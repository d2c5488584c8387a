"""A trained decoder's export on a task of a user's own, as ``train.py`` leaves it, and ``predict.py`` with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from data.task_file import save_task
from data.tasks import get_task
from eval.predict import run as run_module
from eval.predict.classifier import Classifier
from eval.predict.config import load_config
from eval.predict.run import predict
from tests.eval.predict.rows import IN_FP32, Killed
from tests.launching import ROOT, TICKETS


@pytest.fixture(scope="session")
def tickets(tmp_path_factory) -> Path:
    """Tests that change the folder copy it."""
    folder = tmp_path_factory.mktemp("tickets") / "export"
    shutil.copytree(ROOT / "tests" / "old_files" / "tickets" / "export", folder)
    save_task(get_task(TICKETS), folder)
    return folder


@pytest.fixture
def run(tickets) -> Iterator:
    """``predict.py`` in this process; returns its summary."""

    def call(*arguments, checkpoint=tickets):
        try:
            return predict(load_config(["--checkpoint", str(checkpoint), *IN_FP32, *map(str, arguments)]))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return call


@pytest.fixture
def killed_after(monkeypatch):
    """Chunks of two rows, and an end after the given number of chunks (None: no end)."""
    label = Classifier.label

    def set_up(n_chunks):
        calls = iter(range(10**6))

        def until(self, *arguments):
            if n_chunks is not None and next(calls) >= n_chunks:
                raise Killed
            return label(self, *arguments)

        monkeypatch.setattr(Classifier, "label", until)

    monkeypatch.setattr(run_module, "CHUNK_ROWS", 2)
    return set_up
