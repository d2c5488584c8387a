"""The benchmark of few labels: it goes on where it ended, keeps what other runs found, asks SetFit for its pairs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from tests.launching import ROOT

pytest.importorskip("transformers")
import transformers

from benchmarks import embeddings, few_labels

TICKETS = ROOT / "data" / "sample" / "tickets"
SETFIT = """#!/bin/bash
# Stands for a Python with SetFit: answers with the label that its number of pairs names.
folder=$3 iterations=$7
n=$(($(wc -l < "$folder/test.csv") - 1)) label=$([ "$iterations" = 20 ] && echo billing || echo account)
python3 -c "import json; print('progress'); print(json.dumps(['$label'] * $n))"
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    task = tmp_path / "queue.toml"
    labels = '["billing", "delivery", "technical", "account"]'
    task.write_text(
        f'name = "queue"\ntext_column = "text"\n[files]\ntrain = "{TICKETS}/train.csv"\ntest = "{TICKETS}/test.csv"\n'
        f'[[fields]]\nname = "queue"\ntype = "class"\nlabels = {labels}\n'
    )
    return [
        "--tasks", str(task), "--encoder", str(tmp_path), "--work", str(tmp_path / "work"), "--per_label", "2", "4",
        "--draws", "2", "--test", "40", "--jobs", "2", "--output", str(tmp_path / "page.md"),
    ]  # fmt: skip


def found(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "work" / "runs.jsonl").read_text().splitlines()]


def test_a_failed_run_loses_no_other_and_alone_is_run_again(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def heads(args: few_labels.Args, drawn: few_labels.Drawn) -> list[str]:
        if drawn.key == ("queue", 4, 1):
            raise UserError("no room")
        return drawn.gold

    monkeypatch.setitem(few_labels.RUN, "heads", heads)
    assert few_labels.main([*arguments, "--systems", "tfidf", "heads"]) == 2
    assert "1 of 8 runs failed; the same command tries them again. no room" in capsys.readouterr().err
    assert len(found(tmp_path)) == 7
    assert not (tmp_path / "page.md").exists()

    monkeypatch.setitem(few_labels.RUN, "tfidf", lambda *_: pytest.fail("it is done"))
    monkeypatch.setitem(few_labels.RUN, "heads", lambda args, drawn: drawn.gold)
    assert few_labels.main([*arguments, "--systems", "tfidf", "heads"]) == 0
    assert {(r["n"], r["draw"], r["system"]) for r in found(tmp_path)} == {
        (n, draw, system) for n in (2, 4) for draw in (0, 1) for system in ("tfidf", "heads")
    }
    page = (tmp_path / "page.md").read_text()
    assert "Training texts: 2 a label are 8, 4 a label are 16." in page
    assert "| encoder, its heads alone (`--steps 0`) | 100.0 ± 0.0 (2) | 100.0 ± 0.0 (2) |" in page


def test_other_test_texts_are_none_of_the_pages(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[set[str]] = []
    monkeypatch.setitem(
        few_labels.RUN, "tfidf", lambda args, drawn: seen.append({e.text for e in drawn.test}) or drawn.gold
    )
    arguments = [*arguments, "--systems", "tfidf", "--per_label", "2", "--draws", "1"]
    assert few_labels.main(arguments) == 0
    assert few_labels.main([*arguments, "--other_test"]) == 2
    assert "has runs of other settings" in capsys.readouterr().err
    assert few_labels.main([*arguments, "--other_test", "--work", str(tmp_path / "others")]) == 0
    first, other = seen
    assert len(first) == len(other) == 40 and not first & other


def test_setfit_is_asked_for_its_pairs(arguments: list[str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(SETFIT)
    python.chmod(0o755)
    systems = ["--systems", "setfit", "setfit20"]
    assert few_labels.main([*arguments, "--setfit", str(python), *systems]) == 0
    shares = {system: {r["accuracy"] for r in found(tmp_path) if r["system"] == system} for system in systems[1:]}
    gold = few_labels.draw(few_labels.Args([], tmp_path, tmp_path / "again", test=40), arguments[1], 2, 0).gold
    expected = {"setfit": gold.count("account"), "setfit20": gold.count("billing")}
    assert shares == {system: {100 * n / 40} for system, n in expected.items()}
    assert expected["setfit"] != expected["setfit20"]


def test_a_vote_adds_up_the_probabilities_of_trainings_with_other_seeds(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, asked = "billing", []
    by_seed = [("account", 0.9), (gold, 0.6), (gold, 0.5), ("delivery", 0.99), ("account", 0.1)]

    def answers(args: few_labels.Args, drawn: few_labels.Drawn, name: str, *more: object) -> list[dict]:
        asked.append((name, more[-1]))
        label, probability = by_seed[more[-1]]
        return [{"predicted_label": label, "predicted_label_probability": probability}] * len(drawn.test)

    monkeypatch.setattr(few_labels, "answers", answers)
    assert few_labels.main([*arguments, "--systems", "vote", "--decoder", str(tmp_path)]) == 0
    assert asked[:5] == [(f"vote{seed}", seed) for seed in range(5)]
    labels = few_labels.draw(few_labels.Args([], tmp_path, tmp_path / "again", test=40), arguments[1], 2, 0).gold
    assert {r["accuracy"] for r in found(tmp_path)} == {100 * labels.count(gold) / 40}


TEXTS = ("short", "a text that is much longer than the other two of its batch", "one two")


@pytest.fixture
def tiny_decoder(minilm_folder: Path, tmp_path: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2}
    transformers.LlamaModel(transformers.LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_states_of_a_decoder_are_a_texts_own(tiny_decoder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_decoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_decoder)
    for text, mean in zip(TEXTS, embeddings.embed(tiny_decoder, TEXTS, decoder=True), strict=True):
        states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[4][0, 1:].mean(0), mean)


def test_states_of_a_text_read_twice_are_its_own(tiny_decoder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_decoder, dtype=torch.bfloat16).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_decoder)
    for text, found in zip(TEXTS, embeddings.read_twice(tiny_decoder, TEXTS), strict=True):
        begin, again, question = embeddings.REPEATED
        ids = tokenizer(f"{begin} {text}{again} {text}{question}", add_special_tokens=False).input_ids
        start, n, after = (len(tokenizer.tokenize(part)) for part in (begin, text, question))
        first, second = slice(start, start + n), slice(len(ids) - after - n, len(ids) - after)
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        inner = states[4][0].float()
        kinds = torch.stack([torch.cat([inner[first], inner[second]]).mean(0), states[5][0, -1].float()])
        torch.testing.assert_close(torch.nn.functional.normalize(kinds, dim=1), found, atol=0.005, rtol=0.02)


def test_texts_read_twice_are_labelled_by_what_their_states_tell(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two kinds of states tells the label; the other says nothing."""
    labels = {row[0]: row[1] for name in ("train", "test") for row in csv.reader((TICKETS / f"{name}.csv").open())}
    order = sorted(set(labels.values()))

    def states(folder: Path, texts: tuple[str, ...]) -> torch.Tensor:
        made = torch.full((len(texts), 2, len(order)), 5.0)
        for i, text in enumerate(texts):
            made[i, 1, order.index(labels[text])] += 0.01
        return made

    monkeypatch.setattr(few_labels, "read_twice", states)
    assert few_labels.main([*arguments, "--systems", "repeated", "--decoder", str(tmp_path)]) == 0
    assert len(found(tmp_path)) == 4 and {r["accuracy"] for r in found(tmp_path)} == {100}
    assert "frozen decoder, text twice and a question" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--systems", "setfit20"], "system setfit20 needs --setfit"),
        (["--systems", "decoder"], "system decoder needs --decoder"),
        (["--systems", "states"], "system states needs --decoder"),
        (["--systems", "repeated"], "system repeated needs --decoder"),
        (["--systems", "svm"], "--systems svm: expected some of tfidf"),
    ],
)
def test_what_is_missing_is_named(
    more: list[str], said: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert few_labels.main([*arguments, *more]) == 2
    assert said in capsys.readouterr().err
