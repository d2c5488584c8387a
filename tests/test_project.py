"""What the repository says of itself in more than one place: requirements."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# --- requirements -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_requirements():
    return runpy.run_path(str(ROOT / "scripts" / "make_requirements.py"))["make_requirements"]


def test_the_requirements_files_are_those_of_pyproject(make_requirements):
    for name, text in make_requirements(PROJECT).items():
        found = (ROOT / name).read_text(encoding="utf-8")
        assert found == text, f"{name} is out of date. Run: python scripts/make_requirements.py"


def test_requirements_follow_pyproject(make_requirements):
    project = {
        "name": "this",
        "dependencies": ["a==1", "b==2"],
        "optional-dependencies": {"board": ["c==3"], "test": ["this[board]", "thisother==4"]},
    }
    made = make_requirements(project)
    assert list(made) == ["requirements.txt", "requirements-test.txt"]
    lines = [[line for line in text.splitlines() if not line.startswith("#")] for text in made.values()]
    assert lines == [["a==1", "b==2"], ["-r requirements.txt", "c==3", "thisother==4"]]
    assert all(text.startswith("# Generated") for text in made.values())


def test_every_requirement_is_pinned(make_requirements):
    for name, text in make_requirements(PROJECT).items():
        for line in text.splitlines():
            assert re.fullmatch(r"#.*|-r requirements\.txt|[\w-]+==[\w.]+", line), f"{name}: {line}"
