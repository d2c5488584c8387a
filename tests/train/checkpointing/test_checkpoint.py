"""Checkpoints: exact, the last K, whole or not there, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoints_tools.checksums import write_checksums
from data.errors import UserError
from data.tasks import get_task
from model.llama import LlamaConfig
from tests.train.tiny_run import TIED, TINY, WIDE, make_trainer, whole
from train import options
from train.checkpointing import checkpoint, tensors
from train.config import TrainConfig
from train.errors import NotFinite, RunStopped
from train.trainer import Trainer


def resumed(trainer: Trainer, folder: Path | None = None) -> Trainer:
    """A new trainer that goes on where the run's newest complete checkpoint (or ``folder``) stands."""
    folder = folder or checkpoint.newest_complete(trainer.checkpoints)
    setup = dataclasses.replace(trainer.setup, resume_from=folder)
    return Trainer(trainer.config, setup, trainer.world)


def parameters(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: whole(p) for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    ("optim", "async_save", "offload"),
    [
        ("adamw", "off", False),
        ("adamw", "on", False),
        ("adamw_sr", "off", False),
        ("adamw_sr_bf16", "on", False),
        ("adamw_sr_8bit", "on", True),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    optim: str, async_save: str, offload: bool, world, tmp_path: Path
) -> None:
    options = {"steps": 6, "model_config": TIED if optim == "adamw" else WIDE, "optim": optim}
    straight = make_trainer(tmp_path / "a", world, **options)
    straight.run()
    broken = make_trainer(tmp_path / "b", world, **options, async_save=async_save, offload_states=offload)
    for n in range(5):
        broken.train_step(broken.setup.loader.step(n))
        if n == 2:
            broken._save()
    broken.saver.finish()
    again = resumed(broken)
    assert again.step == 3
    again.run()
    for (name, a), b in zip(parameters(straight).items(), parameters(again).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    for a, b in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        left, right = straight.optimizer.state[a], again.optimizer.state[b]
        assert left.keys() == right.keys() and len(left) >= 3
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(whole(left[key]), whole(right[key]), err_msg=key)


@pytest.mark.parametrize("offload", [False, True])
def test_states_may_move_to_host_memory_and_back_between_runs(offload: bool, world, tmp_path: Path) -> None:
    """Of "adamw" between PyTorch's optimizer and ours: the same keys, the same values."""
    trainer = make_trainer(tmp_path, world, steps=4, offload_states=offload)
    trainer.train_step(trainer.setup.loader.step(0))
    trainer._save()
    optim = dataclasses.replace(trainer.config.optim, offload_states=not offload)
    config = dataclasses.replace(trainer.config, optim=optim)
    setup = dataclasses.replace(trainer.setup, resume_from=checkpoint.newest_complete(trainer.checkpoints))
    again = Trainer(config, setup, world)
    assert isinstance(again.optimizer, torch.optim.AdamW) == offload
    for a, b in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        for key, value in trainer.optimizer.state[a].items():
            np.testing.assert_array_equal(whole(value), whole(again.optimizer.state[b][key]), err_msg=key)
    for t in (trainer, again):
        t.train_step(t.setup.loader.step(1))
    for a, b in zip(parameters(trainer).values(), parameters(again).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_random_states_come_back(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world)
    random.random(), np.random.rand(), torch.rand(1)
    trainer._save()
    drawn = random.random(), np.random.rand(), torch.rand(1)
    resumed(trainer)
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


def test_the_last_k_are_kept(world, tmp_path: Path) -> None:
    make_trainer(tmp_path, world, steps=7, save_every=2, keep=2).run()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000006", "step_000007"], "the last two, and nothing half-written"


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        checkpoint.step_folder(tmp_path, step).mkdir()
    (tmp_path / ".step_000007.partial").mkdir()
    assert [p.name for p in checkpoint.steps_in(tmp_path)] == ["step_000005", "step_999999", "step_1000000"]


@pytest.mark.parametrize("damage", ["cut", "missing shard", "no run.json", "no metadata", "no rng"])
def test_an_incomplete_checkpoint_is_skipped_with_a_note(damage: str, world, tmp_path: Path, caplog) -> None:
    make_trainer(tmp_path, world, steps=4, save_every=2).run()
    older, newest = checkpoint.steps_in(tmp_path / "checkpoints")
    assert checkpoint.newest_complete(newest.parent) == newest
    shard = newest / "__0_0.distcp"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        gone = {"missing shard": shard, "no run.json": newest / "run.json", "no metadata": newest / ".metadata"}
        gone.get(damage, newest / "rng_00000.pt").unlink()
    assert checkpoint.newest_complete(newest.parent) == older
    assert "incomplete" in caplog.text and newest.name in caplog.text


def test_what_a_checkpoint_says_of_itself(world, tmp_path: Path) -> None:
    make_trainer(tmp_path, world, steps=2).run()
    folder = checkpoint.newest_complete(tmp_path / "checkpoints")
    state = checkpoint.read_state(folder)
    assert state.step == 2 and state.config["lr"] == 1e-2 and state.world_size == 1
    assert state.labels["root"][:2] == ["comp", "rec"] or len(state.labels["root"]) == 7
    assert json.loads((folder / "prompt.json").read_text())["task"] == "20ng_7"
    assert "lr = 0.01" in (tmp_path / "config.toml").read_text()


def test_another_run_is_refused_by_the_names_of_what_differs(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world)
    trainer._save()
    folder = checkpoint.newest_complete(trainer.checkpoints)
    state = checkpoint.read_state(folder)
    config, identity = options.flatten(trainer.config), trainer.setup.identity
    checkpoint.check_fits(state, config, identity, folder, trainer.setup.task)
    checkpoint.check_fits(
        state, {**config, "keep": 9, "log_every": 3, "output": Path("moved")}, identity, folder, trainer.setup.task
    )
    wider = {"model_config": {**identity["model_config"], "dim": 60}}
    with pytest.raises(UserError) as error:
        checkpoint.check_fits(state, {**config, "lr": 2e-2}, wider, folder, get_task("20ng_20"))
    for part in (
        "lr: the checkpoint has 0.01, this run has 0.02",
        "task name: the checkpoint has '20ng_7', this run has '20ng_20'",
        "task fields: the checkpoint has 'root', this run has 'group'",
        "model_config.dim: the checkpoint has 30,",
    ):
        assert part in str(error.value)
    assert "n_layers" not in str(error.value), "only what differs"


def test_an_option_younger_than_the_checkpoint_had_its_default(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world)
    trainer._save()
    folder = checkpoint.newest_complete(trainer.checkpoints)
    record = json.loads((folder / "run.json").read_text())
    del record["format"], record["config"]["clip"], record["config"]["optim"]
    (folder / "run.json").write_text(json.dumps(record))
    config = options.flatten(trainer.config)
    checkpoint.check_fits(checkpoint.read_state(folder), config, trainer.setup.identity, folder, trainer.setup.task)
    for name, value, had in (("clip", 0.5, "1.0"), ("optim", "adamw_sr", "adamw")):
        with pytest.raises(UserError, match=f"{name}: the checkpoint has {had}, this run has {value}"):
            checkpoint.check_fits(
                checkpoint.read_state(folder),
                config | {name: value},
                trainer.setup.identity,
                folder,
                trainer.setup.task,
            )


def test_a_checkpoint_of_older_code_had_words_for_true_and_false(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world, share_prefix=False)
    trainer._save()
    folder = checkpoint.newest_complete(trainer.checkpoints)
    record = json.loads((folder / "run.json").read_text())
    for name, word in (("packing", "on"), ("share_prefix", "off"), ("list_labels", "on"), ("export", "off")):
        assert record["config"][name] is (word == "on")
        record["config"][name] = word
    del record["optim_reason"]
    (folder / "run.json").write_text(json.dumps(record))
    state = checkpoint.read_state(folder)
    assert state.config["share_prefix"] is False and state.config["async_save"] == "auto" and not state.optim_reason
    config = options.flatten(trainer.config)
    checkpoint.check_fits(state, config, trainer.setup.identity, folder, trainer.setup.task)
    with pytest.raises(UserError, match="packing: the checkpoint has True, this run has False"):
        checkpoint.check_fits(state, {**config, "packing": False}, trainer.setup.identity, folder, trainer.setup.task)


def test_a_newer_format_is_refused_not_skipped(world, tmp_path: Path) -> None:
    make_trainer(tmp_path, world, steps=4, save_every=2).run()
    newest = checkpoint.steps_in(tmp_path / "checkpoints")[-1]
    record = json.loads((newest / "run.json").read_text())
    assert record["format"] == checkpoint.FORMAT
    (newest / "run.json").write_text(json.dumps({**record, "format": 9, "unheard_of": 1}))
    write_checksums(newest)
    with pytest.raises(UserError, match=f"step_000004 has format 9: a newer .* up to {checkpoint.FORMAT}"):
        checkpoint.newest_complete(tmp_path / "checkpoints")


def test_weights_of_another_model_are_refused_by_name(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "a", world)
    trainer._save()
    folder = checkpoint.newest_complete(trainer.checkpoints)
    deeper = make_trainer(tmp_path / "b", world, model_config=LlamaConfig(**{**vars(TINY), "n_layers": 3}))
    with pytest.raises(UserError, match=r"does not fit: Missing key .* model\.layers\.2"):
        tensors.load_model(folder, deeper.model)
    wider = make_trainer(tmp_path / "c", world, model_config=LlamaConfig(**{**vars(TINY), "ffn_dim": 51}))
    with pytest.raises(UserError, match=r"does not fit: Size mismatch .*51, 30.*"):
        tensors.load_model(folder, wider.model)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(what: str, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import trainer as module

    real, calls = module.field_losses, []

    def poisoned(model, batch, n_label_tokens):
        loss = real(model, batch, n_label_tokens)
        calls.append(batch)
        if len(calls) < 4:
            return loss
        if what == "loss":
            return loss * float("nan")
        return loss + (loss * 0.0).sqrt()  # the value is fine, its derivative is not

    monkeypatch.setattr(module, "field_losses", poisoned)
    trainer = make_trainer(tmp_path, world, steps=8, save_every=2)
    with pytest.raises(RunStopped) as error:
        trainer.run()
    assert trainer.step == 3, "steps before the bad one were taken, the bad one was not"
    message = str(error.value)
    ids = trainer.setup.loader.step(3).sample_ids
    assert "step 4" in message and "step_000002" in message and all(i in message for i in ids)
    assert all(torch.isfinite(p.full_tensor()).all() for p in trainer.model.parameters())
    event = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert event["event"] == "stopped" and event["samples"] == ids
    assert checkpoint.newest_complete(trainer.checkpoints).name == "step_000002"


def test_weights_that_an_update_made_infinite_are_not_saved(world, tmp_path: Path) -> None:
    """The loss before the update was finite, and the next one comes after the checkpoint."""
    trainer = make_trainer(tmp_path, world, steps=8, save_every=1)
    update = trainer.optimizer.step

    def step() -> None:
        update()
        if trainer.step == 2:
            with torch.no_grad():
                trainer.model.layers[1].ffn.w2.weight.mul_(float("inf"))

    trainer.optimizer.step = step
    message = r"saving after step 3: these weights .* not saved: model.layers.1.mlp.down_proj.weight. .*step_000002"
    with pytest.raises(RunStopped, match=message):
        trainer.run()
    assert checkpoint.newest_complete(trainer.checkpoints).name == "step_000002"


def test_held_out_examples_without_finite_logits_stop_the_run(world, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, world)

    def score(model: torch.nn.Module, stop: object) -> None:
        raise NotFinite("example a: the logits are NaN.")

    trainer.scorer = SimpleNamespace(score=score)
    with pytest.raises(RunStopped, match="scoring after step 0: example a: the logits are NaN. No checkpoint had been"):
        trainer._score()


def test_a_head_dim_that_older_code_left_out_is_what_it_stands_for(tmp_path: Path) -> None:
    shape = LlamaConfig(dim=30, n_layers=2, n_heads=3, n_kv_heads=1, ffn_dim=50, vocab_size=301)
    assert (shape.head_dim, dataclasses.replace(shape, dim=60, head_dim=0).head_dim) == (10, 20)
    stored = {"model_config": dataclasses.asdict(shape) | {"head_dim": None}}
    checkpoint.RunState(1, {}, stored, {}, None, 1).write(tmp_path)
    assert json.loads((tmp_path / checkpoint.RUN_FILE).read_text())["identity"]["model_config"]["head_dim"] is None
    state = checkpoint.read_state(tmp_path)
    assert LlamaConfig(**state.identity["model_config"]) == shape
    values = options.flatten(options.build(TrainConfig, [{"optim": "adamw"}]))
    checkpoint.check_fits(state, values, {"model_config": dataclasses.asdict(shape)}, tmp_path, get_task("20ng_7"))
    wider = {"model_config": dataclasses.asdict(dataclasses.replace(shape, head_dim=12))}
    with pytest.raises(UserError, match=r"model_config.head_dim: the checkpoint has 10, this run has 12"):
        checkpoint.check_fits(state, values, wider, tmp_path, get_task("20ng_7"))
