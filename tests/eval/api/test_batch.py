"""Requests as a file, and answers from files: a batch's output, plain lines, a run's own; and all that can be wrong."""

from __future__ import annotations

import json
import sys

import pytest

from data.errors import UserError
from eval.results import read_predictions, read_results
from tests.eval.api.conftest import gold
from tests.eval.api.server import chat, document


def load(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, records, end="\n"):
    path.write_text("\n".join(json.dumps(record) for record in records) + end, encoding="utf-8")
    return path


@pytest.fixture
def requests(run, tmp_path):
    """The lines of a file of requests."""
    run("--dump_requests", tmp_path / "requests.jsonl")
    return load(tmp_path / "requests.jsonl")


def output_of(request, text):
    """The line of a batch's output for a request."""
    response = {"status_code": 200, "request_id": "r", "body": chat(text)}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


@pytest.fixture
def outputs(requests):
    answers = gold("massive_intent")
    return [output_of(request, answers[document(request["body"])]) for request in requests]


def offline(run, path, *options, **others):
    return run("--answers", path, *options, **others)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_are_those_of_a_run(run, server, requests, capsys):
    assert not server.bodies
    run("--concurrency", 1)
    assert [line["body"] for line in requests] == server.bodies
    for line in requests:
        assert list(line) == ["custom_id", "method", "url", "body"]
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        assert line["custom_id"].startswith("massive_intent:") and ":massive/test/" in line["custom_id"]
    assert len({line["custom_id"] for line in requests}) == 6


def test_writing_requests_needs_no_key_no_package_no_server(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openai", None)
    path = tmp_path / "requests.jsonl"
    words = ["--model", "gpt-4o", "--api_model", "gpt-4o", "--dump_requests", path, "--shots", 5]
    run(*words, task="massive_joint")
    printed = capsys.readouterr().out
    assert "6 requests: " in printed and "cost: about $0." in printed and "$2.5 and $10 per million" in printed
    assert [body["model"] for body in (line["body"] for line in load(path))] == ["gpt-4o"] * 6
    with pytest.raises(UserError, match="requests.jsonl exists. Remove it"):
        run(*words, task="massive_joint")
    with pytest.raises(UserError, match="nowhere does not exist. Make it: mkdir -p"):
        run("--dump_requests", tmp_path / "nowhere" / "x.jsonl")
    assert not (tmp_path / "out").exists()


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_batchs_output_is_scored_as_a_run(run, server, outputs, tmp_path):
    answers = gold("massive_intent")
    server.answer = lambda body: answers[document(body)]
    asked = run()
    scored = offline(run, write(tmp_path / "batch.jsonl", outputs[::-1]), "--output", tmp_path / "scored")
    assert read_predictions(scored) == read_predictions(asked)
    ours, theirs = read_results(scored), read_results(asked)
    assert ours.metrics == theirs.metrics and ours.metrics["exact_match"] == 1.0 and ours.counts == theirs.counts
    assert ours.settings["answers_file"] == "batch.jsonl" and ours.settings["host"] is None
    assert "seconds" not in ours.cost and ours.cost["prompt_tokens"] == 500 and ours.settings["dollars"] is None
    again = offline(run, asked / "answers.jsonl", "--output", tmp_path / "again")
    assert read_predictions(again) == read_predictions(asked)


def test_plain_lines_are_scored(run, requests, tmp_path):
    ids = [line["custom_id"].split(":", 2)[2] for line in requests]
    lines = [{"id": name, "answer": "alarm_set"} for name in ids[:3]]
    lines += [{"id": line["custom_id"], "answer": "alarm_set"} for line in requests[3:]]
    path = write(tmp_path / "answers.jsonl", lines, end="\n\n")
    predictions = read_predictions(offline(run, path))
    assert [p.id for p in predictions] == ids and {p.raw for p in predictions} == {"alarm_set"}
    assert all(p.n_prompt_tokens > 100 and p.n_new_tokens == 3 for p in predictions)


def test_missing_repeated_and_foreign_ids_are_named(run, outputs, tmp_path):
    foreign = [{"id": f"massive/test/none{i}", "answer": "x"} for i in range(7)]
    path = write(tmp_path / "batch.jsonl", [*outputs[:4], outputs[0], outputs[1], outputs[1], *foreign])
    with pytest.raises(UserError) as found:
        offline(run, path)
    message, ids = str(found.value), [line["custom_id"].split(":", 2)[2] for line in outputs]
    assert f"2 examples are answered more than once: {ids[0]}, {ids[1]}." in message
    assert "7 ids are not among the 6 examples to score: massive/test/none0, " in message and "none4, ...." in message
    assert "none5" not in message and "--limit" in message
    assert f"2 of 6 examples have no answer: {ids[4]}, {ids[5]}. Add them, or give --allow_missing" in message
    with pytest.raises(UserError, match="answered more than once"):
        offline(run, path, "--allow_missing")


def test_answers_that_a_batch_could_not_get(run, outputs, tmp_path, capsys):
    refused = {"status_code": 400, "body": {"error": {"message": "too long"}}}
    expired = {"code": "batch_expired", "message": "could not be executed in time"}
    lines = [
        *outputs[:4],
        {**outputs[4], "response": refused},
        {**outputs[5], "response": None, "error": expired},
    ]
    path = write(tmp_path / "batch.jsonl", lines)
    with pytest.raises(UserError, match=r"2 of 6 .*\(HTTP 400, too long\), .*\(could not be executed in time\)"):
        offline(run, path)
    output = offline(run, path, "--allow_missing")
    results, predictions = read_results(output), read_predictions(output)
    assert results.counts["missing"] == 2 and results.metrics["n_unparsed"] == 2
    assert results.metrics["fields"]["intent"]["accuracy"] == pytest.approx(4 / 6)
    assert [p.unparsed for p in predictions[4:]] == [("intent",)] * 2
    lines += outputs[4:]  # from a second batch
    with pytest.raises(UserError, match="result of another scoring, with another answers_hash "):
        offline(run, write(path, lines))
    assert read_results(offline(run, write(path, lines), "--output", tmp_path / "again")).metrics["exact_match"] == 1.0


@pytest.mark.parametrize(
    "body",
    [None, "", [], {}, {"choices": [], "error": {"code": 500}}, {"choices": [{"text": "x", "finish_reason": 1}]}],
)
def test_a_line_whose_body_is_no_chat_completion_has_failed(run, outputs, tmp_path, caplog, body):
    lines = [outputs[0], {**outputs[1], "response": {"status_code": 200, "body": body}}, *outputs[2:]]
    name = outputs[1]["custom_id"].split(":", 2)[2]
    said = f"1 of 6 examples have no answer: {name} (not a chat completion in line 2, but {json.dumps(body)})."
    path = write(tmp_path / "batch.jsonl", lines)
    with pytest.raises(UserError) as found:
        offline(run, path)
    assert f"{said} Add them, or give --allow_missing" in str(found.value)
    assert read_results(offline(run, path, "--allow_missing")).counts["missing"] == 1
    assert f"{said} They count as unparsed." in caplog.text
    again = write(path, [*lines, outputs[1]])  # from a second batch
    assert read_results(offline(run, again, "--output", tmp_path / "again")).metrics["exact_match"] == 1.0


def test_a_line_with_half_a_character(run, outputs, tmp_path):
    lines = [{"id": line["custom_id"].split(":", 2)[2], "answer": "x\ud800", "model": "\udfff"} for line in outputs]
    assert {p.raw for p in read_predictions(offline(run, write(tmp_path / "a.jsonl", lines)))} == {"x\ufffd"}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda lines: lines[:-1] + [lines[-1][:40]], "line 6: not JSON .*The file ends in it"),
        (lambda lines: ["[1]", *lines], r"line 1: the document must be an object; it is \[1\]"),
        (lambda lines: ['{"custom_id": "a", "method": "POST", "body": {}}', *lines], "line 1: these are requests"),
        (lambda lines: [lines[0], "{", *lines[1:]], "line 2: not JSON .*Remove the line"),
        (lambda lines: [lines[0], "[" * 1000, *lines[1:]], "line 2: nested more than 64 levels"),
        (lambda lines: ['{"answer": "x"}', *lines], "line 1: no id"),
        (lambda lines: ['{"id": 7, "answer": "x"}', *lines], "line 1: no id"),
        (lambda lines: ['{"id": "x", "answer": null}', *lines],
         'line 1: no answer for x: "answer" must be a string, found null'),
    ],
)  # fmt: skip
def test_damaged_lines_are_named_by_number(run, outputs, tmp_path, damage, message):
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join(damage([json.dumps(line) for line in outputs])))
    with pytest.raises(UserError, match=f"{path}, {message}"):
        offline(run, path)


def test_answers_of_another_task_or_prompt(run, server, outputs, tmp_path):
    path = write(tmp_path / "batch.jsonl", outputs)
    with pytest.raises(
        UserError, match="line 1: this is an answer of task massive_intent, and the task .* massive_slots"
    ):
        offline(run, path, task="massive_slots")
    with pytest.raises(UserError, match="6 answers are to other prompts than these options give.*--shots"):
        offline(run, path, "--shots", 2)
    with pytest.raises(UserError, match="6 answers are to other prompts"):
        offline(run, path, "--max_new_tokens", 5)
    with pytest.raises(UserError, match="ids are not among the"):
        offline(run, path, "--seed", 4)  # other examples
    asked = run("--output", tmp_path / "asked") / "answers.jsonl"
    with pytest.raises(UserError, match="line 1: this is an answer of task massive_intent"):
        offline(run, asked, task="massive_slots")
    with pytest.raises(UserError, match="6 answers are to other prompts"):
        offline(run, asked, "--no_list_labels")
    with pytest.raises(UserError, match="cannot read .*none.jsonl"):
        offline(run, tmp_path / "none.jsonl")


def test_answers_to_two_sets_of_options(run, server, tmp_path, capsys):
    """As `match` reads them: other answers count only where an example has no right one."""
    output = tmp_path / "out"
    server.answer = lambda body: "short" if body["max_tokens"] == 5 else "long"
    runs = {"short": ("--max_new_tokens", 5), "long": ()}
    for options in runs.values():
        run(*options)
        (output / "results.json").unlink()
        (output / "predictions.jsonl").unlink()
    path = output / "answers.jsonl"
    header, *lines = load(path)
    assert len(lines) == 12
    for answer, options in runs.items():
        scored = offline(run, path, *options, "--output", tmp_path / answer)
        assert {p.raw for p in read_predictions(scored)} == {answer}
        assert "not used: 6 answers in" in capsys.readouterr().out
    write(path, [header, *lines[:-1]])
    with pytest.raises(UserError, match=f"1 answers are to other prompts than these options give: {lines[-1]['id']}. "):
        offline(run, path, "--output", tmp_path / "third")


def test_an_answer_that_a_batch_could_not_get_is_missing_also_beside_one_to_another_prompt(run, outputs, tmp_path):
    task, fingerprint, name = outputs[0]["custom_id"].split(":", 2)
    other = {**outputs[0], "custom_id": f"{task}:{fingerprint[::-1]}:{name}"}
    failed = {**outputs[0], "response": None, "error": {"message": "expired"}}
    path = write(tmp_path / "batch.jsonl", [other, failed, *outputs[1:]])
    with pytest.raises(UserError, match="1 of 6 examples have no answer: .*expired"):
        offline(run, path)
    assert read_results(offline(run, path, "--allow_missing")).counts["missing"] == 1


def test_a_file_of_another_models_answers_is_refused(run, server, tmp_path):
    """Whatever its lines say; the message says with which options it would be scored."""
    words = "--limit", 6, "--output", tmp_path / "scored"
    path = run("--api_model", "gpt-3.5-turbo", "--output", tmp_path / "asked") / "answers.jsonl"
    of_gpt = "line 1: these are answers of model gpt-3.5-turbo, and the model to score is"
    with pytest.raises(UserError, match=f"{of_gpt} gpt-4o. .*--model gpt-3.5-turbo without --api_model; or"):
        offline(run, path, *words, "--api_model", "gpt-4o")
    with pytest.raises(UserError, match=f"{of_gpt} fake. "):
        offline(run, path, *words)
    assert not (tmp_path / "scored").exists()
    offline(run, path, *words, "--api_model", "gpt-3.5-turbo")
    own = run("--output", tmp_path / "own") / "answers.jsonl"
    with pytest.raises(UserError, match="answers of model fake, and .* is gpt-4o. .* --api_model fake; or"):
        offline(run, own, "--api_model", "gpt-4o", "--output", tmp_path / "other")


@pytest.mark.parametrize(
    "asked, reported, warns",
    [
        ("gpt-4o", "gpt-3.5-turbo-0125", True),
        ("gpt-4", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4-0613", True),
        ("my-model", "gpt-4-0613", True),
        ("gpt-4o", "gpt-4o", False),
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", False),
        ("gpt-4o", "/models/gpt-4-x", False),
        ("gpt-4o", "my-gpt", False),
        ("gpt-4o", "", False),
    ],
)
def test_a_batch_of_another_model_is_scored_with_a_warning(run, outputs, tmp_path, caplog, asked, reported, warns):
    for line in outputs:
        line["response"]["body"]["model"] = reported
    output = offline(run, write(tmp_path / "batch.jsonl", outputs), "--api_model", asked)
    assert read_results(output).metrics["exact_match"] == 1.0
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == warns
    if warns:
        assert said[0].endswith(f"6 answers are of model {reported} according to their server, "
                                f"and the model to score is {asked}")  # fmt: skip


def test_a_name_of_ones_own_for_a_known_model(run, outputs, tmp_path, caplog):
    """As the deployments of Azure."""
    for line in outputs:
        line["response"]["body"]["model"] = "gpt-4o-2024-08-06"
    path = write(tmp_path / "batch.jsonl", outputs)
    offline(run, path, "--model", "gpt-4o", "--api_model", "my-deployment")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
