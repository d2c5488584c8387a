"""The key is in no file, no output and no message, whatever the server and our own code do with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from eval.api.responses import clean
from tests.eval.api.server import chat, completion, error, send
from tests.launching import ROOT, environment

KEY = "sk-proj-Zq81LmNopQrStUvWxYz0123456789"


@pytest.mark.parametrize("ending", ["well", "refused", "crashed"])
def test_the_key_is_nowhere(server, words, tmp_path, ending):
    """The server repeats the key wherever it can."""
    server.answer = lambda body: f"alarm_set {KEY}"
    server.script.extend([
        error(429, f"Rate limit for {KEY}", {"Retry-After": "0.1", "x-key": KEY}),
        error(500, f"Bearer {KEY} broke the server"),
        send(200, chat(KEY) | {"model": KEY, "system_fingerprint": KEY}),
        completion(None, refusal=f"Not with {KEY}"),
    ])  # fmt: skip
    if ending == "refused":
        server.script.append(error(401, f"Incorrect API key provided: {KEY}."))
    code = "import runpy, sys; sys.argv[0] = 'eval.py'; runpy.run_path('eval.py', run_name='__main__')"
    if ending == "crashed":  # a bug of ours
        code = f"import eval.api.run as r; r.score = lambda setup, answers: 1 / 0; {code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--task", "massive_intent", "--key_env", "MY_KEY", "--concurrency", "1"],
        env=environment() | {"MY_KEY": KEY, "OPENAI_LOG": "debug"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == {"well": 0, "refused": 2, "crashed": 1}[ending], done.stderr
    assert set(server.keys) == {f"Bearer {KEY}"} and len(server.bodies) >= 5
    assert ("Traceback" in done.stderr) == (ending == "crashed")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"answers.jsonl"}
    everything = done.stdout + done.stderr + "".join(path.read_text() for path in written)
    assert "[key]" in everything and "broke the server" in done.stdout
    assert "HTTP Request" not in everything and "DEBUG" not in everything  # the client's own log
    for part in (KEY, KEY[3:], KEY[:12], KEY[-12:]):
        assert part not in everything


@pytest.mark.parametrize(
    "text, cleaned",
    [
        (f"provided: {KEY}. You can", "provided: [key]. You can"),
        ("provided: sk-te***1234. You can find", "provided: [key]. You can find"),
        ("Bearer abc.def-123 was wrong", "[key] was wrong"),
        ("a\n  b" + "x" * 500, "a b" + "x" * 297),
        ("risk-averse desk-top", "risk-averse desk-top"),
    ],
)
def test_what_a_message_quotes(text, cleaned):
    assert clean(text, KEY) == cleaned
    assert clean(text, None) == cleaned or KEY in text
