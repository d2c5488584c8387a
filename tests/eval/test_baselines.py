"""The baselines on the embedded sample, and their features."""

from __future__ import annotations

import pytest

from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.tasks import TASKS, ClassField, MultiField, Task
from eval.baselines import BaselineConfig, majority, run_baselines, tfidf_lr, word_features
from eval.config import EvalConfig
from eval.results import read_predictions, read_results
from eval.setup import open_scoring
from tests.launching import ROOT

JOINT = TASKS["massive_joint"]
OLD_INTENT = ROOT / "tests" / "old_files" / "intent" / "export"


def test_majority_class():
    train = [
        Example(str(i), "x y", {"intent": intent, "slots": ("Other", "time")})
        for i, intent in enumerate(["play_music", "alarm_set", "play_music"])
    ]
    train.append(Example("3", "z", {"intent": "alarm_set", "slots": ("Other",)}))
    (answer,) = majority(JOINT, train, [Example("t", "a b c", {"intent": "x", "slots": ("Other",) * 3})])
    assert answer == {"intent": "alarm_set", "slots": ("Other", "Other", "Other")}  # ties: the first by name


def test_joint_baselines_on_the_sample(tmp_path):
    weak, strong = run_baselines(BaselineConfig("massive_joint", "sample", output=tmp_path))
    for figure in ("accuracy", "macro_f1"):
        assert strong.metrics["fields"]["intent"][figure] > weak.metrics["fields"]["intent"][figure]
    assert strong.metrics["fields"]["slots"]["f1"] > 0.2 > weak.metrics["fields"]["slots"]["f1"]
    assert weak.metrics["n_unparsed"] == strong.metrics["n_unparsed"] == 0
    assert read_results(tmp_path / "tfidf_lr") == strong
    test = load_examples(JOINT, "test", "sample")
    predictions = read_predictions(tmp_path / "tfidf_lr")
    assert [p.id for p in predictions] == [e.id for e in test]
    assert all(len(p.parsed["slots"]) == len(e.words) for p, e in zip(predictions, test, strict=True))


def test_newsgroups_baseline_beats_the_majority(tmp_path):
    weak, strong = run_baselines(BaselineConfig("20ng_7", "sample", output=tmp_path))
    assert strong.metrics["fields"]["root"]["accuracy"] > weak.metrics["fields"]["root"]["accuracy"]


@pytest.mark.parametrize("option", ["limit", "score_limit"])
def test_limits_are_checked(tmp_path, option):
    with pytest.raises(UserError, match=f"{option} = -1: must be at least 1"):
        run_baselines(BaselineConfig(task="20ng_7", data="sample", output=tmp_path / "x", **{option: -1}))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_part_of_train_and_another_split_are_refused(tmp_path, split):
    with pytest.raises(UserError, match=f"holdout = 0.2 scores .*, and split = {split} another one. Give one"):
        run_baselines(BaselineConfig("20ng_7", "sample", split=split, holdout=0.2, output=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_many_labels_are_no_regression(recwarn):
    """scikit-learn warns of more labels than half of the examples."""
    train = [Example(str(i), f"word{i}", {"intent": f"label{i}"}) for i in range(30)]
    task = Task("many", "custom", (ClassField("intent", tuple(f"label{i}" for i in range(30))),))
    assert tfidf_lr(task, train, train) == [example.labels for example in train]
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_train_refuses_are_refused(tmp_path, seed):
    with pytest.raises(UserError, match=f"seed = {seed}: must be 0 or more, and below 2"):
        run_baselines(BaselineConfig(task="20ng_7", data="sample", output=tmp_path / "x", seed=seed))
    assert not (tmp_path / "x").exists()


def test_any_seed_of_train_can_be_given(tmp_path):
    """Also those that scikit-learn does not take."""
    run_baselines(BaselineConfig("massive_joint", "sample", limit=50, output=tmp_path, seed=2**63 - 1))
    assert (tmp_path / "tfidf_lr" / "results.json").is_file()


def test_texts_without_a_word():
    """Then nothing is better than the most frequent labels."""
    task = Task("mine", "custom", (ClassField("mood", ("bad", "good")), MultiField("topics", ("a", "b"))))
    rows = [("\U0001f600", "good", ("a",)), ("!!!", "bad", ()), ("\U0001f600 \U0001f600", "good", ("a",))]
    examples = [Example(str(n), text, {"mood": mood, "topics": own}) for n, (text, mood, own) in enumerate(rows)]
    assert tfidf_lr(task, examples, examples) == majority(task, examples, examples)
    assert tfidf_lr(task, examples, examples)[1] == {"mood": "good", "topics": ("a",)}


def test_one_class_only_needs_no_classifier():
    train = [Example("0", "a b", {"intent": "alarm_set", "slots": ("Other", "Other")})]
    assert tfidf_lr(JOINT, train, train) == [{"intent": "alarm_set", "slots": ("Other", "Other")}]


@pytest.mark.parametrize("words", [[], ["One"], ["wake", "me", "at", "9am"]])
def test_word_features(words):
    rows = word_features(words)
    assert len(rows) == len(words)
    for i, row in enumerate(rows):
        assert row[f"0={words[i].lower()}"] == 1.0
        if i == 0:
            assert row["-1=<edge>"] == 1.0
    if len(words) == 4:
        assert rows[3]["digits"] == 1.0 and rows[3]["-2=me"] == 1.0 and rows[3]["1=<edge>"] == 1.0


def test_they_are_trained_and_scored_on_what_train_and_eval_draw(tmp_path, monkeypatch):
    """So that a model and a baseline can be compared on part of the data."""
    from train.resolve import load_config
    from train.training_data import divide

    options = "--model llama_debug --checkpoint x --task massive_intent --data sample --limit 50 --seed 3"
    options += " --holdout 0.2 --eval_every 9"
    intent = TASKS["massive_intent"]
    held_out, _, kept = divide(load_examples(intent, "train", "sample"), intent, load_config(options.split()))
    seen = []
    monkeypatch.setattr("eval.baselines.tfidf_lr", lambda task, train, test, seed: seen.append(train) or [
        {"intent": example.class_label("intent")} for example in test
    ])  # fmt: skip
    config = BaselineConfig("massive_intent", "sample", holdout=0.2, limit=50, seed=3, output=tmp_path)
    results = run_baselines(config)[1]
    assert seen == [kept] and len(kept) == 50
    assert [p.id for p in read_predictions(tmp_path / "tfidf_lr")] == [e.id for e in held_out]
    assert results.split == "train, held out" and results.settings["train_examples"] == 50
    run_baselines(BaselineConfig("massive_intent", "sample", score_limit=20, seed=3, output=tmp_path / "few"))
    found = open_scoring(EvalConfig(model="llama", checkpoint=OLD_INTENT, data="sample", limit=20, seed=3))
    assert [p.id for p in read_predictions(tmp_path / "few" / "tfidf_lr")] == [e.id for e in found.examples]
