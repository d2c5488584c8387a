"""Counting tokens with tiktoken's vocabulary where it is at hand, and from characters where it is not; no downloads.

OpenAI's ``cl100k_base`` is at hand wherever Llama 3's tokenizer is: the first 100,256 lines of its file are that
vocabulary, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random

import pytest
import tiktoken.load

from benchmarks.closed_models import write_cl100k
from data.decoder.prompts import build_prompt
from data.decoder.templates import MESSAGES, to_messages
from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS
from eval.api import tokens
from eval.api.setup import build_requests
from eval.api.tokens import Characters, by_characters, cached_file, counter_for, most_tokens


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of tiktoken's; a download fails."""

    def download(url):
        raise AssertionError(f"{url} would be downloaded")

    monkeypatch.setattr(tiktoken.load, "read_file", download)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def cl100k(cache, shared_dir):
    """The cache with cl100k_base."""
    write_cl100k(shared_dir / "tokenizers" / "llama3" / "tokenizer.model", cache)
    assert (cache / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").is_file()  # tiktoken's name for it
    return counter_for("cl100k_base")


def test_a_vocabulary_at_hand_counts(cl100k):
    assert cl100k.how == "tiktoken, cl100k_base"
    assert cl100k.count("tiktoken is great!") == cl100k.length("tiktoken is great!") == 6  # OpenAI's cookbook
    assert cl100k.cut("tiktoken is great!", 4) == "tiktoken is"
    assert cl100k.count("<|endoftext|>") > 1 and cl100k.count("x" * 100_000) > 1000
    text = "naïve café ☃ 你好 " * 20
    for n in range(1, 60):
        cut = cl100k.cut(text, n)
        assert text.startswith(cut) and cl100k.count(cut) <= n < cl100k.count(cut) + 6


def test_nothing_is_downloaded(cache, monkeypatch):
    assert counter_for("o200k_base").how == "characters / 4: tiktoken has no o200k_base in its cache"
    assert counter_for("").how == "characters / 4: the vocabulary is not known"
    broken = cache / hashlib.sha1(f"{tokens.FOLDER}/o200k_base.tiktoken".encode()).hexdigest()
    broken.write_text("IQ== 0\n")
    assert cached_file("o200k_base") == broken
    assert counter_for("o200k_base").how == "characters / 4: the file in tiktoken's cache is not o200k_base"
    assert broken.read_text() == "IQ== 0\n"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken's way of saying: no cache
    assert cached_file("o200k_base") is None
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(cache))
    assert cached_file("o200k_base") == broken


def test_characters():
    counter = by_characters("a test")
    assert [counter.count("x" * n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert counter.length("wake me up at nine") == 5 and counter.length("1 2 3 4") == 4 > counter.count("1 2 3 4")
    text = "From: someone\nM9VEF#Q5W:2 8*(1 begin 644 a.gif " * 30
    for n in (1, 7, 100, 300):
        cut = counter.cut(text, n)
        assert text.startswith(cut) and n - 1 <= counter.length(cut) <= n
    assert Characters().decode(Characters().encode(text)) == text and Characters().encode("abcdef") == ["abcd", "ef"]


def test_how_far_characters_are_off(cl100k):
    """The estimate of posts and utterances of the sample, against the true count."""
    counter = by_characters("a test")
    for name in ("20ng", "massive"):
        texts = [example.text for example in load_examples(name, "test", "sample")]
        true, estimated = sum(map(cl100k.count, texts)), sum(map(counter.count, texts))
        assert 0.7 < estimated / true < 1.5, (name, estimated / true)


def test_estimated_requests_fit_the_real_context(cl100k, shared_dir):
    """The longest posts, some of which are encoded files, in GPT-4's context."""
    task, context = TASKS["20ng_20"], 8192
    posts = load_examples(task, "test", shared_dir / "data" / "20news-bydate.tar.gz")
    posts = sorted(posts, key=lambda post: -len(post.text))[:120]
    prompt, counter = build_prompt(task, MESSAGES), by_characters("a test")

    def n_too_long(limit: float) -> int:
        made = build_requests(task, prompt, posts, counter, int(limit))
        return sum(cl100k.of_messages(request.messages) + request.max_tokens > context for request in made)

    assert n_too_long(context * counter.share) == 0 < n_too_long(context)
    exact = build_requests(task, prompt, posts, cl100k, context)
    assert all(cl100k.of_messages(request.messages) + request.max_tokens <= context for request in exact)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("vocabulary", ["characters", "cl100k"])
def test_requests_fit(name, vocabulary, request):
    counter = by_characters("a test") if vocabulary == "characters" else request.getfixturevalue("cl100k")
    task, rng = TASKS[name], random.Random(0)
    prompt = build_prompt(task, MESSAGES)
    n_around = counter.length_of_messages(to_messages(prompt, ""))
    examples = [
        dataclasses.replace(example, text=example.text + " and 1 + 1" * rng.randrange(400))
        for example in load_examples(task, "test", "sample")[:20]
    ]
    requests = build_requests(task, prompt, examples, counter, n_around + 1500)
    assert 0 < sum(r.truncated for r in requests) < 20
    for made, example in zip(requests, examples, strict=True):
        text = made.messages[-1]["content"]
        assert counter.length_of_messages(made.messages) + made.max_tokens <= n_around + 1500
        assert made.truncated == (example.text not in text) and made.max_tokens >= 1
        assert made.n_tokens <= counter.length_of_messages(made.messages) < most_tokens(made.messages)
        longest = max(map(len, task.longest_forms(example.words, len)))
        assert made.shortened == (made.max_tokens < -(-longest // 2) + 8)


def test_a_prompt_without_space_for_a_document():
    task, counter = TASKS["massive_joint"], by_characters("a test")
    prompt = build_prompt(task, MESSAGES)
    examples = load_examples(task, "test", "sample")[:3]
    with pytest.raises(UserError, match="500 tokens are too few: the prompt has .* without a document"):
        build_requests(task, prompt, examples, counter, 500)


def test_a_request_depends_on_its_own_example_alone():
    task, counter = TASKS["massive_slots"], by_characters("a test")
    prompt, examples = build_prompt(task, MESSAGES), load_examples(task, "test", "sample")[:5]
    together = build_requests(task, prompt, examples, counter, 16_384)
    alone = [build_requests(task, prompt, [example], counter, 16_384)[0] for example in examples]
    assert [r.fingerprint for r in together] == [r.fingerprint for r in alone]
    assert len({r.fingerprint for r in together}) == 5
