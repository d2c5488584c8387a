"""Compare the plan's bytes with PyTorch's accounting of a step: `FSDPMemTracker` over fake tensors on fake ranks.

    python -m benchmarks.memory_trace --models llama3_8b llama3_70b
    python -m benchmarks.memory_trace --models llama --checkpoint FOLDER

A folder needs a config.json only, so a new architecture can be compared before it has a preset.

The traced step starts like a run's trial step: with weights, optimizer states and the first pass's gradients. Model,
sharding and recomputation are those of `train/parallel/parallelize.py`. Only the attention is replaced, because CPU
SDPA runs in chunks and saves other tensors. An autograd function allocates and saves what FlexAttention does on CUDA:
q, k, v, the output and a log-sum-exp a head and token; in the backward pass gradients and one number a head and token.

Fused AdamW's states are counted after its first step: the tracker's figure would include the temporaries of CPU AdamW.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.common import load_average, run_program, say, table, write_result
from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.registry import get_model_spec
from data.errors import UserError
from train.loss import label_loss
from train.optim.formats import OPTIMIZERS, OptimFormat
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import PRECISIONS, Precision, parallelize
from train.planning.checkpoint import find_config
from train.planning.memory import Memory, Pass, Settings, count_parameters, training_memory


class FlexLike(torch.autograd.Function):
    """What FlexAttention allocates and saves; q, k, v [B, T, heads, D]."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum_exp = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, log_sum_exp = ctx.saved_tensors
        torch.empty_like(log_sum_exp)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


REPLACED = {  # functions of model/attention.py
    "build_mask": lambda doc_ids: None,
    "build_bidirectional_mask": lambda doc_ids: None,
    "attention": lambda q, k, v, *mask, **dropout: FlexLike.apply(q, k, v),
}


def replaced_attention(config: ModelConfig) -> mock._patch:
    """Replaces the attention in the file of the config's architecture, which imports it by name.

    Raises:
        UserError: the file does not import it by name.
    """
    module = sys.modules[architecture_of(config).build.__module__]
    if not hasattr(module, "attention"):
        raise UserError(
            f"the trace replaces the attention of {module.__name__}, which must import it by name: "
            "from model.attention import attention, build_mask."
        )
    return mock.patch.multiple(module, **{name: own for name, own in REPLACED.items() if hasattr(module, name)})


@contextmanager
def fake_ranks(n: int) -> Iterator[None]:
    """A process group without other ranks, whose collectives do nothing; this process is rank 0."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n)
    try:
        yield
    finally:
        dist.destroy_process_group()


def fake_model(
    config: ModelConfig, mesh: MeshShape, mode: FakeTensorMode, formats: Precision, checkpointing: str
) -> nn.Module:
    """A model built by `parallelize` with fake parameters; only materialization runs under ``mode``."""

    class Fake(architecture_of(config).build):
        def to_empty(self, *, device, recurse=True):
            with mode:
                return super().to_empty(device=device, recurse=recurse)

        def init_weights(self, generator: torch.Generator | None = None) -> None:
            pass

    with mock.patch.dict(PRECISIONS, {"traced": formats}):
        return parallelize(
            lambda: Fake(config),
            mesh.build("cpu"),
            torch.device("cpu"),
            precision="traced",
            activation_checkpointing=checkpointing,
            load=lambda model: None,
        )


def trace(config: ModelConfig, mesh: MeshShape, settings: Settings, work: Pass) -> dict[str, float]:
    """Bytes of weights, gradients, optimizer states and a step's peak, counted by the tracker on rank 0."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    formats = PRECISIONS["bf16_weights" if settings.optim.weights == torch.bfloat16 else "bf16"]
    assert settings.compute == formats.compute, "traces are of bf16 compute"
    with ExitStack() as stack:
        stack.enter_context(fake_ranks(mesh.n_ranks))
        stack.enter_context(replaced_attention(config))
        # An encoder reads the length of its documents from the positions, which are fake here.
        stack.enter_context(mock.patch.object(FakeTensor, "__int__", lambda self: 0, create=True))
        model = fake_model(config, mesh, mode, formats, settings.activation_checkpointing)
        stack.enter_context(mode)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tokens, positions = torch.zeros(2, 1, work.tokens, dtype=torch.int64)
        index, targets = torch.zeros(2, work.outputs, dtype=torch.int64)
        places = {head.name: index for head in config.heads} if architecture_of(config).task_decides_heads else index

        def loss() -> Tensor:
            logits = model(tokens, positions, None, output_index=places)
            of_fields = logits.values() if isinstance(logits, dict) else [logits]
            return torch.stack([label_loss(of_field, targets, work.outputs) for of_field in of_fields]).sum()

        def one_pass() -> None:
            loss().backward()

        one_pass()
        optimizer.step()  # allocates the states
        optimizer.zero_grad()
        if work.accumulates:
            one_pass()  # leaves its gradients
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((tokens, positions, index, targets))
        with tracker:
            one_pass()
        kept = _by_kind(tracker.get_tracker_snapshot("current"))
        peak = _by_kind(tracker.get_tracker_snapshot("peak"))
    return {
        "weights": kept["Sharded Param"],
        "gradients": kept["Sharded Grad"],
        "optimizer states": kept["OptState"],
        "peak": peak["Total"],
    }


def _by_kind(snapshot: dict) -> dict[str, int]:
    (of_cpu,) = snapshot.values()
    return {getattr(kind, "value", kind): n for kind, n in of_cpu.items()}


# PyTorch's AdamW keeps states in the weights' format, so it can trace only these two of our formats.
TRACED = {"adamw": OPTIMIZERS["adamw"], "adamw_sr_bf16": OptimFormat(torch.bfloat16, "bf16", stochastic_rounding=True)}


def planned(config: ModelConfig, name: str, mesh: MeshShape, settings: Settings, work: Pass) -> Memory:
    return training_memory(config, count_parameters(get_model_spec(name), config), mesh, settings, work, mesh.n_ranks)


@dataclass
class Args:
    """Trace and compare, and write a result file."""

    models: tuple[str, ...] = ("llama3_8b", "llama3_70b")
    """Decoders: presets; with --checkpoint also the name of an architecture, such as llama."""
    checkpoint: Path | None = None
    """Folder with the config.json of the model, instead of the preset's sizes. It needs no weights."""
    row_length: tuple[int, ...] = (4096, 16_384)
    """Tokens of the single row; fp32 AdamW is traced at the first length, bf16 weights at the last."""
    outputs: int = 168
    """Label positions."""
    ranks: int = 8
    """Fake ranks."""
    layers: int | None = None
    """Number of layers to keep; default: all."""
    output: Path | None = None
    """Result file; default benchmarks/results/memory_trace.md."""


def config_to_trace(name: str, checkpoint: Path | None, layers: int | None) -> ModelConfig:
    """The config in ``checkpoint``, or the preset's, with ``layers`` layers.

    Raises:
        UserError: no such model; no config; no layers; an encoder, whose heads are of a task.
    """
    spec = get_model_spec(name)
    if spec.kind == "encoder":
        raise UserError(f"--models {name}: an encoder, whose heads depend on the task. This program traces decoders.")
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        raise UserError(f"--checkpoint {checkpoint}: it is no folder with a config.json.")
    if layers is not None and layers < 1:
        raise UserError(f"--layers {layers}: must be at least 1.")
    config, _ = find_config(spec, checkpoint)
    return config if layers is None else dataclasses.replace(config, n_layers=layers)


def compare(
    name: str, config: ModelConfig, optim: str, row_length: int, outputs: int, ranks: int
) -> list[list[object]]:
    """The result table's rows for one trace."""
    mesh, work, settings = MeshShape(shard=ranks), Pass(row_length, outputs), Settings(TRACED[optim])
    start = time.perf_counter()
    traced = trace(config, mesh, settings, work)
    seconds = time.perf_counter() - start
    ours = planned(config, name, mesh, settings, work)
    figures = {
        "weights": ours.weights,
        "gradients": ours.gradients,
        "optimizer states": ours.states,
        "peak": ours.peak,
    }
    rows = []
    for kind, n in figures.items():
        off = n / traced[kind] - 1
        what = f"{name}, {optim}, {row_length:,} tokens ({seconds:.0f} s)" if kind == "weights" else ""
        rows.append([what, kind, f"{n / 1e9:.3f}", f"{traced[kind] / 1e9:.3f}", f"{off:+.2%}"])
    return rows


def run(args: Args, argv: list[str]) -> None:
    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks}: must be at least 1.")
    load, rows = load_average(), []
    configs = {name: config_to_trace(name, args.checkpoint, args.layers) for name in args.models}
    for name, config in configs.items():
        for optim, length in (("adamw", args.row_length[0]), ("adamw_sr_bf16", args.row_length[-1])):
            rows += compare(name, config, optim, length, args.outputs, args.ranks)
            say(str(rows[-1]))
    body = (
        f"One rank of {args.ranks}, full activation checkpointing, bf16 compute, one row with {args.outputs} label "
        "positions; GB (10^9 bytes). *plan* is `train/planning/memory.py`, *trace* PyTorch's `FSDPMemTracker` over "
        "fake tensors in a fake process group (seconds: of the trace). The attention is traced as what FlexAttention "
        "allocates and saves on CUDA, not as the CPU's SDPA; all else is the code that trains.\n\n"
        + table(["", "", "plan", "trace", "off by"], rows)
        + "\n\nNeither is a measurement on a GPU: CUDA's context, NCCL's buffers and the allocator's gaps come on top "
        "(`train/planning/hardware.py`). The states are those that AdamW has after its first step; `FSDPMemTracker`'s "
        "peak of an optimizer step would count, as states, what CPU kernels use in passing too."
    )
    write_result("memory_trace", "The plan's bytes against a traced step", body, argv, args.output, load)


def main(argv: list[str] | None = None) -> int:
    return run_program("memory_trace", Args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
