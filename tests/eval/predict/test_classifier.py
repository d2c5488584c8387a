"""`Classifier`: the answers of ``eval.py``, entities with offsets, texts without an answer, unusable checkpoints.

The models are those of ``tests/old_files``, which were trained, so that there are answers to read.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.decoder.fewshot import PromptSpec
from data.errors import UserError
from data.example import Example
from data.readers.custom_fields import OF_ANSWERS, OF_LABELS, is_taken
from data.source import load_examples
from data.task_file import TASK_FILE, save_task
from data.tasks import TASKS, ClassField, TokenField, get_task
from eval.config import EvalConfig
from eval.predict import run as run_module
from eval.predict.classifier import Classifier, Entity, Label, _entities
from eval.predict.columns import columns_of
from eval.score import answer
from eval.setup import build_model, open_model, open_scoring
from tests.eval.predict.rows import store_temperature
from tests.launching import TICKETS

OLD = Path(__file__).resolve().parents[2] / "old_files"


def scored(name: str) -> list[dict]:
    """What ``eval.py`` of the time answered, in fp32."""
    return [json.loads(line) for line in (OLD / "scored" / name / "predictions.jsonl").read_text().splitlines()]


def load(folder: Path, **options) -> Classifier:
    return Classifier.load(folder, device="cpu", precision="fp32", **options)


def test_a_decoder_answers_as_eval_does(tickets):
    examples, expected = load_examples(get_task(TICKETS), "test"), scored("tickets")
    classifier = load(tickets, decode="free")
    results = classifier([example.text for example in examples])
    assert 1 < sum(not line["unparsed"] for line in expected) < len(expected), "answers of both kinds"
    for example, result, line in zip(examples, results, expected, strict=True):
        assert line["id"] == example.id and result.raw == line["raw"]
        for name, label in line["parsed"].items():
            assert result[name] == (Label(label) if label is not None else None)
        assert bool(result.error) == bool(line["unparsed"])
    alone = [classifier([example.text])[0] for example in examples]
    assert alone == results
    assert load(OLD / "tickets" / "export", task=str(TICKETS), decode="free")([examples[0].text]) == results[:1]


def test_a_decoder_says_how_probable_its_labels_are(tickets):
    """As ``eval.py --decode labels``; and every text has an answer."""
    options = EvalConfig(model="llama", checkpoint=tickets, task=str(TICKETS), decode="labels")
    setup, free = open_scoring(options), scored("tickets")
    expected = answer(build_model(setup, "fp32", torch.device("cpu")), setup.job)
    results = load(tickets)([example.text for example in setup.examples])
    assert any(line["unparsed"] for line in free) and {line["raw"] for line in free} & {r.raw for r in results}
    for result, prediction in zip(results, expected, strict=True):
        assert (result.raw, result.error) == (prediction.raw, "")
        for name, label in result.fields.items():
            assert isinstance(label, Label) and label.label == prediction.parsed[name]
            top = [(label.label, label.probability), *label.next_best]
            assert top == [tuple(pair) for pair in prediction.top[name]]
            assert sum(p for _, p in top) == pytest.approx(1, abs=1e-5) or len(top) == 5


def test_texts_longer_than_the_model_was_trained_for_are_counted(tickets, run, tmp_path, monkeypatch, caplog):
    """Once in a call and once in a file, however many chunks it has."""
    texts = [example.text for example in load_examples(get_task(TICKETS), "test")]
    predictions = answer((classifier := load(tickets)).model, classifier.setup.job_of(
        [Example(str(i), text, {}) for i, text in enumerate(texts)], None))  # fmt: skip
    lengths = [prediction.n_prompt_tokens + prediction.n_new_tokens for prediction in predictions]
    limit = sorted(lengths)[2]
    longer = [length > limit for length in lengths]
    assert 1 < sum(longer) < len(texts)
    folder = shutil.copytree(tickets, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": limit}))
    wanted = f"{sum(longer)} of the texts are longer than the {limit} tokens the model was trained for."
    assert [result.exceeds_positions for result in load(folder)([*texts, ""])] == [*longer, False]
    assert caplog.text.count(wanted) == 1
    caplog.clear()
    monkeypatch.setattr(run_module, "CHUNK_ROWS", 2)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ("--input", tmp_path / "in.jsonl", "--output")
    run(*words, tmp_path / "out.jsonl", checkpoint=folder)
    assert caplog.text.count(wanted) == 1
    caplog.clear()
    classifier(texts)
    run(*words, tmp_path / "fits.jsonl")
    assert "longer than" not in caplog.text


def test_labels_that_are_not_probable_enough_are_not_given(tickets, tiny_checkpoint):
    texts = [example.text for example in load_examples(get_task(TICKETS), "test")]
    all_given = load(tickets)(texts)
    below = sorted(result["queue"].probability for result in all_given)[len(texts) // 2]
    found = load(tickets, abstain_below=below)(texts)
    assert 0 < sum("queue" in result.unsure for result in found) < len(texts)
    for before, result in zip(all_given, found, strict=True):
        assert (result.raw, result.error, before.unsure) == (before.raw, "", {})
        for name, label in before.fields.items():
            is_given = label.probability >= below
            assert result[name] == (label if is_given else None), "from the threshold on"
            assert result.unsure.get(name) == (None if is_given else label)
    for value in (0.0, 1.01, -0.5, float("nan")):
        with pytest.raises(UserError, match="abstain_below = .*: must be above 0 and at most 1"):
            load(tickets, abstain_below=value)
    with pytest.raises(UserError, match="--abstain_below needs the probabilities .*Give --decode labels"):
        load(tickets, abstain_below=0.5, decode="free")
    assert load(OLD / "joint" / "export", abstain_below=1.0)(["wake me up"])[0].unsure["intent"].probability < 1
    with pytest.raises(UserError, match="about the probabilities of class fields, and task massive_slots has none"):
        load(tiny_checkpoint, task="massive_slots", abstain_below=0.5)


def test_a_stored_temperature_is_used(tickets, tmp_path):
    texts, folder = (
        ["The parcel has not arrived.", "I was charged twice."],
        shutil.copytree(tickets, tmp_path / "export"),
    )
    store_temperature(folder, 2.0)
    for before, after in zip(load(tickets)(texts), load(folder)(texts), strict=True):
        for name, label in before.fields.items():
            top = {label.label: label.probability} | dict(label.next_best)
            found = {after[name].label: after[name].probability} | dict(after[name].next_best)
            root = {other: p**0.5 for other, p in top.items()}
            assert found == pytest.approx({other: p / sum(root.values()) for other, p in root.items()}, abs=2e-3)
            assert after[name].label == label.label and after[name].probability < label.probability


def test_no_column_of_the_output_is_there_twice():
    """Such fields are refused when a task is read; a checkpoint may have them from before."""
    with pytest.raises(UserError, match="two columns 'p_error'"):
        columns_of(replace(TASKS["20ng_7"], fields=(ClassField("error", ("a", "b")),)), "p_", (), False)
    names = ("x", *(f"x_{what}" for what in OF_LABELS), *OF_ANSWERS)
    fields = tuple(ClassField(name, ("a", "b")) for name in names)
    assert [name for name in names if is_taken(name, names)] == list(names[1:])
    columns = columns_of(replace(TASKS["20ng_7"], fields=fields[:1]), "", ("x",), True)
    assert sorted(columns) == sorted(names), "these are all of them"


def test_any_iterable_of_texts(tickets):
    classifier, texts = load(tickets), ["The parcel has not arrived.", "I was charged twice."]
    assert classifier(text for text in texts) == classifier(tuple(texts)) == classifier(texts)
    with pytest.raises(TypeError, match="text 1 is not a string but float"):
        classifier(x for x in ["a", 1.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "Labels"}, "decode = 'Labels': expected None or 'labels' or 'free'"),
        ({"precision": "fp16"}, "precision = 'fp16': expected 'auto' or"),
        ({"device": "gpu"}, "device = 'gpu': expected"),
        ({"batch_tokens": 0}, "batch_tokens = 0: must be a whole number from 1 on"),
        ({"abstain_below": "0.8"}, "abstain_below = '0.8': must be a number"),
    ],
)
def test_options_are_checked(tickets, options, message):
    with pytest.raises(UserError, match=message):
        Classifier.load(tickets, **options)


def test_an_encoder_writes_nothing():
    with pytest.raises(UserError, match="--decode free is for decoders: roberta has heads"):
        load(OLD / "joint" / "export", decode="free")
    encoder = load(OLD / "joint" / "export")
    for name, ask in {
        "prompt_ids": lambda: encoder.prompt_ids("x"),
        "max_new_tokens": lambda: encoder.max_new_tokens("x"),
        "stop_ids": lambda: encoder.stop_ids,
        "read": lambda: encoder.read("x", "y"),
    }.items():
        with pytest.raises(UserError, match=f"{name} is for decoders: roberta has heads"):
            ask()


def test_only_options_that_the_program_has_are_recommended(tickets, tmp_path):
    """eval.py has --new_prompt and --allow_mismatch; ``predict.py`` and ``load`` do not."""
    folder = shutil.copytree(tickets, tmp_path / "export")
    asked = EvalConfig(model="llama", checkpoint=folder, task="massive_intent")
    another = replace(asked, model="llama3_8b", task="")
    changed = replace(asked, task=str(TICKETS))

    def refused(options: EvalConfig, labelled: bool) -> str:
        with pytest.raises(UserError) as error:
            open_model(options, labelled)
        return str(error.value)

    assert refused(asked, labelled=False).endswith("Omit the option to use the stored prompt.")
    assert "add --new_prompt" in refused(asked, labelled=True)
    with pytest.raises(UserError, match="Omit the option to use the stored prompt.$"):
        load(folder, task="massive_intent")
    assert refused(another, labelled=False).endswith("Name the model that fits.")
    assert "give --allow_mismatch" in refused(another, labelled=True)
    replace(PromptSpec.load(folder), fingerprint="0" * 32).save(folder)
    assert refused(changed, labelled=False).endswith("Restore the old version.")
    assert "give --new_prompt" in refused(changed, labelled=True)


def test_an_encoder_answers_as_eval_does():
    """Its probabilities are those of ``eval.py``, and its entities those of the words' types."""
    expected, by_id = scored("joint"), {e.id: e for e in load_examples("massive", "train", "sample")}
    texts = [by_id[line["id"]].text for line in expected]
    results = load(OLD / "joint" / "export")(texts)
    assert any(result["slots"] for result in results), "there are entities"
    for text, result, line in zip(texts, results, expected, strict=True):
        label = result["intent"]
        assert isinstance(label, Label) and label.label == line["parsed"]["intent"] and not result.error
        found = [(label.label, label.probability), *label.next_best]
        assert [name for name, _ in found] == [name for name, _ in line["top"]["intent"]]
        assert [p for _, p in found] == pytest.approx([p for _, p in line["top"]["intent"]], abs=1e-4)
        types = ["Other"] * len(text.split())
        for entity in result["slots"]:
            first = len(text[: entity.start].split())
            types[first : first + len(entity.text.split())] = [entity.type] * len(entity.text.split())
        assert types == line["parsed"]["slots"]


def test_entities_are_where_they_say():
    generator = random.Random(0)
    for _ in range(300):
        lengths = [generator.randrange(1, 5) for _ in range(generator.randrange(9))]
        words = ["".join(generator.choices("aé日🙂'.", k=k)) for k in lengths]
        spaces = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2003\u2028\u3000 "
        text = "".join(generator.choice(["", *spaces]) + word + generator.choice(spaces) for word in words)
        labels = tuple(generator.choices(["Other", "date", "time"], k=len(text.split())))
        found = _entities(labels, "Other", text)
        assert all(text[e.start : e.end] == e.text and e.text == e.text.strip() for e in found)
        covered = ["Other"] * len(labels)
        for entity in found:
            first = len(text[: entity.start].split())
            n = len(entity.text.split())
            covered[first : first + n] = [entity.type] * n
        assert tuple(covered) == labels


def test_neighbours_of_one_type_are_as_many_entities_as_were_answered():
    text, labels = "one two  three", ("date", "date", "date")
    assert [e.text for e in _entities(labels, "Other", text)] == ["one two  three"]
    assert [e.text for e in _entities(labels, "Other", text, ("B-date", "B-date", "I-date"))] == ["one", "two  three"]


def test_an_answer_decoded_elsewhere_is_read(tickets):
    spans = TASKS["massive_joint"].with_slot_answer("spans")
    classifier = load(tickets)
    classifier = Classifier(classifier.model, replace(classifier.setup, task=spans), "cpu")
    text = "wake me  up at nine am"
    result = classifier.read(text, '{"task1": "alarm_set", "task2": ["time: nine am"]}')
    assert result.fields == {"intent": Label("alarm_set"), "slots": (Entity("time", "nine am", 15, 22),)}
    assert classifier.read(text, "no idea" * 100).error.startswith("no intent and slots could be read from the answer")


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\ud800 half"])
def test_a_text_without_content_gets_no_answer_and_costs_the_others_nothing(tickets, text):
    classifier = load(tickets)
    one, without, two = classifier(["Where is my parcel", text, "The app is slow"])
    assert without.fields == {"queue": None, "urgency": None} and without.error
    assert [one, two] == classifier(["Where is my parcel", "The app is slow"])
    assert classifier([]) == []


def test_a_text_of_a_million_characters_is_cut(tickets):
    (result,) = load(tickets)(["word " * 200_000])
    assert result.truncated
    (result,) = load(OLD / "joint" / "export")(["word " * 200_000])
    assert result.truncated and isinstance(result["intent"], Label)


def test_texts_that_are_none(tickets):
    classifier = load(tickets)
    with pytest.raises(TypeError, match=r"give a list of texts: classifier\(\[text\]\)"):
        classifier("a text")
    with pytest.raises(TypeError, match="text 1 is not a string but NoneType"):
        classifier(["a", None])


def test_threads_do_not_disturb_each_other(tickets):
    classifier, texts = load(tickets), ["Where is my parcel", "The app is slow", "My card was charged twice"]
    expected, found = classifier(texts), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: classifier(texts[i:])})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == [expected[i:] for i in range(3)]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_task(tiny_checkpoint):
    with pytest.raises(UserError, match="no --task given, and the checkpoint stores none"):
        load(tiny_checkpoint)
    assert load(tiny_checkpoint, task="20ng_7").task == TASKS["20ng_7"]
    with pytest.raises(UserError, match="task of your own, 'tickets': give its TOML file with --task"):
        load(OLD / "tickets" / "export")


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint folder at .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="link is a link to .*gone, which does not exist.$"):
        load(tmp_path / "link")
    (tmp_path / "link").unlink()
    with pytest.raises(UserError, match="holds no model: it has no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(UserError, match="not a model we can run: model_type is 'lama'.*this code runs 'llama'"):
        load(tmp_path)
    with pytest.raises(UserError, match="run folder.*export"):
        load(OLD / "tickets")


def test_metas_own_files():
    classifier = load(OLD / "meta", task="20ng_7")
    assert classifier.setup.spec.name == "llama" and classifier(["a car"])[0].raw


def test_a_training_checkpoint(monkeypatch):
    monkeypatch.chdir(OLD.parent.parent)  # its tokenizer is where its run started from, a path relative to this
    examples = load_examples(get_task(TICKETS), "test")
    classifier = load(OLD / "tickets" / "checkpoints" / "step_000094", task=str(TICKETS), decode="free")
    results = classifier([example.text for example in examples])
    assert [result.raw for result in results] == [line["raw"] for line in scored("tickets_step")]


def test_a_task_with_labels_that_the_heads_do_not_have(tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(OLD / "joint" / "export", folder)
    joint = TASKS["massive_joint"]
    save_task(joint, folder)
    assert load(folder).task == joint
    intent, slots = joint.fields
    assert isinstance(slots, TokenField)
    renamed = ClassField("intent", ("alarm_se", *intent.labels[1:]))
    for fields, message in [
        ((renamed, slots), "the labels of intent are not those of task massive_joint.*alarm_se"),
        ((ClassField("intent", intent.labels[:-1]), slots), r"task\.json needs the heads .*59 labels.*60 labels"),
        ((intent,), r"task\.json needs the heads intent .*was fine-tuned with"),
    ]:
        save_task(replace(joint, fields=fields), folder)
        with pytest.raises(UserError, match=message):
            load(folder)


def test_a_prompt_that_is_not_the_tasks(tickets, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(tickets, folder)
    record = json.loads((folder / TASK_FILE).read_text())
    record["fields"][0]["labels"].reverse()
    (folder / TASK_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="no longer gives the prompt"):
        load(folder)


def test_prompt_ids_decode_to_the_prompt_of_the_model(tickets):
    classifier = load(tickets)
    ids = classifier.prompt_ids("Where is my parcel")
    text = classifier.setup.tokenizer.decode(ids)
    assert re.search(r"Beginning of <<Ticket>>\nWhere is my parcel\nEnd of <<Ticket>>", text)
    assert classifier.stop_ids and not classifier.stop_ids & set(classifier.setup.tokenizer.encode("billing"))
