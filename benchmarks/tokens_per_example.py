"""Count the tokens computed per example with and without a shared prefix: all tasks, 0 and 5 shots, two batch sizes.

Counts what the step loader would pass to the model in one epoch, padding included; no model is needed::

    python -m benchmarks.tokens_per_example --newsgroups 20news-bydate.tar.gz --massive en-US.jsonl \\
        --tokenizer llama3 smollm2 --row_length 16384 2048
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
import tyro

from data.decoder.fewshot import PromptSpec, choose_shots, cut_shots
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import template_for
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.example import Example
from data.loader import StepLoader
from data.source import load_examples
from data.tasks import TASKS

RESULTS = Path(__file__).parent / "results" / "tokens_per_example.md"
# Ways to put samples into rows, as (packing, share_prefix); most fine-tuning code uses the first.
WAYS = {"padded": (False, False), "packed": (True, False), "shared": (True, True)}


def count(samples: SampleSet, batch_size: int, row_length: int, packing: bool, share_prefix: bool) -> float:
    """Tokens computed per example in one epoch, in steps of ``batch_size`` samples on one rank."""
    loader = StepLoader(
        samples, batch_size=batch_size, row_length=row_length, packing=packing, share_prefix=share_prefix
    )
    n_steps = loader.n_steps_for(1)
    computed = sum(loader.count_tokens(loader.plan(n))[1] for n in range(n_steps))
    return computed / (n_steps * batch_size)


def table(
    tokenizer: Tokenizer, row_length: int, examples: dict[str, list[Example]], batch_sizes: tuple[int, ...], seed: int
) -> list[str]:
    """Markdown lines, with a row for each task and number of shots."""
    head = ["task", "shots", "prefix", "body + label", "truncated"]
    for size in batch_sizes:
        head += [f"padded, {size}", f"packed, {size}", f"shared, {size}", f"gain, {size}"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for task in TASKS.values():
        for k in (0, 5):
            shots = cut_shots(choose_shots(examples[task.dataset], task, k, seed), task, tokenizer) if k else []
            shown = {shot.id for shot in shots}
            spec = PromptSpec(task.name, template_for(tokenizer), shots=tuple(shots), seed=seed)
            train = [example for example in examples[task.dataset] if example.id not in shown]
            samples = prepare(train, task, spec.build(task), tokenizer, row_length)
            cells = [task.name, k, f"{len(samples.prefix):,}", f"{samples.costs.mean():,.1f}"]
            cells.append(f"{int(samples.truncated.sum()):,}")
            for size in batch_sizes:
                ways = {name: count(samples, size, row_length, *way) for name, way in WAYS.items()}
                cells += [f"{tokens:,.1f}" for tokens in ways.values()]
                cells.append(f"{ways['packed'] / ways['shared']:.1f}×")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            print(lines[-1], flush=True)
    return lines


def main(
    newsgroups: Path,
    massive: Path,
    tokenizer: tuple[Path, ...],
    row_length: tuple[int, ...],
    batch_size: tuple[int, ...] = (8, 32),
    seed: int = 0,
    output: Path = RESULTS,
) -> None:
    """Count, and write a Markdown page.

    Args:
        newsgroups: the 20 Newsgroups release, a path as for ``--data``.
        massive: the MASSIVE file, folder or tarball.
        tokenizer: folders of tokenizers, one table each.
        row_length: tokens in a row, one for each tokenizer.
        batch_size: samples per rank and step.
        seed: for choosing the shots.
        output: the page to write.
    """
    start = time.perf_counter()
    paths = {"20ng": newsgroups, "massive": massive}
    examples = {name: load_examples(name, "train", path) for name, path in paths.items()}
    sections = []
    for folder, length in zip(tokenizer, row_length, strict=True):
        tok = load_tokenizer(folder)
        sections += [
            f"## Tokenizer {folder.name}, rows of {length:,} tokens, chat template {template_for(tok)}",
            "",
            *table(tok, length, examples, batch_size, seed),
            "",
        ]
    # The command without the paths of this machine.
    argv = [Path(a).name if "/" in a else a for a in sys.argv[1:]]
    page = [
        "# Tokens computed per example, with and without a shared prefix",
        "",
        "One epoch of the training split, one rank, that many samples per rank and step. *prefix* is the instruction "
        "with its examples (5 shots, each cut to 256 tokens); *body + label* is what an example adds behind it, on "
        "average. The rest is tokens computed per example, padding included: *padded* is one sample a row, "
        "as many rows as fit `row_length` tokens in a pass, padded to the longest; *packed* is samples end to end, "
        "each with its own prefix; *shared* is the same with the prefix once a row. *gain* is packed over shared.",
        "",
        f"Data: 20 Newsgroups by date ({len(examples['20ng']):,} posts) and the MASSIVE-format (SLURP) utterances "
        f"({len(examples['massive']):,}).",
        "",
        *sections,
        "## How this was made",
        "",
        f"- command: `python -m benchmarks.tokens_per_example {shlex.join(argv)}`, {time.perf_counter() - start:.0f} s",
        f"- hardware: {os.cpu_count()} CPU cores ({platform.machine()}); counts do not depend on it",
        f"- Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        "",
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(page), encoding="utf-8")
    print(f"written to {output}")


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
