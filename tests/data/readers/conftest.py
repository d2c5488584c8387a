"""A folder with a small table, for tests that change it or write others beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own_tables import TABLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TABLE)
    return tmp_path
