"""A trained decoder's export on a task of a user's own, as today's ``train.py`` leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.task_file import save_task
from data.tasks import get_task
from tests.launching import ROOT, TICKETS


@pytest.fixture(scope="session")
def tickets(tmp_path_factory) -> Path:
    """Tests that change the folder copy it."""
    folder = tmp_path_factory.mktemp("tickets") / "export"
    shutil.copytree(ROOT / "tests" / "old_files" / "tickets" / "export", folder)
    save_task(get_task(TICKETS), folder)
    return folder
