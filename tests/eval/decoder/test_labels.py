"""The probability of every label equals what transformers gives when each label is scored by itself."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
import torch

from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from data.tasks import ClassField, Task, TokenField
from eval.decoder import labels as labels_module
from eval.decoder.decode import NotFiniteLogits
from eval.decoder.labels import Answered, decode_labels
from eval.decoder.trie import build_tries
from tests.decoder_tokenizers import LOSSY, write_tiny_sentencepiece
from tests.eval.decoder import labels_run
from tests.eval.decoder.settings import Models, Setting, one_by_one, tokens_of
from tests.launching import command, environment

DATES = ("date", "date_time", "date time", "da", "db", "dc")
ODD = ("naïve", "日本", '"x"', "a\\b", "it's", "日", "c++", "[b]", "}", "\n")

TASKS = {
    "bare": Task("bare", "custom", (ClassField("kind", DATES),)),
    "bare, odd": Task("odd", "custom", (ClassField("kind", ODD),)),
    "joint": Task("joint", "custom", (ClassField("a", DATES), ClassField("b", ODD), ClassField("c", ("x", "xx")))),
    "one label": Task("one", "custom", (ClassField("kind", ("only",)),)),
}


def choose(setting: Setting, bodies: list[list[int]] | None = None, **options) -> list[Answered]:
    bodies = setting.bodies if bodies is None else bodies
    nothing = [[]] * len(bodies), [1] * len(bodies)
    return decode_labels(setting.net, setting.prefix, bodies, *nothing, setting.answers(), **options)


@pytest.mark.parametrize("name", TASKS)
def test_every_label_scored_by_itself_through_transformers(models: Models, name: str) -> None:
    case = models.setting(TASKS[name])
    answers = choose(case)
    for body, answer in zip(case.bodies, answers, strict=True):
        for i, field in enumerate(case.task.fields):
            expected = one_by_one(case, body, answer.values[:i])
            found = answer.log_probs[field.name]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)
            assert answer.values[i] == field.labels[int(expected.argmax())]
    if name != "one label":  # the case this test is about: documents matter, and no label is certain
        first = torch.stack([answer.log_probs[case.task.fields[0].name] for answer in answers])
        assert first.std(dim=0).max() > 0.5 and first.exp().amax(dim=1).min() < 0.9


@pytest.mark.parametrize("name", ["bare, odd", "joint"])
@pytest.mark.parametrize("bounds", [{"max_batch_tokens": 1}, {"max_batch_tokens": 150}, {"max_batch_size": 2}])
def test_a_request_alone_has_the_same_probabilities(models: Models, name: str, bounds: dict[str, int]) -> None:
    case = models.setting(TASKS[name])
    alone, together = choose(case, **bounds), choose(case, max_batch_tokens=10**6)
    for one, other in zip(alone, together, strict=True):
        assert one.values == other.values
        for field in case.task.fields:
            torch.testing.assert_close(one.log_probs[field.name], other.log_probs[field.name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["bare, odd", "joint"])
def test_few_logits_at_a_time_change_nothing(models: Models, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries in several parts, several passes a batch, and one row of logits in fp32 at a time."""
    case = models.setting(TASKS[name])
    rows: list[int] = []
    handle = case.net.register_forward_hook(lambda module, args, logits: rows.append(logits.flatten(0, -2).shape[0]))
    whole = choose(case)
    n_passes = len(rows)
    monkeypatch.setattr(labels_module, "MAX_LOGITS", 12 * case.tokenizer.vocab_size)
    monkeypatch.setattr("eval.decoder.tree_passes.CHUNK", 1)
    rows.clear()
    parts = choose(case)
    handle.remove()
    assert max(rows) <= 12 and len(rows) > n_passes + 3
    for one, other in zip(parts, whole, strict=True):
        assert one.values == other.values
        for field in case.task.fields:
            torch.testing.assert_close(one.log_probs[field.name], other.log_probs[field.name], atol=1e-5, rtol=0)


def test_one_pass_for_all_labels_of_all_documents(models: Models) -> None:
    case = models.setting(TASKS["bare"])
    shapes: list[tuple[int, ...]] = []
    handle = case.net.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["tokens"].shape)), with_kwargs=True
    )
    choose(case, max_batch_tokens=10**6)
    handle.remove()
    (trie,) = build_tries(case.answers().labels.of(()), 10**6)
    assert shapes == [(1, len(case.prefix)), (1, sum(len(body) + len(trie.tokens) for body in case.bodies))]


@pytest.mark.gpu  # FlexAttention, other kernels
@pytest.mark.parametrize("name", ["bare", "joint"])
def test_the_same_on_a_gpu(models: Models, name: str) -> None:
    case = models.setting(TASKS[name], n=60)
    expected = choose(case)
    try:
        found = choose(dataclasses.replace(case, net=case.net.cuda()), device="cuda")
    finally:
        case.net.cpu()
    for one, other in zip(found, expected, strict=True):
        for field in case.task.fields[:1]:
            torch.testing.assert_close(one.log_probs[field.name], other.log_probs[field.name], atol=1e-2, rtol=1e-3)


def test_each_request_is_handed_over_once(models: Models) -> None:
    case = models.setting(TASKS["joint"])
    seen: list[int] = []
    answers = choose(case, max_batch_tokens=200, finished=lambda found: seen.extend(found))
    assert sorted(seen) == list(range(len(answers)))
    assert choose(case, []) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_request(models: Models, value: float) -> None:
    case = models.setting(TASKS["bare"])
    (trie,) = build_tries(case.answers().labels.of(()), 10**6)

    def damaged(module, args, logits):
        if len(logits) > 1:
            logits[-1, 17] = value
        return logits

    handle = case.net.register_forward_hook(damaged)
    try:
        with pytest.raises(NotFiniteLogits) as error:
            choose(case, max_batch_tokens=10**6)
    finally:
        handle.remove()
    assert error.value.request == min(range(len(case.bodies)), key=lambda i: (len(case.bodies[i]), -i))


def test_two_ranks_and_two_slices_give_the_same_probabilities(divisible_checkpoint: Path, tmp_path: Path) -> None:
    """FSDP with unequal and no requests, and tensor parallelism."""
    start = command(Path(labels_run.__file__), tmp_path, divisible_checkpoint, ranks=2)
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    for name in labels_run.TASKS:
        whole = labels_run.alone(divisible_checkpoint, name)
        sharded = [answer for rank in ranks for answer in rank["fsdp", name]]
        assert len(ranks[0]["fsdp", name]) != len(ranks[1]["fsdp", name])
        for answers in (sharded, ranks[0]["tensor", name], ranks[1]["tensor", name]):
            for one, other in zip(answers, whole, strict=True):
                assert one.values == other.values
                for field, log_probs in other.log_probs.items():
                    torch.testing.assert_close(one.log_probs[field], log_probs, atol=1e-4, rtol=0)
        nothing = ranks[0]["none", name], ranks[1]["none", name]
        assert (len(nothing[0]), len(nothing[1])) == (2, 0)


def test_a_label_that_the_tokenizer_changes_is_refused(models: Models) -> None:
    if models.kind != "sentencepiece":
        pytest.skip("SentencePiece writes a space as U+2581")
    case = models.setting(Task("drinks", "custom", (ClassField("kind", ("a\u2581b", "c")),)))
    with pytest.raises(UserError, match="tokenizer makes .* of the answer .*Rename the label, or give --decode free"):
        case.answers().labels.of(())


@pytest.mark.parametrize("kind", LOSSY)
def test_words_of_fields_before_that_the_tokenizer_changes(models: Models, kind: str, tmp_path: Path) -> None:
    if models.kind != "sentencepiece":
        pytest.skip("once is enough: the tokenizer is made here")
    tokenizer = load_tokenizer(write_tiny_sentencepiece(tmp_path, **LOSSY[kind]))
    fields = TokenField("t", ("time",), answer="spans"), ClassField("c", DATES), ClassField("d", ("x", "\u2581"))
    case = dataclasses.replace(models.setting(Task("three", "custom", fields)), tokenizer=tokenizer)
    for word in ("\u2581", "nine \u2581 \u2581\u2581", "\u00bd \u2581", "\u2581 wait\u2026", "\u2581 \u65e5"):
        before = (f"time: {word}",)
        expected = [tokens_of(case, [before, label]) for label in DATES]
        assert before[0] not in tokenizer.decode(expected[0])
        assert case.answers().labels.of((before,)) == expected
        with pytest.raises(UserError, match="Rename the label, or give --decode free"):
            case.answers().labels.of((before, "date"))


def test_later_fields_do_not_change_a_labels_tokens(models: Models) -> None:
    for field in (TokenField("rest", DATES), TokenField("rest", DATES, answer="spans"), ClassField("rest", ODD)):
        case = models.setting(Task("two", "custom", (ClassField("a", ODD), field)))
        other = models.setting(
            Task("two", "custom", (ClassField("a", ODD), dataclasses.replace(field, labels=("z", "y"))))
        )
        assert case.answers().labels.of(()) == other.answers().labels.of(())
