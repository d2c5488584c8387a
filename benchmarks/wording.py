"""The paper's wording against the corrected one, and strict against lenient reading, with SmolLM2-135M.

    python -m benchmarks.wording --checkpoint checkpoints/smollm2_135m --news PATH --massive PATH

Scores the model as it is on all six tasks, and fine-tuned on those of ``--train``, with both wordings and the same
examples and steps. Finished stages in ``--output`` are kept. The table is written to ``benchmarks/results/wording.md``.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.common import ROOT, load_average, run_program, table, write_result
from benchmarks.finetune import run_once, train_once
from data.decoder.prompts import WORDINGS
from data.files.paths import PathText
from data.tasks import TASKS
from eval.report import figures, lenient_figures
from eval.results import Results, read_results


@dataclass
class Options:
    """Score SmolLM2-135M with both wordings, never fine-tuned and fine-tuned."""

    checkpoint: Path
    """Converted SmolLM2 folder."""
    news: PathText
    """20 Newsgroups: a path, or 'sample'."""
    massive: PathText
    """MASSIVE: a path, or 'sample'."""
    limit: int = 100
    """Test examples of each task."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks."""
    wordings: tuple[str, ...] = WORDINGS
    """Wordings."""
    train: tuple[str, ...] = ("20ng_7", "massive_intent")
    """Tasks to fine-tune on."""
    train_options: str = "--limit 200 --epochs 1 --batch_size 8 --lr 3e-4 --row_length 1024"
    """Options of train.py."""
    row_length: int = 1024
    """Maximum input of scoring, in tokens. Longer posts are cut."""
    output: Path | None = None
    """Folder of the runs; default runs/wording."""
    result: Path | None = None
    """Result file; default benchmarks/results/wording.md."""


def main(options: Options, argv: list[str]) -> None:
    load = load_average()
    folder = options.output or ROOT / "runs" / "wording"
    data = {"20ng": options.news, "massive": options.massive}
    runs: dict[tuple[str, str, str], Results] = {}
    for name, wording in product(options.tasks, options.wordings):
        common = ["--model", "smollm2_135m", "--task", name, "--data", data[TASKS[name].dataset], "--wording", wording]
        scored = [*common, "--limit", str(options.limit), "--row_length", str(options.row_length)]
        output = folder / f"{name}_{wording}"
        run_once(output, [*scored, "--checkpoint", str(options.checkpoint)])
        runs[name, wording, "never"] = read_results(output)
        if name in options.train:
            trained, output = folder / f"{name}_{wording}_train", folder / f"{name}_{wording}_tuned"
            train_once(trained, [*common, "--checkpoint", str(options.checkpoint), *shlex.split(options.train_options)])
            run_once(output, [*scored, "--checkpoint", str(trained / "export")])
            runs[name, wording, "yes"] = read_results(output)
    body = report(runs, options)
    title, on_gpu = "Wording of the prompt, and strict and lenient reading", torch.cuda.is_available()
    write_result("wording", title, body, argv, options.result, load, on_gpu)


def report(runs: dict[tuple[str, str, str], Results], options: Options) -> str:
    rows: list[list[object]] = []
    for (name, wording, tuned), run in runs.items():
        strict, lenient, n = figures(run), lenient_figures(run), run.metrics["n_unparsed"]
        rows += [
            [name, tuned, wording, figure, f"{value:.1%}", f"{lenient[figure]:.1%}", n,
             run.metrics["lenient"]["n_unparsed"]]
            for figure, value in strict.items()
        ]  # fmt: skip
    rows.sort(key=lambda row: (list(TASKS).index(str(row[0])), str(row[1]), str(row[3])))
    tuned = f"Fine-tuned with `{options.train_options}`. " if options.train else ""
    return (
        f"{options.limit} test examples of each task, zero-shot, inputs of at most {options.row_length} tokens, greedy "
        f"decoding. {tuned}The main figures are the strict ones.\n\n"
        + table(["task", "fine-tuned", "wording", "figure", "strict", "lenient", "unparsed", "lenient: unparsed"], rows)
    )


if __name__ == "__main__":
    sys.exit(run_program("wording", Options, main))
