"""Every limit on what is read, in one place.

A file can come from anywhere. These limits are far above what real checkpoints, tasks and data sets need, and low
enough that no file takes more than about a gigabyte of memory or more than seconds before it is refused. The metadata
of a training checkpoint is the exception: a run on hundreds of ranks needs more.
"""

from __future__ import annotations

MIB = 2**20

# A JSON or TOML document, in bytes. The largest real ones are tokenizers (Llama 3's tokenizer.json: 17 MiB).
DOCUMENT_BYTES = 64 * MIB
# Values of a document, counted by its commas and brackets. A value takes up to some 100 bytes of memory.
# (Llama 3's tokenizer.json: 1.1 million.)
DOCUMENT_VALUES = 4_000_000
# A TOML document: people write them, and Python's decoder takes a second for a megabyte.
TOML_BYTES = 2 * MIB
# Lists and objects within each other.
DEPTH = 64
# One text of a document, in characters.
TEXT_CHARACTERS = 16 * MIB
# Digits of a whole number. (`model_max_length` of many tokenizers is 10^30.)
DIGITS = 64

# A tarball of a release. (20 Newsgroups has 18,888 members and is packed 3:1.)
TAR_MEMBERS = 100_000
# Bytes of all of it when unpacked: this many, or if it is more, that many times the size of the file. Gzip packs zeros
# 1,000:1, and to skip a gigabyte takes seconds.
TAR_SMALL_BYTES = 64 * MIB
TAR_RATIO = 100
# One member that is read, and all of them. (MASSIVE's en-US.jsonl has some 5 MiB, all posts together have 34.)
TAR_MEMBER_BYTES = 32 * MIB
TAR_CONTENT_BYTES = 128 * MIB
# What tells of one member: its block of 512 bytes, and blocks for a long name or other attributes before it.
TAR_HEADER_BYTES = 64 * 1024

# An utterance of MASSIVE, plain or annotated: words that do not match are aligned, in time that grows with the square
# of their number. (The longest has 365.)
UTTERANCE_CHARACTERS = 1000

# A line or record of a table, in characters: a quotation mark that is never closed makes the rest of a file one cell.
RECORD_CHARACTERS = 16 * MIB
# Columns of a table.
COLUMNS = 10_000

# A tokenizer's file that is not JSON: ranks, pieces, merges, words. (Llama 3's tokenizer.model: 2.1 MiB.)
VOCABULARY_BYTES = 16 * MIB
# Tokens of a vocabulary, and the largest id. (The largest known vocabularies have some 260,000.) The library takes some
# 650 bytes for each.
TOKENS = 1_000_000

# An answer of a model that is read as a list or an object, and one in Python's notation instead of JSON's, which takes
# a hundred times as long. (The longest valid ones have one label for each word: some 15 characters.)
ANSWER_CHARACTERS = MIB
PYTHON_ANSWER_CHARACTERS = 64 * 1024

# What a server of a closed model sends for one request. (An answer of 4,096 tokens has some 20 KiB.)
RESPONSE_BYTES = 8 * MIB

# A release that is downloaded. (MASSIVE: 39 MiB.)
DOWNLOAD_BYTES = 1024 * MIB

# Characters of a name that tables show, and fields of a task, in results.json.
NAME_CHARACTERS = 10_000
FIELDS = 1_000

# Words of one option in a file of options.
OPTION_WORDS = 1_000

# The part of a PyTorch file that says which tensors it has, in bytes and in steps. (A tensor takes about 25 steps, so
# this is 20,000 tensors in one file; some 2 seconds. Llama 3 70B has 723 tensors.)
PICKLE_BYTES = 64 * MIB
PICKLE_STEPS = 500_000
# The directory of a zip archive, in bytes. (About 100 for each storage of a PyTorch file.)
ZIP_DIRECTORY_BYTES = 16 * MIB
# Dimensions of a tensor, and its elements. (The largest of Llama 3 70B has 2^30.)
TENSOR_DIMENSIONS = 8
TENSOR_ELEMENTS = 2**40

# Numbers of a model. (Llama 3.1 405B: 126 layers, width 16,384, feed-forward width 53,248; Gemma's vocabulary: 262,144;
# the longest context: 10 million.) A model is built without memory before its weights are read, in some 2 ms a layer.
LAYERS = 1_000
WIDTH = 2**20
VOCABULARY = 2**24
POSITIONS = 2**30
# Files of weights of one checkpoint. (Llama 3.1 405B: 191.)
WEIGHT_FILES = 10_000
# Tensors of one file of weights. (Llama 3 70B: 723 in all.)
TENSORS = 20_000
# Values of all lists in a GGUF file's metadata, which its reader keeps one by one. (Llama 3: 0.7 million.)
GGUF_VALUES = 2_000_000
# A token of Meta's tokenizers, which is tried as two parts at every place. (Llama 3's longest has 128.)
TOKEN_BYTES = 512

# The same of a training checkpoint's ``.metadata``, which has about 145 bytes and 70 steps for each part of a tensor
# that a rank wrote. (Llama 3 70B, saved by 64 ranks: 20 MB, 9.5 million steps,
# some 15 seconds. This is enough for 250 ranks, and takes a minute and up to three gigabytes.)
METADATA_BYTES = 128 * MIB
METADATA_STEPS = 40_000_000
