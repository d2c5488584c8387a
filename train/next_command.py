"""What to type after a training run: the command that goes on with it, and the one that scores or uses its model."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from data.commands import command, python, quoted, torchrun, without
from data.files.durable import write_text
from data.source import splits_of
from data.tasks import Task
from train.checkpointing.checkpoint import step_folder
from train.config import TrainConfig
from train.launched import launched, under_torchrun, words_of_parent

RESUME_SCRIPT = "resume.sh"  # in the run folder
OURS = "# Goes on with this run; train.py wrote it when the run started."
SHARE_FOR_WEIGHTS = 0.7  # of a GPU's memory; the rest is for keys, values and activations of scoring

log = logging.getLogger(__name__)


def scoring_advice(config: TrainConfig, task: Task, step: int, n_parameters: int, device: torch.device) -> str:
    """What to type to score the model of a run that has taken ``step`` steps; without examples for that, to use it."""
    output = config.checkpoint.output
    last = step_folder(output / "checkpoints", step) if config.eval.patience is None else output / "best"
    folder = output / "export" if config.checkpoint.export else last
    gpu_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    split = next((name for name in ("test", "dev") if name in splits_of(task)), None)
    if split is None:
        return labelling_advice({"checkpoint": folder}, _parts(n_parameters, gpu_bytes))
    return f"To score the model:\n  {eval_command(config, folder, n_parameters, gpu_bytes, split)}"


def labelling_advice(options: Mapping[str, object], tp: int) -> str:
    """What to type to label text.

    Args:
        options: of ``predict.py``.
        tp: over how many GPUs the model is split.
    """
    line = command("predict.py", {**options, "input": "-", "tp": tp if tp > 1 else None}, ranks=tp)
    return f"To label new text, here one line of it:\n  echo 'some text' | {line}"


def eval_command(
    config: TrainConfig, folder: Path, n_parameters: int, gpu_bytes: int | None, split: str = "test"
) -> str:
    """The command that scores what the run has trained.

    Args:
        folder: the export or the checkpoint to score.
        n_parameters: of the model, which is scored in bf16 on GPUs.
        gpu_bytes: memory of one GPU; None: on CPUs.
        split: of the run's task.
    """
    tp, data = _parts(n_parameters, gpu_bytes), config.data
    options = {
        "model": config.model.model,
        "checkpoint": folder,
        # The export has its task, but of a user's own the files with the examples are named by the TOML file alone.
        "task": data.task if data.task.endswith(".toml") else None,
        "data": data.data,
        "split": split if split != "test" else None,
        "allow_mismatch": config.model.allow_mismatch,
        "cache_dir": data.cache_dir,
        "tp": tp if tp > 1 else None,
    }
    return command("eval.py", options, ranks=launched().local_size)


def _parts(n_parameters: int, gpu_bytes: int | None) -> int:
    """Over how many of this machine's GPUs a model has to be split; see `eval_command`."""
    needs_split = gpu_bytes is not None and n_parameters * torch.bfloat16.itemsize > SHARE_FOR_WEIGHTS * gpu_bytes
    return launched().local_size if needs_split else 1


PLANNING = ("plan", "no_plan", "gpu", "gpus")  # options of --plan


def planned_command(ranks: int, nodes: int) -> str:
    """What to type to start what was planned: this program's command line without `PLANNING`.

    Args:
        ranks: on a machine.
    """
    script = Path(sys.argv[0]).name
    return command(script, {}, ranks=ranks, nodes=nodes, given=without(sys.argv[1:], PLANNING))


def resume_command(config: TrainConfig) -> str:
    """The command that goes on with this run, wherever it stops: the one that started it, launcher included."""
    words = [*launcher(), *sys.argv]
    return " ".join(map(quoted, words if config.checkpoint.resume != "off" else [*words, "--resume", "auto"]))


def advice_to_continue(line: str, output: Path) -> str:
    """What to type after an interruption.

    Args:
        line: see `resume_command`.
    """
    script = output / RESUME_SCRIPT
    too = f"\n{script} has this command, too." if is_resume_script(script) else ""  # it may be the user's own
    return f"To continue:\n  {line}{too}"


def write_resume_script(line: str, output: Path) -> None:
    """Write a command line, and the folder to type it in, into the run folder: it is there after any kill.

    The script goes on with the run that it lies beside: where it was moved to, and whatever ``$SCRATCH`` is now.
    """
    script, place = output / RESUME_SCRIPT, launched()
    if os.path.lexists(script) and not is_resume_script(script):
        log.info(
            "note: %s is not of this program and stays; the command that goes on with the run is:\n  %s", script, line
        )
        return
    notes = [f"{OURS} To run it: bash {RESUME_SCRIPT}"]
    if place.machines > 1:
        notes.append(f"# The run had {place.machines} machines: start it on each, with the options of that machine.")
    if place.size > 1 and not under_torchrun():
        notes.append(f"# The run had {place.size} processes: start it with the launcher that started them.")
    typed = line.removesuffix(f" --output {quoted(str(output))}")  # of the script before, so that it does not grow
    lines = [
        "#!/usr/bin/env bash",
        *notes,
        'run=$(cd "$(dirname "$0")" && pwd) || exit',
        f"cd {quoted(os.getcwd())} || exit",
        f"PATH={quoted(os.path.dirname(sys.executable))}:$PATH",
        f'exec {typed} --output "$run"',
    ]
    write_text(script, "\n".join(lines) + "\n")
    script.chmod(0o755)


def is_resume_script(path: Path) -> bool:
    """Whether `write_resume_script` has written this file."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return OURS.encode() in file.read(2 * len(OURS))


def launcher() -> list[str]:
    """The words of this run's command line before those of our program.

    torchrun's are those of its process. Where they cannot be read (another system, another launcher), the environment
    tells what it can.
    """
    if not under_torchrun():
        return [python(), *(before(sys.argv, sys.orig_argv) or [])[1:]]
    if words := torchrun_words(before(sys.argv, words_of_parent())):
        return words
    place = launched()
    # Several machines also need a rendezvous endpoint, which torchrun does not pass on.
    several = ["--nnodes", str(place.machines), "..."] if place.machines > 1 else []
    return [*torchrun(), "--nproc_per_node", str(place.local_size), *several]


def before(end: Sequence[str], words: Sequence[str]) -> list[str] | None:
    """What stands before the words ``end``; None if ``words`` does not end in them."""
    n = len(words) - len(end)
    return list(words[:n]) if n > 0 and list(words[n:]) == list(end) else None


def torchrun_words(words: list[str] | None) -> list[str] | None:
    """The start of torchrun's command line, with this interpreter's names; None if it is not torchrun's."""
    if not words:
        return None
    if Path(words[0]).name == "torchrun":
        return [*torchrun(), *words[1:]]
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] != "-m":  # the interpreter's options
        at += 2 if words[at] in ("-X", "-W") else 1
    if words[at : at + 1] == ["-m"] and words[at + 1 : at + 2] == ["torch.distributed.run"]:
        return [python(), *words[1:]]
    if at < len(words) and Path(words[at]).name == "torchrun":
        run = torchrun() if at == 1 else [python(), *words[1:at], "-m", "torch.distributed.run"]
        return [*run, *words[at + 1 :]]
    return None
