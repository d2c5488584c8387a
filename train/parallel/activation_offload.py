"""Keep the blocks' saved inputs in host memory between forward and backward pass; copies overlap with compute.

With full activation checkpointing a block saves only its input for the backward pass: [B, T, E] in the compute
dtype. Over all blocks that is 21.5 GB for 16,384 tokens of a 70B model. Here each input is copied to pinned host memory
while its own block runs forward, and copied back while the block above it runs backward::

    compute   | block 0 | block 1 | block 2 | loss | block 2 back | block 1 back | block 0 back |
    copies    |  0 out  |  1 out  |                |     1 in     |     0 in     |
    on device |  in 0   |  in 1   |  in 2   | in 2 |    in 2, 1   |    in 1, 0   |    in 0      |

The last block's input stays on the device, because it is needed first. So at most two saved inputs are on the device,
whatever the number of blocks: the one in use and the one being copied back. In the forward pass it is the current
input, which is there anyway.

The cost, for a rank and a pass over B rows of T tokens:

- pinned host memory: ``(n_layers - 1) * B * T * dim * bytes(compute dtype)``, in ``n_layers - 1`` buffers, each of
  which PyTorch rounds up to a power of two
- as many bytes over PCIe, once each way

For 70B at 16,384 tokens that is 79 * 268 MB = 21.2 GB a rank, 170 GB on a machine of eight, and::

    PCIe 4 x16 (25 GB/s)                    0.85 s each way, 11 ms a block
    PCIe 5 x16 (50 GB/s)                    0.42 s each way,  5 ms a block
    forward pass, A100 at half its peak                     180 ms a block

So compute hides the copies, even where two GPUs share a switch. Both times are proportional to the tokens. A narrower
model hides them less well, because a block's compute grows with the square of the width.

Every pass reuses the buffers; they are replaced only by larger ones. The worst-case step before step 1 allocates their
final size. On CPU the copies are synchronous and gain nothing; tests use them to show that results are bit-identical.

How races between the streams are avoided: all copies run in order on one side stream. Each copy first waits for the
work that the compute stream has been given so far. By then the input has been computed, and earlier work on the memory
that receives a returning input is done. At most one copy is in flight. Its device tensor is kept alive until the
compute stream waits for the copy, so its memory is not reused earlier. This replaces ``record_stream``, which would
free memory at an unpredictable time. A host buffer is reused by later copies on the same stream.

PyTorch's own ``save_on_cpu`` and ``offload_wrapper`` (2.13) copy on the compute stream, which waits, and pin new memory
for each tensor. torchtune also uses saved-tensor hooks and a side stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from train.errors import RunStopped


class SavedInput:
    """One block's input between its forward and its backward pass: on the device, in a host buffer, or being copied.

    Attributes:
        below: the saved input of the previous block in the same pass; None for the first block.
        on_device: None while only the host has a copy.
        buffer: the host's copy, as bytes; None once it is no longer needed.
    """

    def __init__(self, x: Tensor, below: SavedInput | None) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.below = below
        self.on_device: Tensor | None = None
        self.buffer: Tensor | None = None

    def host_view(self) -> Tensor:
        assert self.buffer is not None, "an input is copied back once: no second backward pass over the same graph"
        n_bytes = self.shape.numel() * self.dtype.itemsize
        return self.buffer[:n_bytes].view(self.dtype).view(self.shape)


class ActivationOffload:
    """The saved inputs of one model's blocks, with their host buffers and the stream for the copies."""

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: list[Tensor] = []  # unused host buffers
        self._last: SavedInput | None = None  # of the previous block
        self._in_flight: tuple[Tensor, torch.cuda.Event] | None = None

    def run(self, forward: Callable[..., Tensor], is_first: bool, is_last: bool, x: Tensor, *args: Any) -> Tensor:
        """Run a block's checkpointed ``forward(x, *args)``."""
        if is_first:
            self._last = None
        # A saved tensor reaches the hooks as an alias of the original. Only x is offloaded: compiled blocks also save
        # their weights and the rotary tables through these hooks.
        identity = x.untyped_storage()._cdata, x.shape

        def pack(tensor: Tensor) -> SavedInput | Tensor:
            is_input = (tensor.untyped_storage()._cdata, tensor.shape) == identity
            return self._save(tensor.detach(), keep=is_last) if is_input else tensor

        with saved_tensors_hooks(pack, self._restore):
            return forward(x, *args)

    def _save(self, x: Tensor, keep: bool) -> SavedInput:
        saved = self._last = SavedInput(x, below=self._last)
        if keep:
            self._wait_for_copy()
            saved.on_device = x
        else:
            assert x.is_contiguous(), "kernels could round otherwise on other strides"
            saved.buffer = self._take_buffer(x.nbytes)
            self._copy(saved.host_view(), x, device_side=x)
        return saved

    def _restore(self, saved: SavedInput | Tensor) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if saved.on_device is None:
            self._fetch(saved)
        self._wait_for_copy()
        x, saved.on_device = saved.on_device, None
        assert x is not None
        if saved.below is not None and saved.below.on_device is None:
            self._fetch(saved.below)
        return x

    def _fetch(self, saved: SavedInput) -> None:
        """Start copying an input back. Its buffer is free at once: a later copy follows on the same stream."""
        saved.on_device = torch.empty(saved.shape, dtype=saved.dtype, device=saved.device)
        self._copy(saved.on_device, saved.host_view(), device_side=saved.on_device)
        assert saved.buffer is not None
        self.free.append(saved.buffer)
        saved.buffer = None

    def _copy(self, to: Tensor, source: Tensor, device_side: Tensor) -> None:
        """Copy on the side stream, after the compute stream's work so far; ``device_side`` is ``to`` or ``source``."""
        self._wait_for_copy()
        if self.stream is None:
            to.copy_(source)
            return
        self.stream.wait_stream(torch.cuda.current_stream(device_side.device))
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
        self._in_flight = device_side, self.stream.record_event()

    def _wait_for_copy(self) -> None:
        """Make the compute stream (not the process) wait for the copy in flight, and release its device tensor."""
        if self._in_flight is not None:
            tensor, done = self._in_flight
            torch.cuda.current_stream(tensor.device).wait_event(done)
            self._in_flight = None

    def _take_buffer(self, n_bytes: int) -> Tensor:
        for i, buffer in enumerate(self.free):
            if buffer.numel() >= n_bytes:
                return self.free.pop(i)
        if self.free:
            self.free.pop()  # replaced by a larger one
        try:
            return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self.pinned)
        except RuntimeError as error:
            raise RunStopped(
                f"activation_offload = on: no more host memory for the blocks' saved inputs, {n_bytes:,} bytes each: "
                f"{error}\nTry a smaller --row_length, fewer ranks on this machine, or --activation_offload off."
            ) from None


def offload_inputs(blocks: nn.ModuleList, device: torch.device) -> ActivationOffload:
    """Keep the saved inputs (first arguments) of checkpointed blocks in host memory until their backward pass.

    The blocks run in order, each on the previous one's result. Each graph gets one backward pass; graphs of several
    forward passes may exist at the same time.
    """
    offload = ActivationOffload(device)
    for i, block in enumerate(blocks):
        block.forward = partial(offload.run, block.forward, i == 0, i == len(blocks) - 1)
    return offload
