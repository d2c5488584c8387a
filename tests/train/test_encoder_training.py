"""An encoder's steps, the same whatever the ranks, rows and recomputation; losses, counts, dropout and resumption."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.encoder import Encoder
from tests.encoder_samples import make_encoder_samples
from tests.train import tiny_encoder_run
from tests.train.tiny_encoder_run import BERT, CASES, DROPPING, MULTI, QUIET, make_trainer, run_case
from train.checkpointing import checkpoint
from train.loss import batch_loss, field_losses
from train.trainer import rank_seed


def assert_same_run(a: dict[str, np.ndarray], b: dict[str, np.ndarray], case: str) -> None:
    for key in a.keys() - {"passes", "dummies"}:
        np.testing.assert_allclose(a[key], b[key], rtol=2e-5, atol=2e-5, err_msg=f"{case} {key}")


def test_one_process_equals_two_ranks(
    world, launch: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    done = launch(Path(tiny_encoder_run.__file__), tmp_path, *CASES, ranks=2)
    assert done.returncode == 0, done.stderr
    runs = {}
    for name in CASES:
        runs[name] = alone = run_case(name, tmp_path / "alone", world)
        together = dict(np.load(tmp_path / f"{name}.npz"))
        start = make_trainer(tmp_path / "start", world, **CASES[name]).model.named_parameters()
        moved = max(np.abs(tiny_encoder_run.whole(p) - alone[key]).max() for key, p in start)
        assert moved > 5e-3, f"{name}: the steps must do something for their equality to mean anything"
        by_field = [losses for key, losses in together.items() if key.startswith("loss/")]
        assert len(by_field) == len(CASES[name].get("model_config", QUIET).heads)
        np.testing.assert_allclose(sum(by_field), together["losses"], rtol=1e-9)
        if "empty" in name:
            assert together["dummies"].min() >= 1
        if name.endswith("accumulated"):
            assert together["passes"].min() > 1
        assert_same_run(alone, together, name)
    assert_same_run(runs["weighted"], runs["weighted, accumulated"], "weighted")
    assert np.abs(runs["weighted"]["losses"] - runs["accumulated"]["losses"]).max() > 1e-2, "the weights do something"
    for name in ("unpacked", "full", "selective"):
        assert_same_run(runs["packed"], runs[name], name)
    assert_same_run(runs["multi"], runs["multi, unpacked"], "multi")
    assert_same_run(runs["llama"], runs["llama, unpacked"], "llama")


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_drops_the_same(mode: str, world, tmp_path: Path) -> None:
    plain = run_case("packed", tmp_path / "a", world, model_config=DROPPING)
    assert_same_run(plain, run_case(mode, tmp_path / "b", world, model_config=DROPPING), mode)
    quiet = run_case("packed", tmp_path / "c", world)
    assert np.abs(quiet["losses"] - plain["losses"]).max() > 1e-3, "the case is about dropout"


def test_resumed_with_dropout_equals_uninterrupted(world, tmp_path: Path) -> None:
    straight = make_trainer(tmp_path / "a", world, model_config=DROPPING, steps=4)
    losses = [straight.train_step(straight.setup.loader.step(n))[0]["loss"] for n in range(4)]
    first = make_trainer(tmp_path / "b", world, model_config=DROPPING, steps=4)
    for n in range(2):
        first.train_step(first.setup.loader.step(n))
    first._save()
    torch.manual_seed(99)  # another process knows nothing of this one's generator
    folder = checkpoint.newest_complete(tmp_path / "b" / "checkpoints")
    assert folder is not None and not (folder / "prompt.json").exists()
    second = tiny_encoder_run.make_trainer(tmp_path / "b", world, model_config=DROPPING, steps=4, resume_from=folder)
    assert second.step == 2
    assert [second.train_step(second.setup.loader.step(n))[0]["loss"] for n in (2, 3)] == losses[2:]
    for p, q in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q.full_tensor())


def test_ranks_and_runs_drop_differently() -> None:
    seeds = {rank_seed(seed, rank, step) for seed in range(3) for rank in range(8) for step in range(3)}
    assert len(seeds) == 72


def test_each_field_has_a_mean_of_its_own() -> None:
    samples = make_encoder_samples(12)
    model = Encoder(QUIET)
    model.init_weights(torch.Generator().manual_seed(0))
    parts = [
        samples.batch([list(range(5))], True, 128),
        samples.batch([list(range(5, 12))], True, 128),
        samples.dummy(),
    ]
    counts = samples.count_targets(range(12))
    assert counts["topic"] == 12 and counts["slots"] != 12
    loss = sum(batch_loss(model, part, counts) for part in parts)
    whole = samples.batch([list(range(12))], True, 256)
    logits = model(whole.tokens, whole.positions, whole.doc_ids, whole.index)
    expected = {field: F.cross_entropy(logits[field], whole.targets[field]) for field in counts}
    torch.testing.assert_close(loss, sum(expected.values()))
    by_field = sum(field_losses(model, part, counts) for part in parts)
    torch.testing.assert_close(by_field, torch.stack(list(expected.values())))
    assert (by_field[0] - by_field[1]).abs() > 1e-2, "fields in another order would show"
    wordless = samples.batch([[0]], True, 16)  # the utterance without a word: nothing to predict in "slots"
    assert samples.count_targets([0]) == {"topic": 1, "slots": 0}
    assert torch.isfinite(batch_loss(model, wordless, {"topic": 1, "slots": 0}))


def test_a_multi_fields_loss_is_that_of_each_label_by_itself() -> None:
    samples = make_encoder_samples(12, multi=True)
    model = Encoder(MULTI)
    model.init_weights(torch.Generator().manual_seed(0))
    parts = [samples.batch([list(range(5))], True, 128), samples.batch([list(range(5, 12))], True, 128)]
    counts = samples.count_targets(range(12))
    assert counts["marks"] == 12
    by_field = sum(field_losses(model, part, counts) for part in [*parts, samples.dummy()])
    whole = samples.batch([list(range(12))], True, 256)
    logits = model(whole.tokens, whole.positions, whole.doc_ids, whole.index)["marks"]
    chosen = torch.from_numpy(samples.targets["marks"])
    assert 0 < chosen.sum() < chosen.numel()
    # The negative logarithm of the probability of exactly the gold labels, on average.
    probability = torch.where(chosen, logits.sigmoid(), 1 - logits.sigmoid()).prod(dim=1)
    torch.testing.assert_close(by_field[list(counts).index("marks")], -probability.log().mean())


def test_weights_are_those_of_torch() -> None:
    """The value of PyTorch's weighted mean over all documents, however they are packed and cut into passes."""
    samples = make_encoder_samples(12)
    model = Encoder(QUIET)
    model.init_weights(torch.Generator().manual_seed(0))
    whole = samples.batch([list(range(12))], True, 256)
    logits = model(whole.tokens, whole.positions, whole.doc_ids, whole.index)
    of_topics = torch.from_numpy(tiny_encoder_run.OF_TOPICS)
    expected = [
        F.cross_entropy(logits["topic"], whole.targets["topic"], weight=of_topics),
        F.cross_entropy(logits["slots"], whole.targets["slots"]),
    ]
    samples.weights["topic"] = tiny_encoder_run.OF_TOPICS
    totals = samples.sum_weights(range(12))
    assert totals["topic"] != 12 and totals["slots"] == samples.count_targets(range(12))["slots"]
    rows = [[list(range(12))]], [[list(range(5))], [list(range(5, 12))]], [[[i] for i in range(12)]]
    for passes in rows:
        parts = [samples.batch(row, True, 256) for row in passes] + [samples.dummy()]
        by_field = sum(field_losses(model, part, totals) for part in parts)
        torch.testing.assert_close(by_field, torch.stack(expected))
    ignored = int(np.flatnonzero(samples.targets["topic"] == 0)[0])  # its topic weighs 0
    assert samples.sum_weights([ignored])["topic"] == 0
    alone = field_losses(model, samples.batch([[ignored]], True, 64), samples.sum_weights([ignored]))
    assert alone[0] == 0, "a step whose documents all weigh nothing learns nothing, and is not NaN"


def test_each_fields_loss_is_logged(world, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, world, steps=2, tensorboard=True)
    (batch,) = trainer.setup.loader.step(0).batches
    with torch.no_grad():
        logits = trainer.model(batch.tokens, batch.positions, batch.doc_ids, batch.index)
    expected = {f"loss/{name}": F.cross_entropy(x, batch.targets[name]).item() for name, x in logits.items()}
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {name: lines[0][name] for name in expected} == pytest.approx(expected, abs=1e-5)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for field in ("topic", "slots"):
        logged = [line[f"loss/{field}"] for line in lines]
        assert [event.value for event in events.Scalars(f"loss/{field}")] == pytest.approx(logged)
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss/topic"] + line["loss/slots"], rel=1e-9)


def test_bert_with_a_pooler_has_a_gradient_everywhere(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world, model_config=BERT)
    assert any(name.startswith("pooler") for name, _ in trainer.model.named_parameters())
    step = trainer.setup.loader.step(0)
    for batch in step.batches:
        batch_loss(trainer.model, batch, step.n_label_tokens).backward()
    for name, p in trainer.model.named_parameters():
        assert p.grad is not None and ("wk.bias" in name or p.grad.full_tensor().abs().sum() > 0), name
