"""From options to requests: the prompts that a decoder gets, as the messages of a chat.

The prompt is built as for any decoder without a stored one (`eval.prompt.new_prompt`): the same wording, few-shot
examples and examples to score. Only the document is ever truncated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from checkpoints_tools.registry import ApiModel
from data.decoder.fewshot import PromptSpec
from data.decoder.templates import MESSAGES, Prompt, to_messages
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.task_file import task_record
from data.tasks import Task
from eval.api.tokens import Characters, Counter, counter_for
from eval.config import EvalConfig
from eval.decoder.score import BUDGET_MARGIN
from eval.output import default_output
from eval.prompt import new_prompt
from eval.setup import choose_examples

ROW_LENGTH = 16_384  # the paper's
SEAM = 8  # tokens: a prompt and a document may be a few more together than each by itself
# UTF-8 bytes, at least: labels and JSON have about three. A limit costs nothing until it is used.
BYTES_PER_ANSWER_TOKEN = 2


@dataclass(frozen=True)
class Request:
    """One example's request.

    Attributes:
        messages: of the chat.
        max_tokens: maximum tokens of the answer.
        n_tokens: tokens of the messages, as `Counter.of_messages` counts them.
        truncated: the document was cut to fit.
        shortened: ``max_tokens`` is below the longest valid answer.
    """

    example: Example
    messages: list[dict[str, str]]
    max_tokens: int
    n_tokens: int
    truncated: bool
    shortened: bool

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the answer depends on, besides the model."""
        # Without the seed: at temperature 0 it should change nothing, and not every server takes one.
        return hashlib.sha256(json.dumps([self.messages, self.max_tokens]).encode()).hexdigest()[:16]

    def body(self, model: str, seed: int | None) -> dict[str, Any]:
        """The body of the HTTP request."""
        body = {"model": model, "messages": self.messages, "temperature": 0, "max_tokens": self.max_tokens}
        return body if seed is None else body | {"seed": seed}


@dataclass(frozen=True)
class ApiSetup:
    """What is asked, and of whom.

    Attributes:
        api_model: the model's name at the server.
        base_url: the server; empty if there is none to ask (``--dump_requests``, ``--answers``).
        max_length: maximum tokens of messages and answer together.
        name: the run's name in tables.
        answers: the folder of the file that keeps the answers; without ``--output`` the same for every ``--limit``.
        requests: one for each example.
        limited: ``--limit`` left examples out.
    """

    options: EvalConfig
    spec: ApiModel
    api_model: str
    base_url: str
    task: Task
    prompt: PromptSpec
    counter: Counter
    max_length: int
    name: str
    output: Path
    answers: Path
    requests: tuple[Request, ...]
    limited: bool

    @property
    def examples(self) -> list[Example]:
        return [request.example for request in self.requests]

    @property
    def longest(self) -> int:
        """Tokens to count for a prompt of an earlier run of which nothing is known, and for its answer."""
        return max(ROW_LENGTH, self.max_length, self.spec.context or 0)

    @property
    def is_own_server(self) -> bool:
        """Whether the server is the one of the model's registry entry, OpenAI's."""
        return bool(self.spec.base_url) and not self.options.api.base_url

    @property
    def host(self) -> str:
        """The server without the path, for results and messages."""
        return urlsplit(self.base_url).netloc

    @property
    def data(self) -> str:
        """Name of the examples' source."""
        return Path(self.options.data).name if self.options.data else self.task.dataset

    def identity(self) -> dict[str, str]:
        """What all answers of a run have in common, for the file that keeps them."""
        task = task_record(self.task)
        task.pop("toml", None)  # a comment in it changes no answer
        around = to_messages(self.prompt.build(self.task), "")
        return {
            "task": f"{self.task.name} ({_short_hash(task)})",
            "prompt": f"{len(self.prompt.shots)}-shot ({_short_hash(around)})",
            "model": self.api_model,
            "server": self.base_url,
            "data": f"{self.data} {self.options.split}",
        }


def _short_hash(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]


def open_api(options: EvalConfig, spec: ApiModel) -> ApiSetup:
    """Resolve the options, and build the requests.

    Raises:
        UserError: missing or broken data, or a prompt that leaves no space for a document.
    """
    characters = cast(Tokenizer, Characters())  # it has the two methods that are used
    task, prompt = new_prompt(replace(options, template=MESSAGES), spec, characters, [])
    assert prompt is not None, "only a plan may lack the few-shot examples"
    examples, limited = choose_examples(task, prompt, options, [])
    assert examples is not None, "only a plan may lack the examples"
    counter = counter_for(spec.vocabulary)
    max_length = options.row_length or ROW_LENGTH
    if spec.context is not None:
        max_length = min(max_length, int(spec.context * counter.share))
    api_model = options.api.api_model or spec.name
    shots = len(prompt.shots)
    name, folder = f"{api_model}, {shots}-shot", f"{api_model}-{task.name}-{shots}shot"
    return ApiSetup(
        options=options,
        spec=spec,
        api_model=api_model,
        base_url=(options.api.base_url or spec.base_url).rstrip("/"),
        task=task,
        prompt=prompt,
        counter=counter,
        max_length=max_length,
        name=options.name or name,
        output=options.output or default_output(folder, options.split, options.limit),
        answers=options.output or default_output(folder, options.split, None),
        requests=tuple(build_requests(task, prompt.build(task), examples, counter, max_length, options.max_new_tokens)),
        limited=limited,
    )


def build_requests(
    task: Task,
    prompt: Prompt,
    examples: Sequence[Example],
    counter: Counter,
    max_length: int,
    max_new_tokens: int | None = None,
) -> list[Request]:
    """The examples' requests, with documents truncated so that messages and answer fit ``max_length`` tokens.

    As for a decoder (`data.decoder.samples.prepare`), document and answer share what the prompt leaves, of which the
    document keeps at least half if it needs it.

    Args:
        max_new_tokens: maximum tokens of an answer; None: enough for each example's longest valid answer.

    Raises:
        UserError: the prompt and the smallest answer leave no space for a document.
    """
    budgets = [max_new_tokens or answer_budget(task, example) for example in examples]
    n_around = counter.length_of_messages(to_messages(prompt, "")) + SEAM
    space = max_length - n_around
    if space <= min(budgets):
        documents = sorted(counter.length(example.text) + n for example, n in zip(examples, budgets, strict=True))
        needed = n_around + documents[-(-9 * len(documents) // 10) - 1]
        raise UserError(
            f"{max_length:,} tokens are too few: the prompt has {n_around:,} without a document ({counter.how}), the "
            f"answer needs {min(budgets):,}, and a document at least 1. Give --row_length {needed:,} or more, which "
            "cuts at most one in ten documents, unless the model takes less; or fewer or shorter few-shot examples "
            "(--shots, --shot_tokens)."
        )
    requests = []
    for example, budget in zip(examples, budgets, strict=True):
        most = max(space - budget, space // 2)
        document, n_document = example.text, counter.length(example.text)
        if truncated := n_document > most:
            document = counter.cut(document, most)
            n_document = counter.length(document)
        max_tokens = min(budget, space - n_document)
        messages = to_messages(prompt, document)
        requests.append(
            Request(example, messages, max_tokens, counter.of_messages(messages), truncated, max_tokens < budget)
        )
    return requests


def answer_budget(task: Task, example: Example) -> int:
    """Maximum tokens of an example's answer: the longest form of its longest valid answer, and a margin.

    From its bytes even where a vocabulary is at hand, so that a request is the same everywhere.
    """

    def n_bytes(text: str) -> int:
        return len(text.encode())

    longest = max(map(n_bytes, task.longest_forms(example.words, n_bytes)))
    return -(-longest // BYTES_PER_ANSWER_TOKEN) + BUDGET_MARGIN
