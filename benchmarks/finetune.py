"""Score SmolLM2-135M, fine-tune all its weights on a task, score it again: figures of the README's results table.

    python -m benchmarks.finetune --task massive_intent --data PATH --checkpoint checkpoints/smollm2_135m

Runs `eval.py`, `train.py` and `eval.py` as a user would, in ``--output``. Finished stages are kept and an interrupted
training is resumed. The table is written to ``benchmarks/results/finetune_<task>.md``. ``--train_torchrun 2`` trains on
two FSDP2 ranks.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.common import RESULTS, ROOT, load_average, say, table, write_result
from data.command_line import cli
from data.errors import UserError
from eval.metrics import main_figures
from eval.results import read_results, stored_task


@dataclass
class Options:
    """Score SmolLM2-135M before and after fine-tuning on a task."""

    checkpoint: Path
    """Converted SmolLM2 folder."""
    data: str
    """The data set: a path, or 'sample'."""
    task: str = "massive_intent"
    """One of the six tasks."""
    epochs: float = 1.0
    """Passes over the training split (unless --steps)."""
    steps: int | None = None
    """Optimizer steps instead of epochs."""
    batch_size: int = 32
    """Samples a step."""
    lr: float = 1e-4
    """Peak learning rate; linear decay to zero."""
    row_length: int | None = None
    """Capacity of a packed row in tokens; default: the recipe's. A step in a single row computes its prefix once."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of compute, in training and scoring; auto: bf16 if the hardware supports it."""
    list_labels: bool = True
    """Whether the prompt lists the labels, as the paper's does. If not, MASSIVE's joint prefix is a fifth as long."""
    train_options: str = ""
    """More options for train.py, as one string: --train_options="--seed 1 --clip 0"."""
    train_torchrun: int = 1
    """Ranks to train on."""
    output: Path | None = None
    """Folder of the runs; default runs/finetune_<task>."""
    result: Path | None = None
    """Result file; default benchmarks/results/finetune_<task>.md."""


def main() -> None:
    options = cli(Options, description=__doc__)
    load = load_average()
    folder = options.output or ROOT / "runs" / f"finetune_{options.task}"
    common = ["--model", "smollm2_135m", "--task", options.task, "--data", options.data]
    common += ["--precision", options.precision, "--list_labels" if options.list_labels else "--no_list_labels"]
    run_once(folder / "before", [*common, "--checkpoint", str(options.checkpoint), "--name", "before"])
    train(options, folder / "train", common)
    run_once(folder / "after", [*common, "--checkpoint", str(folder / "train" / "export"), "--name", "after"])
    body = report(options, folder)
    name = f"finetune_{options.task}"
    output = options.result or RESULTS / f"{name}.md"
    title, on_gpu = f"SmolLM2-135M fine-tuned on {options.task}", torch.cuda.is_available()
    write_result("finetune", title, body, sys.argv[1:], output, load, on_gpu)


def run_once(output: Path, arguments: list[str]) -> None:
    if (output / "results.json").is_file():
        say(f"{output.name}: scored before")
        return
    call([sys.executable, "eval.py", *arguments, "--output", str(output)])


def train(options: Options, output: Path, common: list[str]) -> None:
    length = ["--epochs", str(options.epochs)] if options.steps is None else ["--steps", str(options.steps)]
    arguments = [*common, "--checkpoint", str(options.checkpoint), *length, "--lr", str(options.lr)]
    arguments += ["--batch_size", str(options.batch_size), "--save_every", "50"]
    arguments += [] if options.row_length is None else ["--row_length", str(options.row_length)]
    arguments += shlex.split(options.train_options)
    train_once(output, arguments, options.train_torchrun)


def train_once(output: Path, arguments: list[str], ranks: int = 1) -> None:
    """Run `train.py` with these arguments into ``output``, or resume it; do nothing if it has finished."""
    if (output / "export" / "config.json").is_file():
        say(f"{output.name}: trained before")
        return
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    arguments = [*arguments, "--export_dtype", "fp32", "--keep", "1", "--output", str(output)]
    call([*launcher, "train.py", *arguments, "--resume", "auto"])


def call(command: list[str]) -> None:
    say(f"$ {shlex.join(command)}")
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        raise UserError(f"the command above ended with status {status}; run this one again to continue.")


def report(options: Options, folder: Path) -> str:
    before, after = read_results(folder / "before"), read_results(folder / "after")
    task = stored_task(after)
    figures = [(run, main_figures(task, run.metrics)) for run in (before, after)]
    names = list(figures[0][1])
    rows = [
        [
            run.system,
            *(f"{figure[name]:.1%}" for name in names),
            run.metrics["n_unparsed"] if "n_unparsed" in run.metrics else "",
            f"{run.cost['seconds_per_example']:.3f}",
            f"{run.cost['new_tokens']:.1f}",
        ]
        for run, figure in figures
    ]
    steps, seconds, tokens, losses = read_log(folder / "train" / "log.jsonl")
    quarter = max(1, len(losses) // 4)
    curve = ", ".join(f"{sum(losses[i : i + quarter]) / quarter:.3f}" for i in range(0, 4 * quarter, quarter))
    return "\n".join(
        [
            f"All {after.metrics['n_examples']:,} test examples, zero-shot prompt"
            f"{'' if options.list_labels else ' without the label lists'}, greedy decoding, in "
            f"{after.settings['precision']} on {after.settings['threads']} threads.",
            "",
            table(["", *names, "unparsed", "s / example", "tokens / answer"], rows),
            "",
            f"Trained {steps} steps of {options.batch_size} samples, peak {options.lr:g}, linear decay, "
            f"{tomllib.loads((folder / 'train' / 'config.toml').read_text())['train']['precision']} over fp32 weights: "
            f"{seconds / 60:.1f} minutes of steps, {tokens / seconds:.0f} real tokens/s. "
            f"Mean training loss by quarter of the run: {curve}.",
        ]
    )


def read_log(path: Path) -> tuple[int, float, int, list[float]]:
    """Steps, seconds spent in steps (without pauses before a resumption), tokens without padding, losses."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps: dict[int, dict] = {}
    seconds, last = 0.0, None
    for record in records:
        if "loss" not in record or "lr" not in record:
            last = None
            continue
        if last is not None:
            seconds += record["time"] - last
        else:  # the first step after a start: only its own rate is known
            seconds += record["examples"] / record["examples_per_second"]
        last = record["time"]
        steps[record["step"]] = record
    return len(steps), seconds, sum(r["real_tokens"] for r in steps.values()), [r["loss"] for r in steps.values()]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
