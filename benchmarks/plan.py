"""Write the plans of ``train.py --plan`` for 70B on eight A100s and 8B on one GPU.

Needs the Llama 3 tokenizer and the 20 Newsgroups release to count real samples, but no weights and no GPU::

    python -m benchmarks.plan --tokenizer PATH/TO/llama3 --data PATH/TO/20news-bydate.tar.gz
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import tyro

from benchmarks.common import load_average, table, write_result
from train.metrics import duration
from train.planning.hardware import GIB, usable
from train.planning.plan import TrainPlan, make_plan, run_seconds, step_seconds
from train.planning.report import describe
from train.resolve import load_config

TASK = "20ng_joint"
# Options of each plan; `planned` adds task, tokenizer and data.
PLANS = {
    "llama3_70b on 8 x A100 80 GB, rows of 4,096": "--model llama3_70b --gpus 8 --row_length 4096",
    "llama3_70b on 8 x A100 80 GB, rows of 8,192": "--model llama3_70b --gpus 8 --row_length 8192",
    "llama3_70b on 8 x A100 80 GB, rows of 16,384": "--model llama3_70b --gpus 8 --row_length 16384",
    "the same with activation offload": "--model llama3_70b --gpus 8 --row_length 16384 --activation_offload on",
    "the same, 16 samples a step": "--model llama3_70b --gpus 8 --row_length 16384 --batch_size 16",
    "llama3_8b on one H200": "--model llama3_8b --gpus 1 --gpu h200",
    "llama3_8b on one H100 80 GB": "--model llama3_8b --gpus 1 --gpu h100-80g",
}


def planned(words: str, tokenizer: Path, data: Path, cache: Path | None) -> TrainPlan:
    extra = ["--task", TASK, "--checkpoint", str(tokenizer), "--data", str(data), "--plan"]
    extra += ["--cache_dir", str(cache)] if cache else []
    with contextlib.redirect_stderr(io.StringIO()):  # progress of tokenizing
        return make_plan(load_config([*words.split(), *extra]))


def summary(name: str, plan: TrainPlan) -> list[str]:
    """One row of the table."""
    job, gpu = plan.job, plan.gpu
    memory = job.memory
    worst = step_seconds(job, gpu, [plan.work.worst] * (2 if job.work.accumulates else 1))
    return [
        name,
        job.optim,
        f"{memory.weights / GIB:.1f}",
        f"{memory.gradients / GIB:.1f}",
        f"{memory.states / GIB:.1f}",
        f"{memory.peak / GIB:.1f}",
        f"{usable(gpu.memory) / GIB:.1f}",
        "yes" if job.fits(gpu.memory) else "**no**",
        f"{sum(memory.host.values()) / 1e9:,.0f}",
        f"{plan.work.truncated:,}",
        f"{worst:.0f} s",
        duration(run_seconds(plan)),
    ]


HEADER = [
    "",
    "`--optim auto` is",
    "weights",
    "gradients",
    "states",
    "peak",
    "usable",
    "fits",
    "host, GB",
    "documents cut",
    "worst step",
    "whole run",
]


def main(tokenizer: Path, data: Path, cache_dir: Path | None = None, output: Path | None = None) -> None:
    """Make the plans and write a result file.

    Args:
        tokenizer: folder with the Llama 3 tokenizer.
        data: the 20 Newsgroups release, a path as for ``--data``.
        cache_dir: folder for cached tokenized data.
        output: result file.
    """
    load = load_average()
    plans = {name: planned(words, tokenizer, data, cache_dir) for name, words in PLANS.items()}
    parts = [
        f"`{TASK}`, zero-shot, the paper's recipe (batch 8, full activation checkpointing) but for what is named; GiB "
        "a GPU. Bytes are arithmetic ([how](../../docs/memory.md), [checked](memory_trace.md) against a traced step); "
        "seconds are estimates from assumed utilization (`train/planning/hardware.py`). **Nothing here was "
        "measured on a GPU.**",
        table(HEADER, [summary(name, plan) for name, plan in plans.items()]),
    ]
    for name, plan in plans.items():
        text = describe(plan).replace(str(tokenizer), "PATH/TO/llama3")
        parts += [f"## {name}", f"`python train.py {PLANS[name]} --task {TASK} --plan`", f"```\n{text}\n```"]
    write_result("plan", "Plans: what fits, and what it costs", "\n\n".join(parts), sys.argv[1:], output, load)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
