"""The options of predict.py that say how the input is written."""

from __future__ import annotations

import pytest

from data.errors import UserError
from data.readers.tables import Dialect
from eval.predict.config import load_config

GIVEN = ["--checkpoint", "x", "--input", "a.csv"]


def test_how_the_input_is_written() -> None:
    assert load_config(GIVEN).dialect == Dialect()
    options = [*GIVEN, "--delimiter", r"\t", "--encoding", "windows-1252", "--tsv_quoting", "--conll_columns", "a", "b"]
    assert load_config(options).dialect == Dialect("\t", "windows-1252", True, conll_columns=("a", "b"))


def test_what_cannot_separate_cells_and_what_is_no_encoding() -> None:
    with pytest.raises(UserError, match=r"delimiter must be one character, such as \";\", .*; it is ';;'"):
        load_config([*GIVEN, "--delimiter", ";;"])
    with pytest.raises(UserError, match="'utf-17' is no encoding that tables are read in. Did you mean 'utf-1"):
        load_config([*GIVEN, "--encoding", "utf-17"])
