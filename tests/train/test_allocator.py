"""The allocator's settings are there before PyTorch is, and the user's own are left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.launching import ROOT, environment
from train.allocator import NAMES, SETTINGS

UP_TO_TORCH = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("at", {k: v for k, v in os.environ.items() if "ALLOC_CONF" in k}, flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
runpy.run_path(sys.argv[1], run_name="not main")
"""


def run(source: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in environment().items() if k not in NAMES} | variables
    return subprocess.run([sys.executable, "-c", source, *args], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_set_before_torch_is_imported(script: str) -> None:
    assert run(UP_TO_TORCH, script).stdout == f"at {{'PYTORCH_ALLOC_CONF': '{SETTINGS}'}}\n"
    for name in NAMES:
        for value in ("max_split_size_mb:128", ""):
            assert run(UP_TO_TORCH, script, **{name: value}).stdout == f"at {{'{name}': '{value}'}}\n"


def test_this_version_of_torch_reads_and_knows_them() -> None:
    done = run(
        "import train.allocator, torch\n"
        "print(torch._C._accelerator_getAllocatorSettings(), torch.cuda.is_initialized())\n"
        "torch._C._accelerator_setAllocatorSettings('expandable_segments:maybe')\n"
    )
    assert done.stdout == f"{SETTINGS} False\n", done.stderr
    assert "Expected 'True' or 'False'" in done.stderr, "a name that nobody knows would be accepted in silence"
