"""Hashes that tell a checkpoint's files from others, and read little of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".distcp")  # how their names end
# Of a larger file this many blocks are hashed, evenly spaced from its beginning to its end.
N_BLOCKS, BLOCK = 64, 1 << 16


def weights_of(folder: Path) -> str:
    """A hash of the weights in a folder, the same before and after there are checksums."""
    return hash_files(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES)


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the names, sizes and contents of files; of a large file, of 4 MiB in `N_BLOCKS` blocks.

    Training changes weights everywhere, so this tells checkpoints apart, and reads little. It is no proof that every
    byte is the same.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        step = max(BLOCK, -((BLOCK - size) // (N_BLOCKS - 1)))  # rounded up: the last block is the file's end
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
