"""A trained decoder's export on a task of a user's own, as ``train.py`` leaves it, and ``predict.py`` with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from data.task_file import save_task
from data.tasks import get_task
from eval.predict.config import load_config
from eval.predict.run import predict
from tests.eval.predict.rows import IN_FP32
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
