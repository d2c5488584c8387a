"""Settings of PyTorch's CUDA allocator. The scripts import this before anything else, for its side effect.

PyTorch 2.13 reads ``PYTORCH_ALLOC_CONF`` once, when ``import torch`` loads its CUDA library. A later change may be
silently ignored. What the user has set, under this name or an older one, is kept.

expandable_segments: rows of many lengths fragment the allocator's memory, and a run then fails with gigabytes
"reserved but unallocated". Expandable segments consist of small pages, which fit anywhere.
"""

from __future__ import annotations

import os

SETTINGS = "expandable_segments:True"
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

if not any(name in os.environ for name in NAMES):
    os.environ["PYTORCH_ALLOC_CONF"] = SETTINGS
