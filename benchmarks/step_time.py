"""Measure what sharing the prefix saves in training: seconds for one optimizer step on `massive_joint`.

    python -m benchmarks.step_time [--data PATH] [--sizes 8 32] [--steps 2]

Four variants process the same samples, alternating after each step:

    shared         packed rows, the prefix once a row                     (the default of train.py)
    packed         packed rows, the prefix in every sample                (--share_prefix off)
    unpacked       one sample a row, padded                               (--packing off)
    transformers   the rows of *unpacked* with transformers' Llama and its loss, logits of all positions

A step is a complete training step: loader, forward, backward, accumulation, clipping and AdamW, in one process and
fp32. The learning rate is 0, which does not change the time. So weights never change, and all variants must report the
same loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from benchmarks.common import (
    Inputs,
    Timing,
    checkpoint_folder,
    draw_examples,
    in_turn,
    load_average,
    load_ours,
    run_program,
    say,
    size_of,
    table,
    write_result,
)
from data.decoder.prompts import build_prompt
from data.decoder.rows import Batch
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import template_for
from data.decoder.tokenizer import load_tokenizer
from data.loader import StepBatch, StepLoader
from data.packing import PADDING_DOC
from data.tasks import get_task
from train.loss import batch_loss
from train.optim.optimizer import build_optimizer, clip_gradients

Variant = Literal["shared", "packed", "unpacked", "transformers"]
VARIANTS: dict[str, dict[str, bool]] = {  # options of the loader
    "shared": {"packing": True, "share_prefix": True},
    "packed": {"packing": True, "share_prefix": False},
    "unpacked": {"packing": False, "share_prefix": False},
    "transformers": {"packing": False, "share_prefix": False},
}
DESCRIPTIONS = {
    "shared": "packed, prefix shared",
    "packed": "packed, prefix in every sample",
    "unpacked": "one sample a row",
    "transformers": "transformers, one sample a row",
}
Loss = Callable[[nn.Module, Batch, dict[str, int]], torch.Tensor]


@dataclass
class Args(Inputs):
    """Time an optimizer step with and without prefix sharing and packing, and with transformers."""

    task: str = "massive_joint"
    """Task whose prompt and labels are used."""
    sizes: list[int] = field(default_factory=lambda: [8, 32])
    """Samples per step."""
    steps: int = 2
    """Measured steps of each variant and size, after a warm-up step."""
    row_length: int = 2048
    """Most tokens in a row, and in the padded rows of one pass."""
    variants: list[Variant] = field(default_factory=lambda: list(VARIANTS))
    """Variants to run."""


@dataclass
class Timed:
    """The measurements of one variant at one size."""

    timing: Timing
    losses: list[float]
    steps: list[StepBatch]


def reference_loss(model: nn.Module, batch: Batch, n_label_tokens: dict[str, int]) -> torch.Tensor:
    """The same loss with transformers' forward pass over the padded rows and its loss function."""
    mask = (batch.doc_ids != PADDING_DOC).long()
    out = model(
        batch.tokens,
        attention_mask=mask,
        labels=batch.targets,
        shift_labels=batch.targets,  # ours are shifted already
        num_items_in_batch=torch.tensor(sum(n_label_tokens.values())),
        use_cache=False,
    )
    return out.loss


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: StepBatch, loss_of: Loss) -> float:
    """One optimizer step; returns its loss."""
    total = 0.0
    for batch in step.batches:
        loss = loss_of(model, batch, step.n_label_tokens)
        loss.backward()
        total += loss.item()
    clip_gradients(model, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def measure(models: dict[str, nn.Module], samples: SampleSet, args: Args) -> dict[tuple[int, str], Timed]:
    """Time all variants at all sizes; ``models`` has "ours" and, if needed, "transformers"."""
    optimizers = {
        name: build_optimizer(model.train(), lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        for name, model in models.items()
    }
    timed: dict[tuple[int, str], Timed] = {}
    runs: dict[int, dict[str, Callable[[int], None]]] = {}
    for size in args.sizes:
        runs[size] = {}
        for name in args.variants:
            loader = StepLoader(samples, batch_size=size, row_length=args.row_length, seed=args.seed, **VARIANTS[name])
            record = timed[size, name] = Timed(Timing(), [], [])
            side = "transformers" if name == "transformers" else "ours"
            loss_of = reference_loss if side == "transformers" else batch_loss

            def run(n: int, loader=loader, record=record, side=side, loss_of=loss_of) -> None:
                step = loader.step(n)
                record.losses.append(train_step(models[side], optimizers[side], step, loss_of))
                record.steps.append(step)

            runs[size][name] = run
    for i, size in enumerate(args.sizes):
        if i == 0:  # the first step of a process allocates gradients and optimizer states
            say("warming up")
            in_turn(runs[size], range(0, 1))
            for name in args.variants:
                timed[size, name].losses.clear()
                timed[size, name].steps.clear()
        say(f"{size} samples per step")
        for name, timing in in_turn(runs[size], range(1, args.steps + 1)).items():
            timed[size, name].timing = timing
    return timed


def report(timed: dict[tuple[int, str], Timed], args: Args, model_size: str, prefix_tokens: int) -> str:
    """The figures as Markdown."""
    rows, spread = [], 0.0
    for size in args.sizes:
        base = timed[size, args.variants[0]].timing
        first = timed[size, args.variants[0]].losses
        for name in args.variants:
            run = timed[size, name]
            spread = max([spread, *(abs(a - b) for a, b in zip(run.losses, first, strict=True))])
            n = sum(step.n_examples for step in run.steps)
            timing = run.timing
            rows.append(
                (
                    DESCRIPTIONS[name],
                    size,
                    f"{sum(step.n_tokens for step in run.steps) / n:.0f}",
                    f"{sum(len(step.batches) for step in run.steps) / len(run.steps):.1f}",
                    f"{timing.median:.2f}",
                    timing.each,
                    f"{size / timing.median:.2f}",
                    f"{timing.median / base.median:.2f}",
                    f"{timing.median_cpu / base.median_cpu:.2f}",
                )
            )
    header = [
        "rows",
        "samples per step",
        "tokens computed per sample",
        "passes per step",
        "seconds per step (median)",
        "each",
        "samples/s",
        f"time / {DESCRIPTIONS[args.variants[0]]}",
        "CPU time / the same",
    ]
    return (
        f"A Llama of {model_size} on {args.task}, zero-shot: a prefix of {prefix_tokens:,} tokens, rows of at most "
        f"{args.row_length:,}. One process, that is one rank: what sharing saves grows with the samples that a rank "
        f"has in a step. Padding counts as computed.\n\n{table(header, rows)}\n\nThe variants' losses of the same "
        f"samples differ by at most {spread:.1e}. AdamW with the same settings steps all of them; no activation "
        "checkpointing."
    )


def main(argv: list[str] | None = None) -> int:
    return run_program("step_time", Args, run, argv)


def run(args: Args, argv: list[str]) -> None:
    load = load_average()
    task = get_task(args.task)
    examples = draw_examples(task, "train", args.data, max(args.sizes) * (args.steps + 1), args.seed)
    models: dict[str, nn.Module] = {}
    with checkpoint_folder(args) as folder:
        tokenizer = load_tokenizer(folder)
        if set(args.variants) != {"transformers"}:
            models["ours"] = load_ours(folder)
        if "transformers" in args.variants:
            from transformers import AutoModelForCausalLM

            models["transformers"] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples = prepare(
        examples, task, build_prompt(task, template_for(tokenizer)), tokenizer, max_length=args.row_length
    )
    body = report(measure(models, samples, args), args, size_of(next(iter(models.values()))), len(samples.prefix))
    write_result("step_time", "Seconds per optimizer step", body, argv, args.output, load)


if __name__ == "__main__":
    sys.exit(main())
