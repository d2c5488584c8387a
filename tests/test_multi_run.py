"""Several labels or none for a text, from the user's table to labelled text: train.py, eval.py, predict.py."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from data.decoder.prompts import build_prompt
from data.decoder.templates import Text
from data.errors import UserError
from data.source import load_examples
from data.tasks import get_task
from eval.config import EvalConfig
from eval.predict.classifier import Classifier, Label, LabelSet
from eval.results import read_predictions, read_results
from eval.setup import open_scoring
from tests.encoder_tokenizers import write_roberta
from tests.launching import call_main

SAYS = {
    "billing": ["the invoice is wrong", "my card was charged twice", "the bill has an error"],
    "delivery": ["the parcel is late", "nothing has arrived yet", "the courier lost it"],
    "refund": ["i want my money back", "please refund me", "return the payment"],
}
TOML = """
name = "mail"
document_name = "Mail"
[files]
train = "train.csv"
test = "test.jsonl"
[[fields]]
name = "urgency"
type = "class"
labels = ["low", "high"]
[[fields]]
name = "topics"
type = "multi"
labels = ["billing", "delivery", "refund"]
separator = "|"
"""


def rows(n: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        topics = [topic for topic in SAYS if rng.random() < 0.4]
        urgency = rng.choice(["low", "high"])
        says = [rng.choice(SAYS[topic]) for topic in topics] + ["now at once" if urgency == "high" else "no hurry"]
        found.append({"text": " and ".join(rng.sample(says, len(says))), "urgency": urgency, "topics": topics})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mail")
    (folder / "mail.toml").write_text(TOML)
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "urgency", "topics"])
        writer.writeheader()
        writer.writerows(row | {"topics": "|".join(row["topics"][::-1])} for row in rows(40, 0))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(16, 1)))
    return folder


def train(patch: pytest.MonkeyPatch, folder: Path, model: str, *more: object) -> Path:
    run = folder / model
    common = ("--init", "random", "--task", folder / "mail.toml", "--output", run, "--cache_dir", folder / "cache",
              "--device", "cpu", "--precision", "fp32", "--export_dtype", "fp32", "--batch_size", 8)  # fmt: skip
    call_main(patch, "train.py", "--model", model, *common, *more)
    return run / "export"


def evaluate(patch: pytest.MonkeyPatch, folder: Path, export: Path, *more: object):
    output = folder / f"{export.parent.name}-scored"
    options = ("--task", folder / "mail.toml", "--output", output, "--device", "cpu", "--precision", "fp32")
    call_main(patch, "eval.py", "--model", export.parent.name, "--checkpoint", export, *options, *more)
    return read_results(output), read_predictions(output)


def predict(patch: pytest.MonkeyPatch, folder: Path, export: Path, name: str) -> list[dict]:
    options = ("--checkpoint", export, "--device", "cpu", "--precision", "fp32")
    call_main(patch, "predict.py", *options, "--input", folder / "test.jsonl", "--output", folder / name)
    text = (folder / name).read_text()
    return list(csv.DictReader(text.splitlines())) if name.endswith("csv") else list(map(json.loads, text.splitlines()))


def test_an_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [row["text"] for row in rows(40, 0)]
    (folder / "roberta").mkdir()
    tokenizer = write_roberta(folder / "roberta", words, vocab_size=400)["files"]
    more = ("--holdout", 0.2, "--eval_every", 60, "--epochs", 40, "--lr", 3e-3)
    export = train(monkeypatch, folder, "roberta_debug", "--checkpoint", tokenizer, *more)
    assert "| topics micro f1 |" in (export / "README.md").read_text()
    assert "| topics | text, any number | 3: `billing`, `delivery`, `refund` |" in (export / "README.md").read_text()

    results, predictions = evaluate(monkeypatch, folder, export)
    figures = results.metrics["fields"]["topics"]
    assert figures["micro_f1"] > 0.7 and set(figures["per_label"]) == set(SAYS), figures
    gold = [tuple(row["topics"]) for row in rows(16, 1)]
    assert [p.gold["topics"] for p in predictions] == gold and () in gold
    for prediction in predictions:
        probabilities = dict(prediction.multi_top["topics"])
        assert len(probabilities) == 3
        assert prediction.parsed["topics"] == tuple(label for label in SAYS if probabilities[label] > 0.5)
        assert "topics" not in prediction.top

    labelled = predict(monkeypatch, folder, export, "encoder.jsonl")
    assert [row["predicted_topics"] for row in labelled] == [list(p.parsed["topics"]) for p in predictions]
    cells = predict(monkeypatch, folder, export, "encoder.csv")
    assert [row["predicted_topics"] for row in cells] == ["|".join(p.parsed["topics"]) for p in predictions]
    for row, result in zip(labelled, Classifier.load(export, device="cpu", precision="fp32")([
        row["text"] for row in labelled
    ]), strict=True):  # fmt: skip
        found = result["topics"]
        assert isinstance(found, LabelSet) and list(found.labels) == row["predicted_topics"]
        assert row["predicted_topics_probability"] == pytest.approx(list(found.probabilities), abs=1e-5)
        assert all(p > 0.5 for p in found.probabilities) and all(p <= 0.5 for _, p in found.next_best)
        assert {*found.labels, *(label for label, _ in found.next_best)} == set(SAYS)

    other = folder / "other.toml"  # the same field as a class
    other.write_text(TOML.replace('"multi"', '"class"').replace('separator = "|"\n', ""))
    with pytest.raises(UserError, match=r"topics \(3 labels\); .* topics \(3 labels, any number of them\)"):
        open_scoring(EvalConfig(model="roberta_debug", checkpoint=export, task=str(other)))


def test_a_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import ByteLevelBPETokenizer

    task = get_task(folder / "mail.toml")
    bpe = ByteLevelBPETokenizer()
    text = [piece.text for piece in build_prompt(task, "plain").prefix if isinstance(piece, Text)]
    answers = [task.write(example.labels) for example in load_examples(task, "train")]
    bpe.train_from_iterator([*text, *answers, *(row["text"] for row in rows(40, 0))], vocab_size=600,
                            special_tokens=["<|end|>"], show_progress=False)  # fmt: skip
    (folder / "tokenizer").mkdir()
    bpe.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    more = ("--shots", 2, "--steps", 120, "--lr", 3e-3, "--row_length", 1024)
    export = train(monkeypatch, folder, "llama_debug", "--checkpoint", folder / "tokenizer", *more)

    results, predictions = evaluate(monkeypatch, folder, export, "--decode", "labels")
    assert results.metrics["n_unparsed"] == 0 and results.counts["labels_unknown"] == 0
    assert results.metrics["fields"]["topics"]["micro_f1"] > 0.3, results.metrics
    assert all("topics" not in p.top and not p.multi_top for p in predictions)
    assert len({p.parsed["topics"] for p in predictions}) > 1

    labelled = predict(monkeypatch, folder, export, "decoder.jsonl")
    answered = [row for row in labelled if row["predicted_topics"] is not None]
    assert answered and all(set(row["predicted_topics"]) <= set(SAYS) for row in answered)
    assert "predicted_topics_probability" not in labelled[0]
    classifier = Classifier.load(export, device="cpu", precision="fp32")
    result = classifier.read("a mail", '{"task1": "low", "task2": ["refund", "billing"]}')
    assert result.fields == {"urgency": Label("low"), "topics": LabelSet(("billing", "refund"))}
    result = classifier.read("a mail", '{"task1": "low", "task2": "refund"}')
    assert result["topics"] is None and result.error.startswith("no topics could be read")
