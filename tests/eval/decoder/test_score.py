"""Scoring end to end with scripted answers, and with a tiny model on one process and on several."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import eval.decoder.score
from data.answers import forms
from data.decoder.prompts import build_prompt
from data.decoder.templates import encode_pieces, stop_tokens
from data.decoder.tokenizer import load_tokenizer
from data.source import load_examples
from data.tasks import TASKS, ClassField, TokenField
from eval.config import EvalConfig
from eval.decoder.decode import Decoded
from eval.decoder.score import BUDGET_MARGIN, answer_budgets, prepare_requests
from eval.job import ScoringJob, ScoringRanks
from eval.results import Prediction, Results, field_kinds, read_predictions, read_results, write_run
from eval.score import score
from eval.setup import build_model, open_scoring
from train.parallel.distributed import leave_group

JOINT = TASKS["massive_joint"]
SPANS = JOINT.with_slot_answer("spans")


@pytest.fixture(scope="module")
def examples():
    return load_examples(JOINT, "test", "sample")[:30]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return load_tokenizer(tiny_checkpoint)


def decode_nothing(model, prefix, bodies, *_, finished, **__):
    found = [Decoded([], True) for _ in bodies]
    finished(dict(enumerate(found)))
    return found


def score_scripted(monkeypatch, tokenizer, examples, answers, task=JOINT, **options):
    """Score answers from a script, keyed by the text of the document the decoder is shown."""
    prompt = build_prompt(task, "plain")

    def decode(model, prefix, bodies, limits, stop_ids, *, finished, **_):
        found = []
        for body, limit in zip(bodies, limits, strict=True):
            document = tokenizer.decode(body).split("\nEnd of <<")[0]
            ids = tokenizer.encode(answers[document])
            found.append(Decoded(ids[:limit], stopped=len(ids) <= limit))
        finished(dict(enumerate(found)))
        return found

    monkeypatch.setattr(eval.decoder.score, "greedy_decode", decode)
    return score(None, ScoringJob(task, tokenizer, examples, 4096, prompt, **options))


@pytest.mark.parametrize("task", [JOINT, SPANS], ids=["list", "spans"])
def test_gold_answers_score_perfectly_and_fit_the_budget(monkeypatch, tokenizer, examples, task):
    answers = {e.text: task.write(e.labels, e.words) for e in examples}
    result = score_scripted(monkeypatch, tokenizer, examples, answers, task)
    assert result.metrics["exact_match"] == 1.0
    assert result.metrics["fields"]["slots"]["f1"] == 1.0
    names = ("truncated", "not_stopped", "labels_missing", "labels_extra", "labels_unknown", "spans_not_found")
    assert result.counts == dict.fromkeys((*names, "limit_shortened"), 0)
    assert [p.id for p in result.predictions] == [e.id for e in examples]
    assert all(p.parsed == p.gold and p.unparsed == () for p in result.predictions)


@pytest.mark.parametrize("name", ["massive_joint", "massive_slots", "massive_intent"])
@pytest.mark.parametrize("form", range(4))
def test_gold_answers_in_every_form_are_read_to_their_end(monkeypatch, tokenizer, examples, name, form):
    """On one line, and indented; alone, and in a code fence. A label alone has two forms."""
    task = TASKS[name]
    written = {e.text: task.write(e.labels, e.words) for e in examples}
    values = {text: json.loads(answer) if answer[0] in "[{" else answer for text, answer in written.items()}
    answers = {text: forms(value)[min(form, len(forms(value)) - 1)] for text, value in values.items()}
    assert form == 0 or all(answers[text] != written[text] for text in written)
    for fine_tuned in (True, False):
        result = score_scripted(monkeypatch, tokenizer, examples, answers, task, fine_tuned=fine_tuned)
        assert result.metrics["exact_match"] == 1.0 and result.counts["not_stopped"] == 0


def test_only_an_untrained_models_document_leaves_space_for_other_forms(tokenizer, examples):
    task = TASKS["massive_intent"]
    example = dataclasses.replace(examples[0], text=" ".join(["please"] * 60))
    prompt = build_prompt(task, "plain")
    n_around = len(encode_pieces((*prompt.prefix, *prompt.suffix), tokenizer))
    n_document = len(tokenizer.encode(example.text))
    ((written, longest),) = answer_budgets(task, tokenizer, [example])
    assert written < longest < n_document

    def prepared(n_answer, fine_tuned):
        length = n_around + n_document + n_answer
        made = prepare_requests(ScoringJob(task, tokenizer, [example], length, prompt, fine_tuned=fine_tuned))
        return made.samples.truncated.tolist(), list(made.limits)

    assert prepared(written, True) == ([False], [written])
    assert prepared(written, False) == ([True], [longest])
    for n_answer in (longest, longest + 50):
        assert prepared(n_answer, True) == prepared(n_answer, False) == ([False], [longest])


def test_wrong_and_unreadable_answers_are_counted(monkeypatch, tokenizer, examples):
    answers = {e.text: JOINT.write(e.labels) for e in examples}
    answers[examples[0].text] = "I would say: alarm_set"
    answers[examples[1].text] = '{"task1": "alarm_sett", "task2": "Other"}'
    answers[examples[2].text] = "yes " * 500
    result = score_scripted(monkeypatch, tokenizer, examples, answers)
    assert result.metrics["n_unparsed"] == 3
    assert result.metrics["exact_match"] == pytest.approx(27 / 30)
    assert result.counts["not_stopped"] == 1
    assert result.predictions[0].raw == "I would say: alarm_set"
    assert result.predictions[1].unparsed == ("intent", "slots")


def test_the_lenient_reading_is_a_second_figure(monkeypatch, tokenizer, examples, tmp_path):
    answers = {e.text: JOINT.write(e.labels) for e in examples}
    answers[examples[0].text] = f"Output: {JOINT.write(examples[0].labels).upper().replace('TASK', 'task')}."
    result = score_scripted(monkeypatch, tokenizer, examples, answers)
    strict, lenient = result.metrics, result.metrics["lenient"]
    assert strict["n_unparsed"] == 1 and strict["exact_match"] == pytest.approx(29 / 30)
    assert lenient["n_unparsed"] == 0 and lenient["exact_match"] == 1.0 == lenient["fields"]["slots"]["f1"]
    first, *others = result.predictions
    assert first.unparsed == ("intent", "slots") and first.lenient == first.gold
    assert all(p.lenient == {} for p in others)
    write_run(tmp_path, Results("a", JOINT.name, {"intent": "class", "slots": "token"}, "", "", strict), [first])
    assert read_predictions(tmp_path) == [first]


def test_lists_that_do_not_fit_the_words_are_counted(monkeypatch, tokenizer, examples):
    answers = {e.text: JOINT.write(e.labels) for e in examples}
    wrong = [["Other"] * (len(examples[0].words) + 3), ["Other"] * (len(examples[1].words) - 1), ["no such label"]]
    for example, slots in zip(examples, wrong, strict=False):
        answers[example.text] = json.dumps({"task1": "alarm_set", "task2": slots})
    result = score_scripted(monkeypatch, tokenizer, examples, answers)
    found = {name: n for name, n in result.counts.items() if name.startswith("labels")}
    n_missing = 1 + len(examples[2].words) - 1
    assert found == {"labels_missing": n_missing, "labels_extra": 3, "labels_unknown": 1}
    assert result.predictions[0].n_extra == 3 and result.metrics["n_unparsed"] == 0


def test_spans_that_are_not_in_the_text_are_counted(monkeypatch, tokenizer, examples):
    answers = {e.text: SPANS.write(e.labels, e.words) for e in examples}
    answers[examples[0].text] = json.dumps({"task1": "alarm_set", "task2": ["time: nowhere", "no such label: x"]})
    result = score_scripted(monkeypatch, tokenizer, examples, answers, SPANS)
    assert result.counts["spans_not_found"] == result.counts["labels_unknown"] == 1
    assert result.predictions[0].parsed["slots"] == ("Other",) * len(examples[0].words)


@pytest.mark.parametrize("task", [JOINT, SPANS], ids=["list", "spans"])
def test_every_valid_answer_fits_the_budget(tokenizer, examples, task):
    """Whatever the labels, an answer of the right shape is never cut: the budget is no hidden filter."""
    rng = random.Random(0)
    for example, (written, longest) in zip(examples, answer_budgets(task, tokenizer, examples), strict=True):
        for _ in range(20):
            labels = {
                f.name: tuple(rng.choice([*f.labels, f.other]) for _ in example.words)
                if isinstance(f, TokenField)
                else rng.choice(f.labels)
                for f in JOINT.fields
            }
            text = task.write(labels, example.words)
            assert len(tokenizer.encode(text)) <= written - BUDGET_MARGIN
            for form in forms(json.loads(text)):
                assert len(tokenizer.encode(form)) <= longest
                assert task.read(form, example.words).labels == task.read(text, example.words).labels


def test_long_documents_are_truncated_and_none_is_dropped(monkeypatch, tokenizer):
    example = load_examples(JOINT, "test", "sample")[0]
    words = 400
    long = dataclasses.replace(
        example,
        id="long",
        text=" ".join(["please"] * words),
        labels={"intent": "alarm_set", "slots": ("Other",) * words},
        bio={"slots": ("O",) * words},
    )
    monkeypatch.setattr(eval.decoder.score, "greedy_decode", decode_nothing)
    prompt = build_prompt(JOINT, "plain")
    result = score(None, ScoringJob(JOINT, tokenizer, [example, long], 2400, prompt, max_new_tokens=50))
    assert result.counts["truncated"] == 1
    assert [p.truncated for p in result.predictions] == [False, True]
    assert result.predictions[1].n_prompt_tokens == 2350


def test_an_example_that_cannot_fit_costs_the_others_nothing(monkeypatch, tokenizer):
    """One utterance whose longest valid answer no row holds: its own limit is shortened, nothing else changes."""
    slots = TASKS["massive_slots"]
    example = load_examples(slots, "test", "sample")[0]
    words = 400
    long = dataclasses.replace(
        example, id="long", text=" ".join(["please"] * words), labels={"slots": ("Other",) * words}, bio={}
    )
    prompt = build_prompt(slots, "plain")
    n_prompt = len(encode_pieces((*prompt.prefix, *prompt.suffix), tokenizer))
    (_, short_budget), (_, long_budget) = answer_budgets(slots, tokenizer, [example, long])
    n_words = len(tokenizer.encode(example.text))
    budget = n_words + short_budget  # just enough for the short one
    assert long_budget > budget and len(tokenizer.encode(long.text)) > budget // 2
    limits = {}

    def decode(model, prefix, bodies, limits_given, *_, **given):
        limits[len(bodies)] = limits_given
        return decode_nothing(model, prefix, bodies, **given)

    monkeypatch.setattr(eval.decoder.score, "greedy_decode", decode)
    both = score(None, ScoringJob(slots, tokenizer, [example, long], n_prompt + budget, prompt))
    alone = score(None, ScoringJob(slots, tokenizer, [example], n_prompt + budget, prompt))
    assert both.predictions[0] == alone.predictions[0] and not alone.predictions[0].truncated
    assert both.predictions[1].truncated
    assert both.counts["limit_shortened"] == 1 and alone.counts["limit_shortened"] == 0
    assert limits[1] == [short_budget] and set(limits[2]) == {short_budget, budget - budget // 2}


def test_an_answer_ends_at_the_templates_end_or_the_end_of_text(tokenizer):
    assert stop_tokens(build_prompt(JOINT, "plain"), tokenizer) == {tokenizer.special["<|end|>"]}


def setup_of(checkpoint):
    options = EvalConfig(
        model="llama_debug",
        checkpoint=checkpoint,
        task="massive_intent",
        data="sample",
        limit=9,
        row_length=3000,
    )
    return open_scoring(options)


def score_tiny(checkpoint, ranks=None, **options):
    setup = setup_of(checkpoint)
    model = build_model(setup, "fp32", torch.device("cpu"))
    return score(model, dataclasses.replace(setup.job, max_new_tokens=6, cache_dir=None, **options), ranks)


def score_on_rank(rank, world_size, checkpoint, port_file, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world_size)
    ranks = ScoringRanks(rank=rank, world_size=world_size, sharded=True, passes=dist.group.WORLD)
    result = score_tiny(checkpoint, ranks)
    if rank == 0:
        torch.save(result, out)
    else:
        assert result.predictions == [] and result.metrics["n_examples"] == 9
    leave_group()


def test_ranks_share_the_work_and_change_nothing(tiny_checkpoint, tmp_path):
    alone = score_tiny(tiny_checkpoint)
    one_by_one = score_tiny(tiny_checkpoint, max_batch_tokens=1)
    mp.spawn(score_on_rank, (2, tiny_checkpoint, tmp_path / "rendezvous", tmp_path / "out.pt"), nprocs=2, join=True)
    together = torch.load(tmp_path / "out.pt", weights_only=False)
    assert len(alone.predictions) == 9 and len({p.raw for p in alone.predictions}) > 1
    assert alone.predictions == one_by_one.predictions == together.predictions
    assert alone.metrics == together.metrics and alone.counts == together.counts
    assert together.cost["computed_tokens"] > alone.cost["computed_tokens"]  # the prefix once a rank
    assert alone.cost["prompt_tokens"] == together.cost["prompt_tokens"] > alone.cost["computed_tokens"]


def test_results_and_predictions_come_back_from_disk(monkeypatch, tokenizer, examples, tmp_path):
    answers = {e.text: JOINT.write(e.labels) for e in examples}
    answers[examples[3].text] = "nothing of use — ünïcode \N{SNOWMAN}"
    result = score_scripted(monkeypatch, tokenizer, examples, answers)
    results = Results("s", JOINT.name, field_kinds(JOINT), "sample", "test", result.metrics, cost=result.cost)
    write_run(tmp_path, results, result.predictions)
    assert read_results(tmp_path) == results
    assert read_predictions(tmp_path) == result.predictions
    assert isinstance(result.predictions[3], Prediction) and "\N{SNOWMAN}" in result.predictions[3].raw
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(examples)


@pytest.mark.parametrize("name", ["20ng_joint", "massive_joint", "massive_slots"])
def test_labels_have_probabilities_and_every_answer_is_valid(tiny_checkpoint, name):
    """A random model: what it writes freely is not valid, and what it writes with --decode labels is."""
    options = EvalConfig(model="llama", checkpoint=tiny_checkpoint, task=name, data="sample", limit=9, row_length=3000)
    free, labels = (open_scoring(dataclasses.replace(options, decode=decode)) for decode in ("free", "labels"))
    model = build_model(free, "fp32", torch.device("cpu"))
    found = score(model, labels.job)
    assert any(prediction.unparsed for prediction in score(model, free.job).predictions)
    assert not any(prediction.unparsed for prediction in found.predictions)
    names = ("labels_missing", "labels_extra", "labels_unknown", "spans_not_found")
    assert [found.counts[name] for name in names] == [0] * 4
    for prediction in found.predictions:
        classes = {field.name: field for field in free.task.fields if isinstance(field, ClassField)}
        assert prediction.top.keys() == classes.keys()
        for field, top in prediction.top.items():
            assert top[0][0] == prediction.parsed[field] and len(top) == 5
            probabilities = [p for _, p in top]
            assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1 + 1e-5
    assert found.cost["computed_tokens"] > found.cost["new_tokens"]
