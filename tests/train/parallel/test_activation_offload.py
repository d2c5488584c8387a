"""Saved inputs that go to host memory come back the same, in time, and few at once."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from data.errors import UserError
from tests.train.parallel import offload_run
from train.config import FREE_ON_RESUME
from train.errors import RunStopped
from train.parallel import activation_offload
from train.parallel.activation_offload import ActivationOffload, offload_inputs
from train.resolve import load_config

N = 6


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, scale: dict[str, Tensor]) -> Tensor:
        return x + self.w2(torch.tanh(self.w1(x) * scale["all"]))


class Stack(nn.Module):
    """Blocks under full activation checkpointing, as `train/parallel/parallelize.py` makes them."""

    def __init__(self, dim: int = 8, n: int = N, compiled: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, dim)
        self.layers = nn.ModuleList(Block(dim) for _ in range(n))
        for block in self.layers:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            if compiled:
                block.forward = torch.compile(block.forward, dynamic=True, backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        x, scale = self.embed(x), {"all": torch.tensor(1.5, device=x.device)}
        for layer in self.layers:
            x = layer(x, scale)
        return x


def grads(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Gradients of passes whose graphs are all alive at once."""
    model.zero_grad(set_to_none=False)  # so that from the second time on they take no new memory
    sum(model(x).square().mean() for x in inputs).backward()
    return [p.grad for p in model.parameters()]


def pair(**options) -> tuple[Stack, Stack, ActivationOffload]:
    torch.manual_seed(0)
    plain, moved = Stack(**options), Stack(**options)
    moved.load_state_dict(plain.state_dict())
    return plain, moved, offload_inputs(moved.layers, torch.device("cpu"))


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert min(x.abs().max() for x in a) > 0


def test_one_rank_computes_the_same(world, tmp_path: Path) -> None:
    offload_run.compare(tmp_path, world)


def test_two_ranks_compute_the_same(launch: Callable[..., subprocess.CompletedProcess], tmp_path: Path) -> None:
    done = launch(Path(offload_run.__file__), tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n", [1, 2, N])
def test_gradients_are_the_same_bit_for_bit(n: int) -> None:
    plain, moved, offload = pair(n=n)
    rows = [torch.randn(t, 8) for t in (12, 5, 20, 1)]  # longer and shorter ones: buffers are used again or replaced
    for x in rows:
        assert_same(grads(plain, x), grads(moved, x))
    assert len(offload.free) == n - 1, "as many buffers as one pass needs, whatever the passes' lengths"
    assert_same(grads(plain, *rows), grads(moved, *rows))


def test_compiled_blocks_save_other_tensors_too_which_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, moved, offload = pair(n=3, compiled=True)
    left = []
    restore = ActivationOffload._restore
    spy = lambda self, saved: (left.append(isinstance(saved, Tensor)), restore(self, saved))[1]  # noqa: E731
    monkeypatch.setattr(ActivationOffload, "_restore", spy)
    x = torch.randn(12, 8)
    assert_same(grads(plain, x), grads(moved, x))
    assert left.count(False) == 3 and left.count(True) > 3, "inputs, and weights beside them"
    assert len(offload.free) == 2


def test_at_most_two_saved_inputs_are_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, moved, _ = pair()
    inputs: list[StorageWeakRef] = []
    alive: dict[str, list[int]] = {"forward": [], "backward": []}

    def note(phase: str) -> None:
        alive[phase].append(sum(not ref.expired() for ref in inputs))

    def on_input(block: nn.Module, args: tuple) -> None:
        inputs.append(StorageWeakRef(args[0].untyped_storage()))
        note("forward")

    fetch = ActivationOffload._fetch

    def fetched(self, saved):
        fetch(self, saved)
        inputs.append(StorageWeakRef(saved.on_device.untyped_storage()))
        note("backward")

    monkeypatch.setattr(ActivationOffload, "_fetch", fetched)
    for model in (plain, moved):
        for block in model.layers:
            block.register_forward_pre_hook(on_input)
    x = torch.randn(12, 8)
    out = plain(x)
    assert alive["forward"] == [1, 2, 3, 4, 5, 6], "without, all of them are kept"
    del out
    inputs.clear(), alive["forward"].clear()
    out = moved(x)
    # Counted when the block is called, before the loop has let go of nothing but its last result.
    assert alive["forward"] == [1] * N
    out.sum().backward()
    assert alive["backward"] == [2] * (N - 1), "the one in use and the next"
    del out
    assert not sum(not ref.expired() for ref in inputs)


class LateStream:
    """A side stream on which a copy happens as late as it may: when the compute stream is told to wait for it.

    It holds a device's tensors as the hardware does: not at all. One that is freed before its copy is a race.
    """

    def __init__(self, device_side: Callable[[Tensor], bool]) -> None:
        self.queue: list[Callable[[], None]] = []
        self.n_done, self.behind, self.device_side = 0, False, device_side

    def wait_stream(self, compute: object) -> None:
        self.behind = True

    def put(self, to: Tensor, source: Tensor) -> None:
        assert self.behind, "the copy must come behind what the compute stream has to do first"
        self.behind = False
        refs = [StorageWeakRef(t.untyped_storage()) for t in (to, source) if self.device_side(t)]
        assert len(refs) == 1
        views = [_View(t) for t in (to, source)]

        def run() -> None:
            assert not any(ref.expired() for ref in refs), "freed while its copy was under way"
            with torch.no_grad():
                views[0].tensor().copy_(views[1].tensor())

        self.queue.append(run)

    def record_event(self) -> int:
        return self.n_done + len(self.queue)

    def run_until(self, event: int) -> None:
        while self.n_done < event:
            self.queue.pop(0)()
            self.n_done += 1


class _View:
    """A tensor's memory without a hold on it."""

    def __init__(self, t: Tensor) -> None:
        self.ref, self.how = StorageWeakRef(t.untyped_storage()), (t.dtype, t.storage_offset(), t.shape, t.stride())

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.ref.cdata)
        assert storage is not None
        dtype, offset, shape, stride = self.how
        return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


class _Deferred(TorchFunctionMode):
    def __init__(self, stream: LateStream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.copy_:
            return self.stream.put(*args)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[ActivationOffload], LateStream]:
    """Gives an `ActivationOffload` on CPU a side stream whose copies are late."""

    def install(offload: ActivationOffload) -> LateStream:
        buffers: set[int] = set()
        take = offload._take_buffer

        def remembered(n_bytes: int) -> Tensor:
            buffer = take(n_bytes)
            keep.append(buffer)  # PyTorch's pinned allocator keeps a buffer until its copies are done; so do we
            buffers.add(buffer.untyped_storage()._cdata)
            return buffer

        keep: list[Tensor] = []
        stream = LateStream(lambda t: t.untyped_storage()._cdata not in buffers)

        class Compute:
            def wait_event(self, event: int) -> None:
                stream.run_until(event)

        @contextlib.contextmanager
        def on(side: LateStream) -> Iterator[None]:
            with _Deferred(side):
                yield

        monkeypatch.setattr(offload, "_take_buffer", remembered)
        monkeypatch.setattr(offload, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Compute())
        monkeypatch.setattr(torch.cuda, "stream", on)
        return stream

    return install


def test_copies_may_be_as_late_as_they_like(late) -> None:
    plain, moved, offload = pair()
    stream = late(offload)
    rows = [torch.randn(t, 8) for t in (12, 5, 20)]
    for x in rows:
        assert_same(grads(plain, x), grads(moved, x))
    moved(rows[0])  # a pass without a backward pass
    assert not stream.queue, "when the loss is computed, only the last block's input is on the device"
    assert_same(grads(plain, *rows), grads(moved, *rows))
    assert stream.n_done > 2 * 3 * (N - 1) and not stream.queue


def test_a_backward_pass_that_breaks_off_leaves_no_copy_behind(late) -> None:
    plain, moved, offload = pair()
    stream = late(offload)

    def fail(grad: Tensor) -> None:
        raise torch.OutOfMemoryError("simulated")

    moved.layers[3].w1.bias.register_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        grads(moved, torch.randn(12, 8))
    moved.layers[3].w1.bias._backward_hooks.clear()
    assert stream.queue, "an input was on its way back"
    x = torch.randn(9, 8)
    assert_same(grads(plain, x), grads(moved, x))
    assert not stream.queue


def test_without_a_gradient_nothing_is_copied() -> None:
    _, moved, offload = pair()
    with torch.no_grad():
        moved(torch.randn(3, 8))
    assert not offload.free and offload._last is None


def test_no_host_memory_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, moved, _ = pair()
    empty = torch.empty

    def full(*args, **kwargs):
        if kwargs.get("dtype") == torch.uint8:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **kwargs)

    monkeypatch.setattr(activation_offload.torch, "empty", full)
    with pytest.raises(RunStopped, match=r"no more host memory .* 384 bytes each(.|\n)*--activation_offload off"):
        grads(moved, torch.randn(12, 8))


def test_it_needs_full_checkpointing_and_may_change_on_resume() -> None:
    args = ["--model", "llama_debug", "--task", "massive_intent", "--init", "random", "--checkpoint", "x"]
    for mode in ("none", "selective"):
        with pytest.raises(UserError, match=rf"give --activation_checkpointing full \(it is {mode}\)"):
            load_config([*args, "--activation_offload", "on", "--activation_checkpointing", mode])
    config = load_config([*args, "--activation_offload", "on", "--activation_checkpointing", "full"])
    assert config.train.activation_offload and "activation_offload" in FREE_ON_RESUME


@pytest.mark.gpu
def test_on_cuda_equal_less_memory_no_race() -> None:
    device, dim, tokens, n = torch.device("cuda"), 1024, 8192, 12
    torch.manual_seed(0)
    plain, moved = (Stack(dim, n).to(device, torch.bfloat16) for _ in range(2))
    moved.load_state_dict(plain.state_dict())
    offload = offload_inputs(moved.layers, device)
    peaks = []
    x = torch.randn(tokens, dim, device=device, dtype=torch.bfloat16)
    for model in (plain, moved):  # both models' gradients, buffers and cuBLAS' workspaces are there
        grads(model, x)
    for model in (plain, moved):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        grads(model, x)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    # At the peak there are two inputs instead of n.
    assert peaks[0] - peaks[1] > 0.8 * (n - 2) * x.nbytes
    assert len(offload.free) == n - 1 and all(buffer.is_pinned() for buffer in offload.free)
    for trial in range(20):
        x = torch.randn(tokens - 512 * (trial % 4), dim, device=device, dtype=torch.bfloat16)
        want = [g.clone() for g in grads(plain, x)]
        with torch.cuda.stream(offload.stream):
            torch.cuda._sleep(20_000_000)  # copies begin late: whoever does not wait reads what is not there yet
        assert_same(want, grads(moved, x))
