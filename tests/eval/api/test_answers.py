"""The answers file: interrupted in every way, cut anywhere, of something else; no answer is paid for twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from data.errors import UserError
from eval import kept_lines
from eval.api import client
from eval.api.run import run_api
from eval.resolve import load_config
from eval.results import PREDICTIONS, RESULTS, read_predictions, read_results
from tests.eval.api.server import completion, document
from tests.launching import ROOT, environment


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def start(words, *options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "eval.py"), *words, "--task", "massive_intent", *map(str, options)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def wait_for(stream, text):
    assert any(text in line for line in stream), "the program ended"


def forget(output):
    """Remove the result and keep the answers, as the message about another result says."""
    for name in (RESULTS, PREDICTIONS):
        (output / name).unlink()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGKILL"])
def test_interrupted_and_continued(run, words, server, tmp_path, name):
    """The server holds the fourth request and those after it until the signal has arrived."""
    held, go = threading.Event(), threading.Event()

    def before(body: dict) -> None:
        if len(server.bodies) > 3:
            held.set()
            go.wait(60)

    server.before = before
    path = tmp_path / "out" / "answers.jsonl"
    with start(words, "--concurrency", 2, "--timeout", 100) as process:  # no time-out while the server holds
        assert held.wait(120)
        while len(lines_of(path)) < 4:  # the header and three answers
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        if name != "SIGKILL":
            wait_for(process.stdout, "waiting for the answers in flight")
        else:
            process.wait()
        server.before = lambda body: None
        go.set()
        out, err = process.communicate(timeout=60)
    n_kept = len(lines_of(path)) - 1
    assert "Traceback" not in err and not (tmp_path / "out" / "results.json").exists()
    if name == "SIGKILL":
        assert process.returncode == -signal.SIGKILL and n_kept == 3
    else:
        assert process.returncode == 128 + getattr(signal, name), err
        assert n_kept == len(server.bodies) in (4, 5)
        assert f"{name}: stopped. {n_kept} of 6 answers are in" in err
    before_resuming = len(server.bodies)
    output = run()
    assert len(server.bodies) == before_resuming + 6 - n_kept and read_results(output).metrics["n_examples"] == 6
    if name != "SIGKILL":  # those in flight were waited for; a killed process cannot
        assert set(server.asked.values()) == {1} and len(server.asked) == 6
    n_before = len(server.bodies)
    assert read_predictions(run()) == read_predictions(output) and len(server.bodies) == n_before


def test_a_second_signal_stops_at_once(words, server, tmp_path):
    held = threading.Event()

    def before(body: dict) -> None:
        if len(server.bodies) > 2:
            held.set()
            time.sleep(30)

    server.before = before
    with start(words, "--concurrency", 1) as process:
        assert held.wait(120)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        wait_for(process.stdout, "waiting for the answers in flight")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 10
    assert "SIGTERM: stopped. 2 of 6 answers" in err


def test_cut_at_every_byte_of_the_last_line(run, server, tmp_path):
    output = run("--concurrency", 1, "--limit", 3)
    path = output / "answers.jsonl"
    complete = path.read_bytes()
    last = complete.rstrip(b"\n").rfind(b"\n") + 1
    for end in (last, last + 1, (last + len(complete)) // 2, len(complete) - 1):
        path.write_bytes(complete[:end])
        n = len(server.bodies)
        run("--limit", 3)
        assert len(server.bodies) == n + 1
        assert [json.loads(line)["id"] for line in lines_of(path)[1:]] == [
            json.loads(line)["id"] for line in complete.decode().splitlines()[1:]
        ]
    path.write_bytes(complete[:-20] + bytes(5000))  # as after a power failure
    run("--limit", 3)
    header_only = complete[: complete.find(b"\n") + 1]
    for content in (b"", header_only[:9], header_only):
        path.write_bytes(content)
        n = len(server.bodies)
        run("--limit", 3)
        assert len(server.bodies) == n + 3


@pytest.mark.parametrize(
    "damage, message",
    [
        (b"what is this", "line 2: not JSON .*Remove the line to ask"),
        (b"[" * 1000, "line 2: nested more than"),
        (b'{"id": "a", "answer": "\xff"}', "line 2: not JSON .byte .* is not UTF-8"),
        (b'{"id": "a"}', "line 2: answer is missing"),
        (b'{"id": 1, "answer": "x"}', "line 2: id must be a text; it is 1. Remove"),
        (
            b'{"id": "a", "answer": "x", "prompt_tokens": "5"}',
            "line 2: prompt_tokens must be .* or null; it is '5'",
        ),
        (b'{"id": "a", "answer": "x", "prompt_tokens": -5}', "line 2: prompt_tokens must be .* at least 0; it is -5"),
        (b'{"lost": "a"}', "line 2: prompt_tokens is missing"),
        (
            b'{"lost": "a", "prompt_tokens": 1, "completion_tokens": null}',
            "line 2: completion_tokens must be .* it is None",
        ),
        (b'["x"]', "line 2: the document must be an object"),
    ],
)
def test_a_damaged_line_is_named(run, server, damage, message):
    path = run("--limit", 2) / "answers.jsonl"
    header, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + damage + b"\n" + b"".join(rest))
    n = len(server.bodies)
    with pytest.raises(UserError, match=message):
        run("--limit", 2)
    assert len(server.bodies) == n


def test_answers_of_something_else_are_refused(run, server, tmp_path):
    path = run("--limit", 2) / "answers.jsonl"
    forget(path.parent)
    before, n = path.read_bytes(), len(server.bodies)
    for options, name in (
        ({"task": "massive_slots"}, "task: 'massive_intent "),
        ({"shots": 2}, "prompt: '0-shot "),
        ({"api_model": "other"}, "model: 'fake', and not 'other'"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "server"),
        ({"split": "dev"}, "data: 'sample test', and not 'sample dev'"),
    ):
        task = options.pop("task", "massive_intent")
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        with pytest.raises(UserError, match=f"answers.jsonl has answers of another {name}.*give another --output"):
            run("--limit", 2, *words, task=task)
    path.write_bytes(before.partition(b"\n")[2])
    with pytest.raises(UserError, match="does not begin with what its answers are of.*give --answers"):
        run("--limit", 2)
    assert len(server.bodies) == n


@pytest.mark.parametrize(
    "content", [b'{"id": "a", "answer": "x"}', b'{"id": "a", "answer": "x"}\n{"id": "b"', b"notes"]
)
def test_a_file_that_is_not_ours_is_left_as_it_is(run, server, tmp_path, content):
    path = tmp_path / "out" / "answers.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not begin with what its answers are of"):
        run("--limit", 2)
    assert path.read_bytes() == content and not server.bodies


def test_a_larger_limit_goes_on_from_a_smaller(run, server):
    output = run("--limit", 3)
    assert len(server.bodies) == 3
    with pytest.raises(UserError, match=r"result of another scoring, with another limit \(3 there, 1000 now\)"):
        run("--limit", 1000)
    forget(output)
    assert read_results(run("--limit", 1000)).metrics["n_examples"] == len(server.asked) > 20
    assert set(server.asked.values()) == {1}
    forget(output)
    run("--limit", 3)
    assert read_results(output).metrics["n_examples"] == 3 and set(server.asked.values()) == {1}


def test_only_requests_that_change_are_asked_again(run, server, capsys):
    output = run(task="20ng_20")
    first = read_results(output)
    forget(output)
    cut = read_results(run("--row_length", 375, task="20ng_20"))
    n_cut = cut.counts["truncated"]
    assert first.counts["truncated"] == 0 < n_cut < 6 and len(server.bodies) == 6 + n_cut
    assert f"not used: {n_cut} answers there to other requests" in capsys.readouterr().out
    forget(output)
    run(task="20ng_20")
    assert len(server.bodies) == 6 + n_cut
    forget(output)
    run("--max_new_tokens", 3, task="20ng_20")
    assert len(server.bodies) == 6 + n_cut + 6 and server.bodies[-1]["max_tokens"] == 3


def test_a_defect_in_one_thread_costs_no_answer_in_flight(run, server, tmp_path, monkeypatch):
    """The second request fails in our own code while the third is being answered."""
    failed, real = threading.Event(), client.read_completion

    def read(record, example_id):
        if record["choices"][0]["message"]["content"] == "fail":
            failed.set()
            raise ZeroDivisionError("a defect")
        return real(record, example_id)

    def fail(handler, body):
        while len(server.bodies) < 3:
            time.sleep(0.01)
        completion("fail")(handler, body)

    def late(handler, body):
        assert failed.wait(4)
        time.sleep(0.5)  # until the failure has reached the main thread
        completion("late")(handler, body)

    monkeypatch.setattr(client, "read_completion", read)
    server.script.extend([completion("alarm_set"), fail, late])
    with pytest.raises(ZeroDivisionError) as found:
        run("--concurrency", 2)
    kept = [json.loads(line)["answer"] for line in lines_of(tmp_path / "out" / "answers.jsonl")[1:]]
    assert kept == ["alarm_set", "late"] and len(server.bodies) == 3
    assert "2 of 6 answers are in" in found.value.__notes__[0]


def test_one_process_at_a_time(run, words, server, tmp_path):
    held, go = threading.Event(), threading.Event()
    server.before = lambda body: (held.set(), go.wait(60))
    with start(words) as process:
        assert held.wait(120)
        with pytest.raises(UserError, match="answers.jsonl: another process is writing it"):
            run()
        go.set()
        process.communicate(timeout=60)
    assert process.returncode == 0 and set(server.asked.values()) == {1}


def test_a_file_that_is_removed_before_it_is_locked(run, server, tmp_path, monkeypatch):
    real = kept_lines.lock

    def remove_and_lock(file, path):
        path.unlink()
        real(file, path)

    monkeypatch.setattr(kept_lines, "lock", remove_and_lock)
    with pytest.raises(UserError, match="answers.jsonl was removed, renamed or replaced"):
        run()
    assert not server.bodies


def test_answers_that_no_file_can_hold(run, server):
    """JSON has halves of surrogate pairs, UTF-8 has not."""
    server.answer = lambda body: "alarm \ud83d set \U0001f600"
    output = run("--limit", 2)
    assert [p.raw for p in read_predictions(output)] == ["alarm \ufffd set \U0001f600"] * 2
    run("--limit", 2)
    assert len(server.bodies) == 2


def test_a_disk_that_fills(run, small_disk, server):
    output = small_disk / "out"
    (small_disk / "filler").write_bytes(bytes(25 << 20))
    server.answer = lambda body: "x" * (1 << 20)
    with pytest.raises(UserError, match="cannot write .*answers.jsonl: No space left.*answers before are kept"):
        run("--output", output, "--concurrency", 1)
    n = len(server.bodies)
    assert 1 < n < 6
    (small_disk / "filler").unlink()
    server.answer = lambda body: "alarm_set"
    run("--output", output, "--concurrency", 1)
    assert sorted(server.asked.values()) == [1, 1, 1, 1, 1, 2]  # the answer that did not fit


def test_documents_differ_in_these_tests(run, server):
    """Requests are counted by their document."""
    run("--limit", 1000)
    assert len(server.asked) == len(server.bodies) and document(server.bodies[0])


def test_without_an_output_every_limit_has_its_result_and_no_answer_is_paid_twice(
    words, server, tmp_path, monkeypatch, printed
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))
    words = [*words[: words.index("--output")], *words[words.index("--output") + 2 :], "--task", "massive_intent"]
    for limit in (2, 4):
        run_api(load_config([*words, "--limit", str(limit)]))
        output = tmp_path / f"runs/eval/fake-massive_intent-0shot-limit{limit}"
        assert read_results(output).metrics["n_examples"] == limit == len(server.bodies)
        assert sorted(path.name for path in output.iterdir()) == [PREDICTIONS, RESULTS]
    assert [path.name for path in (tmp_path / "runs/eval/fake-massive_intent-0shot").iterdir()] == ["answers.jsonl"]
