"""From ``eval.py --calibrate`` to probabilities at the stored temperature, and which calibrations are used for what."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss

from checkpoints_tools.checksums import CHECKSUMS, Damaged, find_damage, read_checksums, write_checksums
from checkpoints_tools.convert import convert
from checkpoints_tools.formats import CALIBRATION_FILE
from data.errors import UserError
from data.files.documents import read_json
from data.task_file import save_task
from data.tasks import TASKS
from eval.calibration import calibration_error, fit_temperature
from eval.config import EvalConfig
from eval.identity import identity_of
from eval.report import show_details
from eval.resolve import load_config
from eval.results import read_predictions, read_results
from eval.setup import open_scoring
from eval.stored_calibration import Calibration, FieldCalibration, check_can_fit, hash_prompt
from eval.weights import Weights
from model.encoder import ROBERTA_BASE
from tests.encoder_exports import write_encoder
from tests.encoder_reference import scaled_down
from tests.eval.test_eval_cli import fine_tuned
from tests.eval.test_partial import ended_after
from tests.launching import TICKETS, call_main

INTENT = TASKS["massive_intent"]
DECODER = ["--model", "llama_debug"]


def test_a_temperature_at_its_limit_is_named():
    def said(gold):
        own = FieldCalibration(fit_temperature([[2.0, 0.0]] * 1000, gold), 0.2, 0.1)
        return Calibration(1, {"queue": own}, 1000, "dev", "", "").describe()

    assert "warning: the temperature of queue is at its limit" in said([1] * 1000)
    assert "warning" not in said([0, 0, 1, 0] * 250)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An encoder's export with random weights, whose answers depend on the text and are sure of themselves."""
    config = replace(scaled_down(ROBERTA_BASE), max_position=40)
    return write_encoder(tmp_path_factory.mktemp("exported"), INTENT, config, add=lambda new: save_task(INTENT, new))


@pytest.fixture
def export(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "export")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Score in this process; the results and predictions."""

    def scored(folder, name, *more):
        words = ["--checkpoint", folder, "--output", tmp_path / name, "--cache_dir", tmp_path / "cache", *more]
        words += [] if "--model" in more else ["--model", "roberta"]
        words += [] if "--data" in more else ["--data", "sample"]
        call_main(monkeypatch, "eval.py", *words, "--device", "cpu", "--precision", "fp32")
        return read_results(tmp_path / name), read_predictions(tmp_path / name)

    return scored


def plan(checkpoint, **options):
    return open_scoring(EvalConfig(checkpoint=checkpoint, **{"model": "roberta", "data": "sample", **options}))


def test_calibrated_on_one_split_and_scored_on_another(export, run, capsys):
    card = export / "README.md"
    card.write_text("mine")
    before, plain = run(export, "before")
    assert before.settings["temperature"] is None and "ece_uncalibrated" not in before.metrics["fields"]["intent"]
    fitted_to, _ = run(export, "dev", "--split", "dev", "--calibrate")
    found = json.loads((export / CALIBRATION_FILE).read_text())
    assert (found["split"], found["n_examples"], found["examples"]) == ("dev", 52, fitted_to.examples)
    temperature = found["fields"]["intent"]["temperature"]
    assert 1.5 < temperature < 20 and fitted_to.settings["temperature"] is None
    assert found["fields"]["intent"]["ece_before"] == pytest.approx(
        fitted_to.metrics["fields"]["intent"]["ece"], abs=1e-6
    )
    assert found["fields"]["intent"]["ece_after"] < found["fields"]["intent"]["ece_before"]
    assert f"intent: temperature {temperature:.3g}, calibration error" in (said := capsys.readouterr().out)
    assert "52 examples are few" in said and CALIBRATION_FILE in read_checksums(export)
    assert find_damage(export) == [] and card.stat().st_mtime_ns > (export / CHECKSUMS).stat().st_mtime_ns

    after, answers = run(export, "after")
    assert after.settings["temperature"] == {"intent": temperature}
    assert f"(intent {temperature:.3g})" in capsys.readouterr().out
    assert [p.parsed for p in answers] == [p.parsed for p in plain], "it changes how sure an answer is, and no answer"
    assert [p.log_probs for p in answers] == [p.log_probs for p in plain]
    logits = np.array([p.log_probs["intent"] for p in answers])
    gold = [INTENT.fields[0].labels.index(p.gold["intent"]) for p in answers]
    correct = [p.gold == p.parsed for p in answers]
    figures, at = after.metrics["fields"]["intent"], np.exp(log_softmax(logits / temperature, axis=1))
    assert [p.top["intent"][0][1] for p in answers] == pytest.approx(at.max(axis=1).tolist(), abs=2e-6)
    numbers = list(range(len(INTENT.fields[0].labels)))
    assert figures["nll"] == pytest.approx(log_loss(gold, at, labels=numbers), abs=1e-5)
    assert figures["nll_uncalibrated"] == pytest.approx(log_loss(gold, np.exp(logits), labels=numbers), rel=1e-4)
    assert figures["ece"] == pytest.approx(calibration_error(at.max(axis=1), correct), abs=1e-6)
    assert figures["ece_uncalibrated"] == pytest.approx(before.metrics["fields"]["intent"]["ece"], abs=1e-9)
    assert figures["ece"] < figures["ece_uncalibrated"] and figures["nll"] < figures["nll_uncalibrated"]
    assert after.labels == {"intent": list(INTENT.fields[0].labels)}
    curve = after.metrics["coverage"]["intent"]
    assert len(curve) > 10 and curve[-1]["coverage"] == 1 and curve[-1]["accuracy"] == figures["accuracy"]
    show_details(after)
    shown = capsys.readouterr().out
    assert (
        f"{figures['ece']:.2%}" in shown
        and f"{figures['nll']:.4f}" in shown
        and "calibration error, no temperature" in shown
    )


def test_unsure_answers_are_not_given(export, run, capsys):
    plain, _ = run(export, "plain")
    point = plain.metrics["coverage"]["intent"][9]
    results, answers = run(export, "unsure", "--abstain_below", point["threshold"])
    left_out = [p.top["intent"][0][1] < point["threshold"] for p in answers]
    assert 0.3 < sum(left_out) / len(left_out) < 0.7 and [p.abstained == ("intent",) for p in answers] == left_out
    given = [p for p in answers if not p.abstained]
    accuracy = accuracy_score([p.gold["intent"] for p in given], [p.parsed["intent"] for p in given])
    own = {"answered": len(given) / len(answers), "accuracy": accuracy}
    assert own == {"answered": point["coverage"], "accuracy": pytest.approx(point["accuracy"])}, "the curve says so"
    expected = {"below": point["threshold"], "answered": own["answered"], "exact_match": accuracy}
    assert results.metrics.pop("abstaining") == expected | {"fields": {"intent": own}}
    assert results.metrics == plain.metrics, "all other figures are those of all examples"
    shown = capsys.readouterr().out
    assert f"{own['answered']:.2%}" in shown and "intent, given from" in shown
    with pytest.raises(UserError, match="with another abstain_below"):
        run(export, "plain", "--abstain_below", "0.5")

    strict, _ = run(export, "strict", "--abstain_below", "1")
    none = strict.metrics["abstaining"]
    assert (none["answered"], none["exact_match"]) == (0, None) and none["fields"]["intent"]["accuracy"] is None
    assert "none" in capsys.readouterr().out


def test_a_decoder_has_probabilities_only_of_valid_answers(tiny_checkpoint, tmp_path, run, caplog):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "tuned")
    save_task(INTENT, folder)
    labels = ["--decode", "labels", "--limit", "12", "--max_new_tokens", "2", *DECODER]
    run(folder, "dev", "--split", "dev", "--calibrate", *labels)
    calibration = json.loads((folder / CALIBRATION_FILE).read_text())
    temperature = calibration["fields"]["intent"]["temperature"]
    assert calibration["prompt"] == hash_prompt(spec.build(INTENT)) and find_damage(folder) == []
    results, strict = run(folder, "labels", "--abstain_below", "0.05", *labels)
    assert results.settings["temperature"] == {"intent": temperature} != {"intent": 1.0}
    at = log_softmax(np.array([p.log_probs["intent"] for p in strict]) / temperature, axis=1)
    assert [p.top["intent"][0][1] for p in strict] == pytest.approx(np.exp(at).max(axis=1).tolist(), abs=2e-6)
    free, answers = run(folder, "free", "--limit", "3", "--max_new_tokens", "2", *DECODER)
    assert free.settings["temperature"] is None and free.labels == {} and not answers[0].log_probs
    assert "coverage" not in free.metrics and "ece" not in free.metrics["fields"]["intent"]
    caplog.set_level(logging.INFO)
    options = {"model": "llama_debug", "decode": "labels", "new_prompt": True, "task": "massive_intent"}
    assert plan(folder, **options).calibration is None
    assert f"{folder / CALIBRATION_FILE} was fitted for another prompt; it is not used" in caplog.text
    convert(folder, tmp_path / "converted", shard_bytes=50_000)
    again, answers_again = run(tmp_path / "converted", "converted", "--abstain_below", "0.05", *labels)
    assert again.weights != results.weights and again.settings["temperature"] == {"intent": temperature}
    assert [p.top for p in answers_again] == [p.top for p in strict], "the same values, in other files"
    convert(folder, tmp_path / "cast", dtype="bf16")
    assert not (tmp_path / "cast" / CALIBRATION_FILE).exists(), "other values"


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_scoring_that_was_interrupted_goes_on_at_another_temperature(
    kind, export, tiny_checkpoint, tmp_path, run, monkeypatch
):
    """Every number is that of a scoring that was begun afterwards and never interrupted; at another threshold too."""
    options = ["--batch_tokens", "1", "--limit", "30"]
    if kind == "decoder":
        export, _ = fine_tuned(tiny_checkpoint, tmp_path / "tuned")
        save_task(INTENT, export)
        options += ["--decode", "labels", "--max_new_tokens", "2", *DECODER]

    def interrupt(*names_and_more):
        name, *more = names_and_more
        with ended_after(7, monkeypatch):
            run(export, name, *options, *more)

    def numbers(name):
        found = json.loads((tmp_path / name / "results.json").read_text())
        for of_this_run in ("seconds", "seconds_per_example", "computed_tokens"):
            del found["cost"][of_this_run]
        return found["settings"].pop("kept_answers"), found, (tmp_path / name / "predictions.jsonl").read_bytes()

    def check_goes_on(name, n_kept, temperatures, *more):
        results, answers = run(export, name, *options, *more)
        assert results.settings["temperature"] == temperatures
        run(export, f"whole {name}", *options, *more)
        assert numbers(name)[0] == n_kept and numbers(f"whole {name}")[0] == 0
        assert numbers(name)[1:] == numbers(f"whole {name}")[1:]
        return answers

    for name in ("plain", "twice"):
        interrupt(name)
    run(export, "dev", *options, "--split", "dev", "--calibrate")
    stored = read_json(export / CALIBRATION_FILE, Calibration)
    first, second = stored.temperatures, {"intent": stored.temperatures["intent"] / 2}
    assert 1.0 not in (first["intent"], second["intent"])
    interrupt("first", "--abstain_below", "0.999")
    check_goes_on("plain", 7, first)
    interrupt("twice", "--abstain_below", "0.5")
    structs.replace(stored, fields={"intent": FieldCalibration(second["intent"], 0.2, 0.1)}).save(export)
    answers = check_goes_on("twice", 14, second)
    below = sorted(answer.top["intent"][0][1] for answer in answers)[15]
    answers = check_goes_on("first", 7, second, "--abstain_below", below)
    assert 10 < sum(bool(answer.abstained) for answer in answers) < 20
    interrupt("none")
    (export / CALIBRATION_FILE).unlink()
    write_checksums(export)
    check_goes_on("none", 7, None)


@pytest.fixture
def calibrated(export, run):
    run(export, "dev", "--split", "dev", "--calibrate", "--limit", "20")
    return export


def test_a_calibration_that_is_replaced_is_named(calibrated, run, capsys):
    capsys.readouterr()
    stored = Calibration.describe(read_json(calibrated / CALIBRATION_FILE, Calibration))
    assert "on the 20 dev examples" in stored
    run(calibrated, "again", "--split", "dev", "--calibrate", "--limit", "5")
    shown = capsys.readouterr()
    assert f"this replaces the temperatures that were stored: {stored}" in shown.out + shown.err


def test_what_was_fitted_for_something_else_is_not_used(calibrated, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    setup = plan(calibrated)
    assert setup.calibration is not None and setup.job.temperatures == setup.calibration.temperatures
    continued = identity_of(setup, "fp32", "w")
    assert "note" not in caplog.text
    path = calibrated / CALIBRATION_FILE
    for name in ("task", "weights"):
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | {name: "0" * 64}))
        write_checksums(calibrated)
        assert plan(calibrated).calibration is None
        assert f"{path} was fitted for another {name}; it is not used" in caplog.text
        path.write_text(kept)
    (calibrated / "model.safetensors").write_bytes((calibrated / "model.safetensors").read_bytes()[:-4] + b"abcd")
    write_checksums(calibrated)
    caplog.clear()
    assert plan(calibrated).calibration is None and "fitted for another weights" in caplog.text
    assert identity_of(plan(calibrated), "fp32", "w") == continued, "the answers do not depend on it"
    path.unlink()
    write_checksums(calibrated)
    caplog.clear()
    assert plan(calibrated).calibration is None and "fitted" not in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"fields": {"intent": {"temperature": 0, "ece_before": 0.1, "ece_after": 0.1}}},
            "temperature .*at least 0.05",
        ),
        (
            {"fields": {"intent": {"temperature": "2", "ece_before": 0.1, "ece_after": 0.1}}},
            "temperature must be a numb",
        ),
        (
            {"fields": {"mood": {"temperature": 2.0, "ece_before": 0.1, "ece_after": 0.1}}},
            "is damaged: it has tem.* mood",
        ),
        ({"fields": {}}, "fields"),
        ({"format": 2}, "format"),
        ({"n_examples": None}, "n_examples must be a whole number"),
    ],
)
def test_a_damaged_calibration_is_named(calibrated, change, message):
    path = calibrated / CALIBRATION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Damaged, match=CALIBRATION_FILE):
        plan(calibrated)
    write_checksums(calibrated)
    with pytest.raises(UserError, match=rf"{CALIBRATION_FILE}.*{message}"):
        plan(calibrated)
    assert plan(calibrated, calibrate=True, split="dev").calibration is None, "a new one replaces it"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--abstain_below", "0"], "abstain_below = 0.0: must be above 0 and at most 1"),
        (["--abstain_below", "1.5"], "abstain_below = 1.5: must be above 0 and at most 1"),
        (["--abstain_below", "nan"], "abstain_below = nan: must be"),
        ([*DECODER, "--abstain_below", "0.5"], "--abstain_below needs the prob.* Give --decode labels"),
        ([*DECODER, "--calibrate", "--split", "dev"], "--calibrate needs the prob.* Give --decode labels"),
        (["--calibrate"], "--calibrate fits .* Give --split dev"),
        (["--calibrate", "--split", "dev", "--abstain_below", "0.5"], "--calibrate scores without a temperature"),
        (
            ["--model", "gpt-4o", "--abstain_below", "0.5"],
            "--abstain_below is for models whose weights are loaded here",
        ),
        (["--model", "gpt-4o", "--calibrate"], "--calibrate is for models whose weights are loaded here"),
    ],
)
def test_options_that_make_no_sense(words, message):
    given = [] if "--model" in words else ["--model", "roberta"]
    given += [] if "gpt-4o" in words else ["--checkpoint", "x"]
    with pytest.raises(UserError, match=message):
        load_config([*given, "--task", "massive_intent", *words])


def test_combined_and_compared_runs_take_no_such_options():
    for name in (["--abstain_below", "0.5"], ["--calibrate"]):
        for mode in (["--combine", "a", "b"], ["--compare", "a", "b"]):
            with pytest.raises(UserError, match=f"reads finished runs; it takes no {name[0]}"):
                load_config([*mode, *name])


def test_what_cannot_be_calibrated(export, tiny_checkpoint, tmp_path, monkeypatch, caplog):
    with pytest.raises(UserError, match="--split train: the checkpoint was fine-tuned on these"):
        plan(export, calibrate=True, split="train")
    with pytest.raises(UserError, match="step_9 is a training checkpoint, .* Calibrate the run's export"):
        check_can_fit(Weights(tmp_path / "step_9", export, is_training=True), "dev", fine_tuned=True)
    slots = {"model": "llama_debug", "decode": "labels", "task": "massive_slots"}
    for more, name in ({"calibrate": True, "split": "dev"}, "calibrate"), ({"abstain_below": 0.5}, "abstain_below"):
        with pytest.raises(
            UserError, match=f"--{name} is about the probabilities of class fields, and task massive_slo"
        ):
            plan(tiny_checkpoint, **slots, **more)
    caplog.set_level("INFO")
    plan(tiny_checkpoint, **slots | {"task": "massive_joint", "abstain_below": 0.5})
    assert "note: --abstain_below is about class fields; the labels of slots are all given." in caplog.messages
    bare = {"model": "llama_debug", "decode": "labels", "task": str(TICKETS), "data": None}
    assert plan(tiny_checkpoint, **bare, calibrate=True, split="train").examples, "it was never trained on these"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"export is not writable, so no calibration.json can be stored there"):
        plan(export, calibrate=True, split="dev")
