"""Settings of PyTorch's CUDA allocator. The scripts import this before anything else, for its effect.

PyTorch 2.13 reads ``PYTORCH_ALLOC_CONF`` once, as early as when its CUDA library is loaded by ``import torch``: a
setting made later may be ignored without a word. What the user has set, under this name or an older one, is left alone.

expandable_segments: rows of many lengths leave holes between blocks of memory, and a run then fails with gigabytes
"reserved but unallocated". Segments that grow are made of small pages, which fit anywhere.
"""

from __future__ import annotations

import os

SETTINGS = "expandable_segments:True"
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

if not any(name in os.environ for name in NAMES):
    os.environ["PYTORCH_ALLOC_CONF"] = SETTINGS
