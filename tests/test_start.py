"""The help is there at once: nothing that takes seconds to import is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.launching import ROOT, environment

HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sys.modules)
"""
HEAVY = {"torch", "numpy", "sklearn", "pandas", "datasets", "seqeval", "matplotlib", "transformers"}


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_imports_nothing_heavy(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, script], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    shown, imported = done.stdout.split("imported:")
    assert done.returncode == 0 and "--checkpoint" in shown, done.stderr
    assert "tyro" in imported.split() and not HEAVY & set(imported.split())
