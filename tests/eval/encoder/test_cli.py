"""eval.py for encoders: which task a checkpoint's heads stand for, options that are for decoders, and a whole run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints_tools.encoder_config import to_hf_encoder_config
from checkpoints_tools.export import export_hf
from checkpoints_tools.heads import UNNAMED, heads_for
from data.encoder.samples import output_labels
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS
from eval.config import DECODER_ONLY, EvalConfig
from eval.encoder.task import from_label_sets
from eval.job import ScoringJob
from eval.resolve import load_config
from eval.results import read_predictions, read_results
from eval.score import score
from eval.setup import build_model, open_scoring
from model.encoder import ROBERTA_BASE, Encoder, Head
from tests.encoder_reference import ours_from, reference, scaled_down
from tests.encoder_tokenizers import write_roberta

ROOT = Path(__file__).resolve().parents[3]
SLOTS = TASKS["massive_slots"]


def write_checkpoint(folder, tokenizer_folder, task):
    """Weights by transformers, config.json with the heads as an export of ours has them."""
    shutil.copytree(tokenizer_folder, folder)
    vocab_size = load_encoder_tokenizer(folder).vocab_size
    config = scaled_down(ROBERTA_BASE, *(heads_for(task) if task else ()))
    config = replace(config, vocab_size=vocab_size, max_position=40)
    hf = reference(config)
    hf.save_pretrained(folder)
    contents = to_hf_encoder_config(config, torch.float32, output_labels(task) if task else {})
    (folder / "config.json").write_text(json.dumps(contents))
    return ours_from(hf, config)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    texts = [e.text for e in load_examples("massive", "train", "sample")]
    return write_roberta(tmp_path_factory.mktemp("tokenizer"), texts, vocab_size=600)["files"]


@pytest.fixture(scope="module")
def slots(tokenizer_folder, tmp_path_factory):
    """A checkpoint with a head for slots, and the same model."""
    folder = tmp_path_factory.mktemp("slots") / "export"
    return folder, write_checkpoint(folder, tokenizer_folder, SLOTS)


def plan(checkpoint, **options):
    return open_scoring(EvalConfig(checkpoint=checkpoint, **{"model": "roberta", "data": "sample", **options}))


def test_options_about_prompts_and_text_are_for_decoders():
    given = {
        "list_labels": "off",
        "slot_answer": "list",
        "slot_tags": "bio",
        "wording": "clean",
        "shots": 1,
        "shots_choice": "ids",
        "shots_seed": 3,
        "shot_ids": "a",
        "joint_order": "section",
        "template": "plain",
        "shot_tokens": 9,
        "new_prompt": None,
        "row_length": 99,
        "max_new_tokens": 4,
        "decode": "labels",
        "tp": 2,
    }
    assert set(given) == set(DECODER_ONLY)
    arguments = ["--model", "roberta", "--checkpoint", "x", "--task", "20ng_joint"]
    for name, value in given.items():
        arguments += [f"--{name}"] if value is None else [f"--{name}", str(value)]
    with pytest.raises(UserError) as error:
        load_config(arguments)
    for name in DECODER_ONLY:
        assert re.search(f"{name} = .* is for decoders; roberta is an encoder", str(error.value))
    assert load_config(arguments[:6]).model == "roberta"
    place = arguments.index("--slot_answer")  # this and the next option are not for a task without slots
    decoder = ["--model", "llama", *arguments[2:place], *arguments[place + 4 :]]
    assert load_config(decoder).shots == 1
    with pytest.raises(UserError, match="max_length = 128 is for encoders; llama is a decoder"):
        load_config([*decoder, "--max_length", "128"])


def test_the_heads_say_which_task_it_is(slots):
    found = plan(slots[0])
    assert found.task == SLOTS and found.prompt is None and found.fine_tuned and found.max_length == 40
    assert found.output == Path(f"runs/eval/{found.weights.name}-massive_slots") and found.name == found.weights.name
    assert plan(slots[0], task="massive_slots", max_length=20).max_length == 20
    with pytest.raises(UserError, match="--max_length 41: .* 40 tokens at most"):
        plan(slots[0], max_length=41)
    for name, needed in (("massive_joint", r"intent \(60 labels\), slots \(111 tags\)"), ("20ng_20", "group")):
        with pytest.raises(UserError, match=rf"--task {name} needs the heads {needed}.* fine-tuned with slots \(111"):
            plan(slots[0], task=name)


def test_outputs_with_other_labels_are_not_scored_as_if_they_were_the_tasks(slots, tmp_path):
    config = json.loads((slots[0] / "config.json").read_text())
    tags = config["heads"]["fields"][0]["labels"]
    for changed, message in (
        ([tags[0], *tags[:0:-1]], "order differs"),
        (["O", "B-mood", *tags[2:]], f"only one of the two has B-mood, {tags[1]}"),
    ):
        config["heads"]["fields"][0]["labels"] = changed
        folder = shutil.copytree(slots[0], tmp_path / message[:4])
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"labels of slots are not those of task massive_slots: .*{message}"):
            plan(folder, task="massive_slots")
        with pytest.raises(UserError, match=r"no --task given, and no built-in task .* slots \(111 tags\)"):
            plan(folder)


def test_label_sets_of_a_run_give_the_heads_outputs():
    joint = TASKS["massive_joint"]
    stored = {field.name: list(field.labels) for field in joint.fields}
    assert from_label_sets(heads_for(joint), stored) == output_labels(joint)


def test_an_encoder_that_was_never_fine_tuned(tokenizer_folder, tmp_path):
    write_checkpoint(tmp_path / "bare", tokenizer_folder, None)
    with pytest.raises(UserError, match=r"without heads .* Fine-tune it first"):
        plan(tmp_path / "bare", task="massive_slots")


def test_encoders_and_decoders_are_not_mistaken_for_each_other(slots, tiny_checkpoint):
    with pytest.raises(UserError, match="encoder|architecture"):
        plan(slots[0], model="llama")
    with pytest.raises(UserError, match="decoder|architecture"):
        plan(tiny_checkpoint, model="roberta")


def test_a_whole_run(slots, tmp_path):
    folder, model = slots
    command = [sys.executable, str(ROOT / "eval.py"), "--model", "roberta", "--checkpoint", folder, "--data", "sample"]
    command += ["--limit", 20, "--output", tmp_path / "out", "--cache_dir", tmp_path / "cache", "--device", "cpu"]
    command += ["--precision", "fp32"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "slots" in done.stdout and "exact match" not in done.stdout
    examples = plan(folder, limit=20).examples
    expected = score(model, ScoringJob(SLOTS, load_encoder_tokenizer(folder), examples, max_length=40))
    assert read_predictions(tmp_path / "out") == expected.predictions
    assert len({kind for p in expected.predictions for kind in p.parsed["slots"]}) > 3
    results = read_results(tmp_path / "out")
    assert results.metrics == expected.metrics and results.counts == expected.counts
    assert (results.shots, results.prompt, results.model) == (0, None, "roberta")


def write_classifier(folder, tokenizer_folder, labels, name):
    """As transformers saves one: a class of one head, whose labels are in id2label alone."""
    shutil.copytree(tokenizer_folder, folder)
    kind, head = ("class", "dense") if name == "Sequence" else ("token", "linear")
    config = scaled_down(ROBERTA_BASE, Head(UNNAMED, kind, len(labels)), head=head)
    config = replace(config, vocab_size=load_encoder_tokenizer(folder).vocab_size, max_position=40)
    hf = reference(config)
    hf.config.id2label, hf.config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    hf.config.architectures = [f"RobertaFor{name}Classification"]
    hf.save_pretrained(folder)
    return hf


@pytest.fixture
def moods(tmp_path):
    """A task of the user's own, with labels in the alphabet's order."""
    texts = ["wake me up", "what is the weather", "play some music", "good morning", "how late is it", "stop"]
    rows = "".join(f"{text},{'bad' if i % 2 else 'good'}\n" for i, text in enumerate(texts))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    path = tmp_path / "moods.toml"
    path.write_text(
        'name = "moods"\n[files]\ntrain = "rows.csv"\ntest = "rows.csv"\n'
        '[[fields]]\nname = "mood"\ncolumn = "label"\ntype = "class"\nlabels = ["bad", "good", "so so"]\n'
    )
    return path, texts


@pytest.mark.parametrize("labels", [["bad", "good", "so so"], ["so so", "bad", "good"]], ids=["same order", "another"])
def test_a_classifier_of_transformers_is_scored_by_the_names_of_its_labels(labels, tokenizer_folder, moods, tmp_path):
    task, texts = moods
    hf = write_classifier(tmp_path / "hf", tokenizer_folder, labels, "Sequence")
    setup = plan(tmp_path / "hf", task=str(task), data=None)
    assert [(head.name, head.n_labels) for head in setup.config.heads] == [("mood", 3)]
    model = build_model(setup, "fp32", torch.device("cpu"))
    for text, answer in zip(texts, score(model, replace(setup.job, cache_dir=None)).predictions, strict=True):
        ids = [setup.tokenizer.cls_id, *setup.tokenizer.encode(text), setup.tokenizer.sep_id]
        with torch.no_grad():
            expected = hf(torch.tensor([ids])).logits[0].softmax(-1).tolist()
        assert max(expected) - min(expected) > 0.01
        assert dict(answer.top["mood"]) == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-4)


def test_a_token_classifier_of_transformers_is_scored_by_its_tags(tokenizer_folder, tmp_path):
    tags = output_labels(SLOTS)["slots"]
    shuffled = sorted(tags)
    assert shuffled != tags
    hf = write_classifier(tmp_path / "hf", tokenizer_folder, shuffled, "Token")
    setup = plan(tmp_path / "hf", limit=5)  # no --task: the labels are those of one built-in task
    assert setup.task == SLOTS
    weight = build_model(setup, "fp32", torch.device("cpu")).heads["slots"].out.weight
    for i in (0, 1, 50):
        assert torch.equal(weight[i], hf.classifier.weight[shuffled.index(tags[i])])


def test_a_classifier_of_transformers_whose_labels_do_not_fit(tokenizer_folder, moods, tmp_path):
    task = str(moods[0])
    write_classifier(tmp_path / "hf", tokenizer_folder, ["bad", "good", "fine"], "Sequence")
    with pytest.raises(UserError, match="labels of field mood of task moods: only one of the two has fine, so so"):
        plan(tmp_path / "hf", task=task, data=None)
    with pytest.raises(UserError, match="no --task given, and no built-in task has the labels of .*id2label"):
        plan(tmp_path / "hf")
    with pytest.raises(UserError, match="needs the heads slots .* has one head, which gives a label to each document"):
        plan(tmp_path / "hf", task="massive_slots")
    path = tmp_path / "hf" / "config.json"
    raw = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("id2label", "label2id")}
    path.write_text(json.dumps(raw | {"num_labels": 3}))
    with pytest.raises(UserError, match="id2label is missing, so what the head's 3 outputs mean is not known"):
        plan(tmp_path / "hf", task=task, data=None)


def test_an_export_of_a_joint_model_says_what_the_model_says(tokenizer_folder, tmp_path):
    """Several fields have no class in transformers: config.json and the tensors' names alone tell what they are."""
    joint, tokenizer = TASKS["massive_joint"], load_encoder_tokenizer(tokenizer_folder)
    config = replace(
        scaled_down(ROBERTA_BASE, *heads_for(joint)), vocab_size=tokenizer.vocab_size, max_position=40, head="linear"
    )
    model = Encoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    export_hf(model, config, tokenizer, tmp_path / "export", labels=output_labels(joint))
    found = plan(tmp_path / "export", limit=12)
    assert found.task == joint and found.config == config
    scored = [
        score(m, ScoringJob(joint, tokenizer, found.examples, found.max_length)).predictions
        for m in (model, build_model(found, "fp32", torch.device("cpu")))
    ]
    assert scored[0] == scored[1] and set(scored[0][0].parsed) == {"intent", "slots"}
