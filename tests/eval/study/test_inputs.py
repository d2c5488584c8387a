"""A study notices that files have another content than for its earlier cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eval.study import listing, records, tables
from eval.study.file import Study, StudyCell, read_study
from eval.study.inputs import TASK, TRAINING, WEIGHTS, inputs_of
from eval.study.page import REPORT
from tests.eval.study.going import FAIL, go

TOML = """
name = "t"
[files]
train = "train.csv"
test = "test.csv"
[[fields]]
name = "q"
type = "class"
labels = ["a", "b"]
"""
FILE = """
[models.tiny]
model = "llama_debug"
checkpoint = "{folder}/tiny"
[tasks.mine]
task = "{folder}/t.toml"
[[cells]]
models = ["tiny"]
tasks = ["mine"]
"""


@pytest.fixture
def own(tmp_path: Path) -> StudyCell:
    """A cell of a user's own task, with a checkpoint."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/model.safetensors").write_bytes(b"weights")
    (tmp_path / "t.toml").write_text(TOML)
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,q\nx,a\ny,b\n")
    (tmp_path / "trial.toml").write_text(FILE.format(folder=tmp_path))
    return read_study(tmp_path / "trial.toml").cells[0]


def test_what_is_changed_is_told_apart(own: StudyCell, tmp_path: Path) -> None:
    before = inputs_of(own)
    assert before.keys() == {TASK, TRAINING, WEIGHTS} and inputs_of(own) == before

    def changed() -> set[str]:
        return {what for what, digest in inputs_of(own).items() if before[what] != digest}

    (tmp_path / "t.toml").write_text("# a comment" + TOML)
    (tmp_path / "test.csv").write_text("text,q\nx,a\n")  # `Results.examples` tells
    assert changed() == set()
    (tmp_path / "t.toml").write_text(TOML.replace("\n[files]", '\ninstruction = "Which one?"\n[files]'))
    assert changed() == {TASK}
    (tmp_path / "train.csv").write_text("text,q\nx,a\n")
    assert changed() == {TASK, TRAINING}
    (tmp_path / "tiny/model.safetensors").write_bytes(b"heights")
    assert changed() == {TASK, TRAINING, WEIGHTS}


def test_examples_that_a_cell_does_not_read_do_not_count(own: StudyCell) -> None:
    untuned = replace(own, cell=replace(own.cell, tuned=False))
    assert inputs_of(untuned).keys() == {TASK, WEIGHTS}
    assert inputs_of(replace(untuned, cell=replace(untuned.cell, shots=1))) == inputs_of(own)


def test_what_cannot_be_read_is_left_to_the_command(own: StudyCell, tmp_path: Path) -> None:
    (tmp_path / "t.toml").unlink()
    assert inputs_of(own) == {}


def test_seeds_of_different_weights_are_named(
    study: Study, programs: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, weights, text = tmp_path / "out", tmp_path / "given/model.safetensors", study.path.read_text()
    weights.parent.mkdir()
    weights.write_bytes(b"some")
    study.path.write_text(f'[models.llama_debug]\ncheckpoint = "{weights.parent}"\n' + text)
    study = read_study(study.path)
    programs(eval={2: FAIL})
    go(study, output)
    weights.write_bytes(b"other")
    programs()
    go(study, output, retry=True)  # the training of seed 2 was done before
    listing.print_cells(study, output)
    assert "note:" not in capsys.readouterr().out
    (output / "cells" / study.cells[2].cell.name / records.RECORD).unlink()
    (output / "cells" / study.cells[2].cell.name / "train/export/config.json").unlink()
    go(study, output)
    listing.print_cells(study, output)
    names = [own.cell.name for own in study.cells]
    note = f"cells of llama_debug had different weights to begin with, such as {names[0]} and {names[2]}"
    assert f"note: {note}" in " ".join(capsys.readouterr().out.split())
    tables.write(study, output)
    for name in (REPORT, "table.md"):
        assert note in (output / name).read_text(), name


@pytest.mark.parametrize("what", [TASK, TRAINING])
def test_seeds_of_different_tasks_or_training_data_are_named(
    study: Study, programs: Callable, tmp_path: Path, what: str
) -> None:
    output = tmp_path / "out"
    go(study, output)
    outcomes = [records.outcome(output, own.cell) for own in study.cells]
    found = []
    for last in ("one", "other"):
        for own, digest in zip(study.cells, ("one", "one", last), strict=True):
            record = records.read_record(output, own.cell)
            assert record is not None
            record.inputs = {what: digest, WEIGHTS: "same"}
            records.write_record(output, own.cell, record)
        found.append(records.doubts(study, output, outcomes))
    first, _, last = (own.cell.name for own in study.cells)
    note = f"cells of massive_intent had different {what}, such as {first} and {last}; "
    assert found == [[], [note + "remove the folders of those to be run again"]]
