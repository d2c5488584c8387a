"""The programs as a person sees them: in a terminal, in a log file, with any letters, and typed one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT
from tests.screen import in_terminal, plain_environment
from tests.train.conftest import tiny_tokenizer  # noqa: F401  # a fixture

TASK = """
name = "notes"
[files]
train = "notes.csv"
test = "notes.csv"
[[fields]]
name = "天[/i]气"
type = "class"
labels = ["[wet]", "[/dry]"]
"""
ASCII = {"PYTHONIOENCODING": "ascii:strict", "FORCE_COLOR": "1"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:  # noqa: F811
    """A folder with a task whose names are what rich and old terminals do not like."""
    folder = tmp_path_factory.mktemp("a [b] 'c'")
    rows = [f"note {n} about {'rain' if n % 2 else 'wind'},{'[wet]' if n % 2 else '[/dry]'}" for n in range(24)]
    (folder / "notes.csv").write_text("\n".join(["text,天[/i]气", *rows]) + "\n", encoding="utf-8")
    (folder / "notes.toml").write_text(TASK, encoding="utf-8")
    return folder


def train(folder: Path, tokenizer: Path, run: str) -> list[str]:
    return [
        sys.executable, "train.py", "--model", "llama_debug", "--init", "random", "--checkpoint", str(tokenizer),
        "--task", str(folder / "notes.toml"), "--output", str(folder / run), "--cache_dir", str(folder / "cache"),
        "--steps", "6", "--log_every", "2", "--batch_size", "4", "--row_length", "1024", "--device", "cpu",
        "--holdout", "0.25", "--eval_every", "3", "--max_new_tokens", "3",
    ]  # fmt: skip


def last_command(lines: list[str], start: str) -> str:
    """The command that a program has named at its end."""
    at = max(i for i, line in enumerate(lines) if line.startswith(start))
    return lines[at + 1].strip()


def paste(command: str, **more: str) -> subprocess.CompletedProcess:
    """Run a command in a shell, from the project's folder."""
    env = plain_environment(**more)
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(here: Path, tiny_tokenizer: Path) -> list[str]:  # noqa: F811
    """What a training run in a terminal has shown."""
    shown = in_terminal(train(here, tiny_tokenizer, "run [x]"), columns=80)
    assert shown.status == 0, shown.raw
    return shown.lines


def test_training_in_a_terminal(here: Path, trained: list[str]) -> None:
    lines = trained
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/6", "2/6", "4/6", "6/6"] and max(map(len, steps)) <= 80
    bars = [i for i, line in enumerate(lines) if "━" in line and "6/6" in line]
    assert bars and max(bars) > lines.index(steps[-1]), "the bar is below the lines"
    scored = next(line for line in lines if line.startswith("held-out, step 3"))
    assert "天[/i]气 accuracy" in scored
    head = next(i for i, line in enumerate(lines) if line.startswith("settings that are not those of"))
    assert str(here / "run [x]" / "config.toml") in lines[head], "a path is not broken"
    assert len([line for line in lines[head:] if " = " in line]) < 25 and "  steps = 6 (recipe: 100)" in lines


def test_from_training_to_labels_by_what_the_programs_say(here: Path, trained: list[str]) -> None:
    output = f"{here.parent}/scored"
    command = last_command(trained, "To score the model")  # on one line: only the terminal breaks it
    done = paste(f"{command} --limit 4 --max_new_tokens 3 --output {output}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    title, written = "run [x]-export, 0-shot: notes, custom test", f"written to {output}"
    said = done.stdout.splitlines()
    assert title in said and written in said and "天[/i]气" in done.stdout
    assert not any(line.endswith(("│ 0      │", "│ 0 │")) for line in said), "counts of zero"

    done = paste(last_command(said, "To label new text"))
    assert done.returncode == 0 and '"predicted_天[/i]气": ' in done.stdout, done.stderr


def test_a_log_file_of_a_terminal_that_knows_few_letters(here: Path, tiny_tokenizer: Path) -> None:  # noqa: F811
    env = plain_environment(**ASCII)
    done = subprocess.run(train(here, tiny_tokenizer, "结果"), cwd=ROOT, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/6", "2/6", "4/6", "6/6"]
    assert "\x1b" not in "".join(lines), "no bar, and nothing is coloured"
    assert any("held-out, step 3: \\u5929[/i]\\u6c14 accuracy" in line for line in lines)
    score = last_command(lines, "To score the model") + f" --limit 4 --max_new_tokens 3 --output '{here.parent}/s2'"
    done = paste(score + " --name '天 [/b]'", **ASCII)
    assert done.returncode == 0 and "\\u5929 [/b]: notes" in done.stdout, done.stderr
    done = paste(f"{sys.executable} eval.py --compare '{here.parent}/s2'", **ASCII)
    assert done.returncode == 0 and "\\u5929 [/b]" in done.stdout and "━" not in done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--help"], ["train.py", "--task", "天[/b].toml", "--modle", "天"],
        ["eval.py", "--compare", "天[/b]"], ["eval.py", "--combine", "天[/b]", "x\udcff"],
        ["predict.py", "--checkpoint", "天[/b]", "--input", "x\udcff"], ["-m", "eval.baselines", "--task", "天[/b]"],
        ["-m", "checkpoints_tools.convert", "天[/b]", "x\udcff"], ["-m", "checkpoints_tools.inspect", "天[/b]"],
        ["-m", "checkpoints_tools.inspect", "a", "天[/b]"], ["-m", "data.download", "天[/b]"],
        ["-m", "data.check", "天[/b].toml"], ["-m", "data.new", "天[/b].csv"],
    ],
    ids=lambda words: " ".join(words).encode("ascii", "replace").decode(),
)  # fmt: skip
def test_errors_and_help_in_any_letters(words: list[str]) -> None:
    env = plain_environment(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii:strict")
    done = subprocess.run([sys.executable, *map(os.fsencode, words)], cwd=ROOT, env=env, capture_output=True)
    said = (done.stdout + done.stderr).decode("ascii")
    assert "Traceback" not in said and done.returncode == (0 if "--help" in words else 2), said
    assert "--help" in words or "[/b]" in said


@pytest.mark.usefixtures("trained")
def test_predictions_on_a_terminal_have_no_bar_among_them(here: Path) -> None:
    """Labels go to the same terminal as the bar would."""
    words = [sys.executable, "predict.py", "--checkpoint", here / "run [x]" / "export", "--max_new_tokens", "3"]
    words += ["--input", here / "notes.csv"]
    shown = in_terminal(words, columns=200)
    assert shown.status == 0 and "\x1b" not in shown.raw[shown.raw.index('{"text"') :], "only before the labels"
    assert sum(line.startswith('{"text"') for line in shown.lines) == 24
    shown = in_terminal([*words, "--output", here / "out [b].csv"], columns=80)
    assert shown.status == 0 and f"written to {here}/out [b].csv" in shown.lines
