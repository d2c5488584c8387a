"""Score a model that a server answers for: build the requests, get the answers, read them, write the run folder.

    open_api ─► requests ─► ask_all ─► answers.jsonl ─► Task.read ─► compute_metrics ─► results.json
                   │                       ▲                                            predictions.jsonl
                   └─► --dump_requests     └─ --answers

From the answer's text on, everything is as for decoders.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

from checkpoints_tools.registry import ApiModel, get_model
from data.errors import UserError
from data.tasks import TokenField
from eval.api.answers import Answer, AnswersFile, Lost, match, open_answers
from eval.api.batch import dump_requests, read_answers
from eval.api.client import Server, find_key
from eval.api.estimate import confirm, describe, estimate
from eval.api.prices import Budget, Prices, lost, most, read_prices, total
from eval.api.retry import Asking, ask_all
from eval.api.setup import ApiSetup, Request, open_api
from eval.config import EvalConfig
from eval.decoder.score import read_answer
from eval.gather import ScoreResult, Share, gather_scores
from eval.job import ScoringRanks
from eval.progress import Progress
from eval.report import show_details
from eval.results import Results, field_kinds, versions, write_run
from train.errors import Interrupted, RunStopped
from train.parallel.launched import env_world_size

log = logging.getLogger("eval")


def run_api(options: EvalConfig) -> None:
    """Score the model, or write its requests.

    Raises:
        UserError: bad input, or a failure of the server; answers so far are kept.
        RunStopped: the budget is used up; answers so far are kept.
        Interrupted: SIGINT or SIGTERM; answers so far are kept.
    """
    spec = get_model(options.model)
    assert isinstance(spec, ApiModel)
    if env_world_size() > 1:
        raise UserError(f"--model {spec.name}: the server does the work. Run eval.py alone, not under torchrun.")
    setup = open_api(options, spec)
    log.info("prompt: messages, %d shots; %d examples of %s (%s)",
             len(setup.prompt.shots), len(setup.requests), setup.task.name, options.split)  # fmt: skip
    # Without its own list, a server of one's own may have no price.
    required = bool(spec.base_url) or options.api.prices is not None
    prices = read_prices(setup.api_model, options.api.prices, required) if options.api.answers is None else None
    if options.api.dump_requests is not None:
        dump_requests(setup, options.api.dump_requests)
        log.info("%s", describe(estimate(setup.task, setup.requests, setup.counter), setup.counter, prices))
        log.info("written to %s", options.api.dump_requests)
        return
    seconds, attempts = None, list[Lost]()
    if options.api.answers is not None:
        answers = read_answers(setup, options.api.answers)
    else:
        with open_answers(setup.output, setup.identity()) as file:
            found, seconds = _get_answers(setup, prices, file)
            attempts = file.lost
        if len(found) < len(setup.requests):
            log.info("nothing was asked")
            return
        answers = [found[request.example.id] for request in setup.requests]
    result = score(setup, answers)
    results = to_results(setup, result, answers, attempts, prices, seconds)
    write_run(setup.output, results, result.predictions)
    show_details(results)
    log.info("written to %s", setup.output)


def _get_answers(setup: ApiSetup, prices: Prices | None, file: AnswersFile) -> tuple[dict[str, Answer], float | None]:
    """Get the answers to all requests: those that the file has, and the server's.

    Returns:
        The answers by example id; only the file's if the user says no. And the seconds of asking; None: not asked.
    """
    options = setup.options.api
    found, n_other = match(file.answers, setup.requests)
    left = [request for request in setup.requests if request.example.id not in found]
    if found:
        log.info("continuing: %d of %d examples are answered in %s", len(found), len(setup.requests), file.path)
    if n_other:
        log.info("not used: %d answers there to other requests (--row_length, --max_new_tokens, vocabulary)", n_other)
    if not left:
        return found, None
    server = Server(setup, find_key(setup))
    log.info("asking %s at %s", setup.api_model, setup.host)
    log.info("%s", describe(estimate(setup.task, left, setup.counter), setup.counter, prices))
    spent = total(prices, file.answers, file.lost, setup.requests)
    _check_maximum(options.max_cost, prices, spent, left[0])
    if not confirm(options.yes):
        return found, None
    budget = Budget(options.max_cost, prices, spent)
    asking = Asking(server.ask, lambda request: file.lose(lost(request)), budget, options.attempts, options.concurrency)

    def kept() -> str:
        if not found:
            return ""
        return f" {len(found):,} of {len(setup.requests):,} answers are in {file.path}; the same command goes on."

    def keep(request: Request, answer: Answer) -> None:
        file.add(answer)
        found[answer.id] = answer
        progress.advance(1)

    start = time.perf_counter()
    with _stoppable(asking.stop, kept) as signals, Progress(len(left), 1, show=True) as progress:
        try:
            affordable = ask_all(asking, left, keep)
        except UserError as error:
            raise UserError(f"{error}{kept()}") from None
    if signals:
        raise Interrupted(f"{signal.Signals(signals[0]).name}: stopped.{kept()}", signals[0])
    if not affordable:
        raise RunStopped(
            f"--max_cost {options.max_cost:g}: the next request may pass it; about ${asking.budget.spent:.4f} are "
            f"spent.{kept()} Give a higher --max_cost."
        )
    return found, time.perf_counter() - start


def _check_maximum(max_cost: float | None, prices: Prices | None, spent: float, request: Request) -> None:
    if max_cost is None:
        return
    if prices is None:
        raise UserError("--max_cost needs the model's price: name a list that has it with --prices.")
    needed = spent + most(prices, request)
    if needed > max_cost:
        before = f" after ${spent:.4f} for answers that are there" if spent else ""
        raise UserError(
            f"--max_cost {max_cost:g} does not suffice for the next request, which may cost up to "
            f"${most(prices, request):.4f}{before}. Give at least {needed:.4f}."
        )


@contextmanager
def _stoppable(stop: threading.Event, kept: Callable[[], str]) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM set ``stop``, so that answers in flight are still kept; a second one raises.

    Yields:
        the signals that have arrived.
    """
    signals: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)
        if len(signals) > 1:
            raise Interrupted(f"{signal.Signals(signum).name}: stopped at once.{kept()}", signum)
        stop.set()
        # Not by print, which may be at work in this thread.
        os.write(2, f"{signal.Signals(signum).name}: waiting for the answers in flight; again: stop at once\n".encode())

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def score(setup: ApiSetup, answers: Sequence[Answer]) -> ScoreResult:
    """Read the answers, which are in the order of the requests, and compare them with the gold labels."""
    predictions = [
        read_answer(
            setup.task,
            request.example,
            answer.answer,
            truncated=request.truncated,
            stopped=answer.finish_reason != "length",
            n_prompt_tokens=request.n_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
            n_new_tokens=setup.counter.count(answer.answer)
            if answer.completion_tokens is None
            else answer.completion_tokens,
        )
        for request, answer in zip(setup.requests, answers, strict=True)
    ]
    counts = {
        "limit_shortened": sum(request.shortened for request in setup.requests),
        "refused": sum(answer.refused for answer in answers),
        "empty": sum(not answer.answer.strip() for answer in answers),
        "missing": sum(answer.finish_reason == "missing" for answer in answers),
        "without_usage": sum(answer.prompt_tokens is None for answer in answers),
    }
    n_tokens = sum(p.n_prompt_tokens + p.n_new_tokens for p in predictions)
    share = Share(list(range(len(answers))), predictions, sum(a.seconds for a in answers), n_tokens, counts)
    return gather_scores(setup.task, setup.examples, share, ScoringRanks())


def to_results(
    setup: ApiSetup,
    result: ScoreResult,
    answers: Sequence[Answer],
    attempts: Sequence[Lost],
    prices: Prices | None,
    seconds: float | None,
) -> Results:
    """Collect the contents of ``results.json``. It has no key, and of the server's URL only the host.

    Args:
        attempts: those that may have been charged without an answer.
        seconds: of asking in this run, which may have had answers before; None: it asked nothing.
    """
    options, cost = setup.options, dict(result.cost)
    asked = options.api.answers is None  # else it is not known how
    settings: dict[str, Any] = {
        "fine_tuned": False,
        "answers": {f.name: f.answer for f in setup.task.fields if isinstance(f, TokenField)},
        "api_model": setup.api_model,
        "reported_models": sorted({answer.model for answer in answers if answer.model}),
        "host": setup.host if asked else None,
        "answers_file": None if options.api.answers is None else options.api.answers.name,
        "prices": prices.record() if prices is not None else None,
        "dollars": None,
        "temperature": 0 if asked else None,
        "row_length": setup.max_length,
        "max_new_tokens": options.max_new_tokens,
        "limit": options.limit,
        "seed": options.seed,
        "concurrency": options.api.concurrency if asked else None,
        "seconds_of_asking": seconds,
        "tokens_counted_by": setup.counter.how,
        "resent": sum(answer.attempts - 1 for answer in answers),
        "lost": len(attempts),
    }
    if prices is not None:
        spent = total(prices, answers, attempts, setup.requests)
        settings["dollars"], cost["dollars"] = spent, spent / len(answers)
    if not asked:
        cost = {name: value for name, value in cost.items() if not name.startswith("seconds")}
    return Results(
        system=setup.name,
        task=setup.task.name,
        fields=field_kinds(setup.task),
        data=setup.data,
        split=options.split,
        metrics=result.metrics,
        model=setup.spec.name,
        shots=len(setup.prompt.shots),
        prompt=setup.prompt.record(),
        counts=result.counts,
        cost=cost,
        settings=settings,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    try:
        client = version("openai")
    except PackageNotFoundError:
        client = "not installed"
    return versions() | {"openai": client}
