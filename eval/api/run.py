"""Score a model that a server answers for: build the requests, get the answers, read them, write the run folder.

    open_api ─► requests ─► ask_all ─► answers.jsonl ─► Task.read ─► compute_metrics ─► results.json
                   │                       ▲                                            predictions.jsonl
                   └─► --dump_requests     └─ --answers

From the answer's text on, everything is as for decoders.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from checkpoints_tools.registry import ApiModel, get_model
from data.errors import UserError
from data.example import hash_examples
from data.tasks import TokenField
from eval.api.answers import Answer, AnswersFile, Lost, match, open_answers
from eval.api.batch import dump_requests, read_answers
from eval.api.client import Server, find_key
from eval.api.estimate import confirm, describe, estimate
from eval.api.prices import Budget, Prices, most, read_prices, total
from eval.api.retry import Asking, ask_all
from eval.api.setup import ApiSetup, Request, open_api
from eval.config import EvalConfig
from eval.decoder.score import read_answer
from eval.gather import ScoreResult, Share, gather_scores
from eval.job import ScoringRanks
from eval.kept_lines import sha256_of
from eval.output import check_free, output_folder
from eval.progress import Progress
from eval.provenance import hash_texts, versions
from eval.report import compare_command, show_details
from eval.results import Results, field_kinds, other_labels, write_run
from train import stopping
from train.errors import Interrupted, RunStopped
from train.launched import env_world_size

log = logging.getLogger("eval")


def run_api(options: EvalConfig) -> None:
    """Score the model, or write its requests.

    Raises:
        UserError: bad input, or a failure of the server; answers so far are kept.
        RunStopped: the budget is used up; answers so far are kept.
        Interrupted: a signal; answers so far are kept.
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
        log.info("When the server has answered them, the same command with --answers FILE scores the answers.")
        return
    results = about(setup)
    with output_folder(setup.output):
        check_free(setup.output, results)
        answers, attempts, seconds = _all_answers(setup, prices)
        if len(answers) < len(setup.requests):
            log.info("nothing was asked")
            return
        result = score(setup, answers)
        complete(results, setup, result, answers, attempts, prices, seconds)
        write_run(setup.output, results, result.predictions)
    show_details(results)
    log.info("written to %s", setup.output)
    log.info("To see other scored runs beside it, add their folders to:\n  %s", compare_command(setup.output))


def _all_answers(setup: ApiSetup, prices: Prices | None) -> tuple[list[Answer], list[Lost], float | None]:
    """The answers in the order of the requests, fewer if the user says no; and see `complete`."""
    if setup.options.api.answers is not None:
        return read_answers(setup, setup.options.api.answers), [], None
    with open_answers(setup.answers, setup.identity()) as file:
        found, seconds = _get_answers(setup, prices, file)
        ids = dict.fromkeys(request.example.id for request in setup.requests)
        attempts = [attempt for attempt in file.lost if attempt.lost in ids]  # others are those of a larger --limit
        return [found[name] for name in ids if name in found], attempts, seconds


def _get_answers(setup: ApiSetup, prices: Prices | None, file: AnswersFile) -> tuple[dict[str, Answer], float | None]:
    """Get the answers to all requests: those that the file has, and the server's.

    Returns:
        The answers by example id; only the file's if the user says no. And the seconds of asking; None: not asked.
    """
    options = setup.options.api
    found, n_other = match(file.answers, setup.requests)
    left = [request for request in setup.requests if request.example.id not in found]
    if found:
        log.info("continuing: %d of %d examples are answered in %s", len(found), len(setup.requests), file.file.path)
    if n_other:
        log.info("not used: %d answers there to other requests (--row_length, --max_new_tokens, vocabulary)", n_other)
    if not left:
        return found, None
    server = Server(setup, find_key(setup))
    log.info("asking %s at %s", setup.api_model, setup.host)
    log.info("%s", describe(estimate(setup.task, left, setup.counter), setup.counter, prices))
    spent = total(prices, file.answers, file.lost, setup.requests, setup.longest)
    _check_maximum(options.max_cost, prices, spent, left[0])
    if not confirm(options.yes):
        return found, None
    budget = Budget(options.max_cost, prices, spent)
    asking = Asking(server.ask, file.lose, budget, options.attempts, options.concurrency)

    def kept() -> str:
        if not found:
            return ""
        return f"{len(found):,} of {len(setup.requests):,} answers are in {file.file.path}; the same command goes on."

    def keep(request: Request, answer: Answer) -> None:
        file.add(answer)
        found[answer.id] = answer
        progress.advance(1)

    start = time.perf_counter()
    announcement = "waiting for the answers in flight; again: stop at once"
    with (
        stopping.saying(kept),
        stopping.held(announcement, second_ends=True, told=asking.stop.set) as stop,
        Progress(len(left), 1, show=True) as progress,
    ):
        try:
            affordable = ask_all(asking, left, keep)
        except UserError as error:
            raise UserError(f"{error} {kept()}".rstrip()) from None
        except Exception as error:  # a defect: its traceback ends with what is kept
            error.add_note(kept())
            raise
    if stop.signum is not None:
        raise Interrupted(f"{stop.why}: stopped. {kept()}".rstrip(), stop.signum)
    if not affordable:
        raise RunStopped(
            f"--max_cost {options.max_cost:g}: the next request may pass it; about ${asking.budget.spent:.4f} are "
            f"spent. {kept()} Give a higher --max_cost.".replace("  ", " ")
        )
    return found, time.perf_counter() - start


def _check_maximum(max_cost: float | None, prices: Prices | None, spent: float, request: Request) -> None:
    if max_cost is None:
        return
    if prices is None:
        raise UserError("--max_cost needs the model's price: name a list that has it with --prices.")
    needed = spent + most(prices, request)
    if needed > max_cost:
        before = f" after ${spent:.4f} for earlier answers and attempts" if spent else ""
        raise UserError(
            f"--max_cost {max_cost:g} does not suffice for the next request, which may cost up to "
            f"${most(prices, request):.4f}{before}. Give at least {needed:.4f}."
        )


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
        "without_usage": sum(answer.usage is None for answer in answers),
    }
    n_tokens = sum(p.n_prompt_tokens + p.n_new_tokens for p in predictions)
    share = Share(list(range(len(answers))), predictions, sum(a.seconds for a in answers), n_tokens, counts)
    return gather_scores(setup.task, setup.examples, share, ScoringRanks())


def about(setup: ApiSetup) -> Results:
    """The contents of ``results.json`` that are known before the first answer. It has no key, and of the server's URL
    only the host."""
    options = setup.options
    asked = options.api.answers is None  # else it is not known how
    return Results(
        system=setup.name,
        task=setup.task.name,
        fields=field_kinds(setup.task),
        others=other_labels(setup.task),
        data=setup.data,
        split=options.split,
        metrics={},
        model=setup.spec.name,
        shots=len(setup.prompt.shots),
        prompt=setup.prompt.record(),
        settings={
            "fine_tuned": False,
            "answers": {f.name: f.answer for f in setup.task.fields if isinstance(f, TokenField)},
            "api_model": setup.api_model,
            "host": setup.host if asked else None,
            "answers_file": None if options.api.answers is None else options.api.answers.name,
            "answers_hash": None if options.api.answers is None else sha256_of(options.api.answers),
            "temperature": 0 if asked else None,
            "row_length": setup.max_length,
            "max_new_tokens": options.max_new_tokens,
            "limit": options.limit,
            "limited": setup.limited,
            "seed": options.seed,
            "concurrency": options.api.concurrency if asked else None,
            "tokens_counted_by": setup.counter.how,
        },
        versions=_versions(),
        examples=hash_examples(setup.examples),
        texts=hash_texts(setup.examples, setup.task.name),
    )


def complete(
    results: Results,
    setup: ApiSetup,
    result: ScoreResult,
    answers: Sequence[Answer],
    attempts: Sequence[Lost],
    prices: Prices | None,
    seconds: float | None,
) -> None:
    """Add what is known after the last answer.

    Args:
        attempts: those that may have been charged without an answer.
        seconds: of asking in this run, which may have had answers before; None: it asked nothing.
    """
    results.metrics, results.counts, results.cost = result.metrics, result.counts, dict(result.cost)
    results.settings |= {
        "reported_models": sorted({answer.model for answer in answers if answer.model}),
        "prices": prices.record() if prices is not None else None,
        "dollars": None,
        "seconds_of_asking": seconds,
        "resent": sum(answer.attempts - 1 for answer in answers),
        "lost": len(attempts),
    }
    if prices is not None:
        spent = total(prices, answers, attempts, setup.requests, setup.longest)
        results.settings["dollars"], results.cost["dollars"] = spent, spent / len(answers)
    if setup.options.api.answers is not None:
        results.cost = {name: value for name, value in results.cost.items() if not name.startswith("seconds")}


def _versions() -> dict[str, str]:
    try:
        client = version("openai")
    except PackageNotFoundError:
        client = "not installed"
    return versions() | {"openai": client}
