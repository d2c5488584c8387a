"""A model that a server answers for, scored: prompts, figures, and every way in which a server can fail."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from checkpoints_tools.registry import MODELS
from data.decoder.prompts import build_turn
from data.errors import UserError
from data.files import limits
from data.source import load_examples
from data.tasks import TASKS
from eval.api import client, retry
from eval.api.responses import seconds_to_wait
from eval.api.run import run_api
from eval.combine import combine
from eval.report import comparison
from eval.resolve import load_config
from eval.results import read_predictions, read_results
from tests.eval.api.conftest import gold
from tests.eval.api.server import MODEL, completion, cut_off, document, drop, error, hang, send
from tests.launching import pretend

OVER_QUOTA = error(429, "You exceeded your current quota", code="insufficient_quota", type="insufficient_quota")
TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


# --- what is asked and what comes of it -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_perfectly(run, server, task):
    answers = gold(task)
    server.answer = lambda body: answers[document(body)]
    output = run("--shots", 2, task=task)
    results, predictions = read_results(output), read_predictions(output)
    assert results.metrics["exact_match"] == 1.0 and results.metrics["n_examples"] == 6 == len(server.bodies)
    assert all(p.parsed == p.gold and p.stopped and not p.truncated for p in predictions)
    assert {(p.n_prompt_tokens, p.n_new_tokens) for p in predictions} == {(500, 7)}
    assert results.cost["prompt_tokens"] == 500 and results.cost["computed_tokens"] == 507
    assert (results.system, results.model, results.shots, results.checkpoint) == ("fake, 2-shot", "api", 2, "")
    assert results.settings["api_model"] == "fake" and results.settings["reported_models"] == [MODEL]
    assert results.settings["host"] == server.url.split("/")[2] and results.settings["prices"] is None
    assert "dollars" not in results.cost and results.cost["seconds"] > 0 and results.settings["limited"] is True
    assert {name: n for name, n in results.counts.items() if n} == {}


@pytest.mark.parametrize("task", ["massive_joint", "20ng_20"])
def test_the_prompt_is_the_decoders_as_messages(run, server, task):
    output = run("--shots", 2, "--seed", 3, task=task)
    shots = read_results(output).prompt["shots"]
    by_id = {e.id: e for e in load_examples(TASKS[task], "train", "sample")}
    turn = build_turn(TASKS[task], [by_id[shot["id"]] for shot in shots])
    texts = [example.text for example in load_examples(TASKS[task], "test", "sample")]
    for body in server.bodies:
        user = body["messages"][-1]
        own = next(text for text in texts if user["content"] == f"{turn.before}{text}{turn.after}")
        assert user["role"] == "user" and own == document(body)
        system = [message["content"] for message in body["messages"][:-1] if message["role"] == "system"]
        assert system == ([turn.system] if turn.system else []) and len(body["messages"]) == len(system) + 1
        assert (body["model"], body["temperature"], body["seed"]) == ("fake", 0, 3) and body["max_tokens"] > 10
    assert len(server.bodies) == 6


def test_every_valid_answer_fits_max_tokens(run, server):
    """By the rule of two characters a token: no tokenizer gives fewer to labels and JSON."""
    run(task="massive_joint")
    answers = gold("massive_joint")
    assert all(len(answers[document(body)]) / 2 < body["max_tokens"] for body in server.bodies)


def test_empty_answers_refusals_and_cut_answers_are_answers(run, server):
    server.script.extend([
        completion(""),
        completion(None, refusal="I cannot help with that."),
        completion("", "content_filter"),
        completion("alarm_set and so on", "length"),
        completion("alarm_set", usage=False),
    ])  # fmt: skip
    output = run("--concurrency", 1)
    results, predictions = read_results(output), read_predictions(output)
    assert [p.raw for p in predictions] == [
        "",
        "I cannot help with that.",
        "",
        "alarm_set and so on",
        *["alarm_set"] * 2,
    ]
    assert [p.unparsed for p in predictions] == [("intent",)] * 4 + [()] * 2
    assert results.metrics["n_unparsed"] == 4
    counts = {name: results.counts[name] for name in ("refused", "empty", "not_stopped", "without_usage")}
    assert counts == {"refused": 2, "empty": 2, "not_stopped": 1, "without_usage": 1}
    assert predictions[4].n_prompt_tokens > 100 and predictions[4].n_new_tokens == 3  # estimated
    assert len(server.bodies) == 6


def test_runs_stand_beside_those_of_decoders(run, server, tmp_path):
    intents, slots = gold("massive_intent"), gold("massive_slots")
    server.answer = lambda body: intents[document(body)]
    first = run("--output", tmp_path / "intent")
    server.answer = lambda body: slots[document(body)]
    second = run("--output", tmp_path / "slots", task="massive_slots")
    joint = combine(first, second, tmp_path / "dual")
    assert joint.metrics["exact_match"] == 1.0 and joint.cost["prompt_tokens"] == 1000
    header, rows = comparison([read_results(first), joint])
    assert rows[0][1][header.index("intent accuracy")] == rows[1][1][header.index("intent accuracy")] == "100.0%"


def test_long_documents_are_cut_and_counted(run, server):
    whole = {text.strip() for text in gold("20ng_20")}
    output = run("--row_length", 365, task="20ng_20")
    predictions = read_predictions(output)
    n_cut = sum(document(body).strip() not in whole for body in server.bodies)
    assert 0 < n_cut == read_results(output).counts["truncated"] == sum(p.truncated for p in predictions)
    assert all(any(text.startswith(document(body)) for text in gold("20ng_20")) for body in server.bodies)
    with pytest.raises(UserError, match="100 tokens are too few: the prompt has .* --row_length") as error:
        run("--row_length", 100, task="20ng_20")
    advised = re.findall(r"--row_length ([\d,]+) or more", str(error.value))[0].replace(",", "")
    output = run("--row_length", advised, "--output", output / "longer", task="20ng_20")
    assert read_results(output).counts["truncated"] <= 0.1 * len(read_predictions(output))


# --- failures that pass -----------------------------------------------------------------------------------------------

PASSING = {
    "429": error(429, "Rate limit reached", code="rate_limit_exceeded"),
    "429 with Retry-After": error(429, "slow down", {"Retry-After": "0.3"}),
    "429 with retry-after-ms": error(429, "slow down", {"retry-after-ms": "300"}),
    "500": error(500, "The server had an error"),
    "503 in HTML": send(503, "<html>Service Unavailable</html>"),
    "408": error(408, "request timeout"),
    "time-out": hang(1.5),
    "cut-off JSON": cut_off("alarm_set"),
    "connection dropped": drop(),
    "connection dropped before the body": drop(0),
    "an answer that ends in an error": completion("", "error"),
    "an error in a 200": send(200, {"error": {"message": "upstream failed", "code": 502}}),
    "one whose code is a text": send(200, {"error": {"message": "upstream failed", "code": "502"}}),
    "one whose code is a name": send(200, {"error": {"message": "slower", "code": "rate_limit_exceeded"}}),
}


@pytest.mark.parametrize("kind", PASSING)
def test_failures_that_pass_are_tried_again(run, server, kind, capsys):
    server.script.extend([PASSING[kind]] * 2)
    output = run("--timeout", 0.5)
    assert read_results(output).metrics["n_examples"] == 6 and read_results(output).settings["resent"] == 2
    assert len(server.bodies) == 8 and sorted(server.asked.values()) == [1, 1, 1, 1, 1, 3]
    assert set(server.answered.values()) == {1}
    if "etry" in kind:
        assert min(server.times[i + 1] - server.times[i] for i in range(2)) >= 0.3
    wait = re.search(r"is sent again in ([\d.]+) s", capsys.readouterr().out)
    assert wait is not None and ("etry" not in kind or float(wait[1]) >= 0.3)


def test_a_response_without_an_end(run, server, monkeypatch):
    monkeypatch.setattr(limits, "RESPONSE_BYTES", 100_000)
    server.script.extend([completion("x" * 200_000), error(500, "y" * 200_000), *[completion("alarm_set")] * 6])
    server.answer = lambda body: "alarm_set"
    assert read_results(run()).settings["resent"] == 2


def test_a_named_wait_is_for_all_requests(run, server):
    server.answer = lambda body: time.sleep(0.05) or "alarm_set"
    server.script.extend([completion("alarm_set"), error(429, "slow", {"Retry-After": "0.4"})])
    run("--concurrency", 2)
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert sum(gap > 0.25 for gap in gaps) == 1 and len(server.bodies) == 7


def test_a_rate_limit_without_a_wait_ends_no_run(run, server):
    """One request in 0.15 seconds is let through. Requests that came later must not take all these places."""
    passed = [0.0]

    def limit(body: dict) -> None:
        with server.lock:
            if time.monotonic() - passed[0] < 0.15:
                server.script.append(error(429, "Rate limit reached"))
            else:
                passed[0] = time.monotonic()

    original = server.handle
    server.handle = lambda handler, body: (limit(body), original(handler, body))
    assert read_results(run("--limit", 16, "--concurrency", 8)).metrics["n_examples"] == 16
    assert set(server.answered.values()) == {1}


def test_what_headers_say_of_waiting():
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert 28 <= seconds_to_wait({"retry-after": format_datetime(soon, usegmt=True)}) <= 30
    assert seconds_to_wait({"retry-after": format_datetime(soon - timedelta(hours=1))}) == 0
    assert seconds_to_wait({"retry-after": "7"}) == 7 and seconds_to_wait({"retry-after-ms": "250"}) == 0.25
    assert seconds_to_wait({"retry-after-ms": "5", "retry-after": "9"}) == 0.005
    for nonsense in ("soon", "-1", "nan", "inf", "", "Fri, 31 Dec 9999999999999 23:59:59 GMT"):
        assert seconds_to_wait({"retry-after": nonsense}) is None
    assert seconds_to_wait({}) is None


def test_waits_double_up_to_a_minute():
    for attempt, longest in ((2, 1), (3, 2), (4, 4), (8, 60), (50, 60), (9999, 60)):
        waits = [retry.wait_before(attempt) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_attempts_end(run, server, tmp_path):
    server.script.extend([completion("alarm_set"), *[error(500, "broken")] * 3])
    with pytest.raises(
        UserError, match=r"example massive/.*: no answer in 3 attempts, at last: HTTP 500 \(broken\)"
    ) as e:
        run("--attempts", 3, "--concurrency", 1)
    assert "1 of 6 answers are in" in str(e.value) and len(server.bodies) == 4
    run("--concurrency", 1)
    assert set(server.answered.values()) == {1} and len(server.bodies) == 9


def test_a_wait_of_hours_is_not_waited_for(run, server):
    server.script.append(error(429, "daily limit", {"Retry-After": "20000"}))
    with pytest.raises(
        UserError, match="daily limit.*the server says to wait 5.6 hours. Start the same command again after"
    ):
        run()
    assert len(server.bodies) == 1


# --- failures that do not pass ----------------------------------------------------------------------------------------

FATAL = {
    "wrong key": (error(401, "Incorrect API key provided: sk-te***1234.", code="invalid_api_key"),
                  "refuses the key in KEY"),
    "no access": (error(403, "Country not supported"), "refuses the key in KEY.*Country not supported"),
    "unknown model": (error(404, "The model `fake` does not exist", code="model_not_found"),
                      f"no model 'fake' .*does not exist.* Known: {MODEL}"),
    "HTML": (send(200, "<!doctype html><title>Welcome</title>"), "answers with a web page .*mostly ends in /v1"),
    "HTML and 404": (send(404, "<html>not here</html>"), "answers with a web page .*404"),
    "no credit": (OVER_QUOTA, "no credit left"),
    "OpenAI's context": (error(400, TOO_LONG, code="context_length_exceeded"),
                         "example massive/.* are longer than fake"),
    "llama.cpp's context": (error(400, "the request exceeds the available size", type="exceed_context_size_error"),
                            "example massive/.* are longer than fake .*--row_length below 16,384"),
    "vLLM's context": (send(400, {"message": TOO_LONG, "code": 400}), "example massive/.* are longer than fake"),
    "nothing paid": (error(402, "Insufficient Balance"), "no credit left .*Insufficient Balance"),
    "a bad request": (error(400, "temperature is not supported"), "refuses the request .*temperature is not"),
    "another API": (send(200, {"generated_text": "x"}), "does not answer as the OpenAI chat API does"),
    "an error in a 200": (send(200, {"error": "no such thing"}), "refuses the request .*no such thing"),
    "one whose code is nonsense": (send(200, {"error": {"message": "no", "code": "9" * 5000}}), "refuses the request"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FATAL)
def test_failures_that_do_not_pass_end_the_run_at_the_first(run, server, kind, monkeypatch, tmp_path):
    monkeypatch.setenv("KEY", "sk-test-key-abcdefgh1234")
    reply, message = FATAL[kind]
    server.script.append(reply)
    with pytest.raises(UserError, match=message) as found:
        run("--key_env", "KEY")
    assert len(server.bodies) == 1 and server.keys == ["Bearer sk-test-key-abcdefgh1234"]
    assert "answers.jsonl" not in str(found.value) and "sk-" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_middle_keeps_the_answers(run, server, tmp_path):
    server.before = lambda body: time.sleep(0.02)
    server.script.extend([completion("alarm_set")] * 2 + [OVER_QUOTA])
    with pytest.raises(UserError, match="no credit left.* answers are in .*answers.jsonl; the same command goes on"):
        run("--concurrency", 2)
    n = len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) - 1
    assert n in (2, 3) and len(server.bodies) == n + 1  # one was in flight
    run("--concurrency", 2)
    assert len(server.bodies) == 7 and sorted(server.asked.values()) == [1, 1, 1, 1, 1, 2]


def test_a_server_that_is_not_there(run, server, tmp_path):
    server.close()
    with pytest.raises(UserError, match="no answer in 2 attempts, at last: no connection to 127.0.0.1"):
        run("--attempts", 2)


UNKNOWN = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
EXTRA = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 0}
NO_SEED = {
    "OpenAI": error(400, "Unknown parameter: seed", param="seed", code="unknown_parameter"),
    "Mistral": send(422, {"object": "error", "message": {"detail": [EXTRA]}, "type": "invalid_request_error"}),
    "FastAPI": send(422, {"detail": [EXTRA]}),
    "Google": send(400, [{"error": {"code": 400, "message": UNKNOWN, "status": "INVALID_ARGUMENT"}}]),
    "an error in a 200": send(200, {"error": {"code": 400, "message": UNKNOWN}}),
}


@pytest.mark.parametrize("kind", NO_SEED)
def test_a_server_that_takes_no_seed(run, server, capsys, kind):
    server.script.append(NO_SEED[kind])
    run("--concurrency", 1)
    assert ["seed" in body for body in server.bodies] == [True] + [False] * 6
    assert "takes no seed" in capsys.readouterr().out


def test_an_error_that_names_the_seed_and_comes_without_one_too(run, server):
    server.script.extend([error(400, "temperature and seed are not supported"), error(400, "temperature is not")])
    with pytest.raises(UserError, match="refuses the request .*temperature is not.* has max_tokens and temperature 0;"):
        run()
    assert ["seed" in body for body in server.bodies] == [True, False]


# --- a few at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_requests_in_flight_than_allowed(run, server, limit):
    server.before = lambda body: time.sleep(0.03)
    run("--concurrency", limit, "--limit", 15)
    assert server.most_at_once == limit and len(server.bodies) == 15


def test_the_first_request_goes_alone(run, server):
    at_once = []
    server.before = lambda body: (time.sleep(0.05), at_once.append(server.at_once))
    run("--concurrency", 4)
    assert at_once[0] == 1 and max(at_once) == 4


# --- keys and the package ---------------------------------------------------------------------------------------------


def test_openais_key_is_sent_to_no_other_server(run, server, monkeypatch, tmp_path):
    monkeypatch.setenv(client.KEY_ENV, "sk-real-openai-key")
    run()
    assert set(server.keys) == {"Bearer none"}
    openai = "--model", "gpt-4o", "--api_model", "gpt-4o"
    run(*openai, "--output", tmp_path / "b")  # a proxy, say: its key has to be named
    assert set(server.keys) == {"Bearer none"}
    run(*openai, "--output", tmp_path / "c", "--key_env", client.KEY_ENV)
    assert server.keys[-1] == "Bearer sk-real-openai-key"


def test_openais_server_takes_openais_key(words, server, monkeypatch, tmp_path):
    """The fake server takes its place in the registry."""
    monkeypatch.setitem(MODELS, "gpt-4o", dataclasses.replace(MODELS["gpt-4o"], base_url=server.url))
    monkeypatch.delenv(client.KEY_ENV, raising=False)
    at = words.index("--base_url")
    config = load_config(
        [*words[:at], *words[at + 2 :], *"--model gpt-4o --api_model gpt-4o --task massive_intent".split()]
    )
    with pytest.raises(UserError, match="no key for .* OPENAI_API_KEY is not set.*--key_env"):
        run_api(config)
    assert not server.bodies and not (tmp_path / "out").exists()
    monkeypatch.setenv(client.KEY_ENV, " sk-key\n")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    run_api(config)
    assert set(server.keys) == {"Bearer sk-key"} and server.headers[0]["openai-project"] == "proj-1"


def test_what_is_meant_for_openai_goes_to_no_other_server(run, server, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-PRIVATE")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-PRIVATE")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer PRIVATE\nX-Key: PRIVATE")
    run()
    assert "PRIVATE" not in str(server.headers) and len(server.headers) == 6
    assert client.os.environ["OPENAI_ORG_ID"] == "org-PRIVATE"


@pytest.mark.parametrize("value", ["", " ", "two words", "schlüssel", "a\x00b"])
def test_what_is_no_key(run, server, monkeypatch, value):
    monkeypatch.setattr(client.os, "environ", {**client.os.environ, "KEY": value})
    with pytest.raises(UserError, match="KEY") as found:
        run("--key_env", "KEY")
    assert not value.strip() or value not in str(found.value)
    assert not server.bodies


def test_without_the_package(run, server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="the package openai is not installed. pip install openai"):
        run()


def test_under_torchrun(run, monkeypatch):
    pretend(monkeypatch, 2)
    with pytest.raises(UserError, match="Run eval.py alone, not under torchrun"):
        run()


def test_answers_are_written_as_they_arrive(run, server, tmp_path):
    lines = []

    def before(body: dict) -> None:
        path = tmp_path / "out" / "answers.jsonl"
        lines.append(len(path.read_text().splitlines()) - 1)

    server.before = before
    output = run("--concurrency", 1)
    assert lines == list(range(6))
    record = json.loads((output / "answers.jsonl").read_text().splitlines()[-1])
    assert record["answer"] == "alarm_set" and record["prompt_tokens"] == 500 and record["attempts"] == 1
