"""A real server, llama.cpp's, that holds SmolLM2: its prompts are ours, and an interruption repeats nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.closed_models import serve
from benchmarks.counting_proxy import CountingProxy
from data.decoder.prompts import build_prompt
from data.decoder.templates import Text, encode_pieces, join_texts
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS
from eval.results import read_predictions, read_results
from tests.eval.api.test_answers import lines_of, start

pytestmark = pytest.mark.slow
pytest.importorskip("xllamacpp", reason="needs the PyPI package xllamacpp (pip install xllamacpp)")


@pytest.fixture(scope="module")
def url(smollm2_gguf: Path) -> Iterator[str]:
    with serve(smollm2_gguf, n_slots=1, context=2048) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf: Path, tmp_path_factory):
    from checkpoints_tools.convert import convert

    folder = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    convert(smollm2_gguf, folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("task", ["massive_intent", "massive_joint", "20ng_7"])  # joint: with a system text
def test_the_server_gets_the_decoders_prompt(run, url, tokenizer, task, tmp_path):
    """Its number of prompt tokens is that of our prompt in SmolLM2's template, for each document."""
    output = run("--base_url", url, "--limit", 2, "--shots", 1, "--timeout", 300, task=task)
    predictions, results = read_predictions(output), read_results(output)
    record = results.prompt
    train = {example.id: example for example in load_examples(TASKS[task], "train", "sample")}
    prompt = build_prompt(TASKS[task], "smollm2", [train[shot["id"]] for shot in record["shots"]])
    texts = {example.id: example.text for example in load_examples(TASKS[task], "test", "sample")}
    for p in predictions:
        pieces = join_texts((*prompt.prefix, Text(texts[p.id]), *prompt.suffix))
        assert p.n_prompt_tokens == len(encode_pieces(pieces, tokenizer))
    assert results.counts["without_usage"] == 0 and all(p.raw for p in predictions)
    assert results.settings["reported_models"] == ["SmolLM2-135M-Instruct.Q4_1"]
    again = run("--base_url", url, "--limit", 2, "--shots", 1, "--timeout", 300, "--output", tmp_path / "b", task=task)
    assert [p.raw for p in read_predictions(again)] == [p.raw for p in predictions]


def test_an_interruption_repeats_nothing(url, words, tmp_path):
    with CountingProxy(url) as proxy:
        more = ["--base_url", proxy.url, "--concurrency", "2", "--timeout", "300", "--max_new_tokens", "4"]
        with start(words, *more) as process:
            while len(lines_of(tmp_path / "out" / "answers.jsonl")) < 4:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGINT and 3 <= proxy.n_answered < 6
        with start(words, *more) as process:
            process.communicate(timeout=300)
        assert process.returncode == 0 and proxy.n_requests == proxy.n_answered == 6 and proxy.n_repeated == 0


def test_a_prompt_that_the_server_cannot_take(run, url, tmp_path):
    """Its context is 2,048 tokens; ours is not known."""
    with pytest.raises(UserError, match="are longer than fake takes .*--row_length below 16,384"):
        run("--base_url", url, "--limit", 1, "--shots", 40, "--timeout", 300, task="massive_joint")
