"""The benchmark of predict.py on a tiny model: both programs answer alike, and the peak is that of the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.predict import Options, report
from tests.launching import ROOT

EXPORT = ROOT / "tests" / "old_files" / "joint" / "export"


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    options = Options(
        data=ROOT / "data" / "sample" / "massive" / "en-US.jsonl",
        models=[EXPORT],
        names=["tiny"],
        eval_models=["roberta"],
        n=50,
        memory_model=EXPORT,
        lines=(10, 60),
    )
    text = report(options, tmp_path)
    (row,) = [line for line in text.splitlines() if line.startswith("| tiny |")]
    assert row.endswith("| 50 of 50 |")
    (peak,) = [line.split("|")[2] for line in text.splitlines() if line.startswith("| 60 |")]
    assert 200 < int(peak.split()[0].replace(",", "")) < 5_000  # MB, with PyTorch
