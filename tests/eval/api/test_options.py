"""Options that a model behind an API takes, and where such a model and its options are refused."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from checkpoints_tools.registry import MODELS, ApiModel, get_model, get_model_spec, model_names
from data.errors import UserError
from eval.predict.config import load_config as load_predict_config
from eval.resolve import load_config
from tests.launching import ROOT
from train.resolve import load_config as load_train_config

GPT = ["--model", "gpt-4o", "--task", "massive_joint"]
OWN = ["--model", "api", "--api_model", "m", "--base_url", "http://localhost:8080/v1", "--task", "massive_joint"]


def problems(*words):
    with pytest.raises(UserError) as found:
        load_config([str(word) for word in words])
    return str(found.value)


def test_the_registry_has_them():
    closed = {name: spec for name, spec in MODELS.items() if isinstance(spec, ApiModel)}
    assert list(closed) == ["gpt-3.5-turbo", "gpt-4", "gpt-4o", "api"]
    assert [spec.context for spec in closed.values()] == [16_385, 8192, 128_000, None]
    assert set(model_names(api=True)) - set(model_names()) == set(closed)
    assert get_model("gpt-4o") is closed["gpt-4o"]
    with pytest.raises(UserError, match="unknown model 'gpt-4oo'. Did you mean 'gpt-4o'"):
        get_model("gpt-4oo")
    with pytest.raises(UserError) as found:
        get_model_spec("gpt-40")
    assert "gpt" not in str(found.value).removeprefix("unknown model 'gpt-40'")


def test_what_they_take():
    config = load_config([*GPT, "--shots", "5", "--yes", "--max_cost", "3"])
    assert config.api.yes and config.api.max_cost == 3 and config.checkpoint is None
    assert load_config([*GPT, "--base_url", "https://proxy.example/v1"]).api.base_url == "https://proxy.example/v1"
    assert load_config(OWN).api.concurrency == 8
    assert load_config([*OWN, "--timeout", "1e6", "--max_cost", "inf"]).api.max_cost == math.inf
    for url in ("http://[::1]:8080/v1", "http://bücher.example./v1", "http://my_host/my models/v1"):
        assert load_config([*OWN, "--base_url", url]).api.base_url == url
    assert load_config([*OWN[:4], "--task", "massive_joint", "--dump_requests", "x"]).api.base_url is None


def test_options_for_weights_are_refused():
    given = {"tp": 2, "checkpoint": "x", "precision": "bf16", "template": "llama3", "batch_tokens": 9, "device": "cpu"}
    message = problems(*GPT, *[word for name, value in given.items() for word in (f"--{name}", value)], "--plan")
    for name in (*given, "plan"):
        assert f"--{name} is for models whose weights are loaded here; a server answers for gpt-4o." in message
    assert message.startswith("7 problems")


def test_their_options_are_refused_elsewhere():
    message = problems(
        "--model", "llama3_8b", "--task", "20ng_7", "--base_url", "http://x/v1", "--yes", "--prices", "p"
    )
    for name in ("base_url", "yes", "prices"):
        assert f"--{name} is for models that a server answers for (gpt-3.5-turbo, gpt-4, gpt-4o, api)." in message
    assert "--compare reads finished runs; it takes no --max_cost." in problems("--compare", "a", "--max_cost", 3)


@pytest.mark.parametrize(
    "words, message",
    [
        (GPT[:2], "no --task given. Known: 20ng_20"),
        ([*GPT[:2], "--task", "massive"], "Unknown task 'massive'"),
        (["--model", "gpt-5o", "--task", "massive_joint"], "Did you mean 'gpt-4o'"),
        (["--model", "api", "--task", "massive_joint"], "needs --api_model, the model's name"),
        (["--model", "api", "--task", "massive_joint"], "needs --base_url, such as"),
        ([*OWN, "--base_url", "localhost:8080"], "must begin with http:// or https://"),
        ([*OWN, "--base_url", "http://[x"], "base_url is not a URL"),
        ([*OWN, "--base_url", "http://.invalid/v1"], "'.invalid' is no host name"),
        ([*OWN, "--base_url", f"http://{'a' * 64}.example/v1"], "is no host name: a part of it is empty, too long"),
        ([*OWN, "--base_url", "http://h/v\x011"], r"base_url = 'http://h/v\x011': must have no control characters"),
        ([*OWN, "--base_url", "http://h\ud800/v1"], "must have no control characters"),
        ([*OWN, "--base_url", " http://h/v1"], "nor spaces at its ends"),
        ([*OWN, "--base_url", "http://h/v1/chat/completions"], "give the URL before /chat/completions"),
        ([*OWN, "--concurrency", 0], "concurrency = 0: must be at least 1"),
        ([*OWN, "--attempts", 0], "attempts = 0: must be at least 1"),
        ([*OWN, "--timeout", 0], "timeout = 0.0: must be above 0"),
        ([*OWN, "--timeout", "inf"], "timeout = inf: must be at most 1,000,000 seconds"),
        ([*OWN, "--timeout", "1e10"], "timeout = 10000000000.0: must be at most 1,000,000 seconds"),
        ([*OWN, "--max_cost", "nan"], "max_cost = nan: must be above 0"),
        ([*OWN, "--shots", -1], "shots = -1"),
        ([*OWN, "--dump_requests", "a", "--answers", "b"], "give one of the two"),
        ([*OWN, "--dump_requests", "a"], "--dump_requests asks nothing; it takes no --base_url"),
        ([*OWN, "--answers", "a", "--prices", "b"], "it takes no --prices"),
        ([*OWN, "--dump_requests", "a", "--max_cost", 1], "--dump_requests asks nothing; it takes no --max_cost"),
        ([*OWN, "--answers", "a", "--concurrency", 1], "--answers asks nothing; it takes no --concurrency"),
        ([*OWN, "--allow_missing"], "--allow_missing is for --answers"),
    ],
)
def test_bad_options(words, message):
    assert message in problems(*words)


def test_a_key_on_the_command_line_is_not_repeated():
    for words in (["--key_env", "sk-abc-123"], ["--base_url", "https://me:sk-abc-123@h/v1"],
                  ["--base_url", "https://h/v1?key=sk-abc-123"]):  # fmt: skip
        message = problems(*OWN, *words)
        assert "environment" in message and "abc-123" not in message


def test_they_are_neither_trained_nor_loaded():
    for load, words in (
        (load_train_config, ["--model", "gpt-4o", "--task", "massive_joint"]),
        (load_predict_config, ["--model", "gpt-4o", "--checkpoint", "x", "--input", "x.txt"]),
    ):
        with pytest.raises(UserError, match="model gpt-4o has no weights here: .*eval.py --model gpt-4o.*llama2_7b"):
            load(words)
    with pytest.raises(UserError) as found:
        load_train_config(["--model", "gtp-4o", "--task", "massive_joint"])
    assert "gpt" not in str(found.value)
    with pytest.raises(UserError) as found:
        load_train_config(["--task", "massive_joint"])
    assert "no --model given" in str(found.value) and "gpt" not in str(found.value)


def test_mistakes_are_messages_and_status_2():
    for script in ("train.py", "eval.py", "predict.py"):
        words = ["--model", "gpt-4", "--task", "massive_joint", "--tp", "2"]
        words += ["--input", "x", "--checkpoint", "x"] if script == "predict.py" else []
        done = subprocess.run([sys.executable, script, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr and "gpt-4" in done.stderr
