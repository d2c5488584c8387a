"""Blocks' saved inputs in host memory, from the forward pass to the backward, copied while the device computes.

With full activation checkpointing a block keeps one thing for its backward pass: its input, [B, T, E] in the compute
dtype. Over all blocks that is 21.5 GB for 16,384 tokens of a 70B model. Here each input goes to pinned host memory
while its own block runs forward, and comes back while the block above it runs backward::

    compute   | block 0 | block 1 | block 2 | loss | block 2 back | block 1 back | block 0 back |
    copies    |  0 out  |  1 out  |                |     1 in     |     0 in     |
    on device |  in 0   |  in 1   |  in 2   | in 2 |    in 2, 1   |    in 1, 0   |    in 0      |

The last block's input stays: it is wanted first. So two saved inputs at most are on the device at once, whatever the
number of blocks: the one in use and the one that is coming (in the forward pass the one in use, which is there anyway).

The price, for a rank and a pass over B rows of T tokens: ``(n_layers - 1) * B * T * dim * bytes(compute dtype)`` of
pinned host memory (in ``n_layers - 1`` buffers, each of which PyTorch rounds up to a power of two), and as many bytes
over PCIe once each way. 70B at 16,384 tokens: 79 * 268 MB = 21.2 GB a rank, 170 GB on a machine of eight. At 25 GB/s
(PCIe 4 x16; PCIe 5: 50) that is 0.85 s (0.42 s) each way, 11 ms (5 ms) a block, against 180 ms that the block's forward
pass takes on an A100 at half its peak: hidden, even where two GPUs share a switch. Both times grow alike with the
tokens; copies are a larger part of a narrower model's time, for its work grows with the square of the width.

The buffers are used again by every pass and only ever replaced by larger ones: the worst-case step before step 1 makes
them as large as they will be. On CPU, where device and host are one memory, the copies are plain and gain nothing;
it is how tests see that nothing changes by a bit.

How the streams are kept from racing: all copies run on one side stream, in order. Each waits for what the compute
stream had been given by then: the input has been computed, and whoever had the memory that it comes back into is done.
At most one copy is under way, and the tensor on its device side is held until the compute stream has been made to wait
for the copy, so that its memory passes on only after that. Hence no ``record_stream``, which would free memory at a
time that nobody can foresee. A host buffer goes from one copy to the next on that one stream.

PyTorch's own ``save_on_cpu`` and ``offload_wrapper`` (2.13) copy on the compute stream, which waits, and pin new memory
for each tensor. Hooks on saved tensors and a side stream are also how torchtune does it.
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
    """One block's input between its forward and its backward pass: on the device, in a host buffer, or on its way.

    Attributes:
        below: what was saved for the block before this one in the same pass; None for the first.
        on_device: None while there is only the host's copy.
        buffer: the host's copy, as bytes; None once it is no longer needed.
    """

    def __init__(self, x: Tensor, below: SavedInput | None) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.below = below
        self.on_device: Tensor | None = None
        self.buffer: Tensor | None = None

    def host_view(self) -> Tensor:
        assert self.buffer is not None, "an input comes back once: no second backward pass over the same graph"
        n_bytes = self.shape.numel() * self.dtype.itemsize
        return self.buffer[:n_bytes].view(self.dtype).view(self.shape)


class ActivationOffload:
    """The saved inputs of one model's blocks, the host buffers they go to and the stream that takes them there."""

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: list[Tensor] = []  # host buffers that nobody is using
        self._last: SavedInput | None = None  # what the block before this one saved
        self._under_way: tuple[Tensor, torch.cuda.Event] | None = None

    def run(self, forward: Callable[..., Tensor], is_first: bool, is_last: bool, x: Tensor, *args: Any) -> Tensor:
        """Run a block's checkpointed ``forward(x, *args)``."""
        if is_first:
            self._last = None
        # A saved tensor reaches the hooks as an alias of the original. All that is not x is left where it is: compiled
        # blocks save their weights and the rotary tables in this way too.
        identity = x.untyped_storage()._cdata, x.shape

        def pack(tensor: Tensor) -> SavedInput | Tensor:
            is_input = (tensor.untyped_storage()._cdata, tensor.shape) == identity
            return self._save(tensor.detach(), keep=is_last) if is_input else tensor

        with saved_tensors_hooks(pack, self._restore):
            return forward(x, *args)

    def _save(self, x: Tensor, keep: bool) -> SavedInput:
        saved = self._last = SavedInput(x, below=self._last)
        if keep:
            self._settle()
            saved.on_device = x
        else:
            assert x.is_contiguous(), "kernels could round otherwise on other strides"
            saved.buffer = self._take_buffer(x.nbytes)
            self._copy(saved.host_view(), x, hold=x)
        return saved

    def _restore(self, saved: SavedInput | Tensor) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if saved.on_device is None:
            self._fetch(saved)
        self._settle()
        x, saved.on_device = saved.on_device, None
        assert x is not None
        if saved.below is not None and saved.below.on_device is None:
            self._fetch(saved.below)
        return x

    def _fetch(self, saved: SavedInput) -> None:
        """Start bringing an input back; its buffer may be given to the next copy, which comes after on the stream."""
        saved.on_device = torch.empty(saved.shape, dtype=saved.dtype, device=saved.device)
        self._copy(saved.on_device, saved.host_view(), hold=saved.on_device)
        assert saved.buffer is not None
        self.free.append(saved.buffer)
        saved.buffer = None

    def _copy(self, to: Tensor, source: Tensor, hold: Tensor) -> None:
        """Copy on the side stream, behind what the compute stream has been given so far; ``hold`` is on the device."""
        self._settle()
        if self.stream is None:
            to.copy_(source)
            return
        self.stream.wait_stream(torch.cuda.current_stream(hold.device))
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
        self._under_way = hold, self.stream.record_event()

    def _settle(self) -> None:
        """Make the compute stream (not the process) wait for the copy that is under way, and let its tensor go."""
        if self._under_way is not None:
            tensor, done = self._under_way
            torch.cuda.current_stream(tensor.device).wait_event(done)
            self._under_way = None

    def _take_buffer(self, n_bytes: int) -> Tensor:
        for i, buffer in enumerate(self.free):
            if buffer.numel() >= n_bytes:
                return self.free.pop(i)
        if self.free:
            self.free.pop()  # a larger one takes its place
        try:
            return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self.pinned)
        except RuntimeError as error:
            raise RunStopped(
                f"activation_offload = on: no more host memory for the blocks' saved inputs, {n_bytes:,} bytes each: "
                f"{error}\nTry a smaller --row_length, fewer ranks on this machine, or --activation_offload off."
            ) from None


def offload_inputs(blocks: nn.ModuleList, device: torch.device) -> ActivationOffload:
    """Send what checkpointed blocks save, their first argument, to host memory until their backward pass.

    The blocks run one after another, each on the result of the one before. A backward pass over a graph of theirs runs
    once; several passes may be alive at a time.
    """
    offload = ActivationOffload(device)
    for i, block in enumerate(blocks):
        block.forward = partial(offload.run, block.forward, i == 0, i == len(blocks) - 1)
    return offload
