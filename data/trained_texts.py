"""``trained_texts.npy``: hashes of the texts of a model's training data, in its checkpoints and exports.

With it ``eval.py`` counts the scored texts whose answers the model has seen, whatever files or ids they have now. A
hash has 64 bits, so the file has 8 bytes a text and no text can be read from it. Who has a text can find out whether
it is in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError

import numpy as np
import xxhash
from numpy.lib import format as npy
from numpy.typing import NDArray

from data.errors import UserError

TRAINED_TEXTS_FILE = "trained_texts.npy"

Hashes = NDArray[np.uint64]


def hash_text(text: str) -> int:
    """A hash of a text's words, in 64 bits: white space between them does not count."""
    return xxhash.xxh3_64_intdigest(" ".join(text.split()).encode(errors="surrogatepass"))


def hash_texts(texts: Iterable[str]) -> Hashes:
    """``[N]``, the hash of each text, in their order."""
    return np.fromiter(map(hash_text, texts), dtype=np.uint64)


def save_trained_texts(hashes: Hashes, folder: Path) -> None:
    """Write the file into a folder."""
    np.save(folder / TRAINED_TEXTS_FILE, hashes, allow_pickle=False)


def read_trained_texts(folder: Path) -> Hashes | None:
    """The hashes in a folder's file; None if it has none, as the folders of older code and of other programs.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / TRAINED_TEXTS_FILE
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            found = npy.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, MemoryError, TokenError) as error:
        raise UserError(f"{file} cannot be read: {error}. Restore it from a copy.") from None
    if found.dtype != np.uint64 or found.ndim != 1:
        raise UserError(f"{file} is not a list of hashes. Restore it from a copy.")
    return found
