"""What is said at a run's start about its settings, and the next command: at its end, and after a kill."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.commands import python, torchrun
from data.errors import UserError
from data.tasks import get_task
from eval.predict.config import load_config as load_predict_config
from eval.resolve import load_config as load_eval_config
from tests.launching import ROOT, TICKETS, command, environment, pretend
from train import next_command
from train.next_command import (
    before,
    eval_command,
    launcher,
    resume_command,
    scoring_advice,
    torchrun_words,
    write_resume_script,
)
from train.resolve import describe_settings, load_config, recipe_of

GPU = 80 * 10**9


def words(config, n_parameters=10**8, gpu_bytes=None) -> list[str]:
    return shlex.split(eval_command(config, Path("runs/a b/export"), n_parameters, gpu_bytes))


def under(monkeypatch: pytest.MonkeyPatch, *, local: int, machines: int = 1, parent: str = "") -> None:
    """Pretend to be rank 0 of torchrun, whose process has these words."""
    more = dict(LOCAL_RANK=0, LOCAL_WORLD_SIZE=local, GROUP_WORLD_SIZE=machines, TORCHELASTIC_RUN_ID="x")
    pretend(monkeypatch, local * machines, **more)
    monkeypatch.setattr(next_command, "words_of_parent", lambda: shlex.split(parent))


def test_the_command_that_scores_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = ["--model", "llama3_8b", "--output", "runs/a b"]
    own = load_eval_config(words(load_config([*base, "--task", str(TICKETS)]))[2:])
    assert (own.model, own.checkpoint, own.task) == ("llama3_8b", Path("runs/a b/export"), str(TICKETS))
    assert not own.data and not own.allow_mismatch
    more = [*base, "--task", "massive_joint", "--data", "sample", "--allow_mismatch"]
    paper = load_eval_config(words(load_config(more))[2:])
    assert (paper.task, paper.data, paper.allow_mismatch) == ("", "sample", True), "the export has the task"


def test_what_is_named_is_what_the_task_has_examples_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    toml, cpu = tmp_path / "t.toml", torch.device("cpu")
    cut = "[split]\ndev = 0.2\n"
    for splits, more, expected in (("train dev test", "", "test"), ("train dev", "", "dev"), ("train", cut, "dev"),
                                   ("train", "", None)):  # fmt: skip
        files = "".join(f'{split} = "{split}.csv"\n' for split in splits.split())
        for split in splits.split():
            (tmp_path / f"{split}.csv").write_text("text,q\nx,a\ny,b\n")
        field = '[[fields]]\nname = "q"\ntype = "class"\nlabels = ["a", "b"]\n'
        toml.write_text(f'name = "t"\n[files]\n{files}{more}{field}')
        config = load_config(["--model", "llama3_8b", "--task", str(toml), "--output", "runs/a b"])
        said, line = scoring_advice(config, get_task(toml), 5, 10**8, cpu).split("\n")
        if expected is None:
            assert said.startswith("To label new text") and line.startswith("  echo 'some text' | ")
            own = load_predict_config(shlex.split(line.split("|")[1])[2:])
            assert (own.checkpoint, own.input) == (Path("runs/a b/export"), "-")
        else:
            own = load_eval_config(shlex.split(line)[2:])
            assert said == "To score the model:" and (own.split, own.task) == (expected, str(toml))
            assert ("--split" in line) == (expected == "dev"), "test is the default"
    under(monkeypatch, local=8)
    assert next_command.labelling_advice({"checkpoint": "x"}, 8).endswith("predict.py --checkpoint x --input - --tp 8")


def test_a_model_larger_than_a_gpu_is_scored_split(monkeypatch: pytest.MonkeyPatch) -> None:
    under(monkeypatch, local=8)
    config = load_config(["--model", "llama3_70b", "--task", "massive_joint"])
    assert words(config, 70 * 10**9, GPU)[-2:] == ["--tp", "8"]
    assert "--nproc_per_node" in words(config, 8 * 10**9, GPU) and "--tp" not in words(config, 8 * 10**9, GPU)
    assert "--tp" not in words(config, 70 * 10**9, None)


def test_the_start_shows_what_is_not_the_recipes() -> None:
    base = ["--model", "smollm2_135m", "--task", "massive_joint", "--output", "runs/a [b]", "--device", "cpu"]
    head, *lines = describe_settings(load_config([*base, "--precision", "fp32"])).splitlines()
    assert head == "settings that are not those of smollm2_135m's recipe (runs/a [b]/config.toml has all):"
    assert [line.split()[0] for line in lines] == ["model", "task", "optim", "precision", "device", "output"]
    assert '  precision = "fp32" (recipe: "auto")' in lines and '  model = "smollm2_135m"' in lines
    assert any(line.startswith('  optim = "adamw" (chosen by --optim auto: ') for line in lines)
    recipe = recipe_of(load_config(base))
    same = [word for name in ("batch_size", "lr", "row_length") for word in (f"--{name}", str(recipe[name]))]
    assert describe_settings(load_config([*base, "--precision", "fp32", *same])).splitlines() == [head, *lines]
    config = load_config([*base, "--steps", "7", "--lr", "1e-3"])
    shown = describe_settings(replace(config))
    assert "  steps = 7\n" in shown and "epochs" not in shown, "one replaces the other"
    assert "  lr = 0.001 (recipe: 0.0001)" in shown


def test_a_name_that_no_file_can_hold_is_refused_at_the_start() -> None:
    base = ["--model", "smollm2_135m", "--task", "massive_joint"]
    with pytest.raises(UserError, match="output = 'runs/.udcff': not UTF-8, so it cannot be recorded"):
        load_config([*base, "--output", "runs/\udcff"])
    with pytest.raises(UserError, match="name = '.udcff'"):
        load_eval_config([*base, "--name", "\udcff"])
    with pytest.raises(UserError, match="name = '.udcff'"):
        load_eval_config(["--combine", "a", "b", "--name", "\udcff"])


ARGV = ["train.py", "--task", "a b"]
OPTIONS = "--standalone --max-restarts 3 --nproc_per_node gpu --shutdown-timeout 840"
RUN, PYTHON = torchrun(), python()


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (f"torchrun {OPTIONS}", [*RUN, *OPTIONS.split()]),
        (f"/opt/python3.11 /opt/bin/torchrun {OPTIONS}", [*RUN, *OPTIONS.split()]),
        (f"python -u -X utf8 /opt/bin/torchrun {OPTIONS}",
         [PYTHON, "-u", "-X", "utf8", "-m", "torch.distributed.run", *OPTIONS.split()]),
        (f"/opt/python3.11 -m torch.distributed.run {OPTIONS}",
         [PYTHON, "-m", "torch.distributed.run", *OPTIONS.split()]),
        (f"python -u -m torch.distributed.run {OPTIONS} --no-python x",
         [PYTHON, "-u", "-m", "torch.distributed.run", *OPTIONS.split(), "--no-python", "x"]),
        ("accelerate launch --multi_gpu", None),
        ("/opt/python3.11 /opt/bin/accelerate launch", None),
        ("python -m accelerate.commands.launch", None),
        ("python -u", None),
    ],
)  # fmt: skip
def test_torchruns_own_words(parent: str, expected: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun_words(before(ARGV, [*shlex.split(parent), *ARGV])) == expected
    monkeypatch.setattr(sys, "argv", ARGV)
    under(monkeypatch, local=4, parent=f"{parent} {shlex.join(ARGV)}")
    assert launcher() == (expected or [*RUN, "--nproc_per_node", "4"])


@pytest.mark.parametrize("parent", ["", "bash", "torchrun train.py --task 'a b' more", "a b", "train.py --task 'a b'"])
def test_a_parent_that_did_not_start_this_program(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ARGV)
    under(monkeypatch, local=8, parent=parent)
    assert launcher() == [*RUN, "--nproc_per_node", "8"]
    under(monkeypatch, local=8, machines=2, parent=parent)
    assert launcher() == [*RUN, "--nproc_per_node", "8", "--nnodes", "2", "..."]


def test_an_interpreters_options_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ARGV)
    for given, expected in ((["/else/python3.11", "-u", "-X", "utf8"], ["-u", "-X", "utf8"]), (["python"], [])):
        monkeypatch.setattr(sys, "orig_argv", [*given, *ARGV])
        assert launcher() == [PYTHON, *expected]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    assert launcher() == [PYTHON]


def test_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    base = ["--model", "smollm2_135m", "--task", "massive_joint", "--output", "runs/it's"]
    for more, added in ((["--no_resume"], ["--resume", "auto"]), (["--resume"], []), (["--resume", "auto"], [])):
        monkeypatch.setattr(sys, "argv", ["train.py", *base, *more])
        found = shlex.split(resume_command(load_config([*base, *more])))
        assert found == [PYTHON, "train.py", *base, *more, *added]
        assert load_config(found[2:]).checkpoint.resume in ("on", "auto")
    write_resume_script("true", tmp_path)
    assert "The run had" not in (tmp_path / "resume.sh").read_text()
    under(monkeypatch, local=2, machines=2)
    write_resume_script("true", tmp_path)
    assert "The run had 2 machines: start it on each" in (tmp_path / "resume.sh").read_text()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.delenv("GROUP_WORLD_SIZE")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    write_resume_script("true", tmp_path)
    assert "4 processes: start it with the launcher that started them" in (tmp_path / "resume.sh").read_text()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_script_in_the_run_folder_goes_on_after_a_kill(ranks: int, train_args: list[str], tmp_path: Path) -> None:
    """As typed: in another folder, with relative paths, and an apostrophe in them. Then moved, called from yet another
    one, and without the variable."""
    work = tmp_path / "it's here"
    work.mkdir()
    words = command(
        ROOT / "train.py", *train_args, "--output", "$HERE/a run", "--steps", "20", "--save_every", "2", ranks=ranks
    )
    if ranks > 1:
        words[3:3] = ["--max-restarts", "0", "--shutdown-timeout", "77"]
    env = environment() | {"HERE": "."}
    process = subprocess.Popen(words, cwd=work, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (work / "a run" / "checkpoints" / "step_000002").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if ranks > 1 else []
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    run = (work / "a run").rename(tmp_path / "mo$ved")
    script = run / "resume.sh"
    n_outputs = script.read_text().count("--output")
    assert ("--max-restarts 0 --shutdown-timeout 77" in script.read_text()) == (ranks > 1)
    away = environment() | {"PATH": "/usr/bin:/bin"}  # the virtual environment is not active
    done = subprocess.run(["bash", script], cwd="/", env=away, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "resuming after step" in done.stdout, done.stdout + done.stderr
    assert (run / "export" / "model.safetensors").is_file() and not (work / "a run").exists()
    assert script.read_text().count("--output") == n_outputs, "it does not grow"
    again = subprocess.run(["bash", script], cwd="/", env=away, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "has finished" in again.stdout, again.stdout + again.stderr


def test_a_users_file_of_the_scripts_name_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = tmp_path / next_command.RESUME_SCRIPT
    next_command.write_resume_script("python train.py", tmp_path)
    next_command.write_resume_script("python train.py --resume", tmp_path)
    assert "exec python train.py --resume" in script.read_text() and next_command.is_resume_script(script)
    assert next_command.advice_to_continue("x", tmp_path) == f"To continue:\n  x\n{script} has this command, too."
    script.write_text("#!/bin/sh\necho mine\n")
    with caplog.at_level("INFO"):
        next_command.write_resume_script("python train.py --lr 1", tmp_path)
    assert script.read_text() == "#!/bin/sh\necho mine\n" and "python train.py --lr 1" in caplog.text
    assert next_command.advice_to_continue("x", tmp_path) == "To continue:\n  x"


def test_what_is_planned_is_started_with_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model", "x", "--plan", "--gpus=16", "--gpu", "h200", "--lr", "1e-4", "--plan", "on"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert next_command.planned_command(1, 1) == f"{python()} train.py --model x --lr 1e-4"
    start = " ".join([*torchrun(), "--nnodes", "2", "--nproc_per_node", "8", "..."])
    assert next_command.planned_command(8, 2) == f"{start} train.py --model x --lr 1e-4"


@pytest.mark.slow
def test_results_without_a_model_end_with_a_comparison(tmp_path: Path) -> None:
    """Baselines, and two runs joined to one: the command that they name shows them beside each other."""
    line = [sys.executable, "-m", "eval.baselines", "--data", "sample"]
    for name in ("intent", "slots"):
        task = ["--task", f"massive_{name}", "--output", str(tmp_path / name)]
        printed = subprocess.run([*line, *task], cwd=ROOT, env=environment(), capture_output=True, text=True).stdout
        shown = run_last(printed)
        assert "majority" in shown and "TF-IDF" in shown
    runs = [str(tmp_path / name / "tfidf_lr") for name in ("intent", "slots")]
    line = [sys.executable, "eval.py", "--combine", *runs, "--output", str(tmp_path / "both")]
    printed = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True).stdout
    assert "intent" in run_last(printed)


def run_last(printed: str) -> str:
    """What the command in the last line prints."""
    command_line = printed.splitlines()[-1].strip()
    done = subprocess.run(["bash", "-c", command_line], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, (command_line, done.stderr)
    return done.stdout
