"""Texts that a server refuses or answers with nothing: each is an answer, also in a batch, and ends no run."""

from __future__ import annotations

import json

import pytest

from data.errors import UserError
from eval.results import read_predictions, read_results
from tests.eval.api.server import USAGE, Reply, chat, completion, send

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
    def choose(finish_reason: str) -> Reply:
        return send(200, {"choices": [{"index": 0, "finish_reason": finish_reason, **message}], "usage": USAGE})

    server.script.extend([completion("alarm_set"), choose("content_filter"), choose("length")])
    output = run("--concurrency", 1)
    results, predictions = read_results(output), read_predictions(output)
    assert [p.raw for p in predictions] == ["alarm_set", "", "", *["alarm_set"] * 3]
    counts = {name: results.counts[name] for name in ("refused", "empty", "not_stopped", "without_usage")}
    assert counts == {"refused": 1, "empty": 2, "not_stopped": 1, "without_usage": 0} and len(server.bodies) == 6
    server.script.append(choose("stop"))
    with pytest.raises(UserError, match="does not answer as the OpenAI chat API does"):
        run("--output", output / "other")
