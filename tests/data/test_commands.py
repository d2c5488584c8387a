"""Command lines that people paste."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest

from data.commands import command, ours, quoted
from tests.launching import ROOT

WORDS = ["plain", "a b", "it's [x]", "$HOME `id` \\", "~/x", "天气 ü", "a\tb\nc", "\x1b[2J", "x\udcff7", "", "-", "*"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_shell_reads_the_words_that_were_meant(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace"))
    for word in WORDS:
        text = quoted(word)
        assert text.isprintable()
        text.encode(encoding)  # the terminal can show it
        done = subprocess.run(["bash", "-c", f"printf %s {text}"], stdout=subprocess.PIPE, check=True)
        assert done.stdout == os.fsencode(word)


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command("eval.py", {"name": "a b", "data": None, "plan": True, "new_prompt": False, "tp": 2}))
    assert words[1:] == ["eval.py", "--name", "a b", "--plan", "--tp", "2"]


def test_from_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval.py").write_text("")
    assert ours("eval.py") == str(ROOT / "eval.py"), "the one here is not ours"
    monkeypatch.chdir(ROOT)
    assert ours("eval.py") == "eval.py"


def test_the_interpreter_is_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    here, other = os.path.dirname(sys.executable), tmp_path / "bin"
    other.mkdir()
    (other / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(other))
    assert shlex.split(command("eval.py", {}))[0] == sys.executable, "another environment's link to the same file"
    assert shlex.split(command("eval.py", {}, ranks=2))[:5] == [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"
    ]  # fmt: skip
    monkeypatch.setenv("PATH", f"{here}:{other}")
    assert command("eval.py", {}).startswith("python")
    if os.path.exists(f"{here}/torchrun"):
        assert command("eval.py", {}, ranks=8).startswith("torchrun --nproc_per_node 8 ")
