"""Runs of ``eval.py`` against a server in a thread, with short waits between attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.source import load_examples
from data.tasks import TASKS
from eval.api import client, retry
from eval.api.run import run_api
from eval.resolve import load_config
from tests.eval.api.server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    found = FakeServer()
    yield found
    found.close()


@pytest.fixture
def words(server: FakeServer, tmp_path: Path) -> list[str]:
    """The command line of a run of six examples, without the task."""
    words = f"--model api --api_model fake --data sample --limit 6 --output {tmp_path / 'out'}"
    return [*words.split(), *f"--base_url {server.url} --yes --timeout 5".split()]


class Printer(logging.Handler):
    """Prints messages, as the program does."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage())


@pytest.fixture
def printed() -> Iterator[None]:
    log, printer = logging.getLogger("eval"), Printer()
    level = log.level
    log.addHandler(printer)
    log.setLevel(logging.INFO)
    yield
    log.setLevel(level)
    log.removeHandler(printer)


@pytest.fixture
def run(words: list[str], printed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``eval.py`` in this process; returns the output folder. Later options override the defaults."""
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.02)
    for name in (client.KEY_ENV, *client.PROXIES):  # messages name proxies that are set
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))

    def call(*options: object, task: str = "massive_intent") -> Path:
        is_offline = {"--dump_requests", "--answers"} & set(options)
        own = words[: words.index("--base_url")] if is_offline else words
        config = load_config([*own, "--task", task, *map(str, options)])
        run_api(config)
        return config.output or tmp_path

    return call


def gold(task: str) -> dict[str, str]:
    """The right answer to each test document of the sample."""
    examples = load_examples(TASKS[task], "test", "sample")
    return {example.text: TASKS[task].write(example.labels, example.words) for example in examples}
