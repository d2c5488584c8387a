"""The two files of a scored run belong together, and name the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints_tools.file_hashes import BLOCK, N_BLOCKS
from data.errors import UserError
from eval.combine import combine
from eval.report import compare
from eval.results import (
    PREDICTIONS,
    RESULTS,
    Prediction,
    Results,
    each_prediction,
    read_predictions,
    read_results,
    write_run,
)
from eval.weights import hash_weights

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
    with pytest.raises(UserError, match=r"has no results.json.*interrupted.*score again"):
        read_results(run)  # also if the old results were from before there were hashes
    monkeypatch.undo()
    assert read_results(scored(run, label="sad")).predictions
    assert sorted(path.name for path in run.iterdir()) == [PREDICTIONS, RESULTS]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"system": 3}, "system must be a text; it is 3"),
        ({"fields": {"mood": "klass"}}, "fields.*Invalid enum value 'klass'"),
        ({"fields": ["mood"]}, "fields must be an object"),
        ({"fields": {}}, "fields: .*length >= 1"),
        ({"metrics": []}, "metrics must be an object"),
        ({"metrics": METRICS | {"n_examples": "1"}}, "metrics: n_examples must be a whole number; it is '1'"),
        ({"metrics": METRICS | {"fields": {}}}, "metrics.fields.mood.accuracy is missing"),
        ({"metrics": METRICS | {"fields": {"mood": {"accuracy": "1"}}}}, "metrics: fields.* must be .*not a text"),
        ({"metrics": METRICS | {"lenient": METRICS | {"fields": {"mood": {}}}}}, "fields.mood.accuracy is missing"),
        ({"cost": {"seconds": None}}, "cost.* must be a number, not null"),
        ({"counts": 1}, "counts must be an object; it is 1"),
        ({"versions": [[[]]] * 99}, "versions must be an object"),
        ({"settings": {"a": 10**99}}, "a number with more than 64 digits"),
    ],
)
def test_wrong_types_in_results_are_named(tmp_path, change, message):
    run = scored(tmp_path / "run")
    (run / RESULTS).write_text(json.dumps(json.loads((run / RESULTS).read_text()) | change))
    with pytest.raises(UserError, match=rf"run/results.json: .*{message}"):
        read_results(run)


@pytest.mark.parametrize("text", ["", "[", "[" * 1000, '{"system": NaN}', "9" * 5000, "\ud800"])
def test_damaged_results_are_named(tmp_path, text):
    run = scored(tmp_path / "run")
    (run / RESULTS).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"run/results.json: "):
        read_results(run)


WORDS = {"gold": {"s": ["x", "O"]}, "parsed": {"s": None}, "raw": "", "id": "a"}


@pytest.mark.parametrize(
    "line, message",
    [
        (WORDS | {"id": 1}, "id must be a text; it is 1"),
        (WORDS | {"gold": {"s": [1, "O"]}}, "gold.* must be a text"),
        (WORDS | {"n_missing": "1"}, "n_missing must be a whole number; it is '1'"),
        (WORDS | {"unparsed": None}, "unparsed must be a list; it is None"),
        (WORDS | {"top": {"s": [["a", float("nan")]]}}, "not JSON .it has NaN"),
        (WORDS | {"gold_bio": {"s": ["B-x", "x"]}}, "gold_bio.* matching regex"),
        (WORDS | {"gold_bio": {"s": ["B-x"]}}, "1 boundaries of 's' for 2 words"),
        (WORDS | {"parsed_bio": {"s": []}}, "0 boundaries of 's' for 2 words"),
        (WORDS | {"gold": {}}, "gold and parsed must have one label for each word of 's'"),
        (WORDS | {"parsed": {"s": "x"}}, "gold and parsed must have one label for each word of 's'"),
        (WORDS | {"lenient": {"s": "x"}}, "gold and parsed must have one label for each word of 's'"),
        (b'{"id": "\xff"}', "not JSON .byte .* is not UTF-8"),
        (b"[" * 1000, "nested more than 64 levels"),
    ],
)
def test_damaged_predictions_are_named(tmp_path, line, message):
    good = json.dumps(WORDS | {"gold_bio": {"s": ["B-x", "O"]}}).encode()
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    (tmp_path / PREDICTIONS).write_bytes(good + b"\n" + bad + b"\n" + good)
    with pytest.raises(UserError, match=rf"predictions.jsonl, line 2: .*{message}"):
        read_predictions(tmp_path, Results("s", "t", {"s": "token"}, "d", "test", METRICS))


def test_predictions_are_read_line_by_line(tmp_path):
    line = json.dumps({"id": "a", "gold": {"x": "y"}, "raw": "", "parsed": {"x": "y"}})
    (tmp_path / PREDICTIONS).write_text(f"{line}\n{{\n")
    found = each_prediction(tmp_path)
    assert next(found).id == "a"
    with pytest.raises(UserError, match="line 2"):
        next(found)


def test_probabilities_of_other_labels_are_named(tmp_path):
    def refused(message, **changes):
        line = {"id": "a", "gold": {"m": "x"}, "raw": "", "parsed": {"m": "x"}, "top": {"m": [["x", 0.6], ["y", 0.4]]}}
        (tmp_path / PREDICTIONS).write_text(json.dumps(line | {"log_probs": {"m": [-0.5, -0.9]}} | changes))
        with pytest.raises(UserError, match=rf"predictions.jsonl, line 1: .*{message}"):
            read_predictions(tmp_path, results)

    results = Results("s", "t", {"m": "class"}, "d", "test", METRICS, labels={"m": ["x", "y"]})
    for top in ({}, {"m": []}, {"m": [["x"]]}, {"m": [["x", "0.6"]]}, {"m": [["x", 1.5]]}):
        refused("gold, top and log_probs of 'm' must be of the 2 labels in results.json", top=top)
    for log_probs in ([], [-0.5], [-0.5, -0.9, -3.0]):
        refused("gold, top and log_probs of 'm'", log_probs={"m": log_probs})
    refused("gold, top and log_probs of 'm'", gold={"m": "z"})
    refused("log_probs.* must be .*at most 0", log_probs={"m": [0.5, -0.9]})
    for temperature in ("1", {"m": 0}, {"m": "1"}, [1]):
        results.settings["temperature"] = temperature
        with pytest.raises(UserError, match="results.json: settings.temperature"):
            results.temperatures  # noqa: B018
    results.settings["temperature"] = {"m": 2.0}
    assert results.temperatures == {"m": 2.0}


def test_names_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    results = Results("[/] [bold]s", "t", {"[m]": "class"}, "d", "test", METRICS | {"fields": {"[m]": {"accuracy": 1}}})
    write_run(tmp_path, results, [])
    compare([tmp_path])
    assert "[/] [bold]s" in (shown := capsys.readouterr().out) and "[m] accuracy" in shown


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
