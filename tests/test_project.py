"""What the repository says of itself in more than one place: requirements, Python versions, markers."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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


def test_documents_install_the_pinned_client():
    (pinned,) = PROJECT["optional-dependencies"]["api"]
    assert f"pip install {pinned}\n" in (ROOT / "docs" / "closed_models.md").read_text(encoding="utf-8")


# --- Python versions --------------------------------------------------------------------------------------------------


def test_supported_pythons_are_the_same_everywhere():
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    supported = [f"3.{minor}" for minor in range(int(low), int(high))]
    script = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    assert f"    {' | '.join(supported)})\n" in script
    assert f"candidates=({' '.join('python' + version for version in supported)} python3 python)" in script
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == supported


def test_the_workflow_runs_ci_with_the_python_of_its_matrix():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert [step.get("uses", "").split("@")[0] for step in steps[:2]] == ["actions/checkout", "actions/setup-python"]
    assert steps[1]["with"] == {"python-version": "${{ matrix.python }}"}
    assert steps[2]["run"] == "bash .ci/run"
    assert steps[1]["id"] == "setup" and steps[2]["env"] == {"PYTHON": "${{ steps.setup.outputs.python-path }}"}
    assert len(steps) == 3


# --- tests that need a GPU --------------------------------------------------------------------------------------------


def test_only_conftest_asks_for_a_gpu():
    """Tests that need one are marked ``gpu``; a ``skipif`` beside the marker would escape ``pytest -m gpu``."""
    asking = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda.is_available":
                asking.add(path.relative_to(ROOT / "tests").as_posix())
            skips = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("skipif")
            assert not (skips and "cuda" in ast.unparse(node)), f"{path}: mark it gpu instead"
    assert asking == {"conftest.py"}


TWO_TESTS = (
    "import pytest\n\n@pytest.mark.gpu\ndef test_on_gpu():\n    assert False\n\ndef test_anywhere():\n    pass\n"
)


@pytest.mark.parametrize("available", [False, True])
def test_gpu_tests_are_skipped_without_a_gpu_alone(available, tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_two.py").write_text(TWO_TESTS)
    pretend = f"import pytest, sys, torch; torch.cuda.is_available = lambda: {available}; sys.exit(pytest.main())"
    done = subprocess.run(
        [sys.executable, "-c", pretend, "--strict-markers"], cwd=tmp_path, capture_output=True, text=True
    )
    if available:
        assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout
    else:
        assert done.returncode == 0 and "1 passed, 1 skipped" in done.stdout, done.stdout
        assert "gpu: needs a CUDA device" in done.stdout


# --- what is read from files ------------------------------------------------------------------------------------------

# Decoders without limits, and those that run what a file names. Each is called where its input is bounded.
DECODERS = {
    "json.load": (),
    "json.loads": (
        "data/files/documents.py",
        "train/checkpointing/checkpoint.py",
    ),  # there, of what it has just written
    "msgspec.json.decode": ("data/files/documents.py", "data/decoder/samples.py"),  # there, of its cache, typed
    "tomllib.load": (),
    "tomllib.loads": ("data/files/documents.py",),
    "tarfile.open": ("data/files/archive.py",),
    "torch.load": (),
    "pickle.load": (),
    "pickle.loads": (),
    "pickle.Unpickler": (),
    "dcp.load": ("checkpoints_tools/sharded.py",),
    "GGUFReader": (),
    "zipfile.ZipFile": ("checkpoints_tools/torch_files.py", "data/cache.py"),
}


def called(path: Path) -> set[str]:
    """The dotted names that a file calls."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


def test_files_are_decoded_behind_a_door():
    product = [p for d in ("model", "data", "train", "eval", "checkpoints_tools") for p in (ROOT / d).rglob("*.py")]
    calls = {str(path.relative_to(ROOT)): called(path) for path in [*product, *ROOT.glob("*.py")]}
    for decoder, allowed in DECODERS.items():
        found = {path for path, names in calls.items() if decoder in names}
        assert found <= set(allowed), f"{decoder} is called outside of its door: use data.files or checkpoints_tools"
