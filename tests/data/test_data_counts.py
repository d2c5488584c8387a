"""The page of counts, on the sample: its figures equal those of the readers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data_counts import main, merged_entities
from data.source import load_examples
from data.tasks import TASKS


def test_the_page(tmp_path: Path) -> None:
    sample = Path(__file__).resolve().parents[2] / "data" / "sample"
    output = tmp_path / "results" / "counts.md"
    arguments = ["--newsgroups", str(sample), "--massive", str(sample), "--output", str(output)]
    assert main([*arguments, "--massive_name", "the sample"]) == 0
    text = output.read_text()
    for task in TASKS.values():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{task.name}` |")]
        for split in ("train", "test"):
            examples = load_examples(task, split, "sample")
            assert f" {len(examples):,} " in row
            assert f" {sum(len(example.text.split()) for example in examples):,} " in row
    assert "## the sample: intents" in text and str(sample.parent) not in text


def test_a_wrong_path_gives_no_traceback(tmp_path: Path) -> None:
    arguments = ["--newsgroups", str(tmp_path), "--massive", str(tmp_path), "--output", str(tmp_path / "x.md")]
    assert main(arguments) == 2
    assert not (tmp_path / "x.md").exists()


def test_merged_entities() -> None:
    assert merged_entities(()) == merged_entities(("Other",)) == 0
    assert merged_entities(("date", "date", "Other", "date", "time")) == 3
