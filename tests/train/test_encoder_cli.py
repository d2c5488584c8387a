"""train.py with an encoder: recipe, options that are not for it, a whole run, and what a checkpoint must fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_tools.checksums import read_checksums, write_checksums
from checkpoints_tools.file_hashes import weights_of
from data.errors import UserError
from data.example import hash_examples
from data.files.documents import read_json
from data.source import load_examples
from eval.held_out import HeldOutScoring
from eval.stored_calibration import Calibration
from tests.encoder_tokenizers import write_roberta
from tests.launching import TICKETS
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer
from train.training_data import longest_input


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [example.text for example in load_examples("massive", "train", "sample")]
    return write_roberta(tmp_path_factory.mktemp("roberta"), texts, vocab_size=600)["files"]


@pytest.fixture
def encoder_args(tokenizer_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "--model", "roberta_debug", "--init", "random", "--checkpoint", str(tokenizer_folder), "--task",
        "massive_joint", "--data", "sample", "--output", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"),
        "--limit", "60", "--epochs", "2", "--device", "cpu", "--precision", "fp32",
    ]  # fmt: skip


def test_the_papers_recipe() -> None:
    def recipe(task: str, *more: str):
        return load_config(["--model", "roberta_large", "--task", task, *more])

    config = recipe("20ng_joint")
    assert (config.batch.batch_size, config.optim.lr, config.optim.schedule) == (32, 1e-5, "linear")
    assert (config.optim.beta1, config.optim.beta2, config.optim.weight_decay) == (0.9, 0.999, 0.0)
    assert (config.train.epochs, config.train.steps, config.optim.warmup_steps) == (10, None, 0)
    assert config.model.head == "linear" and config.batch.row_length == 4096
    assert recipe("massive_slots").train.epochs == 20 and recipe(str(TICKETS)).train.epochs == 10
    assert recipe("massive_slots", "--steps", "7").train.epochs is None
    assert not config.train.fit_heads and recipe(str(TICKETS)).train.fit_heads, "the paper's heads begin at random"
    assert recipe(str(TICKETS)).optim.lr == 1e-5


def test_options_of_the_other_kind_are_errors() -> None:
    encoder = ["--model", "roberta_base", "--task", "massive_joint"]
    given = ["--shots", "5", "--template", "plain", "--list_labels", "off", "--share_prefix", "off", "--max_new_tokens"]
    with pytest.raises(UserError) as error:
        load_config([*encoder, *given, "9", "--shot_tokens", "9"])
    for name in ("shots = 5", "template = plain", "list_labels = False", "share_prefix = False", "max_new_tokens = 9"):
        assert f"{name} is for decoders; roberta_base is an encoder" in str(error.value)
    with pytest.raises(UserError, match="head = dense is for encoders") as error:
        load_config(["--model", "llama3_8b", "--task", "20ng_7", "--head", "dense", "--max_length", "99"])
    assert "max_length = 99 is for encoders; llama3_8b is a decoder" in str(error.value)
    with pytest.raises(UserError, match="max_length = 300: must be at most row_length"):
        load_config([*encoder, "--max_length", "300", "--row_length", "200"])


def test_longest_document(encoder_args: list[str]) -> None:
    setup = open_run(load_config(encoder_args))
    config = load_config(encoder_args)
    assert longest_input(config, setup.model_config) == 64 == setup.model_config.max_position
    assert longest_input(load_config([*encoder_args, "--row_length", "40"]), setup.model_config) == 40
    short = open_run(load_config([*encoder_args, "--max_length", "7"]))
    assert short.samples.lengths.max() == 7 and short.samples.truncated.any()
    with pytest.raises(UserError, match="max_length = 65: .* has positions for documents of 64 tokens at most"):
        open_run(load_config([*encoder_args, "--max_length", "65"]))


def test_a_whole_run(encoder_args: list[str], world, tmp_path: Path) -> None:
    """Train, score the held-out part, save, export, and start again from the export."""
    args = [*encoder_args, "--holdout", "0.2", "--eval_every", "8", "--head", "dense"]
    config = load_config(args)
    setup = open_run(config)
    trainer = Trainer(config, setup, world, HeldOutScoring(config, setup, world))
    before = {name: p.full_tensor().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 15 and losses[-1] < losses[0]
    assert any(line.get("event") == "score" for line in lines)
    assert all(not p.full_tensor().equal(before[name]) for name, p in trainer.model.named_parameters())
    assert not list(run.rglob("prompt.json")), "an encoder has no prompt"
    assert (run / "best" / "best.json").is_file() and trainer.model.training
    for name in ("best", "export"):
        stored = read_json(run / name / "calibration.json", Calibration)
        assert (stored.split, stored.n_examples) == ("held-out", len(setup.held_out))
        assert list(stored.fields) == ["intent"] and stored.examples == hash_examples(setup.held_out)
        assert stored.weights == weights_of(run / name) and "calibration.json" in read_checksums(run / name)
    card = (run / "export" / "README.md").read_text()
    assert "with a head for each field" in card and "held out" in card and "{text}" not in card
    assert "fully fine-tuned" in card and "| optimizer | adamw, all weights trained |" in card
    assert "| head of intent | `dense`: a dense layer, tanh and a linear layer, on the first token |" in card
    assert "| head of slots | a linear layer on the first sub-word of each word |" in card

    again = [*encoder_args, "--init", "pretrained", "--checkpoint", str(run / "export"), "--head", "dense"]
    config = load_config([*again, "--output", str(tmp_path / "again")])
    second = Trainer(config, open_run(config), world)
    for name, p in second.model.named_parameters():
        assert torch.equal(p.full_tensor(), dict(trainer.model.named_parameters())[name].full_tensor()), name
    with pytest.raises(UserError, match="the heads in .* do not fit the task"):
        open_run(load_config([*again[:-1], "linear", "--output", str(tmp_path / "other")]))
    path = run / "export" / "config.json"
    swapped = path.read_text().replace("alarm_query", "?").replace("alarm_set", "alarm_query").replace("?", "alarm_set")
    path.write_text(swapped)
    write_checksums(run / "export")
    with pytest.raises(UserError, match="labels of field 'intent' are not those of task massive_joint: their order di"):
        open_run(load_config([*again, "--output", str(tmp_path / "other")]))
    with pytest.raises(UserError, match="architecture"):
        open_run(load_config([*again, "--model", "bert", "--output", str(tmp_path / "other")]))


def test_resumed_from_a_checkpoint(encoder_args: list[str], world, tmp_path: Path) -> None:
    args = [*encoder_args, "--export", "off", "--save_every", "5"]
    straight = Trainer(load_config(args), open_run(load_config(args)), world)
    straight.run()
    for file in (newest := tmp_path / "run" / "checkpoints" / "step_000015").iterdir():
        file.unlink()
    newest.rmdir()
    config = load_config([*args, "--resume"])
    resumed = Trainer(config, open_run(config), world)
    assert resumed.step == 10 and straight.setup.model_config.dropout > 0
    resumed.run()
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q.full_tensor())


def test_two_ranks_resume_with_dropout(encoder_args: list[str], launch, tmp_path: Path) -> None:
    """With scoring in between, which draws nothing; each rank goes on with its own random numbers."""
    train = Path(__file__).resolve().parents[2] / "train.py"
    args = [*encoder_args, "--export_dtype", "fp32", "--save_every", "5", "--holdout", "0.2", "--eval_every", "4"]
    assert (done := launch(train, *args, ranks=2)).returncode == 0, done.stderr
    straight = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for file in (newest := tmp_path / "run" / "checkpoints" / "step_000015").iterdir():
        file.unlink()
    newest.rmdir()
    assert (done := launch(train, *args, "--resume", ranks=2)).returncode == 0, done.stderr
    assert "resuming after step 10" in done.stdout
    resumed = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert straight.keys() == resumed.keys() and all(straight[name].equal(resumed[name]) for name in straight)
    states = [torch.load(newest / f"rng_0000{rank}.pt", weights_only=True)["torch"] for rank in (0, 1)]
    assert not states[0].equal(states[1]), "ranks draw from streams of their own"


def test_another_architecture_is_said_before_its_tokenizer_is_opened(minilm_folder: Path) -> None:
    where = ["--checkpoint", str(minilm_folder), "--task", "massive_joint", "--data", "sample"]
    for model in ("llama", "roberta"):
        with pytest.raises(UserError, match=f"holds a model of the 'bert' architecture, --model {model} is of"):
            open_run(load_config(["--model", model, *where, "--epochs", "1"]))


def test_class_weights_are_of_class_fields(encoder_args: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Balanced intents of MASSIVE's joint task: every label weighs the same in all, and slots have no weights."""
    setup = open_run(load_config([*encoder_args, "--class_weights", "balanced"]))
    samples, intents = setup.samples, setup.task.fields[0]
    of_samples = [samples.sum_weights([i])["intent"] for i in range(len(samples))]
    numbers = samples.targets["intent"].tolist()
    sums = {n: sum(w for w, m in zip(of_samples, numbers, strict=True) if m == n) for n in set(numbers)}
    assert list(sums.values()) == pytest.approx([len(samples) / len(sums)] * len(sums))
    assert len(set(of_samples)) > 1 and len(sums) < len(intents.labels), "some labels are rarer, and some have none"
    step = setup.loader.step(0)
    assert step.total_weights["slots"] == step.n_label_tokens["slots"]
    for batch in step.batches:
        assert batch.weights.keys() == {"intent"}
        expected = [setup.class_weights["intent"][intents.labels[n]] for n in batch.targets["intent"].tolist()]
        assert batch.weights["intent"].tolist() == pytest.approx(expected)
    with pytest.raises(UserError, match="'slots' has one label for every word, not for the text"):
        load_config([*encoder_args, "--class_weights", "slots=balanced"])
