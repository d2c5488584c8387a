"""Joining two single-task runs: figures of the joint run, and runs that must not be joined."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import UserError
from data.example import Example
from data.tasks import TASKS, ClassField, Task, TokenField
from eval.baselines import BaselineConfig, run_baselines
from eval.combine import combine, combine_runs
from eval.metrics import compute_metrics
from eval.report import markdown
from eval.results import (
    Prediction,
    Results,
    field_kinds,
    label_sets,
    mark_unsure,
    measure,
    other_labels,
    read_predictions,
    read_results,
    write_run,
)

GOLD = [
    Example(f"massive/test/{i}", "a b c", {"intent": intent, "slots": slots}, {"slots": bio})
    for i, (intent, slots, bio) in enumerate(
        [
            ("alarm_set", ("Other", "date", "date"), ("O", "B-date", "I-date")),
            ("alarm_set", ("Other", "date", "date"), ("O", "B-date", "B-date")),
            ("play_music", ("Other", "Other", "Other"), ("O", "O", "O")),
            ("play_music", ("time", "Other", "Other"), ("B-time", "O", "O")),
        ]
    )
]
INTENTS = ["alarm_set", None, "play_music", "alarm_set"]
SLOTS = [("Other", "date", "date"), ("Other", "date", "date"), None, ("time", "Other", "Other")]


def write_single(folder, task, answers, gold=GOLD, shots=0, reverse=False):
    task = TASKS[task]
    (name,) = (field.name for field in task.fields)
    predictions = [
        Prediction(
            example.id,
            {name: example.labels[name]},
            raw=f"raw {answer}",
            parsed={name: answer},
            unparsed=(name,) if answer is None else (),
            n_prompt_tokens=100,
            n_new_tokens=5,
            gold_bio={n: tags for n, tags in example.bio.items() if n == name},
            n_labels={"slots": 2} if name == "slots" else {},
        )
        for example, answer in zip(gold, answers, strict=True)
    ]
    if reverse:
        predictions.reverse()
    cost = {"seconds": 8.0, "seconds_per_example": 2.0, "prompt_tokens": 100.0, "new_tokens": 5.0}
    metrics = compute_metrics(task, [p.example for p in predictions], predictions)
    results = Results(
        task.name, task.name, field_kinds(task), "sample", "test", metrics, model="m", shots=shots, cost=cost
    )
    write_run(folder, results, predictions)
    return folder


def pair(tmp_path, **second):
    a = write_single(tmp_path / "intent", "massive_intent", INTENTS)
    return a, write_single(tmp_path / "slots", "massive_slots", SLOTS, **second)


def test_joint_figures_equal_those_of_the_same_answers_given_jointly(tmp_path):
    a, b = pair(tmp_path, reverse=True)
    results = combine(a, b, tmp_path / "joint", "dual")
    answers = [
        Prediction(g.id, g.labels, "", {"intent": i, "slots": s}) for g, i, s in zip(GOLD, INTENTS, SLOTS, strict=True)
    ]
    assert results.metrics == compute_metrics(TASKS["massive_joint"], GOLD, answers)
    assert results.metrics["exact_match"] == 1 / 4
    assert results.metrics["n_unparsed"] == 2
    assert results.metrics["fields"]["slots"]["strict_f1"] < results.metrics["fields"]["slots"]["f1"]
    assert read_results(tmp_path / "joint") == results
    assert results.system == "dual" and list(results.fields) == ["intent", "slots"]
    joined = read_predictions(tmp_path / "joint")
    assert [p.id for p in joined] == [g.id for g in GOLD]
    assert joined[1].unparsed == ("intent",) and joined[2].unparsed == ("slots",)


def test_two_calls_cost_the_sum(tmp_path):
    results, predictions = combine_runs(*pair(tmp_path))
    assert results.cost == {
        "seconds": 16.0,
        "seconds_per_example": 4.0,
        "prompt_tokens": 200.0,
        "new_tokens": 10.0,
    }
    assert predictions[0].n_prompt_tokens == 200 and predictions[0].n_labels == {"slots": 2}


def rewrite(folder: Path, **values: object) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_dollars_are_kept_if_only_one_run_is_behind_an_api(tmp_path):
    """A model of one's own is not charged for. Where a price is not known, nor is the sum."""
    a, b = pair(tmp_path)
    known, tokens = {"cost": {"prompt_tokens": 100.0, "dollars": 0.5}, "settings": {"api_model": "x"}}, 200.0
    rewrite(a, **known)
    for runs in ((a, b), (b, a)):
        assert combine_runs(*runs)[0].cost == {"prompt_tokens": tokens, "dollars": 0.5}
    rewrite(b, **known)
    assert combine_runs(a, b)[0].cost == {"prompt_tokens": tokens, "dollars": 1.0}
    rewrite(b, cost={"prompt_tokens": 100.0}, settings={"api_model": "x", "dollars": None})
    for runs in ((a, b), (b, a)):
        assert combine_runs(*runs)[0].cost == {"prompt_tokens": tokens}


def test_a_baseline_has_neither_cost_nor_model(tmp_path):
    """Its seconds were not measured as a model's are, so a sum would be too small."""
    a, b = pair(tmp_path)
    rewrite(a, cost={}, model="")
    for runs in ((a, b), (b, a)):
        results, _ = combine_runs(*runs)
        assert results.cost == {} and results.model == "m"


def test_counts_that_predictions_do_not_have_are_summed(tmp_path):
    """A server's: without them, refused answers of a joint run would look like unreadable text."""
    a, b = pair(tmp_path)
    servers = {"refused": 1, "empty": 2, "missing": 0, "without_usage": 4, "limit_shortened": 3}
    for folder, counts in ((a, servers | {"truncated": 4}), (b, {"refused": 2, "empty": 1, "truncated": 4})):
        rewrite(folder, counts=counts)
    results, _ = combine_runs(a, b)
    expected = {"refused": 3, "empty": 3, "missing": 0, "without_usage": 4, "limit_shortened": 3}
    assert {name: results.counts[name] for name in expected} == expected
    assert results.counts["truncated"] == 0, "what predictions tell is of documents, and counted in them"
    for folder in (a, b):
        rewrite(folder, counts={})
    assert combine_runs(a, b)[0].counts["limit_shortened"] == 0, "every run has this count"
    assert "trained_on" not in combine_runs(a, b)[0].counts, "neither checkpoint says what it was trained on"
    for one, other, joined in ((2, 1, 2), (0, 3, 3)):
        rewrite(a, counts={"trained_on": one})
        rewrite(b, counts={"trained_on": other})
        assert combine_runs(a, b)[0].counts["trained_on"] == joined, "both runs have the same texts"


def test_a_run_may_be_given_by_its_results(tmp_path):
    a, b = pair(tmp_path)
    assert combine_runs(a / "results.json", b / "results.json") == combine_runs(a, b)


def test_other_examples_are_refused(tmp_path):
    a = write_single(tmp_path / "a", "massive_intent", INTENTS)
    b = write_single(tmp_path / "b", "massive_slots", SLOTS[:3], gold=GOLD[:3])
    with pytest.raises(UserError, match=r"1 only in .*massive/test/3"):
        combine_runs(a, b)
    with pytest.raises(UserError, match=r"1 only in .*massive/test/3"):
        combine_runs(b, a)


def test_runs_of_one_task_are_refused(tmp_path):
    a = write_single(tmp_path / "a", "massive_intent", INTENTS)
    with pytest.raises(UserError, match="both runs answer intent.*--compare"):
        combine_runs(a, a)


def test_other_shots_are_refused(tmp_path):
    with pytest.raises(UserError, match="0 shots.*5"):
        combine_runs(*pair(tmp_path, shots=5))


def without_hash(folder: Path) -> None:
    """As results of older code are: their predictions may be any."""
    rewrite(folder, predictions="")


def test_disagreeing_gold_is_refused(tmp_path):
    """Gold of a field that both runs store: here the slots beside the intents, one of them altered."""
    a, b = pair(tmp_path)
    lines = [json.loads(line) for line in (a / "predictions.jsonl").read_text().splitlines()]
    for line, gold in zip(lines, GOLD, strict=True):
        line["gold"]["slots"] = list(gold.labels["slots"])
    lines[3]["gold"]["slots"] = ["Other", "Other", "Other"]
    (a / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    without_hash(a)
    with pytest.raises(UserError, match="massive/test/3.*different gold slots"):
        combine_runs(a, b)


def own_run(tmp_path: Path, name: str, texts: Sequence[str]) -> Path:
    """A baseline of a user's own task with one field of this name, whose examples have these texts."""
    for split in ("train", "test"):
        rows = "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts))
        (tmp_path / f"{name}_{split}.csv").write_text(f"text,{name}\n{rows}")
    files = f'[files]\ntrain = "{name}_train.csv"\ntest = "{name}_test.csv"\n'
    field = f'[[fields]]\nname = "{name}"\ntype = "class"\nlabels_from = "train"\n'
    (tmp_path / f"{name}.toml").write_text(f'name = "my_{name}"\n{files}{field}')
    run_baselines(BaselineConfig(task=str(tmp_path / f"{name}.toml"), output=tmp_path / name))
    return tmp_path / name / "majority"


def test_own_tasks_are_paired_by_their_places_in_the_files(tmp_path):
    """Their ids begin with the task's name. Other texts at the same places are other examples."""
    texts = [f"text {n}" for n in range(6)]
    results, predictions = combine_runs(own_run(tmp_path, "one", texts), own_run(tmp_path, "two", texts))
    assert results.metrics["n_examples"] == len(predictions) == 6 and results.texts
    assert predictions[0].id == "my_one/test/2" and list(predictions[0].gold) == ["one", "two"]
    spaced = own_run(tmp_path, "spaced", [text.replace(" ", "  ") for text in texts])
    assert combine_runs(tmp_path / "one" / "majority", spaced)[0].texts, "a list of words has other spaces than a text"
    with pytest.raises(UserError, match="have other texts under the same ids"):
        combine_runs(tmp_path / "one" / "majority", own_run(tmp_path, "three", texts[::-1]))


def test_a_run_that_is_itself_joined_is_refused(tmp_path):
    """Ids of own tasks begin with the first task's name, so its examples would be taken for others."""
    texts = [f"text {n}" for n in range(6)]
    one, two, three = (own_run(tmp_path, name, texts) for name in ("one", "two", "three"))
    combine(one, two, tmp_path / "joint")
    for runs in ((tmp_path / "joint", three), (three, tmp_path / "joint")):
        with pytest.raises(UserError, match=r"joint is itself two runs that were joined \(my_one\+my_two\)"):
            combine_runs(*runs)


def test_an_example_scored_twice_is_refused(tmp_path):
    a, b = pair(tmp_path)
    text = (a / "predictions.jsonl").read_text()
    (a / "predictions.jsonl").write_text(text + text.splitlines()[0] + "\n")
    without_hash(a)
    with pytest.raises(UserError, match="scored twice: massive/test/0"):
        combine_runs(a, b)


def test_folders_without_a_run(tmp_path):
    a, b = pair(tmp_path)
    with pytest.raises(UserError, match="not a scored run"):
        combine_runs(a, tmp_path)
    (b / "predictions.jsonl").write_text('{"id": "x"\n')
    without_hash(b)
    with pytest.raises(UserError, match="predictions.jsonl, line 1"):
        combine_runs(a, b)
    (b / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match="has no predictions.jsonl"):
        combine_runs(a, b)
    (b / "results.json").write_text('{"some": "thing"}')
    with pytest.raises(UserError, match="slots/results.json: system is missing"):
        combine_runs(a, b)


def abstaining(tmp_path: Path, below: float | None, *names: str) -> list[Path]:
    """Runs of one class field each, scored with ``--abstain_below``, whose fields have the labels a and b."""
    sure, folders = [0.9, 0.7, 0.6, 0.8], []
    for name in names:
        own = ClassField(name, ("a", "b"))
        task = Task(name, "custom", (own,))
        gold = [Example(f"massive/test/{i}", "x", {name: label}) for i, label in enumerate("abab")]
        predictions = [
            Prediction(e.id, dict(e.labels), "", {name: "a"}, top={name: [["a", p], ["b", 1 - p]]},
                       log_probs={name: [math.log(p), math.log(1 - p)]})
            for e, p in zip(gold, sure, strict=True)
        ]  # fmt: skip
        mark_unsure(predictions, below)
        metrics = measure(task, gold, predictions, None, below)
        settings = {"abstain_below": below}
        results = Results(name, name, field_kinds(task), "sample", "test", metrics, settings=settings,
                          labels=label_sets(task))  # fmt: skip
        write_run(tmp_path / name, results, predictions)
        folders.append(tmp_path / name)
        sure = [0.9, 0.8, 0.8, 0.1]
    return folders


def test_labels_that_are_not_given_are_not_given_in_the_joint_run(tmp_path, caplog):
    one, two = abstaining(tmp_path, 0.75, "one", "two")
    results, predictions = combine_runs(one, two)
    assert [p.abstained for p in predictions] == [(), ("one",), ("one",), ("two",)]
    own = {name: {"answered": n / 4, "accuracy": right} for name, n, right in (("one", 2, 0.5), ("two", 3, 2 / 3))}
    expected = {"below": 0.75, "answered": 1 / 4, "exact_match": 1.0, "fields": own}
    assert results.metrics["abstaining"] == expected and results.settings["abstain_below"] == 0.75
    slots = write_single(tmp_path / "slots", "massive_slots", SLOTS)
    results, predictions = combine_runs(one, slots)
    assert results.metrics["abstaining"]["fields"] == {"one": own["one"]}, "slots have no probabilities"
    assert [p.abstained for p in predictions] == [(), ("one",), ("one",), ()] and not caplog.text


def test_a_temperature_that_only_one_run_has_is_kept(tmp_path):
    (one,), slots = abstaining(tmp_path, None, "one"), write_single(tmp_path / "slots", "massive_slots", SLOTS)
    own = read_results(one).metrics["fields"]["one"]
    rewrite(one, settings={"temperature": {"one": 2.0}})
    for runs in ((one, slots), (slots, one)):
        results, predictions = combine_runs(*runs)
        assert results.settings["temperature"] == {"one": 2.0} and results.labels == {"one": ["a", "b"]}
        figures = results.metrics["fields"]["one"]
        assert figures["nll_uncalibrated"] == pytest.approx(own["nll"]) != figures["nll"]
        assert list(results.metrics["coverage"]) == ["one"] and all("one" in p.log_probs for p in predictions)


def test_runs_with_other_thresholds_have_no_joint_abstaining(tmp_path, caplog):
    (one,), (two,) = abstaining(tmp_path, 0.75, "one"), abstaining(tmp_path, None, "two")
    results, predictions = combine_runs(one, two)
    assert f"{one} was scored with --abstain_below 0.75, {two} with no --abstain_below: the joint run" in caplog.text
    assert "abstaining" not in results.metrics and "abstain_below" not in results.settings
    assert [p.abstained for p in predictions] == [(), ("one",), ("one",), ()], "each field's own is kept"


def chatty_slots(tmp_path: Path) -> Path:
    """A decoder's run, whose third answer only the lenient reading reads."""
    folder = write_single(tmp_path / "decoder", "massive_slots", SLOTS)
    results, predictions = read_results(folder), read_predictions(folder)
    for prediction in predictions:
        prediction.lenient = {}
    predictions[2].lenient = {"slots": ("Other", "Other", "Other")}
    results.metrics = measure(TASKS["massive_slots"], GOLD, predictions)
    write_run(folder, results, predictions)
    return folder


def silent_intents(tmp_path: Path) -> Path:
    """An encoder's run, which writes no text and so has no lenient reading."""
    folder = write_single(tmp_path / "encoder", "massive_intent", INTENTS)
    predictions = [replace(p, raw="") for p in read_predictions(folder)]
    write_run(folder, read_results(folder), predictions)
    return folder


def test_the_text_of_a_joint_answer_is_what_the_runs_write(tmp_path):
    a, b = pair(tmp_path)
    assert combine_runs(a, b)[1][0].raw == "raw alarm_set\nraw ('Other', 'date', 'date')"
    silent = silent_intents(tmp_path)
    for runs in ((silent, b), (b, silent)):
        assert combine_runs(*runs)[1][0].raw == "raw ('Other', 'date', 'date')"
    one, two = abstaining(tmp_path, None, "one", "two")
    assert {p.raw for p in combine_runs(one, two)[1]} == {""}


def test_the_lenient_reading_is_kept_if_only_one_run_writes_text(tmp_path, caplog):
    encoder, decoder = silent_intents(tmp_path), chatty_slots(tmp_path)
    for n, runs in enumerate([(encoder, decoder), (decoder, encoder)]):
        results = combine(*runs, tmp_path / f"joint{n}")
        assert results.metrics["exact_match"] == 1 / 4 and results.metrics["lenient"]["exact_match"] == 2 / 4
        assert results.metrics["lenient"]["fields"]["intent"] == results.metrics["fields"]["intent"], "read the same"
        found = [p.lenient for p in read_predictions(tmp_path / f"joint{n}")]
        assert found == [{}, {}, {"slots": ("Other", "Other", "Other")}, {}]
        assert "exact match, lenient" in markdown([results])
    assert not caplog.text


def test_texts_that_were_never_read_leniently_have_no_joint_reading(tmp_path, caplog):
    """Of older code: it is not known whether the second reading would find other labels in them."""
    older, decoder = write_single(tmp_path / "older", "massive_intent", INTENTS), chatty_slots(tmp_path)
    for runs in ((older, decoder), (decoder, older)):
        caplog.clear()
        results, predictions = combine_runs(*runs)
        assert "lenient" not in results.metrics and all(p.lenient is None for p in predictions)
        assert f"{older} has no lenient reading of its answers" in caplog.text
    caplog.clear()
    assert all(p.lenient is None for p in combine_runs(*pair(tmp_path))[1])
    assert not caplog.text, "neither has one, so none is lost"


def test_a_users_label_for_words_outside_entities_is_kept(tmp_path):
    """It is no type, so its words are no entities."""
    task = Task("mine", "custom", (TokenField("parts", ("date", "time"), other="none"),))
    gold = [replace(e, labels={"parts": tuple(t.replace("Other", "none") for t in e.labels["slots"])}) for e in GOLD]
    answers = [("none", "date", "none"), ("none", "none", "none"), None, ("time", "none", "none")]
    predictions = [
        Prediction(e.id, dict(e.labels), "", {"parts": answer}) for e, answer in zip(gold, answers, strict=True)
    ]
    metrics = compute_metrics(task, [p.example for p in predictions], predictions)
    results = Results("m", "mine", field_kinds(task), "own", "test", metrics, others=other_labels(task))
    write_run(tmp_path / "parts", results, predictions)
    joint, _ = combine_runs(write_single(tmp_path / "intent", "massive_intent", INTENTS), tmp_path / "parts")
    assert joint.metrics["fields"]["parts"] == metrics["fields"]["parts"] and metrics["fields"]["parts"]["f1"] < 0.9
    assert joint.others == {"parts": "none"}
