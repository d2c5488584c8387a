"""The benchmark of saving runs, on a tiny model, and reports both ways of saving."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import saving


@pytest.mark.slow
def test_it_runs_and_reports_both_ways(tmp_path: Path) -> None:
    output = tmp_path / "saving.md"
    args = [
        "--model",
        "llama_debug",
        "--rounds",
        "1",
        "--steps",
        "1",
        "--folder",
        str(tmp_path),
        "--output",
        str(output),
    ]
    assert saving.main(args) == 0
    text = output.read_text()
    for part in ("`--async_save off`", "`--async_save on`", "On disk: ", "the copy is "):
        assert part in text
    assert sorted(tmp_path.iterdir()) == [output], "checkpoints are deleted"
