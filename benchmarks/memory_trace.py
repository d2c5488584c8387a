"""Compare the plan's bytes with PyTorch's accounting of a step: `FSDPMemTracker` over fake tensors on fake ranks.

    python -m benchmarks.memory_trace --models llama3_8b llama3_70b

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
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.common import load_average, table, write_result
from checkpoints_tools.registry import MODELS, ModelConfig, architecture_of
from train.loss import label_loss
from train.optim.formats import OPTIMIZERS, OptimFormat
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import PRECISIONS, Precision, parallelize
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
        stack.enter_context(mock.patch("model.llama.build_mask", lambda doc_ids: None))
        stack.enter_context(mock.patch("model.llama.attention", lambda q, k, v, mask: FlexLike.apply(q, k, v)))
        stack.enter_context(mock.patch("model.encoder.build_bidirectional_mask", lambda doc_ids: None))
        stack.enter_context(mock.patch("model.encoder.attention", lambda *qkv, dropout: FlexLike.apply(*qkv[:3])))
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
    spec = MODELS[name]
    return training_memory(config, count_parameters(spec, config), mesh, settings, work, mesh.n_ranks)


def compare(name: str, optim: str, row_length: int, outputs: int, ranks: int, layers: int | None) -> list[list[object]]:
    """The result table's rows for one trace."""
    config = MODELS[name].config
    if layers is not None:
        config = dataclasses.replace(config, n_layers=layers)
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


def main(
    models: tuple[str, ...] = ("llama3_8b", "llama3_70b"),
    row_length: tuple[int, ...] = (4096, 16_384),
    outputs: int = 168,
    ranks: int = 8,
    layers: int | None = None,
    output: Path | None = None,
) -> None:
    """Trace and compare, and write a result file.

    Args:
        models: presets of the Llama family.
        row_length: tokens of the single row; fp32 AdamW is traced at the first length, bf16 weights at the last.
        outputs: label positions.
        ranks: fake ranks.
        layers: number of layers to keep; None: all.
        output: result file.
    """
    load, rows = load_average(), []
    for name in models:
        for optim, length in (("adamw", row_length[0]), ("adamw_sr_bf16", row_length[-1])):
            rows += compare(name, optim, length, outputs, ranks, layers)
            print(rows[-1], file=sys.stderr, flush=True)
    body = (
        f"One rank of {ranks}, full activation checkpointing, bf16 compute, one row with {outputs} label positions; GB "
        "(10^9 bytes). *plan* is `train/planning/memory.py`, *trace* PyTorch's `FSDPMemTracker` over fake tensors in a "
        "fake process group (seconds: of the trace). The attention is traced as what FlexAttention allocates and saves "
        "on CUDA, not as the CPU's SDPA; all else is the code that trains.\n\n"
        + table(["", "", "plan", "trace", "off by"], rows)
        + "\n\nNeither is a measurement on a GPU: CUDA's context, NCCL's buffers and the allocator's gaps come on top "
        "(`train/planning/hardware.py`). The states are those that AdamW has after its first step; `FSDPMemTracker`'s "
        "peak of an optimizer step would count, as states, what CPU kernels use in passing too."
    )
    write_result("memory_trace", "The plan's bytes against a traced step", body, sys.argv[1:], output, load)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
