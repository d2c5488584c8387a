"""The commands that documents show: finding them, and having their own scripts read their arguments."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).resolve().parent.parent
# In the order in which a newcomer reads them: commands that run, run in this order.
FIRST = ["README.md", "docs/checkpoints.md", "docs/data.md", "docs/training.md", "docs/scoring.md"]
REST = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))] + ["CONTRIBUTING.md"]
DOCUMENTS = list(dict.fromkeys([*FIRST, *REST, "checkpoints_tools/PORTING.md"]))
NOT_OURS = {"hf", "git", "cd", "pip", "rm", "export", "curl", "mkdir", "source", "tensorboard"}
CHECKERS = {"lint-imports", "pytest", "ruff"}
CONFIGS = {"train.py": "train.resolve", "eval.py": "eval.resolve", "predict.py": "eval.predict.config"}
SMOLLM2 = "checkpoints/smollm2_135m"


def commands_in(text: str) -> list[list[str]]:
    """The words of every command in the ``bash`` blocks; continued lines joined, comments and environment dropped.

    Of commands joined by a pipe, the last one.
    """
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            words = words[len(words) - words[::-1].index("|") :] if "|" in words else words
            if words:
                found.append(words)
    return found


def documented() -> list[list[str]]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS if (ROOT / name).is_file()]
    return [command for text in texts for command in commands_in(text)]


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """A command's script (a path, or a module as ``-m name``) and its arguments."""
    program, rest = words[0], words[1:]
    if program == "sbatch":  # a batch script of ours, which passes its arguments on
        at = rest.index("scripts/train.slurm")
        return "train.py", rest[at + 1 :]
    if program == "torchrun":
        while rest and rest[0].startswith("-"):
            rest = rest[1:] if "=" in rest[0] or rest[0] == "--standalone" else rest[2:]
    if program in ("python", "python3") and rest[:1] == ["-m"]:
        return f"-m {rest[1]}", rest[2:]
    if program in ("python", "python3", "torchrun"):
        return rest[0], rest[1:]
    return program, rest


class Parsed(BaseException):
    """Ends a script right after it has understood its command line."""


def plan(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a command's own script read its arguments, and stop there; raises when it does not like them."""
    script, arguments = script_of(words)
    if words[0] in NOT_OURS | CHECKERS or script in ("-c", "-m venv", "-m pytest", "-m mypy"):
        return
    if script.endswith(".sh") or script == ".ci/run":
        assert os.access(ROOT / script, os.X_OK), f"{script} is not there or not executable"
        return
    if script in CONFIGS:
        read = importlib.import_module(CONFIGS[script]).load_config
    else:
        name = script[3:] if script.startswith("-m ") else script.removesuffix(".py").replace("/", ".")
        read = lambda arguments: read_and_stop(name, arguments, monkeypatch)  # noqa: E731
    try:
        read(arguments)
    except SystemExit as end:
        assert end.code in (0, None) and "--help" in arguments, f"{shlex.join(words)} ended with status {end.code}"


def read_and_stop(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a module's ``main`` up to where tyro has understood its command line."""
    real = tyro.cli

    def parse_and_stop(*positional, **named):
        raise Parsed(real(*positional, **named))

    if (ROOT / module.replace(".", "/")).is_dir():
        module = f"{module}.__main__"
    monkeypatch.setattr(tyro, "cli", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()
