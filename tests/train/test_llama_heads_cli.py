"""A decoder with heads as a user meets it: trained, resumed, scored and asked; against transformers."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from checkpoints_tools.registry import get_model_spec
from data import check
from data.encoder.read_twice import AFTER, BEFORE, BETWEEN
from data.errors import UserError
from data.source import load_examples
from data.tasks import get_task
from eval.held_out import HeldOutScoring
from tests.checkpoints_tools.conftest import random_hf_model, save_folder
from tests.launching import TICKETS, call_main
from tests.train.tiny_encoder_run import LLAMA, QUIET
from train.fit_heads import PENALTY, PENALTY_STANDARDIZED
from train.planning.checkpoint import find_config
from train.planning.workload import FRAME, assume_samples
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer
from train.training_data import longest_input


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama, saved by transformers."""
    return save_folder(random_hf_model(), tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture
def args(llama: Path, tmp_path: Path) -> list[str]:
    return ["--model", "llama_heads", "--checkpoint", str(llama), "--task", str(TICKETS), "--device", "cpu",
            "--precision", "fp32", "--export_dtype", "fp32", "--output", str(tmp_path / "run"),
            "--cache_dir", str(tmp_path / "cache")]  # fmt: skip


@torch.no_grad()
def states(folder: Path, texts: list[str]) -> np.ndarray:
    """[texts, 2E], by transformers alone: mean of both readings, and last token, of a text that is read twice."""
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        parts = (BEFORE, f" {text}", BETWEEN, f" {text}", AFTER)
        ids = [tokenizer(part).input_ids for part in parts]
        ids[0].insert(0, tokenizer.bos_token_id)
        states = model(input_ids=torch.tensor([sum(ids, [])]), output_hidden_states=True).hidden_states
        inner = states[(len(states) - 1) * 4 // 5][0].split([len(part) for part in ids])
        read = torch.stack([torch.cat([inner[1], inner[3]]).mean(0), states[-1][0, -1]])
        found.append((read.shape[1] ** 0.5 * torch.nn.functional.normalize(read, dim=1)).flatten())
    return torch.stack(found).numpy()


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@torch.no_grad()
def name_rows(folder: Path, labels: Iterable[str]) -> np.ndarray:
    """[labels, E], by transformers alone: the means of the labels' rows of the output matrix."""
    matrix = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_output_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return np.stack([matrix[tokenizer(f" {label}").input_ids].mean(0).numpy() for label in labels])


@pytest.mark.parametrize("tied", [False, True])
def test_heads_alone_are_scikit_learns_regression(
    args: list[str], llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tied: bool
) -> None:
    """predict.py's labels and probabilities are a pipeline's on transformers' states, with what names add."""
    if tied:
        llama = save_folder(random_hf_model(seed=2, tie_word_embeddings=True), tmp_path / "tied")
    monkeypatch.setattr("train.fit_heads.NAMES", share := 5.0)  # a random model's names say little
    call_main(monkeypatch, "train.py", *args, "--checkpoint", llama, "--steps", "0")
    export = tmp_path / "run/export"
    before, after = load_file(llama / "model.safetensors"), load_file(export / "model.safetensors")
    for name, tensor in before.items():
        assert name == "lm_head.weight" or torch.equal(tensor, after[name.removeprefix("model.")]), name

    task = get_task(str(TICKETS))
    train, test = (load_examples(task, split, None) for split in ("train", "test"))
    inputs = [states(llama, [e.text for e in some]) for some in (train, test)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({task.text_column: e.text}) + "\n" for e in test))
    options = ["--checkpoint", export, "--input", texts, "--precision", "fp32", "--device", "cpu"]
    call_main(monkeypatch, "predict.py", *options, "--output", tmp_path / "labels.jsonl")
    found = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert len(found) == len(test)
    shifts = []
    for field in task.fields:
        scale = np.linalg.norm(StandardScaler().fit_transform(inputs[0]), axis=1).mean()
        shrink = FunctionTransformer(lambda x, scale=scale: x / scale)
        regression = make_pipeline(StandardScaler(), shrink, LogisticRegression(C=PENALTY_STANDARDIZED, max_iter=1000))
        regression.fit(inputs[0], [e.class_label(field.name) for e in train])
        rows = name_rows(llama, regression.classes_)
        first, second = (some[:, -rows.shape[1] :] @ rows.T for some in inputs)
        scaler = StandardScaler().fit(first)
        is_label = [[e.class_label(field.name) == label for label in regression.classes_] for e in train]
        own = LogisticRegression(C=PENALTY).fit(scaler.transform(first).reshape(-1, 1), np.ravel(is_label))
        added = share * max(0, own.coef_.item()) * scaler.transform(second)
        shifts.append(np.abs(added).max())
        logits = torch.from_numpy(regression.predict_log_proba(inputs[1]) + added)
        for row, expected in zip(found, logits.softmax(-1).numpy(), strict=True):
            assert row[f"predicted_{field.name}"] == regression.classes_[expected.argmax()]
            assert row[f"predicted_{field.name}_probability"] == pytest.approx(expected.max(), abs=5e-3)
    assert len({row["predicted_queue"] for row in found}) > 1
    assert max(shifts) > 0.05, shifts


def test_scored_and_labelled_alike(
    args: list[str], llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """eval.py, from the export and from the checkpoint; the plans; `data.check`; and the refusal of another model."""
    call_main(monkeypatch, "train.py", *args, "--steps", "2", "--fit_heads", "--batch_size", "8")
    common = ["--task", TICKETS, "--device", "cpu", "--precision", "fp32"]
    answers = []
    for name in ("export", "checkpoints/step_000002"):
        out = tmp_path / name.split("/")[0]
        where = ["--model", "llama_heads", "--checkpoint", tmp_path / "run" / name]
        call_main(monkeypatch, "eval.py", *where, *common, "--output", out)
        answers.append([json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()])
    assert [line["parsed"] for line in answers[0]] == [line["parsed"] for line in answers[1]]
    assert all(line["top"]["queue"][0][1] > 0 for line in answers[0])
    export = tmp_path / "run/export"
    with pytest.raises(UserError, match="'llama_heads' architecture, --model llama is of 'llama'"):
        call_main(monkeypatch, "eval.py", "--model", "llama", "--checkpoint", export, *common)
    capsys.readouterr()
    call_main(monkeypatch, "train.py", *args, "--plan", "--gpus", "1", "--output", tmp_path / "planned")
    planned = capsys.readouterr().out
    call_main(monkeypatch, "eval.py", "--model", "llama_heads", "--checkpoint", export, *common, "--plan")
    for text in (planned, capsys.readouterr().out):
        assert "llama_heads" in text and "tokens read twice, with the tokens around it" in text
        assert "prompt" not in text and "answer" not in text
    check.main([str(TICKETS), "--checkpoint", str(export)])
    frame = len(BEFORE + BETWEEN + AFTER) + 1  # bytes, and the beginning of a text
    assert f"tokens of a text, which is read twice, {frame} around it included" in capsys.readouterr().out

    config = json.loads((export / "config.json").read_text())
    config["heads"]["max_length"] = frame + 1  # a token for one of the two readings
    (export / "config.json").write_text(json.dumps(config))
    (export / "checksums.json").unlink()
    too_short = rf"config.json: heads.max_length is {frame + 1}, .* it must be {frame + 2} or more. Restore the file"
    texts = ["--input", TICKETS.with_name("test.csv"), "--output", tmp_path / "labels.csv", "--device", "cpu"]
    with pytest.raises(UserError, match=too_short):
        call_main(monkeypatch, "predict.py", "--checkpoint", export, *texts)
    assert check.main([str(TICKETS), "--checkpoint", str(export)]) == 2
    assert re.search(too_short, capsys.readouterr().err)


def test_a_whole_run(args: list[str], world, tmp_path: Path) -> None:
    """Train, score the held-out part, and export; start again from the export."""
    assert longest_input(load_config(args), LLAMA) == 2048 < LLAMA.max_position
    args += ["--epochs", "2", "--holdout", "0.2", "--eval_every", "2", "--lr", "1e-3", "--batch_size", "8"]
    config = load_config(args)
    setup = open_run(config)
    assert config.train.fit_heads and setup.samples.lengths.max() > 100 and setup.prompt is None
    trainer = Trainer(config, setup, world, HeldOutScoring(config, setup, world))
    before = {name: p.full_tensor().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "score"][:2] == [0, 2]
    assert all(not p.full_tensor().equal(before[name]) for name, p in trainer.model.named_parameters())
    card = (tmp_path / "run/export/README.md").read_text()
    assert "a linear layer on the mean of the tokens after four fifths of the layers and on the last" in card
    assert "with a head for each field" in card and not list((tmp_path / "run").rglob("prompt.json"))
    again = load_config([*args, "--checkpoint", str(tmp_path / "run/export"), "--output", str(tmp_path / "again")])
    second = Trainer(again, open_run(again), world, HeldOutScoring(again, setup, world))
    for (name, p), q in zip(trainer.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q.full_tensor()), name


def test_heads_alone_are_advised_only_where_they_are_new(
    args: list[str], world, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    args += ["--limit", "20", "--batch_size", "4"]

    def advised(*words: str) -> bool:
        caplog.clear()
        open_run(load_config([*args, *words]))
        assert "few training texts: half of the labels of queue have at most" in caplog.text
        return "--steps 0" in caplog.text

    assert advised()
    assert not advised("--no_fit_heads")
    setup = open_run(config := load_config([*args, "--steps", "0"]))
    Trainer(config, setup, world).run()
    assert not advised("--checkpoint", str(tmp_path / "run/export"), "--output", str(tmp_path / "again"))


def test_a_run_goes_on_as_if_uninterrupted(args: list[str], world, tmp_path: Path) -> None:
    args += ["--steps", "4", "--fit_heads", "--save_every", "2", "--export", "off", "--batch_size", "8"]
    straight = Trainer(load_config(args), open_run(load_config(args)), world)
    straight.run()
    for file in (newest := tmp_path / "run/checkpoints/step_000004").iterdir():
        file.unlink()
    newest.rmdir()
    config = load_config([*args, "--resume"])
    resumed = Trainer(config, open_run(config), world)
    assert resumed.step == 2
    resumed.run()
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q.full_tensor())


def test_positions_have_no_limit_and_the_folders_pooling_no_say(args: list[str], llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "hf"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    setup = open_run(load_config([*args, "--checkpoint", str(folder), "--max_length", "600"]))
    assert setup.model_config.max_position == 512 and setup.model_config.heads


def test_a_plan_without_a_tokenizer_counts_both_readings() -> None:
    task = get_task(str(TICKETS))
    examples = load_examples(task, "train", None)
    (once, _), (twice, said) = (assume_samples(task, config, 0, 2048, examples) for config in (QUIET, LLAMA))
    assert f"each read twice, with {FRAME} around" in said
    around = 2 + once.label_lengths, FRAME + twice.label_lengths
    np.testing.assert_allclose(twice.costs - around[1], 2 * (once.costs - around[0]), atol=2)


def test_a_plan_refuses_metas_format_as_a_run_does(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(UserError, match="Meta's format, which --model llama_heads does not read. Convert it first"):
        find_config(get_model_spec("llama_heads"), tmp_path)


def test_options_that_are_not_for_it(args: list[str]) -> None:
    with pytest.raises(UserError, match="shots = 5 is for decoders; llama_heads is one with heads"):
        load_config([*args, "--shots", "5"])
    with pytest.raises(UserError, match="tp = 2: matrices of a model with heads are not split"):
        load_config([*args, "--tp", "2"])
    with pytest.raises(UserError, match="head = mean is for encoders: the heads of a decoder are of one kind"):
        open_run(load_config([*args, "--head", "mean"]))
    with pytest.raises(UserError, match="model = llama_heads is whatever its folder holds: give --checkpoint"):
        load_config(["--model", "llama_heads", "--task", str(TICKETS)])
