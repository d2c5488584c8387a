"""Optimizer states that stay in host memory and visit the device slice by slice in each step (``--offload_states on``).

The update is computed on the device and not on the host. For 70B on eight GPUs with fp32 states, bytes a step:

    states to the device and back   8 + 8 a parameter, 71 GB each way and GPU; PCIe carries both ways at once: 2.8 s at
                                    25 GB/s (PCIe 4), 1.4 s at 50 (PCIe 5); with bf16 states half, with 8 bits a quarter
    a step on the host              gradients and new weights cross too (2 + 2), and the host reads and writes 22 a
                                    parameter for all eight GPUs: 1.6 TB, about 4 s at 400 GB/s of two sockets, if every
                                    core is free and the update is one fused loop; and a second copy of gradients and
                                    weights would stand in host memory, 282 GB

So the device's memory bandwidth does the work, the result is the same bits as without offloading, and the host needs
room for the states alone: 565 GB for 70B in fp32, 282 in bf16, 143 in 8 bits.

On CUDA the states are pinned, and three streams overlap: the next slice arrives, this one is updated, the last one
leaves. On a CPU the same copies are made one after another: nothing is gained there, but it is what the tests see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

States = dict[str, Tensor]  # by name; slices of a shard's states
ALIGNMENT = 256


class Slot:
    """Device memory for one slice's states, used again and again: they arrive, are updated, and leave."""

    def __init__(self, device: torch.device, n_bytes: int) -> None:
        self.memory = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self.host: States = {}
        self.here: States = {}
        self.arrived: torch.cuda.Event | None = None
        self.left: torch.cuda.Event | None = None

    def arrive(self, host: States, stream: torch.cuda.Stream | None) -> None:
        self.host, self.here, start = host, {}, 0
        for name, tensor in host.items():
            n_bytes = tensor.numel() * tensor.element_size()
            self.here[name] = self.memory[start : start + n_bytes].view(tensor.dtype).view(tensor.shape)
            start += -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if self.left is not None and stream is not None:
            stream.wait_event(self.left)  # what was here before
        _copy(self.host, self.here, stream)
        self.arrived = stream.record_event() if stream else None

    def leave(self, stream: torch.cuda.Stream | None) -> None:
        if stream:
            stream.wait_stream(torch.cuda.current_stream(self.memory.device))  # the update
        _copy(self.here, self.host, stream)
        self.left = stream.record_event() if stream else None


def visiting(slices: Iterable[States], device: torch.device, slot_bytes: int) -> Iterator[States]:
    """Yield each slice's states on ``device``; what the caller writes there is in host memory when all are through.

    Two slots take turns, so that the device holds at most two slices however far the host runs ahead of it.

    Args:
        slices: states in (pinned) host memory, no two of the same memory.
        slot_bytes: at least the bytes of the largest slice, with `ALIGNMENT` to spare for each tensor.
    """
    slots = [Slot(device, slot_bytes) for _ in range(2)]
    arriving = leaving = compute = None
    if device.type == "cuda":
        arriving, leaving = torch.cuda.Stream(device), torch.cuda.Stream(device)
        compute = torch.cuda.current_stream(device)
        arriving.wait_stream(compute)  # the slots' memory may have been something else's until now

    def updated(slot: Slot) -> Iterator[States]:
        if compute is not None and slot.arrived is not None:
            compute.wait_event(slot.arrived)
        yield slot.here
        slot.leave(leaving)

    waiting: Slot | None = None
    for number, host in enumerate(slices):
        slot = slots[number % 2]
        slot.arrive(host, arriving)
        if waiting is not None:
            yield from updated(waiting)
        waiting = slot
    if waiting is not None:
        yield from updated(waiting)
    if leaving:
        leaving.synchronize()  # a checkpoint reads host memory without asking the device; the slots' memory is freed


def _copy(source: States, target: States, stream: torch.cuda.Stream | None) -> None:
    with torch.cuda.stream(stream):  # None changes nothing
        for name, tensor in source.items():
            target[name].copy_(tensor, non_blocking=True)
