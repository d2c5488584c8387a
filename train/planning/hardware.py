"""What a plan assumes about GPUs and their connections; every number has a source.

Measured so far: Llama 3 8B on one H200 (`benchmarks/results/gpu.md`). The bytes were right within 0.3%. A step of the
paper's recipe took 9% less than planned, and one that fills a row of 16,384 tokens 28% less.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.metrics import PEAK_BF16_FLOPS

GIB = 2**30

Bytes = dict[str, int]  # what memory or disk space is for → bytes


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in a machine of eight.

    Attributes:
        memory: bytes that PyTorch reports, slightly less than the card's nominal size.
        flops: dense bf16 peak per second, from the data sheet.
        utilization: assumed fraction of the peak over an entire step, recomputation included.
        bandwidth: of GPU memory in bytes per second, from the data sheet.
        link: assumed bytes per second per GPU of collectives inside a machine: three quarters of NVLink's bandwidth in
            one direction (300 and 450 GB/s).
        network: assumed bytes per second between machines, per machine: 80% of eight adapters of 200 or 400 Gb/s.
        host_link: assumed bytes per second between GPU and host memory in one direction: 80% of PCIe 4 or 5 x16.
    """

    name: str
    memory: int
    flops: float
    utilization: float
    bandwidth: float
    link: float
    network: float
    host_link: float


# Utilization: torchtitan (PyTorch's FSDP2 trainer) publishes 52% to 58% of the peak for Llama 3 8B and 70B on A100s,
# recomputation not counted. It publishes 33% without torch.compile for 8B on H100s, whose memory bandwidth is lower
# relative to their peak. Our rows are shorter and our blocks are not compiled by default, hence less on A100s.
GPUS: dict[str, Gpu] = {
    "a100-80g": Gpu("A100 80 GB", round(79.1 * GIB), PEAK_BF16_FLOPS["A100"], 0.45, 2.0e12, 225e9, 160e9, 25e9),
    "h100-80g": Gpu("H100 80 GB", round(79.1 * GIB), PEAK_BF16_FLOPS["H100"], 0.33, 3.35e12, 340e9, 320e9, 50e9),
    "h200": Gpu("H200 141 GB", round(139.7 * GIB), PEAK_BF16_FLOPS["H200"], 0.35, 4.8e12, 340e9, 320e9, 50e9),
}

# Bytes of GPU memory that the compiled update of a parameter moves (`train/optim/update.py`), by the format of
# the states: as measured with bf16 and 8 bits on an H200, calls included. fp32 is by arithmetic from bf16, which reads
# and writes 14 bytes where fp32 has 22. PyTorch's fused AdamW reads and writes all once.
UPDATE_BYTES = {"bf16": 38, "fp32": 60, "8bit": 360}

# Minimum seconds of a block in a pass: about a hundred kernels are launched one after another.
MIN_BLOCK_SECONDS = 1e-3

# Memory that tensors cannot use. CUDA's context, NCCL's buffers and cuBLAS' workspaces are outside PyTorch's allocator.
# A part of the allocator's memory is in gaps too small for the next tensor (few, with expandable segments).
OUTSIDE_ALLOCATOR = 2.0 * GIB
FRAGMENTATION = 0.03


def usable(memory: int) -> int:
    """Bytes of a GPU's memory that tensors can use."""
    return int((memory - OUTSIDE_ALLOCATOR) * (1 - FRAGMENTATION))
