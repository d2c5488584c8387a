"""Measure how the number formats of weights and optimizer states affect training at a small learning rate.

    python -m benchmarks.low_precision --checkpoint checkpoints/smollm2_135m --data PATH

Trains SmolLM2-135M on massive_intent once in each format, on the same samples in the same order. All start from the
checkpoint's weights rounded to bf16, the format of large models' checkpoints. Plots the loss on held-out samples, and
compares size and direction of the weights' change. Finished formats are kept in ``--work``. Writes
benchmarks/results/low_precision.md and .png.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.common import (
    RESULTS,
    ROOT,
    Inputs,
    checkpoint_folder,
    draw_examples,
    load_average,
    run_program,
    say,
    size_of,
    write_result,
)
from benchmarks.common import table as markdown_table
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import load_pretrained
from data.decoder.prompts import build_prompt
from data.decoder.samples import prepare
from data.decoder.templates import template_for
from data.decoder.tokenizer import load_tokenizer
from data.loader import StepBatch, StepLoader
from data.source import load_examples
from data.tasks import get_task
from model.llama import Llama
from train.loss import batch_loss
from train.optim.formats import OPTIMIZERS, OptimFormat
from train.optim.optimizer import build_optimizer, clip_gradients, learning_rate
from train.parallel.distributed import World, start
from train.parallel.parallelize import parallelize, reshard


@dataclass(frozen=True)
class Variant:
    """Storage formats, compute precision (a key of `train.parallel.parallelize.PRECISIONS`), and the plot's line."""

    formats: OptimFormat
    precision: str
    color: str
    line: str


# The others are compared with the first.
VARIANTS: dict[str, Variant] = {
    "fp32": Variant(OPTIMIZERS["adamw"], "fp32", "black", "-"),
    "fp32, computed in bf16": Variant(OPTIMIZERS["adamw"], "bf16", "tab:green", "-."),
    "bf16, stochastic": Variant(OPTIMIZERS["adamw_sr"], "bf16_weights", "tab:blue", "--"),
    "bf16, stochastic, 8-bit states": Variant(OPTIMIZERS["adamw_sr_8bit"], "bf16_weights", "tab:orange", ":"),
    "bf16, to nearest": Variant(
        OptimFormat(torch.bfloat16, "fp32", stochastic_rounding=False), "bf16_weights", "tab:red", "-"
    ),
}


@dataclass
class Args(Inputs):
    """Train the same model in several number formats."""

    steps: int = 300
    """Optimizer steps in each format."""
    batch_size: int = 8
    """Samples a step."""
    lr: float = 1e-6
    """Peak learning rate; linear decay to zero."""
    n_held_out: int = 64
    """Samples of the test split for the held-out loss."""
    every: int = 50
    """Steps between two held-out losses."""
    work: Path = ROOT / "runs" / "low_precision"
    """Folder that keeps the finished formats."""


@dataclass
class Moved:
    """The results of one format.

    Attributes:
        losses: of the training steps.
        held_out: step → loss on the held-out samples.
        optimizer_seconds: CPU time of clipping and update, per step.
        norm: of the change of all weights.
        along: the change's projection on fp32's change, divided by the norm of fp32's change.
        cosine: of the angle between the two changes.
        unchanged: fraction of the weights that did not change.
    """

    losses: list[float]
    held_out: dict[int, float]
    optimizer_seconds: float
    norm: float = 0.0
    along: float = 0.0
    cosine: float = 0.0
    unchanged: float = 0.0


def train(
    variant: Variant, folder: Path, world: World, steps: StepLoader, held_out: StepBatch, args: Args
) -> tuple[Moved, dict[str, torch.Tensor]]:
    """Train in one format; returns its losses and times, and the change of each parameter by name, in fp32."""

    @torch.no_grad()
    def load(model: torch.nn.Module) -> None:
        load_pretrained(model, folder)
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())

    model = parallelize(
        lambda: Llama(read_config(folder)),
        world.mesh,
        world.device,
        precision=variant.precision,
        load=load,
    )
    before = {name: p.detach().to_local().to(torch.bfloat16, copy=True) for name, p in model.named_parameters()}
    optimizer = build_optimizer(
        model, lr=args.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, formats=variant.formats, seed=args.seed
    )
    losses, on_held_out, seconds = [], {}, 0.0
    for n in range(args.steps + 1):
        if n % args.every == 0 or n == args.steps:
            with torch.no_grad():
                parts = [batch_loss(model, batch, held_out.n_label_tokens).item() for batch in held_out.batches]
            reshard(model)
            on_held_out[n] = sum(parts)
            say(f"step {n}: held-out loss {on_held_out[n]:.4f}")
        if n == args.steps:
            break
        step, total = steps.step(n), 0.0
        for batch in step.batches:
            loss = batch_loss(model, batch, step.n_label_tokens)
            loss.backward()
            total += loss.item()
        losses.append(total)
        start = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(n, args.steps, args.lr, "linear")
        clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.process_time() - start
    del optimizer
    change = {name: p.detach().to_local().float() - before[name] for name, p in model.named_parameters()}
    return Moved(losses, on_held_out, seconds / args.steps), change


def compare(change: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> tuple[float, float, float, float]:
    """A change's norm, its relative projection on the reference's change, their cosine, and the fraction of zeros."""
    square = product = reference_square = 0.0
    n_zero = total = 0
    for name, tensor in change.items():
        other = reference[name]
        square += tensor.double().square().sum().item()
        reference_square += other.double().square().sum().item()
        product += (tensor.double() * other.double()).sum().item()
        n_zero += (tensor == 0).sum().item()
        total += tensor.numel()
    cosine = product / max((square * reference_square) ** 0.5, 1e-300)
    return square**0.5, product / reference_square, cosine, n_zero / total


def run_variant(name: str, folder: Path, world: World, steps: StepLoader, held_out: StepBatch, args: Args) -> Moved:
    kept, changes = args.work / f"{name}.json", args.work / f"{name}.pt"
    if not kept.is_file():
        say(f"{name}:")
        moved, change = train(VARIANTS[name], folder, world, steps, held_out, args)
        torch.save(change, changes)
        kept.write_text(json.dumps(vars(moved)))
        del change
        gc.collect()
    found = json.loads(kept.read_text())
    found["held_out"] = {int(step): loss for step, loss in found["held_out"].items()}
    change, reference = (torch.load(args.work / f"{n}.pt", mmap=True, weights_only=True) for n in (name, "fp32"))
    norm, along, cosine, unchanged = compare(change, reference)
    return Moved(**{**found, "norm": norm, "along": along, "cosine": cosine, "unchanged": unchanged})


def report(results: dict[str, Moved], size: str, args: Args) -> str:
    base = results["fp32"]
    first, last = 0, args.steps
    rows = [
        [
            name,
            f"{run.held_out[first]:.4f}",
            f"{run.held_out[last]:.4f}",
            f"{(run.held_out[first] - run.held_out[last]) / (base.held_out[first] - base.held_out[last]):.1%}",
            f"{sum(run.losses[-50:]) / len(run.losses[-50:]):.4f}",
            f"{run.norm:.4f}",
            f"{run.norm / base.norm:.3f}",
            f"{run.along:.3f}",
            f"{run.cosine:.3f}",
            f"{run.unchanged:.1%}",
            f"{run.optimizer_seconds:.2f}",
        ]
        for name, run in results.items()
    ]
    header = [
        "weights",
        "held-out loss before",
        "after",
        "fall / fp32's",
        "training loss, last 50 steps",
        "norm of the weights' change",
        "/ fp32's",
        "along fp32's",
        "cosine with fp32's",
        "weights unchanged",
        "CPU s / update",
    ]
    return (
        f"A Llama of {size} (SmolLM2) on massive_intent (`--list_labels off`), {args.steps} steps of {args.batch_size} "
        f"samples, peak learning rate {args.lr:g} with linear decay, one rank. All start from the same weights, "
        "rounded to bf16, and see the same samples; bf16 weights are computed with in bf16; states are fp32 unless "
        f"said. Losses are per label token, held out: {args.n_held_out} samples of the test split."
        f"\n\n{markdown_table(header, rows)}\n\n"
        "![Held-out and training loss](low_precision.png)"
    )


def plot(results: dict[str, Moved], path: Path, window: int = 25) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, run in results.items():
        style = {"color": VARIANTS[name].color, "linestyle": VARIANTS[name].line, "label": name}
        left.plot(list(run.held_out), list(run.held_out.values()), marker="o", **style)
        means = [sum(run.losses[i : i + window]) / window for i in range(len(run.losses) - window + 1)]
        right.plot(range(window, len(run.losses) + 1), means, **style)
    left.set_title("held-out samples")
    right.set_title(f"training samples, mean of the last {window} steps")
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("cross-entropy per label token (nats)")
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    try:
        return run_program("low_precision", Args, run, argv)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run(args: Args, argv: list[str]) -> None:
    load = load_average()
    task = get_task("massive_intent")
    args.work.mkdir(parents=True, exist_ok=True)
    world = start(torch.device("cpu"))
    with checkpoint_folder(args) as folder:
        tokenizer = load_tokenizer(folder)
        prompt = build_prompt(task, template_for(tokenizer), list_labels=False)

        def loader(examples: list, batch_size: int) -> StepLoader:
            samples = prepare(examples, task, prompt, tokenizer, max_length=2048)
            return StepLoader(samples, batch_size=batch_size, row_length=2048, seed=args.seed)

        steps = loader(load_examples(task, "train", args.data), args.batch_size)
        chosen = draw_examples(task, "test", args.data, args.n_held_out, args.seed)
        held_out = loader(chosen, args.n_held_out).step(0)
        results = {name: run_variant(name, folder, world, steps, held_out, args) for name in VARIANTS}
        with torch.device("meta"):
            size = size_of(Llama(read_config(folder)))
    output = args.output or RESULTS / "low_precision.md"
    plot(results, output.with_suffix(".png"))
    title = "Training in fewer bits at a small learning rate"
    write_result("low_precision", title, report(results, size, args), argv, output, load)


if __name__ == "__main__":
    sys.exit(main())
