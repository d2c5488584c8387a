"""Requests as a file in the format of OpenAI's Batch API, and answers from such a batch or from anywhere else.

    {"custom_id": "massive_intent:9f0c...:massive/test/1", "method": "POST", "url": "/v1/chat/completions", "body": ...}
    {"custom_id": "massive_intent:9f0c...:massive/test/1", "response": {"status_code": 200, "body": ...}, "error": null}
    {"id": "massive/test/1", "answer": "alarm_set"}

The second and third line are answers. A custom id has the task, the request's fingerprint and the example, so that
answers to another prompt are noticed. A line with the example's id alone is taken at its word.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from checkpoints_tools.registry import MODELS, ApiModel
from data.characters import whole_characters
from data.errors import UserError, as_json
from data.files.documents import parse_line, read_lines
from data.json_text import to_json
from eval.api.answers import Answer
from eval.api.responses import as_count, error_in, read_completion, refusal_in
from eval.api.setup import ApiSetup, Request
from eval.kept_lines import HEADER, writable

URL = "/v1/chat/completions"
SHOWN = 5  # ids named in an error message

log = logging.getLogger("eval")


def custom_id(task: str, request: Request) -> str:
    return f"{task}:{request.fingerprint}:{request.example.id}"


def dump_requests(setup: ApiSetup, path: Path) -> None:
    """Write the requests as a batch.

    Raises:
        UserError: the file exists or cannot be written.
    """
    with writable(path):
        if not path.parent.is_dir():
            raise UserError(f"--dump_requests {path}: {path.parent} does not exist. Make it: mkdir -p {path.parent}")
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise UserError(f"--dump_requests {path} exists. Remove it, or give another name.") from None
        with file:
            for request in setup.requests:
                body = request.body(setup.api_model, setup.options.seed)
                line = {"custom_id": custom_id(setup.task.name, request), "method": "POST", "url": URL, "body": body}
                file.write(to_json(line) + "\n")


def read_answers(setup: ApiSetup, path: Path) -> list[Answer]:
    """The answers in a file, one for each example, in the order of the requests.

    An example without an answer, also one whose line has a body that is no chat completion, is an error, or with
    ``--allow_missing`` an empty answer and a warning. A batch's output says only
    under which name the server knows its model; one that looks like another model is reported in the log.

    Raises:
        UserError: a line that is no answer (the message has its number); answers of another task or model, or to
            another prompt; repeated, foreign or missing ids.
    """
    found, failed = _read_lines(setup, path)
    ids = Counter(answer.id for answer in found)
    known = [request.example.id for request in setup.requests]
    repeated = [name for name, n in ids.items() if n > 1]
    foreign = sorted((ids.keys() | failed.keys()) - set(known))
    missing = [name for name in known if name not in ids]
    problems = []
    if repeated:
        problems.append(f"{len(repeated):,} examples are answered more than once: {_some(repeated)}.")
    if foreign:
        problems.append(
            f"{len(foreign):,} ids are not among the {len(known):,} examples to score: {_some(foreign)}. Give the same "
            "--data, --split, --limit, --shots and --seed as for the requests."
        )
    reasons = [f"{name} ({failed[name]})" if name in failed else name for name in missing]
    said = f"{len(missing):,} of {len(known):,} examples have no answer: {_some(reasons)}."
    if missing and not setup.options.api.allow_missing:
        problems.append(f"{said} Add them, or give --allow_missing to count them as unparsed.")
    if problems:
        raise UserError(f"--answers {path}: " + " ".join(problems))
    if missing:
        log.warning("--answers %s: %s They count as unparsed.", path, said)
    _warn_of_models(setup, found, path)
    by_id = {answer.id: answer for answer in found}
    return [by_id.get(name) or Answer(name, "", finish_reason="missing") for name in known]


def _read_lines(setup: ApiSetup, path: Path) -> tuple[list[Answer], dict[str, str]]:
    """All answers of a file, and the reasons of those that a batch could not get, by example id."""
    fingerprints = {request.example.id: request.fingerprint for request in setup.requests}
    answers: list[Answer] = []
    failed: dict[str, str] = {}
    others: list[str] = []  # ids of examples of ours with another prompt
    for number, (where, line) in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        record = _parse(line, where)
        if number == 1 and isinstance(record.get(HEADER), dict):  # answers.jsonl of a run of ours
            _check_task(str(record[HEADER].get("task")).split(" ")[0], setup, where)
            _check_model(record[HEADER].get("model"), setup, where)
            continue
        if "lost" in record:  # an attempt without an answer, there too
            continue
        if "method" in record and "body" in record:
            raise UserError(f"{where}: these are requests (--dump_requests), not answers.")
        name = record.get("custom_id", record.get("id"))
        if not isinstance(name, str):
            raise UserError(
                f'{where}: no id. An answer is a line of a batch\'s output or {{"id": ..., "answer": ...}}.'
            )
        example, fingerprint = _split_id(name, setup, where)
        fingerprint = fingerprint or str(record.get("request", ""))
        if fingerprint and fingerprints.get(example, fingerprint) != fingerprint:
            others.append(example)
            continue
        answer = _answer_in(record, example, where)
        if isinstance(answer, str):
            failed[example] = answer
        else:
            answers.append(answer)
    settled = {answer.id for answer in answers} | failed.keys()
    if unsettled := [name for name in others if name not in settled]:
        raise UserError(
            f"--answers {path}: {len(unsettled):,} answers are to other prompts than these options give: "
            f"{_some(unsettled)}. Give the same options as for the requests (--shots, --seed, --row_length, "
            "--max_new_tokens, ...)."
        )
    if others:
        log.info("not used: %d answers in %s to other requests of the same examples", len(others), path)
    return answers, failed


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        return parse_line(line.removeprefix(codecs.BOM_UTF8), where, dict[str, Any], as_python=True)
    except UserError as error:
        cut = " The file ends in it: it was written only in part." if not line.endswith(b"\n") else ""
        raise UserError(
            f"{str(error).rstrip('.')}.{cut} Remove the line, and give --allow_missing if its "
            "example has no other answer."
        ) from None


def _split_id(name: str, setup: ApiSetup, where: str) -> tuple[str, str]:
    """The example's id and the request's fingerprint in a custom id; the fingerprint of another id is empty."""
    parts = name.split(":", 2)
    if len(parts) < 3 or len(parts[1]) != len(setup.requests[0].fingerprint):
        return name, ""
    _check_task(parts[0], setup, where)
    return parts[2], parts[1]


def _check_task(task: str, setup: ApiSetup, where: str) -> None:
    if task != setup.task.name:
        raise UserError(f"{where}: this is an answer of task {task}, and the task to score is {setup.task.name}.")


def _check_model(model: object, setup: ApiSetup, where: str) -> None:
    if model != setup.api_model:
        options = f"--model {model} without --api_model" if model in _families() else f"--api_model {model}"
        raise UserError(
            f"{where}: these are answers of model {model}, and the model to score is {setup.api_model}. To score them, "
            f"give {options}; or name a file of answers of {setup.api_model}."
        )


def _warn_of_models(setup: ApiSetup, answers: Sequence[Answer], path: Path) -> None:
    """Log the models that a server reports if they are other known ones than the model to score.

    A server may report a name of its choice (a path, a date added), which says nothing.
    """
    own = {_family(setup.api_model.rpartition("/")[2]), setup.spec.name}
    reported = Counter(answer.model for answer in answers if _family(answer.model) not in own | {None})
    for model, n in reported.items():
        log.warning("--answers %s: %d answers are of model %s according to their server, and the model to score is %s",
                    path, n, model, setup.api_model)  # fmt: skip


def _family(model: str) -> str | None:
    """The known model with whose name a model's name begins: gpt-4o of gpt-4o-2024-08-06. None: there is none."""
    return max((name for name in _families() if model.startswith(name)), key=len, default=None)


def _families() -> list[str]:
    return [spec.name for spec in MODELS.values() if isinstance(spec, ApiModel) and spec.base_url]


def _answer_in(record: dict[str, Any], example: str, where: str) -> Answer | str:
    """A line's answer, or why a batch has none."""
    if "response" not in record and "error" not in record:
        answer = record.get("answer")
        if not isinstance(answer, str):
            raise UserError(f'{where}: no answer for {example}: "answer" must be a string, found {json.dumps(answer)}.')
        return Answer(
            example,
            whole_characters(answer),
            finish_reason=whole_characters(str(record.get("finish_reason", "stop"))),
            refused=record.get("refused") is True,
            model=whole_characters(str(record.get("model", ""))),
            prompt_tokens=as_count(record.get("prompt_tokens")),
            completion_tokens=as_count(record.get("completion_tokens")),
        )
    response = record.get("response")
    if not isinstance(response, dict):
        return _reason(record.get("error"))
    body, status = response.get("body"), response.get("status_code", 200)
    if status != 200 or record.get("error"):
        error = record.get("error") or body
        return refusal_in(status, error_in(error), example) or f"HTTP {status}, {_reason(error)}"
    answer = read_completion(body, example)
    return answer or f"not a chat completion in {where.rpartition(', ')[2]}, but {as_json(body)}"


def _reason(error: object) -> str:
    while isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("code")
    return str(error or "no reason given")[:100]


def _some(ids: Sequence[str] | Iterable[str]) -> str:
    ids = list(ids)
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
