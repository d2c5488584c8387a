"""Heads fitted before training give what scikit-learn's regression gives on what the frozen encoder gives."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import train.fit_heads
from data.errors import UserError
from data.tasks import TASKS
from eval.held_out import HeldOutScoring
from model.encoder import ROBERTA_DEBUG, Encoder
from tests.encoder_exports import write_encoder
from tests.encoder_samples import make_encoder_samples
from tests.launching import TICKETS
from tests.train.tiny_encoder_run import MULTI, QUIET, make_trainer
from train.errors import Interrupted
from train.fit_heads import NAMES, PENALTY, PENALTY_STANDARDIZED, RARE, fit, fit_heads, fittable, toward_names
from train.resolve import load_config
from train.setup import open_run
from train.stopping import Stop
from train.trainer import Trainer


def logits_of(inputs: np.ndarray, fitted: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.linear(torch.from_numpy(inputs), *fitted)


@pytest.mark.parametrize("n_labels", [2, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_class_head_is_the_regression(n_labels: int, weighted: bool) -> None:
    """At any scale of the inputs: the penalty is that of inputs of length 1."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 6)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    targets = rng.integers(0, n_labels, 80)
    weights = rng.random(n_labels) * 3 if weighted else None
    expected = LogisticRegression(C=PENALTY, max_iter=1000)
    expected.fit(inputs, targets, sample_weight=weights[targets] if weighted else None)
    probabilities = torch.from_numpy(expected.predict_proba(inputs)).float()
    for scale in (1, 37):
        logits = logits_of(inputs * scale, fit(inputs * scale, targets, n_labels, weights))
        torch.testing.assert_close(logits.softmax(-1), probabilities, atol=1e-3, rtol=1e-3)
    assert probabilities.std() > 0.02


def test_a_multi_head_is_a_regression_for_each_label() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 6)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    targets = (rng.random((80, 4)) < 0.4).astype(np.int64)
    targets[:, 2], targets[:, 3] = 0, 1  # nothing to tell apart
    found = logits_of(inputs, fit(inputs, targets, 4)).sigmoid()
    for label in range(2):
        expected = (
            LogisticRegression(C=PENALTY, max_iter=1000).fit(inputs, targets[:, label]).predict_proba(inputs)[:, 1]
        )
        torch.testing.assert_close(found[:, label], torch.from_numpy(expected).float(), atol=1e-3, rtol=1e-3)
    assert (found[:, 2] < 0.01).all() and (found[:, 3] > 0.99).all()


def test_standardized_inputs_are_those_of_the_regression_alone() -> None:
    """The layer reads them as they are: mean and deviation are in its weights."""
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(80, 6)) * [1, 1, 200, 1, 0.01, 0] + [0, 3, 900, 0, 0, 2]).astype(np.float32)
    targets = (inputs[:, 4] > 0.002).astype(np.int64) + 2 * (inputs[:, 0] > 0)
    marks = np.stack([targets == 0, targets > 1], axis=1).astype(np.int64)
    scaled = StandardScaler().fit_transform(inputs[:, :5])
    scaled /= np.linalg.norm(scaled, axis=1).mean()
    regression = LogisticRegression(C=PENALTY_STANDARDIZED, max_iter=1000)
    found = logits_of(inputs, fit(inputs, targets, 4, standardize=True)).softmax(-1)
    expected = torch.from_numpy(regression.fit(scaled, targets).predict_proba(scaled)).float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    found = logits_of(inputs, fit(inputs, marks, 2, standardize=True)).sigmoid()
    for label in range(2):
        expected = torch.from_numpy(regression.fit(scaled, marks[:, label]).predict_proba(scaled)[:, 1]).float()
        torch.testing.assert_close(found[:, label], expected, atol=2e-3, rtol=2e-3)
    plain = logits_of(inputs, fit(inputs, targets, 4)).softmax(-1)
    assert (plain.argmax(-1) != torch.from_numpy(targets)).float().mean() > 0.2, "else it would not be needed"


def test_what_differs_by_rounding_alone_has_no_weight() -> None:
    """Else it would be taken for the labels, with weights of hundreds of thousands."""
    rng = np.random.default_rng(0)
    targets = np.arange(30) % 3
    same = np.repeat(rng.normal(size=(1, 6)), 30, axis=0).astype(np.float32) * (1 + 1e-6 * rng.normal(size=(30, 6)))
    one = same.copy()
    one[:, 2] += 4 * targets
    for inputs, told in ((same, False), (one, True)):
        weight, bias = fit(inputs.astype(np.float32), targets, 3, standardize=True)
        assert weight.abs().max() < 10 and bias.abs().max() < 10 and weight[:, 2].any() == told
        assert not weight[:, [0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("n", [1, 4])
def test_equal_inputs_give_how_often_each_label_is_there(n: int) -> None:
    targets = np.arange(n) % 2
    logits = logits_of(ones := np.ones((n, 3), dtype=np.float32), fit(ones, targets, 2, standardize=True))
    assert logits.isfinite().all()
    assert logits.softmax(-1)[0].tolist() == pytest.approx([0.5, 0.5] if n > 1 else [1.0, 0.0], abs=0.01)


def test_labels_without_examples_are_the_least_probable() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 6)).astype(np.float32)
    targets = rng.choice([1, 3, 4], 40)
    found = logits_of(inputs, fit(inputs, targets, 6))
    assert (found[:, [0, 2, 5]].amax(-1) < found[:, [1, 3, 4]].amax(-1) - 1).all()
    alone = logits_of(inputs, fit(inputs, np.full(40, 2), 3))
    torch.testing.assert_close(alone, torch.tensor([[-RARE, -RARE, 0.0]]).expand(40, 3))


def test_names_add_a_share_of_what_they_say() -> None:
    """The model's own logits, of the last state alone, as far as they agree with the labels."""
    rng = np.random.default_rng(0)
    inputs, names = rng.normal(size=(50, 7)).astype(np.float32), torch.from_numpy(rng.normal(size=(4, 3))).float()
    inputs[:, 6] = 2.0
    names[1], names[2] = torch.tensor([0.0, 0.0, 5.0]), 0.0
    own = torch.from_numpy(inputs[:, 4:]) @ names.T
    right = np.where(rng.random(50) < 0.7, own[:, 0] > own[:, 0].mean(), rng.random(50) < 0.5)
    marks = np.stack([right, rng.random(50) < 0.5, rng.random(50) < 0.5, own[:, 3] > own[:, 3].mean()], axis=1)
    for targets in (np.where(right, 0, 3), marks.astype(np.int64)):
        added = logits_of(inputs, toward_names(inputs, targets, names))
        torch.testing.assert_close(added.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
        scaled = StandardScaler().fit_transform(own.numpy())
        scaled[:, 1:3] = 0  # as likely after every text
        is_label = targets if targets.ndim == 2 else np.eye(4)[targets]
        slope = LogisticRegression(C=PENALTY).fit(scaled.reshape(-1, 1), is_label.reshape(-1)).coef_.item()
        assert slope > 0.3
        torch.testing.assert_close(added, torch.from_numpy(NAMES * slope * scaled).float(), atol=1e-4, rtol=1e-3)
        against = 1 - is_label.astype(np.int64)
        assert not any(part.any() for part in toward_names(inputs, against, names)), "names that say the opposite"
    for few in (inputs[:1], np.repeat(inputs[:1], 3, axis=0)):
        assert not any(part.any() for part in toward_names(few, np.arange(len(few)), names))


@pytest.mark.parametrize("head", ["linear", "mean"])
def test_all_heads_are_fitted_on_what_they_read(head: str, world, tmp_path: Path) -> None:
    """Against hidden states from a plain module, document by document, without dropout."""
    config = replace(MULTI, head=head, dropout=0.5, attention_dropout=0.5)
    trainer = make_trainer(tmp_path, world, model_config=config)
    plain = Encoder(config)
    plain.load_state_dict({name: p.full_tensor() for name, p in trainer.model.named_parameters()})
    samples = make_encoder_samples(60, multi=True)
    fit_heads(trainer.model, ["topic", "slots", "marks"], samples, row_length=64, seed=0)
    assert trainer.model.training

    read = {"topic": [], "slots": [], "marks": []}
    targets = {name: [] for name in read}
    for i in range(len(samples)):
        one = samples.batch([[i]], False, 32)
        hidden = plain.eval()(one.tokens, one.positions, one.doc_ids)[0, : samples.lengths[i]].detach()
        mean = torch.nn.functional.normalize(hidden.mean(0, keepdim=True), dim=1) * config.dim**0.5
        document = mean if head == "mean" else hidden[:1]
        for name, inputs in (("topic", document), ("slots", hidden[one.index["slots"]]), ("marks", document)):
            read[name].append(inputs)
            targets[name].append(one.targets[name])
    fitted = {name: p.full_tensor() for name, p in trainer.model.named_parameters()}
    for name, parts in read.items():
        inputs, n_labels = torch.cat(parts).numpy(), plain.heads[name].out.out_features
        expected = logits_of(inputs, fit(inputs, torch.cat(targets[name]).numpy(), n_labels))
        own = logits_of(inputs, (fitted[f"heads.{name}.out.weight"], fitted[f"heads.{name}.out.bias"]))
        torch.testing.assert_close(own.detach(), expected, atol=2e-3, rtol=2e-3)
    for name, before in plain.state_dict().items():
        assert torch.equal(before, fitted[name]) != name.startswith("heads."), name


def test_only_new_linear_heads_are_fitted() -> None:
    heads = {"heads.topic.out.weight", "heads.slots.out.weight"}
    assert fittable(Encoder(QUIET), heads) == (["topic", "slots"], [])
    assert fittable(Encoder(QUIET), {"heads.slots.out.weight"}) == (["slots"], []), "the other one is trained"
    dense = replace(QUIET, head="dense")
    assert fittable(Encoder(dense), heads) == (["slots"], ["topic"]), "RoBERTa's dense layer is new"
    bert = Encoder(replace(dense, family="bert", position_offset=0))
    assert fittable(bert, heads | {"pooler.weight"}) == (["slots"], ["topic"]), "its pooler is new"
    assert fittable(bert, heads) == (["topic", "slots"], [])


def test_each_field_has_enough_targets(
    world, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token field of many words must not leave a class field with few texts."""
    monkeypatch.setattr(train.fit_heads, "TARGETS", 30)
    trainer, samples = make_trainer(tmp_path, world, model_config=QUIET), make_encoder_samples(60)
    with caplog.at_level(logging.INFO):
        fit_heads(trainer.model, ["topic", "slots"], samples, 64, 0)
    said = [record.args for record in caplog.records if record.message.startswith("heads fitted")]
    assert [args[2] for args in said] == ["slots", "topic"] and said[1][:2] == ("30", "60")
    assert 10 < int(said[0][0]) < 30 < samples.kept_words.sum()


@pytest.fixture(scope="module")
def own_task(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options to start from an encoder that has no heads for the task."""
    folder = write_encoder(tmp_path_factory.mktemp("encoder"), TASKS["massive_intent"], ROBERTA_DEBUG)
    return ["--model", "roberta_debug", "--checkpoint", str(folder), "--task", str(TICKETS), "--device", "cpu",
            "--precision", "fp32"]  # fmt: skip


def test_without_a_step_the_heads_alone_are_trained(
    own_task: list[str], world, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And scored on held-out examples, exported, and found to be finished."""
    args = [*own_task, "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--steps", "0"]
    args += ["--fit_heads", "--holdout", "0.2", "--eval_every", "5", "--batch_size", "24"]
    config = load_config(args)
    setup = open_run(config)
    assert setup.loader.batch_size > setup.loader.units_per_epoch and "warning" not in caplog.text, "of no step"
    trainer = Trainer(config, setup, world, HeldOutScoring(config, setup, world))
    started = {name: p.full_tensor().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    assert all(p.full_tensor().equal(started[name]) for name, p in trainer.model.named_parameters())
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    (score,) = [line for line in lines if line.get("event") == "score"]
    assert score["step"] == 0 and (tmp_path / "run/best/model.safetensors").exists()
    assert (tmp_path / "run/export/calibration.json").exists()
    for folder in ("export", "best"):
        card = (tmp_path / "run" / folder / "README.md").read_text()
        assert "# tickets: roberta_debug, with fitted heads to classify text\n" in card
        assert "| trained | new heads alone, by logistic regression on the checkpoint's encoder" in card
        assert not any(said in card for said in ("fine-tuned", "all weights trained", "steps", "learning rate"))
    again = load_config([*args, "--resume"])
    assert Trainer(again, open_run(again), world, HeldOutScoring(again, setup, world)).is_done
    more = load_config([*args, "--checkpoint", str(tmp_path / "run/export"), "--output", str(tmp_path / "more")])
    with pytest.raises(UserError, match="heads are not new. Give some steps, or the checkpoint from before its fine-t"):
        Trainer(more, open_run(more), world, HeldOutScoring(more, setup, world))


def test_fitted_heads_are_the_first_candidate_for_the_best(own_task: list[str], world, tmp_path: Path) -> None:
    """Steps so small that they change no answer: what is kept is the model before the first one."""
    args = [*own_task, "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--steps", "2"]
    args += ["--fit_heads", "--holdout", "0.2", "--eval_every", "1", "--lr", "1e-12"]
    config = load_config(args)
    setup = open_run(config)
    trainer = Trainer(config, setup, world, HeldOutScoring(config, setup, world))
    fitted = trainer.model.heads["queue"].out.weight.full_tensor().clone()
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["score"] for line in lines if line.get("event") == "score"}
    assert list(scores) == [0, 1, 2] and scores[0] == scores[1] == scores[2] > 0
    assert json.loads((tmp_path / "run/best/best.json").read_text())["step"] == 0
    kept = load_file(tmp_path / "run/best/model.safetensors")["heads.queue.out.weight"]
    torch.testing.assert_close(kept.float(), fitted, atol=1e-2, rtol=1e-2)


def test_no_steps_need_heads_to_fit(own_task: list[str]) -> None:
    with pytest.raises(UserError, match="steps = 0: must be at least 1; 0 is for models with heads and --fit_heads"):
        load_config([*own_task, "--steps", "0"])
    with pytest.raises(UserError, match="steps = -1: must be at least 1.$"):
        load_config([*own_task, "--steps", "-1"])
    with pytest.raises(UserError, match="min_steps = 5 is for epochs"):
        load_config([*own_task, "--steps", "9", "--min_steps", "5"])
    with pytest.raises(UserError, match="steps = 0: must be at least 1; a plan needs steps.*omit --steps 0 or --plan"):
        load_config([*own_task, "--steps", "0", "--fit_heads", "--plan"])
    with pytest.raises(UserError, match="fit_heads = True is for encoders"):
        load_config(["--model", "llama_debug", "--task", str(TICKETS), "--fit_heads"])
    with pytest.raises(UserError, match="omit it with --init random"):
        load_config([*own_task, "--fit_heads", "--init", "random"])


@pytest.mark.parametrize(("more", "why"), [(["--head", "dense"], "of queue, urgency are not that"), ([], "not new")])
def test_without_a_step_no_head_may_stay_random(
    more: list[str], why: str, own_task: list[str], world, tmp_path: Path
) -> None:
    args = [*own_task, "--cache_dir", str(tmp_path / "cache"), "--steps", "0", "--fit_heads", *more]
    if not more:  # heads that exist
        args[args.index("--task") + 1] = "massive_intent"
        args += ["--data", "sample"]
    config = load_config([*args, "--output", str(tmp_path / "run")])
    with pytest.raises(UserError, match=why):
        Trainer(config, open_run(config), world)


def test_stopped_while_the_fitted_heads_are_scored(own_task: list[str], world, told: Stop, tmp_path: Path) -> None:
    """There is nothing to save yet: the command that is named starts again."""
    args = [*own_task, "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--steps", "2"]
    args += ["--fit_heads", "--holdout", "0.2", "--eval_every", "2", "--export_dtype", "fp32"]

    def trainer(*more: str) -> Trainer:
        config = load_config([*args, *more])
        setup = open_run(config)
        return Trainer(config, setup, world, HeldOutScoring(config, setup, world))

    told.signum = signal.SIGTERM
    with pytest.raises(Interrupted, match=r"(?s)before the first step: nothing to save.*--resume auto"):
        trainer().run()
    told.signum = None
    again = trainer("--resume", "auto")
    again.run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "score"] == [0, 2]
    straight = trainer("--output", str(tmp_path / "straight"))
    straight.run()
    for one, other in zip(again.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(one.full_tensor(), other.full_tensor())
