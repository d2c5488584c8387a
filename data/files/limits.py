"""Every limit on what is read, in one place.

A file can come from anywhere. These limits are far above what real checkpoints, tasks and data sets need, and low
enough that no file takes more than about a gigabyte of memory or more than seconds before it is refused.
"""

from __future__ import annotations

MIB = 2**20

# A JSON or TOML document, in bytes. The largest real ones are tokenizers (Llama 3's tokenizer.json: 17 MiB).
DOCUMENT_BYTES = 64 * MIB
# Values of a document, counted by its commas and brackets. A value takes up to some 100 bytes of memory.
# (Llama 3's tokenizer.json: 1.1 million.)
DOCUMENT_VALUES = 4_000_000
# Lists and objects within each other.
DEPTH = 64
# One text of a document, in characters.
TEXT_CHARACTERS = 16 * MIB
# Digits of a whole number. (`model_max_length` of many tokenizers is 10^30.)
DIGITS = 64

# The part of a PyTorch file that says which tensors it has, in bytes and in steps. (A tensor takes about 25 steps, so
# this is 20,000 tensors in one file; some 2 seconds. Llama 3 70B has 723 tensors.)
PICKLE_BYTES = 64 * MIB
PICKLE_STEPS = 500_000
# The directory of a zip archive, in bytes. (About 100 for each storage of a PyTorch file.)
ZIP_DIRECTORY_BYTES = 16 * MIB
# Dimensions of a tensor, and its elements. (The largest of Llama 3 70B has 2^30.)
TENSOR_DIMENSIONS = 8
TENSOR_ELEMENTS = 2**40
