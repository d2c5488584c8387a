"""The file of the texts that a model was trained on: what is one text, and what a damaged file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from data.trained_texts import TRAINED_TEXTS_FILE, hash_text, hash_texts, read_trained_texts, save_trained_texts


def test_a_text_is_known_by_its_words() -> None:
    assert hash_text("two  words\n") == hash_text("two words")
    assert len({hash_text(text) for text in ("two words", "twowords", "Two words", "", "\ud800")}) == 5


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    assert read_trained_texts(tmp_path) is None
    for texts in (["b", "a", "b"], []):
        save_trained_texts(hash_texts(texts), tmp_path)
        found = read_trained_texts(tmp_path)
        assert found is not None and found.tolist() == [hash_text(text) for text in texts]


@pytest.mark.parametrize("content", ["empty", "cut", "text", "zip", "header", "floats", "table", "objects"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / TRAINED_TEXTS_FILE
    save_trained_texts(hash_texts("abc"), tmp_path)
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut": whole[:-3], "text": b"no array", "zip": b"PK\x03\x04abc"}
    damaged["header"] = whole.replace(b"{'descr'", b"((((((((")
    if content in damaged:
        path.write_bytes(damaged[content])
    else:
        np.save(path, {"floats": np.zeros(3), "table": np.zeros((2, 2), np.uint64), "objects": np.array([{}])}[content])
    with pytest.raises(UserError, match=f"{TRAINED_TEXTS_FILE} .*Restore it from a copy"):
        read_trained_texts(tmp_path)
