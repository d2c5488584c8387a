"""The two files of a scored run belong together, and name the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import UserError
from eval.combine import combine
from eval.report import compare
from eval.results import PREDICTIONS, RESULTS, Prediction, Results, read_results, write_run
from eval.weights import BLOCK, N_BLOCKS, hash_weights

METRICS = {"n_examples": 1, "n_unparsed": 0, "exact_match": 1.0, "fields": {"mood": {"accuracy": 1.0}}}


def scored(folder, field="mood", label="glad"):
    results = Results("s", "t", {field: "class"}, "d", "test", {**METRICS, "fields": {field: {"accuracy": 1.0}}})
    write_run(folder, results, [Prediction("a", {field: label}, label, {field: label})])
    return folder


def test_results_beside_the_predictions_of_another_scoring_are_refused(tmp_path):
    run, other = scored(tmp_path / "run"), scored(tmp_path / "other", "topic")
    assert compare([run, other])
    assert sorted(path.name for path in run.iterdir()) == [PREDICTIONS, RESULTS]
    kept = (run / RESULTS).read_bytes()
    scored(run, label="sad")
    (run / RESULTS).write_bytes(kept)
    for read in (lambda: compare([other, run]), lambda: combine(run, other, tmp_path / "dual")):
        with pytest.raises(UserError, match=r"run/predictions.jsonl' is not of the scoring that wrote results.json"):
            read()
    (run / PREDICTIONS).unlink()
    assert compare([run, other]), "figures alone can be compared"


def test_a_scoring_that_ends_between_its_two_files_is_noticed(tmp_path, monkeypatch):
    run, real = scored(tmp_path / "run"), Path.replace

    def replace(path, target):
        if Path(target).name == RESULTS:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        scored(run, label="sad")
    with pytest.raises(UserError, match="Score again"):
        read_results(run)
    monkeypatch.undo()
    assert read_results(scored(run, label="sad")).predictions
    assert sorted(path.name for path in run.iterdir()) == [PREDICTIONS, RESULTS]


def test_files_from_before_there_were_hashes_are_read(tmp_path):
    run = scored(tmp_path / "run")
    record = json.loads((run / RESULTS).read_text())
    assert len(record.pop("predictions")) == 64 and record.pop("weights") == ""
    (run / RESULTS).write_text(json.dumps(record))
    (run / PREDICTIONS).write_text("")
    assert read_results(run).predictions == ""


@pytest.mark.parametrize("size", [10, 3 * BLOCK, (N_BLOCKS + 9) * BLOCK + 5])
def test_weights_are_told_apart_by_name_size_and_content(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    seen = {hash_weights(tmp_path)}
    (tmp_path / "prompt.json").write_text("{}")
    assert hash_weights(tmp_path) in seen, "not weights"
    for place in (0, size - 1):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        seen.add(hash_weights(tmp_path))
    path.write_bytes(bytes(size + 1))
    seen.add(hash_weights(tmp_path))
    path.rename(tmp_path / "other.safetensors")
    seen.add(hash_weights(tmp_path))
    assert len(seen) == 5
