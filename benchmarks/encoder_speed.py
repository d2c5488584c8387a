"""Measure what packing saves when an encoder is fine-tuned: examples/s packed, padded, and with transformers' Trainer.

    python -m benchmarks.encoder_speed --checkpoint PATH [--massive PATH] [--newsgroups PATH] [--precisions fp32 bf16]

Three variants train on the same samples in the same steps, alternating after each block of steps:

    packed         our trainer, documents end to end in a row              (the default of train.py)
    padded         our trainer, one document a row, padded to the longest  (--packing off)
    Trainer        `transformers.Trainer` with transformers' model; its collator pads to the batch's longest document

All start from one folder, our export with new heads ("dense", for which transformers has a class), and use the same
optimizer settings. First they train a few steps in fp32 without dropout and must report the same losses. Then they are
timed with dropout. A block's first step, which allocates memory, is not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.common import Timing, load_average, run_program, say, size_of, table, write_result
from checkpoints_tools.checksums import write_checksums
from checkpoints_tools.export import export_hf
from checkpoints_tools.heads import heads_for
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.json_files import write_json
from checkpoints_tools.load import load_pretrained
from data.encoder.samples import SampleSet as EncoderSampleSet
from data.encoder.samples import output_labels
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.files.documents import read_json
from data.files.paths import PathText
from data.loader import StepLoader
from data.tasks import TokenField, get_task
from model.encoder import ROBERTA_BASE, Encoder
from train.parallel.distributed import World, set_up_logging, start
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer

VARIANTS = ("packed", "padded", "Trainer")
Losses = list[float]


@dataclass
class Args:
    """Time training steps of an encoder packed, padded, and with transformers' Trainer."""

    checkpoint: Path
    """Hugging Face folder of a RoBERTa or BERT encoder."""
    model: Literal["roberta", "bert"] = "bert"
    """Its architecture."""
    tasks: list[str] = field(default_factory=lambda: ["massive_intent", "massive_slots", "20ng_20"])
    """Tasks of one field, for which transformers has a class."""
    massive: PathText = "sample"
    """MASSIVE: a file or folder of the release, or 'sample'."""
    newsgroups: PathText = "sample"
    """20 Newsgroups: a file or folder of the release, or 'sample'."""
    max_length: int = 128
    """Longest document in tokens, special tokens included."""
    base: bool = False
    """Use random weights of RoBERTa-base's size instead of the checkpoint's; the tokenizer is the checkpoint's."""
    precisions: list[Literal["fp32", "bf16"]] = field(default_factory=lambda: ["fp32"])
    """Number formats of compute to time; weights are fp32. bf16 is autocast in transformers."""
    batch_size: int = 32
    """Samples a step."""
    steps: int = 10
    """Timed steps of a block."""
    rounds: int = 4
    """Blocks of each variant."""
    compared: int = 5
    """Steps over which losses are compared; 0: none."""
    lr: float = 1e-4
    """Learning rate, linear decay."""
    seed: int = 0
    """Seed for the samples and the new heads."""
    output: Path | None = None
    """Result file; default benchmarks/results/encoder_speed.md."""


def write_start(args: Args, task_name: str, folder: Path, dropout: bool) -> None:
    """Write the folder from which all variants start: the checkpoint's encoder (or a random one) with new heads."""
    task, tokenizer = get_task(task_name), load_encoder_tokenizer(args.checkpoint)
    config = replace(read_config(args.checkpoint), head="dense", heads=heads_for(task))
    if args.base:
        shape = {name: getattr(ROBERTA_BASE, name) for name in ("dim", "n_layers", "n_heads", "ffn_dim")}
        config = replace(config, **shape)
    model = Encoder(config)
    model.init_weights(torch.Generator().manual_seed(args.seed))
    if not args.base:
        load_pretrained(model, args.checkpoint, seed=args.seed)
    export_hf(model, config, tokenizer, folder, torch.float32, labels=output_labels(task), max_length=args.max_length)
    if not dropout:
        stored = read_json(folder / "config.json")
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        write_json(folder / "config.json", stored | off)
        write_checksums(folder)


@dataclass
class Ours:
    """Our trainer with packed and padded rows; each block continues after the previous one's steps."""

    trainer: Trainer
    loaders: dict[str, StepLoader]

    def block(self, variant: str, steps: range) -> tuple[Losses, list[tuple[float, float]]]:
        """Train these steps; returns their losses, and for each step the (wall-clock, CPU) seconds at its end."""
        losses, marks = [], []
        for batch in self.loaders[variant].prefetch(steps.start, steps.stop):
            losses.append(self.trainer.train_step(batch)[0]["loss"])
            marks.append((time.perf_counter(), time.process_time()))
        return losses, marks


def open_ours(args: Args, task: str, folder: Path, precision: str, total: int, world: World, output: Path) -> Ours:
    """Our trainer, started from ``folder`` for ``total`` steps."""
    data = args.massive if task.startswith("massive") else args.newsgroups
    options = {
        "model": args.model, "checkpoint": folder, "task": task, "data": data, "head": "dense", "lr": args.lr,
        "batch_size": args.batch_size, "max_length": args.max_length, "steps": total, "precision": precision,
        "seed": args.seed, "output": output, "device": "cpu", "optim": "adamw",
    }  # fmt: skip
    config = load_config([word for name, value in options.items() for word in (f"--{name}", str(value))])
    setup = open_run(config)
    padded = StepLoader(
        setup.samples, batch_size=args.batch_size, row_length=config.batch.row_length, packing=False, seed=args.seed,
        micro_rows=args.batch_size,
    )  # fmt: skip
    return Ours(Trainer(config, setup, world), {"packed": setup.loader, "padded": padded})


class Theirs:
    """transformers' model, with a new Trainer for every block, because a Trainer only does complete runs."""

    def __init__(self, args: Args, task: str, folder: Path, precision: str, ours: Ours) -> None:
        import transformers as hf

        (field,) = get_task(task).fields
        self.is_token = isinstance(field, TokenField)
        self.args, self.precision, self.field = args, precision, field.name
        auto = hf.AutoModelForTokenClassification if self.is_token else hf.AutoModelForSequenceClassification
        self.model = auto.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        self.loader = ours.loaders["packed"]
        self.samples: EncoderSampleSet = self.loader.samples

    def example(self, i: int) -> dict[str, Any]:
        """A sample in the format of transformers' collators."""
        tokens, targets = self.samples.document(i).tolist(), self.samples.target(self.field, i).tolist()
        if self.is_token:
            labels, first = [-100] * len(tokens), self.samples.first(i)
            for position, target in zip(first[first >= 0].tolist(), targets, strict=True):
                labels[position] = target
        else:
            (labels,) = targets
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    def block(self, steps: range, keep_losses: bool = False) -> tuple[Losses, list[tuple[float, float]]]:
        """Like `Ours.block`; losses only with ``keep_losses``, because Trainer otherwise logs an average."""
        import transformers as hf
        from transformers.trainer_callback import PrinterCallback

        losses, marks = [], []

        class Record(hf.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                marks.append((time.perf_counter(), time.process_time()))

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                if "loss" in logs:
                    losses.append(float(logs["loss"]))

        a = self.args
        collator = hf.DataCollatorForTokenClassification if self.is_token else hf.DataCollatorWithPadding
        dataset = [self.example(i) for n in steps for row in self.loader.plan(n).rows for i in row]
        with tempfile.TemporaryDirectory() as folder:
            trainer = hf.Trainer(
                self.model,
                hf.TrainingArguments(
                    folder, per_device_train_batch_size=a.batch_size, max_steps=len(steps), learning_rate=a.lr,
                    weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, max_grad_norm=1.0,
                    lr_scheduler_type="linear", optim="adamw_torch_fused", bf16=self.precision == "bf16", use_cpu=True,
                    train_sampling_strategy="sequential", logging_steps=1 if keep_losses else 10**9, report_to=[],
                    logging_nan_inf_filter=False, save_strategy="no", disable_tqdm=True, seed=a.seed,
                ),
                train_dataset=dataset,
                data_collator=collator(self.tokenizer),
                callbacks=[Record()],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return losses, marks


@contextmanager
def opened(args: Args, task: str, precision: str, total: int, world: World, dropout: bool) -> Iterator[tuple]:
    """Two functions that build our trainer, and theirs with our samples, from one start folder."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "start"
        write_start(args, task, folder, dropout)
        count = iter(range(9))

        def ours() -> Ours:
            return open_ours(args, task, folder, precision, total, world, Path(root) / f"run{next(count)}")

        yield ours, lambda mine: Theirs(args, task, folder, precision, mine)


def compare_losses(args: Args, task: str, world: World) -> dict[str, Losses]:
    """Train a few steps with each variant from the same weights, without dropout; returns their losses."""
    steps = range(args.compared)
    with opened(args, task, "fp32", args.compared, world, dropout=False) as (ours, theirs):
        mine = ours()
        found = {"packed": mine.block("packed", steps)[0], "Trainer": theirs(mine).block(steps, keep_losses=True)[0]}
        del mine
        return found | {"padded": ours().block("padded", steps)[0]}


@dataclass
class Row:
    """The measurements of one task in one precision; ``real`` and ``computed`` are tokens per sample."""

    task: str
    precision: str
    size: str
    real: float
    computed: dict[str, float]
    timings: dict[str, Timing]


def measure(args: Args, task: str, precision: str, world: World) -> Row:
    block = args.steps + 1
    total = 2 * block * args.rounds  # our trainer takes the steps of packed and padded
    with opened(args, task, precision, total, world, dropout=True) as (open_side, open_other):
        ours = open_side()
        theirs = open_other(ours)
        run: dict[str, Callable[[range], tuple[Losses, list[tuple[float, float]]]]] = {
            "packed": lambda steps: ours.block("packed", steps),
            "padded": lambda steps: ours.block("padded", steps),
            "Trainer": lambda steps: theirs.block(steps),
        }
        timings = {name: Timing() for name in VARIANTS}
        for n in range(args.rounds):
            steps = range(n * block, (n + 1) * block)
            for name in VARIANTS:
                marks = run[name](steps)[1]
                assert len(marks) == block, f"{name}: {len(marks)} of {block} steps"
                (wall, cpu), (end, end_cpu) = marks[0], marks[-1]
                timings[name].wall.append((end - wall) / args.steps)
                timings[name].cpu.append((end_cpu - cpu) / args.steps)
                say(f"{task} {precision} round {n}: {name}: {timings[name].wall[-1]:.3f} s a step")
        samples = ours.loaders["packed"].samples
        return Row(
            task, precision, size_of(theirs.model), *count_tokens(samples, ours, range(args.rounds * block)), timings
        )


def count_tokens(samples: EncoderSampleSet, ours: Ours, steps: Sequence[int]) -> tuple[float, dict[str, float]]:
    """Tokens per sample of these steps: without padding, and for each variant with padding."""
    real, computed, n = 0, dict.fromkeys(VARIANTS, 0), 0
    for step in steps:
        plans = {name: loader.plan(step) for name, loader in ours.loaders.items()}
        for name, plan in plans.items():
            found, counted = ours.loaders[name].count_tokens(plan)
            computed[name] += counted
        lengths = samples.lengths[[i for row in plans["packed"].rows for i in row]]
        computed["Trainer"] += int(lengths.max()) * len(lengths)
        real, n = real + found, n + len(lengths)
    return real / n, {name: tokens / n for name, tokens in computed.items()}


def report(args: Args, rows: list[Row], losses: dict[str, dict[str, Losses]]) -> str:
    """The figures as Markdown."""
    lines = []
    for row in rows:
        base = row.timings["packed"]
        for name in VARIANTS:
            timing = row.timings[name]
            lines.append([
                f"{row.task}, {row.precision}, {name}", f"{row.computed[name]:.0f} ({row.real:.0f})",
                f"{args.batch_size / timing.median:.0f}", f"{args.batch_size / timing.median_cpu:.0f}",
                f"{timing.median / base.median:.2f}", f"{timing.median_cpu / base.median_cpu:.2f}", timing.each,
            ])  # fmt: skip
    header = ["", "tokens computed (real) per example", "examples/s", "examples per CPU second",
              "time / packed", "CPU time / packed", "seconds a step, each block"]  # fmt: skip
    text = (
        f"An encoder of {rows[0].size}, steps of {args.batch_size} documents of at most {args.max_length} tokens, "
        f"{args.rounds} blocks of {args.steps} timed steps each, medians; dropout on, one process, weights in fp32.\n\n"
        + table(header, lines)
    )
    for task, found in losses.items():
        apart = max(abs(a - b) for other in found.values() for a, b in zip(found["packed"], other, strict=True))
        listed = ", ".join(f"{loss:.4f}" for loss in found["packed"])
        text += (
            f"\n\n{task}: without dropout, in fp32, the three variants' losses of {args.compared} steps from the same "
            f"weights differ by at most {apart:.1e} ({listed})."
        )
    return text


def main(argv: list[str] | None = None) -> int:
    return run_program("encoder_speed", Args, run, argv)


def run(args: Args, argv: list[str]) -> None:
    load = load_average()
    several = [name for name in args.tasks if len(get_task(name).fields) > 1]
    if several:
        raise UserError(f"--tasks {' '.join(several)}: transformers has no class for several fields.")
    set_up_logging()
    world = start(torch.device("cpu"))
    try:
        losses = {task: compare_losses(args, task, world) for task in args.tasks} if args.compared else {}
        say(json.dumps(losses))
        rows = [measure(args, task, precision, world) for task in args.tasks for precision in args.precisions]
    finally:
        dist.destroy_process_group()
    write_result("encoder_speed", "Training speed of an encoder", report(args, rows, losses), argv, args.output, load)


if __name__ == "__main__":
    sys.exit(main())
