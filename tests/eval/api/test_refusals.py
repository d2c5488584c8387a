"""Texts that a server refuses or answers with nothing: each is an answer, also in a batch, and ends no run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from data.errors import UserError
from eval.api import retry
from eval.api.answers import Answer
from eval.api.client import TryAgain
from eval.api.prices import Budget
from eval.results import PREDICTIONS, RESULTS, read_predictions, read_results
from tests.eval.api.server import USAGE, Reply, chat, completion, send
from train.errors import RunStopped

AZURE = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
FLAGGED = 'Your chosen model requires moderation and your input was flagged for "harassment". No credits were charged.'
FILTERED = {
    "Azure": (400, {"message": AZURE, "type": None, "param": "prompt", "code": "content_filter", "status": 400}),
    "OpenAI": (400, {"message": "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                     "type": "invalid_request_error", "param": None, "code": "invalid_prompt"}),
    "LiteLLM": (400, {"message": f"litellm.ContentPolicyViolationError: AzureException - {AZURE}", "code": "400"}),
    "only a code": (400, {"message": "your text: a seed of doubt", "code": "content_filter"}),
    "another code": (400, {"message": "no", "code": "content_policy_violation"}),
    "OpenRouter": (403, {"message": FLAGGED, "code": 403, "metadata": {"reasons": ["harassment"]}}),
}  # fmt: skip


def check(output):
    """The second of six examples is refused; the others are answered."""
    results, predictions = read_results(output), read_predictions(output)
    counts = {name: results.counts[name] for name in ("refused", "empty", "without_usage", "missing")}
    assert counts == {"refused": 1, "empty": 1, "without_usage": 1, "missing": 0}
    assert [p.raw for p in predictions] == ["alarm_set", "", *["alarm_set"] * 4]
    assert results.metrics["n_unparsed"] == 1 and predictions[1].stopped


@pytest.mark.parametrize("in_200", [False, True])
@pytest.mark.parametrize("kind", FILTERED)
def test_a_text_that_the_filter_refuses_is_an_answer(run, server, monkeypatch, kind, in_200):
    monkeypatch.setenv("KEY", "sk-test-key-abcdefgh1234")
    status, error = FILTERED[kind]
    server.script.extend([completion("alarm_set"), send(200 if in_200 else status, {"error": error})])
    output = run("--concurrency", 1, "--key_env", "KEY")
    check(output)
    line = json.loads((output / "answers.jsonl").read_text().splitlines()[2])
    assert line["finish_reason"] == "content_filter" and line["request"] and line["seconds"] > 0
    run("--concurrency", 1, "--key_env", "KEY")
    assert len(server.bodies) == 6 and all("seed" in body for body in server.bodies)


@pytest.mark.parametrize("kind", FILTERED)
def test_a_text_that_the_filter_refuses_is_an_answer_in_a_batch(run, tmp_path, kind):
    run("--dump_requests", tmp_path / "requests.jsonl")
    status, error = FILTERED[kind]
    with (tmp_path / "batch.jsonl").open("w") as file:
        for i, request in enumerate((tmp_path / "requests.jsonl").read_text().splitlines()):
            done = {"status_code": 200, "body": chat("alarm_set")}
            response = {"status_code": status, "body": {"error": error}} if i == 1 else done
            line = {"custom_id": json.loads(request)["custom_id"], "response": response, "error": None}
            file.write(json.dumps(line) + "\n")
    check(run("--answers", tmp_path / "batch.jsonl"))


@pytest.mark.parametrize("message", [{}, {"message": None}])
def test_a_choice_without_a_message_is_an_empty_answer(run, server, message):
    def choose(finish_reason: str | None, **others: object) -> Reply:
        choice = {"index": 0, "finish_reason": finish_reason, **message, **others}
        return send(200, {"choices": [choice], "usage": USAGE})

    server.script.extend([completion("alarm_set"), *map(choose, ("content_filter", "length", "stop", "tool_calls"))])
    output = run("--concurrency", 1)
    results, predictions = read_results(output), read_predictions(output)
    assert [p.raw for p in predictions] == ["alarm_set", *[""] * 4, "alarm_set"]
    counts = {name: results.counts[name] for name in ("refused", "empty", "not_stopped", "without_usage")}
    assert counts == {"refused": 1, "empty": 4, "not_stopped": 1, "without_usage": 0} and len(server.bodies) == 6
    for other in (choose(None), choose("stop", text="alarm_set"), choose("stop", delta={"content": "alarm_set"})):
        server.script.append(other)
        with pytest.raises(UserError, match="does not answer as the OpenAI chat API does"):
            run("--output", output / "other")


def without_choices(choices: list | None, usage: object = USAGE) -> Reply:
    return send(200, chat("") | {"choices": choices, "usage": usage})


@pytest.mark.parametrize("choices", [[], None])
def test_an_answer_without_choices_is_tried_again_and_then_empty(run, server, caplog, choices):
    """Each attempt is paid, and the example stops no later start."""
    server.script.extend([completion("alarm_set"), *[without_choices(choices)] * 3])
    output = run("--concurrency", 1, "--attempts", 3)
    results, predictions = read_results(output), read_predictions(output)
    assert len(server.bodies) == 8 and [p.raw for p in predictions] == ["alarm_set", "", *["alarm_set"] * 4]
    assert results.counts["empty"] == 1 and results.counts["refused"] == results.counts["without_usage"] == 0
    assert results.settings["resent"] == results.settings["lost"] == 2
    lines = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert lines[2] == lines[3] == {"lost": predictions[1].id, **USAGE}
    assert lines[4]["finish_reason"] == "no_choices" and lines[4]["attempts"] == 3
    assert f"example {predictions[1].id}: an answer without choices in 3 attempts" in caplog.text
    run("--concurrency", 1)
    assert len(server.bodies) == 8


def test_what_answers_without_choices_cost_is_in_the_budget(run, server, tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text("date = 2025-01-31\n[models.fake]\ninput = 100\noutput = 1000.0\n")
    server.script.extend([without_choices([]), without_choices([], None), completion("alarm_set")])
    results = read_results(run("--prices", path, "--limit", 1))
    each = (500 * 100 + 7 * 1000) / 1e6
    body = server.bodies[0]
    n_bytes = sum(len(message["content"].encode()) for message in body["messages"])
    most = (n_bytes * 100 + body["max_tokens"] * 1000) / 1e6
    assert 2 * each + most < results.settings["dollars"] < 2 * each + 1.1 * most, "without usage, the most"
    for name in (RESULTS, PREDICTIONS):
        (tmp_path / "out" / name).unlink()
    spent = results.settings["dollars"]
    with pytest.raises(UserError, match=rf"does not suffice for the next request.* after \${spent:.4f}"):
        run("--prices", path, "--max_cost", spent, "--limit", 2)
    server.script.append(without_choices([]))
    limit = spent + each + 1.05 * most  # enough for the next attempt, but not if the one before counts as the most
    try:
        run("--prices", path, "--max_cost", limit, "--limit", 2)
    except RunStopped as error:
        pytest.fail(str(error))


def test_what_a_kept_empty_answer_costs(run, server, tmp_path):
    """Its reservation ends, and its line has the most that it can have cost, if the server does not say what."""
    path = tmp_path / "prices.toml"
    path.write_text("date = 2025-01-31\n[models.fake]\ninput = 100\noutput = 1000.0\n")
    server.script.extend([without_choices([], None)] * 2)
    output = run("--attempts", 2, "--limit", 1, "--output", tmp_path / "first")
    line = json.loads((output / "answers.jsonl").read_text().splitlines()[-1])
    assert line["finish_reason"] == "no_choices" and line["attempts"] == 2
    n_input, n_output = line["at_most"]
    most, each = (n_input * 100 + n_output * 1000) / 1e6, (500 * 100 + 7 * 1000) / 1e6
    assert most > 2 * each
    server.script.extend([without_choices([])] * 2)
    try:
        run("--attempts", 2, "--limit", 2, "--prices", path, "--max_cost", 2 * each + 1.05 * most, "--concurrency", 1)
    except RunStopped as error:
        pytest.fail(str(error))
    assert len(server.bodies) == 5


def test_rate_limits_that_do_not_count_leave_all_attempts(monkeypatch):
    """While others are answered, each rate limit counts as the first attempt; then there are two more."""

    def send_once(_: object) -> Answer:
        sent.append(1)
        if len(sent) <= 3:
            asking.n_answered += 1
            raise TryAgain("slow", limited=True)
        raise TryAgain("an answer without choices", lost=True, empty=empty)

    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.01)
    empty = Answer("x", "", prompt_tokens=1, completion_tokens=0)
    sent, lost = [], []
    asking = retry.Asking(send_once, lost.append, Budget(None, None), attempts=3, concurrency=1)
    found = retry.ask(asking, SimpleNamespace(example=SimpleNamespace(id="x")))
    assert found.attempts == len(sent) == 5 and len(lost) == 1


def test_an_answer_without_choices_in_a_batch_is_empty(run, tmp_path):
    run("--dump_requests", tmp_path / "requests.jsonl")
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    bodies = [chat("") | {"choices": []}, chat("") | {"choices": None}, *[chat("alarm_set")] * 4]
    responses = [{"status_code": 200, "body": body} for body in bodies]
    lines = [{"custom_id": i, "response": r, "error": None} for i, r in zip(ids, responses, strict=True)]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = read_results(run("--answers", tmp_path / "batch.jsonl")).counts
    assert counts["empty"] == 2 and counts["missing"] == counts["refused"] == 0


@pytest.mark.parametrize("usage", [[1, 2], "none", 7, True])
def test_a_usage_that_is_no_object_is_none(run, server, usage):
    server.script.extend([send(200, chat("alarm_set") | {"usage": usage})] * 2)
    counts = read_results(run()).counts
    assert counts["without_usage"] == 2 and counts["empty"] == 0 and len(server.bodies) == 6
