"""Measure training on a GPU: Llama 3 8B at full size, beside what ``--plan`` says and beside transformers.

    python -m benchmarks.gpu --llama3 PATH/TO/llama3 --newsgroups PATH/TO/20news-bydate.tar.gz

Needs one GPU of 80 GB, Llama 3's tokenizer and the 20 Newsgroups release. Each line of the table is a process of its
own: steps of ``train.py --task 20ng_joint`` with the paper's recipe but for what is named, without saving. Weights are
random, which changes no time. The worst step is that of the trial, without the update; the others are those of the run,
which the plan counts too.

``transformers`` trains on the same samples as ``short``, as trainers built on it do by default: one sample a pass, the
whole prompt in each, gradient checkpointing, and AdamW on bf16 weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import train.allocator  # noqa: F401  # before PyTorch is imported

# isort: split
import torch

from benchmarks.common import ROOT, load_average, run_program, say, table, write_result
from checkpoints_tools.architectures import costs_of
from data.errors import UserError
from data.files.paths import PathText
from data.loader import StepBatch
from train import trainer as trainer_module
from train.config import PlanOptions
from train.loss import batch_loss
from train.metrics import device_peak
from train.optim.optimizer import clip_gradients
from train.parallel import parallelize
from train.parallel.distributed import set_up_logging, start
from train.planning.hardware import GIB, GPUS
from train.planning.plan import make_plan, settle_optimizer, step_seconds
from train.resolve import load_config
from train.setup import Setup, open_run
from train.trainer import Trainer

RECIPE = "--task 20ng_joint --no_export"
CASES = {
    "paper": "",
    "paper_compiled": "--compile",
    "paper_8bit_offload": "--optim adamw_sr_8bit --activation_offload",
    "short": "--row_length 4096 --optim adamw_sr_bf16",
    "transformers": "--row_length 4096 --optim adamw_sr_bf16 --no_packing --no_share_prefix --micro_rows 1",
    "unshared": "--row_length 4096 --optim adamw_sr_bf16 --no_share_prefix",
    "short_compiled": "--row_length 4096 --optim adamw_sr_bf16 --compile",
}
WARM_UP = 3  # steps that are not counted: kernels are compiled for new shapes


@dataclass
class Options:
    """Measure training of Llama 3 8B on a GPU."""

    llama3: Path
    """Folder with Llama 3's tokenizer.model."""
    newsgroups: PathText
    """20 Newsgroups: a path of the release."""
    cases: tuple[str, ...] = tuple(CASES)
    """Lines of the table."""
    model: str = "llama3_8b"
    """Model; another one for a trial on a small machine."""
    steps: int = 15
    """Steps of each case, warm-up included."""
    timeout: float = 300
    """Seconds after which a case is ended."""
    records: Path | None = None
    """File to which each case's figures are appended as JSON; cases that it holds are not measured again."""
    output: Path | None = None
    """Result file; default benchmarks/results/gpu.md."""
    case: str | None = None
    """Measure this case in this process and print its figures as JSON; the table is made of such processes."""


def main(options: Options, argv: list[str]) -> int | None:
    if options.case is not None:
        print(json.dumps(measure(options, options.case)))
        return None
    load, records = load_average(), {}
    if options.records is not None and options.records.is_file():
        lines = options.records.read_text(encoding="utf-8").splitlines()
        records = {record["case"]: record for record in map(json.loads, lines)}
    for case in options.cases:
        if case in records:
            continue
        say(f"{case}: {CASES[case]}")
        records[case] = in_a_process(options, case)
        if options.records is not None:
            with options.records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[case]) + "\n")
    write_result("gpu", f"Training {options.model} on a GPU", report(records), argv, options.output, load,
                 torch.cuda.is_available())  # fmt: skip
    return None


def in_a_process(options: Options, case: str) -> dict[str, Any]:
    """Measure a case in a process of its own: what one leaves in the GPU's memory does not count for the next."""
    words = ["--llama3", str(options.llama3), "--newsgroups", options.newsgroups, "--model", options.model]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, "--steps", str(options.steps), "--case", case]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return {"case": case, "failed": f"no end after {options.timeout:.0f} s"}
    if done.returncode:
        return {"case": case, "failed": f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


# --- one case ---------------------------------------------------------------------------------------------------------


def measure(options: Options, case: str) -> dict[str, Any]:
    """Run the worst step and the steps of a case; returns what they took and what was planned for them."""
    set_up_logging()
    parallelize.init_random = random_on_device  # the run's own draws 8 billion numbers on one core
    trainer_module.open_saver = lambda *args: SimpleNamespace(failed=False)  # nothing is saved: no disk is needed
    with tempfile.TemporaryDirectory() as folder:
        words = [*RECIPE.split(), *CASES[case].split(), "--model", options.model, "--steps", str(options.steps),
                 "--checkpoint", str(options.llama3), "--data", options.newsgroups, "--output", folder]  # fmt: skip
        config = load_config(words)
        config = replace(config, model=replace(config.model, init="random"))  # train.py refuses that for real models
        setup = open_run(config)
        world = start(setup.device, setup.mesh_shape)
        config = settle_optimizer(config, setup, world)
        gpu = spec_of_device(world.device)
        plan = make_plan(replace(config, plan=PlanOptions(plan=True, gpu=gpu, gpus=1)))
        found: dict[str, Any] = {"case": case, "optim": config.optim.optim, "gpu": device_name(world.device)}
        if case == "transformers":
            step = reference(setup, world.device)
        else:
            trainer = Trainer(config, setup, world)  # with the trial step, which compiles too
            worst = [plan.work.worst] * (2 if plan.job.work.accumulates else 1)
            found["worst"] = timed(lambda: worst_step(trainer), world.device)
            found["worst_planned"] = step_seconds(plan.job, plan.gpu, worst)
            found["memory"] = memory_of(world.device)
            found["memory_planned"] = plan.job.memory.peak / GIB
            found["planned"] = [step_seconds(plan.job, plan.gpu, passes) for passes in plan.work.steps]
            step = lambda batch: trainer.train_step(batch)[0]["loss"]  # noqa: E731
        batches = [setup.loader.step(n) for n in range(options.steps)]
        losses: list[float] = []
        found["seconds"] = [timed(lambda batch=batch: losses.append(step(batch)), world.device) for batch in batches]
        costs = costs_of(setup.model_config)
        return found | {
            "losses": losses,
            "tokens": [batch.n_real_tokens for batch in batches],
            "examples": [batch.n_examples for batch in batches],
            "flops": [
                costs.step_flops(
                    batch.n_real_tokens,
                    batch.n_label_tokens,
                    costs.attended_pairs(batch.row_prefix, batch.row_lengths),
                )
                for batch in batches
            ],
            "memory_of_steps": memory_of(world.device),
        }


def random_on_device(model: torch.nn.Module, *args: object) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)


def worst_step(trainer: Trainer) -> None:
    """The passes of the worst step, whose gradients are dropped."""
    batch = trainer.setup.loader.worst_case()
    for micro_batch in batch.batches:
        batch_loss(trainer.model, micro_batch.to(trainer.world.device), batch.n_label_tokens).backward()
    clip_gradients(trainer.model, trainer.config.optim.clip)
    trainer.optimizer.zero_grad()


def reference(setup: Setup, device: torch.device) -> Callable[[StepBatch], float]:
    """A step of transformers: its Llama of the same size, its checkpointing and loss, and PyTorch's AdamW in bf16."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    ours = setup.model_config
    config = LlamaConfig(
        hidden_size=ours.dim, num_hidden_layers=ours.n_layers, num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_kv_heads, intermediate_size=ours.ffn_dim, vocab_size=ours.vocab_size,
        rope_theta=ours.rope_theta, rms_norm_eps=ours.norm_eps, max_position_embeddings=16_384, use_cache=False,
    )  # fmt: skip
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), fused=device.type == "cuda")

    def step(batch: StepBatch) -> float:
        n_labels, total = torch.tensor(sum(batch.n_label_tokens.values()), device=device), 0.0
        for micro in batch.batches:
            micro = micro.to(device)
            out = model(micro.tokens, labels=micro.targets, shift_labels=micro.targets, num_items_in_batch=n_labels)
            out.loss.backward()
            total += out.loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def spec_of_device(device: torch.device) -> str:
    """The plan's name of this GPU; on a CPU, for a trial of this benchmark, that of any.

    Raises:
        UserError: a GPU that the plan does not know.
    """
    name = device_name(device)
    found = next((key for key in GPUS if key.split("-")[0].upper() in name.upper()), None)
    if found is None and device.type == "cuda":
        raise UserError(f"{name}: the plan knows {', '.join(GPUS)}.")
    return found or "h100-80g"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def memory_of(device: torch.device) -> dict[str, float] | None:
    """GiB: the most that tensors held, the most that the allocator held, and what the card holds besides."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {name: n / GIB for name, n in zip(("peak", "reserved", "outside", "total"),
                                             (peak, reserved, outside, total), strict=True)}  # fmt: skip


# --- the table --------------------------------------------------------------------------------------------------------


def report(records: dict[str, dict[str, Any]]) -> str:
    rows, memory, base = [], [], records.get("short", {})
    for case, record in records.items():
        if "failed" in record:
            rows.append([f"{case}: {CASES[case]}", record["failed"], *[""] * 9])
            continue
        counted = slice(WARM_UP, None)
        seconds, tokens = sum(record["seconds"][counted]), sum(record["tokens"][counted])
        n, peak = len(record["seconds"][counted]), device_peak(record["gpu"])
        planned = sum(record["planned"][counted]) if "planned" in record else None
        same = base and "--row_length 4096" in CASES[case]
        rows.append([
            f"{case}: {CASES[case] or 'the recipe'}",
            record["optim"] if case != "transformers" else "AdamW, bf16",
            f"{seconds / n:.2f}",
            f"{planned / n:.2f}" if planned else "",
            f"{sum(record['examples'][counted]) / seconds:.2f}",
            f"{tokens / seconds:,.0f}",
            f"{sum(record['flops'][counted]) / seconds / peak:.1%}" if peak else "",
            f"{seconds / sum(base['seconds'][counted]):.2f}" if same else "",
            f"{record['worst']:.2f}" if "worst" in record else "",
            f"{record['worst_planned']:.2f}" if "worst" in record else "",
            f"{record['losses'][0]:.4f}",
        ])  # fmt: skip
        if record.get("memory"):
            held = record["memory"]
            memory.append([case, f"{held['peak']:.2f}", f"{record['memory_planned']:.2f}",
                           f"{record['memory_planned'] / held['peak'] - 1:+.1%}", f"{held['reserved']:.2f}",
                           f"{held['outside']:.2f}", f"{held['total']:.1f}"])  # fmt: skip
    header = ["", "optimizer", "s / step", "planned", "samples/s", "tokens/s", "of the peak", "time / short",
              "worst step", "planned", "first loss"]  # fmt: skip
    parts = [
        f"On {next((r['gpu'] for r in records.values() if 'gpu' in r), 'nothing')}. Steps of 8 samples of 20ng_joint, "
        "zero-shot; seconds are means. Tokens and operations are those that the row needs, recomputation and padding "
        "not counted.",
        "",
        table(header, rows),
    ]
    if memory:
        header = [
            "worst step, GiB",
            "measured",
            "planned",
            "planned / measured",
            "allocator holds",
            "outside it",
            "card",
        ]
        parts += ["", "## Memory", "", table(header, memory)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(run_program("gpu", Options, main))
