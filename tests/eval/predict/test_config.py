"""The options of predict.py: how the input is written, and which are for one kind of model."""

from __future__ import annotations

import pytest

from data.errors import UserError
from data.readers.tables import Dialect
from eval.config import DECODER_ONLY
from eval.predict.config import PredictConfig, load_config
from tests.launching import ROOT
from train.options import flatten

OLD = ROOT / "tests" / "old_files"
ENCODER, DECODER = OLD / "joint" / "export", OLD / "tickets" / "export"
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


@pytest.mark.parametrize("in_file", [False, True])
def test_options_for_the_other_kind_of_model(tmp_path, in_file):
    """As eval.py refuses them, all at once; the checkpoint says which kind it is."""

    def arguments(checkpoint, options):
        words = ["--checkpoint", str(checkpoint), "--input", "a.csv"]
        if in_file:
            lines = (
                f"{name} = {str(value).lower() if value is False else repr(value)}\n" for name, value in options.items()
            )
            (tmp_path / "options.toml").write_text("".join(lines))
            return [*words, "--config", str(tmp_path / "options.toml")]
        return [*words, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]

    given = {"slot_answer": "spans", "list_labels": False, "template": "chatml", "row_length": 100, "decode": "free",
             "max_new_tokens": 5, "tp": 2}  # fmt: skip
    assert set(given) == set(DECODER_ONLY) & set(flatten(PredictConfig())), "all that predict.py has"
    with pytest.raises(UserError) as error:
        load_config(arguments(ENCODER, {**given, "batch_tokens": 0, "abstain_below": 0.5}))
    for name, value in given.items():
        assert f"{name} = {value} is for decoders; roberta is an encoder" in str(error.value)
    assert "batch_tokens = 0: must be" in str(error.value) and "Give --decode labels" not in str(error.value)
    assert load_config(arguments(DECODER, {**given, "max_new_tokens": 6})).max_new_tokens == 6

    with pytest.raises(UserError, match="max_length = 50 is for encoders; llama is a decoder"):
        load_config(arguments(DECODER, {"max_length": 50}))
    with pytest.raises(UserError, match="max_length = 50 is for encoders; smollm2_135m is a decoder"):
        load_config(arguments("none", {"max_length": 50, "model": "smollm2_135m"}))
    assert load_config(arguments(ENCODER, {"max_length": 50})).max_length == 50
