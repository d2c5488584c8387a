"""Answers to token fields: the tokens that transformers finds most probable among those that may come next."""

from __future__ import annotations

import weakref

import pytest
import torch

from data.tasks import ClassField, MultiField, Task, TokenField
from data.valid import Document
from eval.decoder.decode import NotFiniteLogits
from eval.decoder.labels import Answered, decode_labels
from tests.eval.decoder.settings import Models, Setting, one_by_one

KINDS = ("time", "time zone", "naïve", "日本", '"x"', "zz")
A, B = ClassField("a", ("date", "date_time", "da")), ClassField("b", ("x", "y", "zz"))
PLACES = {"alone": [None], "last": [A, None], "first": [None, A], "between": [A, None, B]}
TASKS = {
    f"{place}, {answer}": Task(
        "own", "custom", tuple(field or TokenField("t", KINDS, "none", answer) for field in PLACES[place])
    )
    for place, answer in [
        ("alone", "list"), ("alone", "bio"), ("alone", "spans"), ("last", "list"), ("last", "spans"),
        ("first", "list"), ("between", "bio"), ("between", "spans"),
    ]
} | {
    f"{place}, labels": Task("own", "custom", tuple(field or MultiField("t", KINDS) for field in PLACES[place]))
    for place in ("alone", "between")
}  # fmt: skip


def decode(case: Setting, limits: list[int], **options) -> list[Answered]:
    return decode_labels(case.net, case.prefix, case.bodies, case.words, limits, case.answers(), **options)


@torch.no_grad()
def alone(case: Setting, i: int, limit: int) -> tuple[list, bool]:
    """The simplest way: the complete sequence through transformers for every label, and every token with a choice."""
    answers, values, whole = case.answers(), [], True
    for field in case.task.fields:
        if isinstance(field, ClassField):
            values.append(field.labels[int(one_by_one(case, case.bodies[i], values).argmax())])
            continue
        writing = answers.tokens.start(values, case.words[i])
        tokens = list(writing.forced)
        while writing.value is None and len(tokens) < limit:
            token, *others = writing.next_tokens()
            if others:
                logits = case.hf(torch.tensor([[*case.prefix, *case.bodies[i], *tokens]])).logits[0, -1]
                token = max((token, *others), key=lambda token: float(logits[token]))
            tokens.append(token)
            writing.add(token)
        whole = writing.value is not None
        writing.finish()
        values.append(writing.value)
    return values, whole


@pytest.mark.parametrize("name", TASKS)
def test_the_most_probable_valid_token_at_every_step(models: Models, name: str) -> None:
    case = models.setting(TASKS[name], n=6)
    limits = [400, 12, 400, 60, 1, 400]
    answers = decode(case, limits)
    expected = [alone(case, i, limit) for i, limit in enumerate(limits)]
    assert [(answer.values, answer.stopped) for answer in answers] == expected
    assert {answer.stopped for answer in answers} == {True, False}
    for bounds in ({"max_batch_tokens": 1}, {"max_batch_size": 3}):
        assert [answer.values for answer in decode(case, limits, **bounds)] == [answer.values for answer in answers]


def test_words_that_the_tokenizer_changes_are_context_as_it_makes_them(models: Models) -> None:
    """SentencePiece writes a space as U+2581."""
    fields = TokenField("t", KINDS, "none", "spans"), A, MultiField("m", KINDS), B
    case = models.setting(Task("own", "custom", fields), n=6, letters="\u2581b \n")
    answers = decode(case, [400] * 6)
    assert [(answer.values, answer.stopped) for answer in answers] == [alone(case, i, 400) for i in range(6)]
    if models.kind == "sentencepiece":
        assert any("\u2581" in span for answer in answers for span in answer.values[0])
    for answer, body in zip(answers, case.bodies, strict=True):
        expected = one_by_one(case, body, answer.values[:1])
        torch.testing.assert_close(answer.log_probs["a"], expected, atol=1e-4, rtol=0)


def test_nothing_of_a_text_is_kept_after_it(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, n_made = weakref.WeakSet[Document](), 0

    def made(*args) -> Document:
        nonlocal n_made
        n_made += 1
        documents.add(document := Document(*args))
        return document

    monkeypatch.setattr("data.valid.Document", made)
    fields = TokenField("t", KINDS, "none", "spans"), A, TokenField("u", KINDS, "none"), B
    case = models.setting(Task("own", "custom", fields), n=6)
    answers = case.answers()
    found = decode_labels(case.net, case.prefix, case.bodies, case.words, [100] * 6, answers)
    before = {tuple(answer.values[:n]) for answer in found for n in (1, 3)}
    without = {values for values in before if not any(values[::2])}
    assert len(before) > len(without) + 4
    assert n_made == 6 and not documents
    assert answers._kept.cache_info().currsize == len(without)


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_is_read_back_without_a_correction(models: Models, name: str) -> None:
    case = models.setting(TASKS[name], n=40)
    assert {len(words) for words in case.words} >= {0, 1, 2}
    for answer, words in zip(decode(case, [50] * 40), case.words, strict=True):
        parsed = case.task.read(case.task.join(answer.values), words)
        assert parsed.unparsed == ()
        assert (parsed.n_missing, parsed.n_extra, parsed.n_unknown, parsed.n_not_found) == (0, 0, 0, 0)


def test_requests_leave_the_batch_when_they_are_done(models: Models) -> None:
    case = models.setting(TASKS["last, list"])
    sizes: list[int] = []
    handle = case.net.register_forward_pre_hook(lambda m, a, k: sizes.append(len(k["tokens"])), with_kwargs=True)
    decode(case, [400] * len(case.bodies), max_batch_tokens=10**6)
    handle.remove()
    steps = sizes[3:]  # after prefix, labels, and the beginning of the lists
    assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1]


@pytest.mark.parametrize("at_pass", [1, 4])
def test_logits_that_are_not_finite_name_the_request(models: Models, at_pass: int) -> None:
    case, n_passes = models.setting(TASKS["alone, list"]), 0

    def damaged(module, args, logits):
        nonlocal n_passes
        if n_passes == at_pass:
            logits[0, 17] = float("nan")
        n_passes += 1
        return logits

    handle = case.net.register_forward_hook(damaged)
    try:
        with pytest.raises(NotFiniteLogits) as error:
            decode(case, [400] * len(case.bodies), max_batch_tokens=10**6)
    finally:
        handle.remove()
    longest = max(range(len(case.bodies)), key=lambda i: (len(case.bodies[i]), -i))
    assert case.words[longest] and error.value.request == longest
