"""The text of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from checkpoints_tools.registry import ModelSpec
from train import options
from train.metrics import duration
from train.optim.formats import OPTIMIZERS
from train.planning.advice import Alternative, Job, alternatives, cheapest, fewest_gpus
from train.planning.hardware import FRAGMENTATION, GIB, OUTSIDE_ALLOCATOR, Bytes, usable
from train.planning.plan import TrainPlan, pass_seconds, run_seconds, step_seconds, update_seconds

TIGHT = 0.95  # of usable memory: arithmetic that was never compared with a GPU may be wrong by as much
STATES = {"fp32": "fp32", "bf16": "bf16", "8bit": "8-bit"}


def formats(optim: str) -> str:
    """Describe what an optimizer stores."""
    found = OPTIMIZERS[optim]
    if found.weights == torch.float32:
        return "fp32 weights, gradients and states"
    rounding = " with stochastic rounding" if found.stochastic_rounding else ""
    return f"bf16 weights and gradients{rounding}, {STATES[found.states]} states"


def describe(plan: TrainPlan) -> str:
    """The plan as text."""
    parts = [_head(plan), _memory(plan), _host(plan.job), _work(plan), _time(plan), _verdict(plan)]
    return "\n\n".join(parts)


def _head(plan: TrainPlan) -> str:
    job, settings = plan.job, plan.job.settings
    on = ", ".join(
        [
            f"{_precision(plan)} compute",
            f"activation checkpointing {settings.activation_checkpointing}",
            f"activation offload {'on' if settings.activation_offload else 'off'}",
            f"offloaded states {'on' if settings.offload_states else 'off'}",
        ]
    )
    lines = [
        f"Plan for {plan.spec.name} on {plan.config.data.task}: arithmetic, nothing measured (docs/memory.md)",
        f"  {job.sizes.total:,} parameters; {job.mesh.n_ranks} x {plan.gpu.name} on {plan.machines} machine(s), "
        f"{job.mesh.describe()}",
        f"  optimizer {job.optim}: {formats(job.optim)}",
        *([f"  (--optim auto chose it: {plan.why_optim}; --optim {job.optim} pins it)"] if plan.why_optim else []),
        f"  {on}",
    ]
    return "\n".join(lines + [f"  assumed: {text}" for text in plan.assumed])


def _precision(plan: TrainPlan) -> str:
    return str(plan.job.settings.compute).removeprefix("torch.").replace("bfloat16", "bf16").replace("float32", "fp32")


def _memory(plan: TrainPlan) -> str:
    job, memory = plan.job, plan.job.memory
    moment = memory.moments[memory.fullest]
    states = "optimizer states" + (" (in host memory)" if job.settings.offload_states else "")
    rows: list[tuple[str, float]] = [("weights", memory.weights), (states, memory.states), *moment.items()]
    total = memory.peak
    free = usable(plan.gpu.memory)
    lines = table(f"Each GPU, GiB; the fullest moment is '{memory.fullest}'", [*rows, ("in all", total)])
    others = ", ".join(
        f"{name} {(memory.weights + memory.states + sum(parts.values())) / GIB:.1f}"
        for name, parts in memory.moments.items()
        if name != memory.fullest
    )
    return (
        f"{lines}\n  of {free / GIB:.1f} usable: {plan.gpu.memory / GIB:.1f}, less "
        f"{OUTSIDE_ALLOCATOR / GIB:.0f} for CUDA and NCCL and {FRAGMENTATION:.0%} lost in gaps\n"
        f"  other moments: {others}; all gradients {memory.gradients / GIB:.1f}, "
        f"logits {memory.moments['loss']['logits'] / GIB:.1f}; attention scores are not stored"
    )


def table(title: str, rows: Sequence[tuple[str, float]], unit: float = GIB) -> str:
    """Names and sizes in columns; sizes in ``unit`` bytes."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {size / unit:8.1f}" for name, size in rows)])


def _host(job: Job) -> str:
    host: Bytes = job.memory.host
    rows = [*host.items(), ("in all", sum(host.values()))]
    return table(f"Host memory of one machine ({job.ranks_per_node} ranks), GB", rows, 1e9)


def what_is_counted(spec: ModelSpec) -> str:
    """What an example's tokens include beside its text, in the plans of training and scoring."""
    if spec.kind == "decoder":
        return "with its prompt"
    twice = "read twice, " if spec.architecture.is_decoder_with_heads else ""
    return f"{twice}with the tokens around it"


def _work(plan: TrainPlan) -> str:
    work, config = plan.work, plan.config
    values = options.flatten(config)
    longest = f"'{work.longest_id}', {work.longest_tokens:,} tokens {what_is_counted(plan.spec)}"
    if work.truncated is None:
        longest = f"{work.longest_tokens:,} tokens, assumed"
    elif work.truncated:
        longest += f" ({work.truncated:,} documents are cut to fit)"
    return "\n".join(
        [
            "Work",
            f"  {work.total_steps:,} steps of {values['batch_size']} {values['batch_unit']}, {work.epochs:.2f} epochs"
            + ("" if values["patience"] is None else f"; fewer if --patience {values['patience']} ends the training"),
            f"  a step, on average: {work.samples:,.1f} samples, {work.real_tokens:,.0f} tokens, "
            f"{work.computed_tokens:,.0f} with padding, {work.flops:.2e} FLOPs",
            f"  the run: {work.flops * work.total_steps:.2e} FLOPs (recomputation not counted)",
            f"  the longest sample: {longest}",
            f"  the worst step: {2 if plan.job.work.accumulates else 1} pass(es) of {work.worst_rows} row(s), "
            f"{work.worst.tokens:,} tokens, {work.worst.outputs:,} label positions on every rank; it has to fit",
        ]
    )


def _time(plan: TrainPlan) -> str:
    job, gpu, work = plan.job, plan.gpu, plan.work
    seconds = run_seconds(plan)
    computing, moving = pass_seconds(job, gpu, work.worst)
    worst = step_seconds(job, gpu, [work.worst] * (2 if job.work.accumulates else 1))
    return "\n".join(
        [
            f"Time, an estimate: {gpu.utilization:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s assumed, recomputation "
            "included (train/planning/hardware.py says why, and what was measured)",
            f"  {duration(seconds)} (hours:minutes:seconds) for the run, {seconds / work.total_steps:.2f} s a step; "
            "without loading, scoring, saving",
            f"  the worst step: {worst:.1f} s (computing {computing:.1f}, communication and copies at the same time "
            f"{moving:.1f})",
        ]
    )


def _verdict(plan: TrainPlan) -> str:
    job, memory = plan.job, plan.gpu.memory
    peak, free = job.memory.peak, usable(memory)
    n = job.mesh.n_ranks
    if plan.fits:
        text = f"It fits: {peak / GIB:.1f} of {free / GIB:.1f} GiB."
        full = job.settings.activation_checkpointing == "full" and not job.settings.activation_offload
        offloaded = replace(job, settings=replace(job.settings, activation_offload=True))
        if full and peak > TIGHT * free and (least := offloaded.memory.peak) < peak:
            text += f" That is tight; with --activation_offload on it would be {least / GIB:.1f}."
        return text
    enough = fewest_gpus(job, memory)
    lines = [
        f"It does NOT fit: {peak / GIB:.1f} of {free / GIB:.1f} GiB. With these settings it takes "
        f"{enough or 'more than 1,024'} GPUs of this kind, not {n}."
    ]
    found = alternatives(job, memory, optim_is_free=plan.why_optim is not None)
    if not found:
        fewest = fewest_gpus(cheapest(job), memory)
        lines.append(
            f"No settings fit on {n}: with everything that saves memory it takes {fewest or 'more than 1,024'} GPUs."
        )
        return "\n".join(lines)
    lines.append("What would fit, the cheapest first:")
    for choice in found:
        flags = " ".join(f"--{name} {value}" for name, value in choice.changes.items())
        lines.append(f"  {flags}   ({choice.job.memory.peak / GIB:.1f} GiB)")
        lines += [f"      {price}" for price in prices(plan, choice)]
    return "\n".join(lines)


def prices(plan: TrainPlan, choice: Alternative) -> list[str]:
    """What each change of an alternative costs."""
    job, changes = choice.job, choice.changes
    host = job.memory.host
    found = []
    if "optim" in changes:
        seconds = update_seconds(job, plan.gpu)
        found.append(f"{formats(job.optim)}: coarser than adamw's fp32; an update takes {seconds:.1f} s a step")
    if "activation_checkpointing" in changes:
        found.append("every block computed twice: a third more computation")
    if "activation_offload" in changes:
        moving = host["offloaded activations"]
        seconds = 2 * moving / job.ranks_per_node / plan.gpu.host_link
        computing = pass_seconds(job, plan.gpu, plan.work.worst)[0]
        found.append(
            f"{moving / 1e9:.0f} GB of host memory a machine; {seconds:.1f} s of copies during {computing:.0f} s of "
            "computing in the worst step"
        )
    if "offload_states" in changes:
        seconds = 2 * job.state_bytes / plan.gpu.host_link
        found.append(
            f"{host['optimizer states'] / 1e9:.0f} GB of host memory a machine, and {seconds:.1f} s a step for "
            "copies to the GPU and back"
        )
    if "row_length" in changes:
        n_cut, n = int((plan.lengths > job.row_length).sum()), len(plan.lengths)
        found.append(f"{n_cut:,} of {n:,} documents are cut to fit {job.row_length:,} tokens with their prompt")
    total = sum(host.values()) / 1e9
    found.append(f"in all {total:,.0f} GB of host memory a machine; {duration(run_seconds(plan, job))} for the run")
    return found
