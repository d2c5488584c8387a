"""What a run costs: price lists, the estimate, the question before the first request, and the budget."""

from __future__ import annotations

import io
import json
import random
import threading

import pytest

from data.errors import UserError
from data.example import Example
from eval.api import estimate, prices
from eval.api.prices import Budget, Prices, most, read_prices
from eval.api.setup import Request
from eval.results import PREDICTIONS, RESULTS, read_predictions, read_results
from tests.eval.api.server import chat, completion, hang, send
from train.errors import RunStopped

PRICES = 'date = 2025-01-31\nsource = "a contract"\n[models.fake]\ninput = 100\noutput = 1000.0\n'
EACH = (500 * 100 + 7 * 1000) / 1e6  # of an answer, by the server's usage


@pytest.fixture
def price_list(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return path


# --- price lists ------------------------------------------------------------------------------------------------------


def test_the_list_that_comes_with_the_code():
    found = {name: read_prices(name) for name in ("gpt-4o", "gpt-4", "gpt-3.5-turbo")}
    assert [(p.input, p.output) for p in found.values()] == [(2.5, 10.0), (30.0, 60.0), (0.5, 1.5)]
    assert all(p.date and "list prices" in p.source for p in found.values())
    assert found["gpt-4"].of(1_000_000, 500_000) == 60.0


@pytest.mark.parametrize(
    "text, message",
    [
        ("[models", "not TOML"),
        (b"\xff", "not UTF-8"),
        ("a = " + "[" * 500 + "]" * 500, "nested more than 64 levels"),
        ("date = 2025-01-31\n", "has no prices"),
        (PRICES.replace("date", "day"), "has no date"),
        (PRICES.replace("fake", "fakir"), "no price for fake. Did you mean 'fakir'.* Add .*\\[models.\"fake\"\\]"),
        (PRICES.replace("100\n", "-1\n"), r"\[models.\"fake\"\]: input must be a number, at least 0; it is -1"),
        (PRICES.replace("100\n", "true\n"), "input must be a number; it is True"),
        (PRICES.replace("100\n", "nan\n"), "input must be a number, at least 0; it is nan"),
        (PRICES.replace("input = 100\n", ""), "input is missing"),
        ("date = 2025-01-31\nmodels.fake = 3", "must be an object; it is 3"),
    ],
)
def test_bad_price_lists(run, server, price_list, text, message):
    price_list.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        run("--prices", price_list)
    assert not server.bodies


def test_a_missing_price_list(run, tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.toml"):
        run("--prices", tmp_path / "none.toml")


def test_openais_models_need_a_price(run, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with pytest.raises(UserError, match="no price for gpt-4o-2030-01-01. Did you mean 'gpt-4o'"):
        run("--model", "gpt-4o", "--api_model", "gpt-4o-2030-01-01")
    assert not server.bodies


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_what_is_said_before_the_first_request(run, server, price_list, capsys):
    said = []
    server.before = lambda body: said.append(capsys.readouterr().out)
    run("--prices", price_list, "--concurrency", 1)
    assert "6 requests: " in said[0] and "characters / 4: the vocabulary is not known" in said[0]
    n_input = int(said[0].split("6 requests: ")[1].split(" tokens")[0].replace(",", ""))
    n_characters = sum(len(message["content"]) for body in server.bodies for message in body["messages"])
    assert n_characters / 4 < n_input < n_characters / 4 + 6 * 9
    assert "cost: about $" in said[0] and "$100 and $1000 per million tokens; a contract, 2025-01-31" in said[0]
    run("--output", price_list.parent / "other")
    assert "cost: not known" in "".join(said) + capsys.readouterr().out


def test_what_was_spent_is_in_the_results(run, server, price_list):
    results = read_results(run("--prices", price_list))
    assert results.settings["dollars"] == pytest.approx(6 * EACH) and results.cost["dollars"] == pytest.approx(EACH)
    assert results.settings["prices"]["date"] == "2025-01-31" and results.settings["prices"]["source"] == "a contract"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("answer, n", [("y\n", 6), ("YES\n", 6), ("\n", 0), ("n\n", 0), ("", 0)])
def test_a_terminal_is_asked(run, server, monkeypatch, tmp_path, answer, n):
    monkeypatch.setattr(estimate.sys, "stdin", Terminal(answer))
    monkeypatch.setattr(estimate.sys, "stdout", Terminal())
    output = run("--yes", "off")
    assert "go on? [y/N]" in estimate.sys.stdout.getvalue()
    assert len(server.bodies) == n and (output / "results.json").exists() == (n > 0)
    assert output.exists() == (n > 0)


def test_without_a_terminal_yes_is_needed(run, server, tmp_path):
    with pytest.raises(UserError, match="nothing was asked yet: give --yes"):
        run("--no_yes")
    assert not server.bodies and not (tmp_path / "out").exists()
    run()
    run("--no_yes")  # there is nothing left to ask
    assert len(server.bodies) == 6


# --- the budget -------------------------------------------------------------------------------------------------------


def test_the_maximum_stops_in_good_order(run, server, price_list, tmp_path, capsys):
    """The most that a request may cost is known before; the limit is reached after three answers."""
    run("--prices", price_list, "--limit", 1, "--output", tmp_path / "one")
    body = server.bodies[0]
    n_bytes = sum(len(message["content"].encode()) for message in body["messages"])
    highest = (n_bytes + 200) * 100 / 1e6 + body["max_tokens"] * 1000 / 1e6
    limit = round(3 * EACH + highest - 0.9 * EACH, 4)
    n = len(server.bodies)
    with pytest.raises(
        RunStopped, match=f"--max_cost {limit:g}: the next request may pass it; about .* are spent"
    ) as e:
        run("--prices", price_list, "--max_cost", limit, "--concurrency", 3)
    n_asked = len(server.bodies) - n
    assert 2 <= n_asked <= 4 and n_asked * EACH <= limit
    assert f"{n_asked} of 6 answers are in" in str(e.value) and "goes on. Give a higher --max_cost." in str(e.value)
    with pytest.raises(UserError, match=r"does not suffice for the next request.* after \$0\..*Give at least"):
        run("--prices", price_list, "--max_cost", limit)
    assert len(server.bodies) == n + n_asked
    run("--prices", price_list, "--max_cost", 100)
    assert len(server.bodies) == n + 6


def test_a_maximum_below_the_first_request(run, server, price_list):
    with pytest.raises(UserError, match="--max_cost 0.001 does not suffice for the next request, which may cost up to"):
        run("--prices", price_list, "--max_cost", 0.001)
    assert not server.bodies


def test_a_maximum_needs_a_price(run, server):
    with pytest.raises(UserError, match="--max_cost needs the model's price"):
        run("--max_cost", 5)
    assert not server.bodies


def test_attempts_that_may_be_charged_count(run, server, price_list, tmp_path):
    run("--prices", price_list, "--limit", 1, "--output", tmp_path / "one")
    n = len(server.bodies)
    highest = sum(len(message["content"]) for message in server.bodies[0]["messages"]) * 100 / 1e6 * 1.5
    server.script.extend([completion("alarm_set"), *[hang(1)] * 20])
    with pytest.raises(RunStopped, match="the next request may pass it"):
        run("--prices", price_list, "--max_cost", 3 * highest, "--timeout", 0.3, "--concurrency", 1, "--attempts", 20)
    assert 1 < len(server.bodies) - n < 7


def test_attempts_of_earlier_runs_count(run, server, price_list):
    """Also of examples that were never answered, whose attempts are in no answer."""
    options = "--prices", price_list, "--timeout", 0.3, "--concurrency", 1
    server.script.extend([completion("alarm_set"), hang(1), hang(1)])
    with pytest.raises(UserError, match="no answer in 2 attempts"):
        run(*options, "--attempts", 2)
    body = server.bodies[1]
    n_bytes = sum(len(message["content"].encode()) for message in body["messages"])
    lost = 2 * (n_bytes * 100 + body["max_tokens"] * 1000) / 1e6
    with pytest.raises(
        UserError, match=r"does not suffice for the next request.* after \$(0\.\d+) for earlier answers and attempts"
    ) as found:
        run(*options, "--max_cost", lost)
    said = float(str(found.value).split(" after $")[1].split()[0])
    assert lost < said < 1.05 * lost + 2 * EACH
    results = read_results(run(*options))
    assert results.settings["lost"] == 2 and results.settings["resent"] == 0
    assert results.settings["dollars"] == pytest.approx(said + 5 * EACH, abs=1e-4)


def test_a_result_has_the_lost_attempts_at_its_own_examples(run, server, price_list):
    """Also if the answers file has more of them, of a larger --limit."""
    options = "--prices", price_list, "--timeout", 0.3, "--concurrency", 1
    server.script.extend([hang(1), completion("alarm_set")] * 6)
    output = run(*options)
    for limit in (6, 2):
        results = read_results(run(*options, "--limit", limit))
        ids = {prediction.id for prediction in read_predictions(output)}
        lines = map(json.loads, (output / "answers.jsonl").read_text().splitlines())
        own = [line for line in lines if line.get("lost") in ids]
        charged = sum(line["prompt_tokens"] * 100 + line["completion_tokens"] * 1000 for line in own) / 1e6
        assert results.settings["lost"] == results.settings["resent"] == len(own) == limit
        assert results.settings["dollars"] == pytest.approx(limit * EACH + charged)
        (output / RESULTS).unlink()
        (output / PREDICTIONS).unlink()


def test_only_lost_attempts_are_kept_too(run, server, price_list, tmp_path):
    server.script.append(hang(1))
    with pytest.raises(UserError, match="no answer in 1 attempts"):
        run("--prices", price_list, "--timeout", 0.3, "--attempts", 1)
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"lost": "massive/' in lines[1]
    assert read_results(run("--prices", price_list)).settings["lost"] == 1


def test_answers_without_usage_count_as_the_most(run, server, price_list):
    server.answer = lambda body: "alarm_set"
    server.script.extend([send(200, chat("alarm_set", usage=False))] * 6)
    results = read_results(run("--prices", price_list))
    assert results.settings["dollars"] > 6 * EACH and results.counts["without_usage"] == 6


def spent_before(run, *options):
    """Dollars that a run with a small --max_cost says that the answers in the folder have cost."""
    with pytest.raises(UserError, match=r"does not suffice for the next request.* after \$") as found:
        run("--max_cost", 1e-6, *options)
    return float(str(found.value).split(" after $")[1].split()[0])


@pytest.mark.parametrize("lacks", ["usage", "prompt_tokens", "completion_tokens"])
def test_answers_of_other_runs_without_usage_count_as_the_most(run, server, price_list, lacks):
    """Another seed asks other examples, another --max_new_tokens the same ones with shorter answers."""
    record = chat("alarm_set")
    (record if lacks == "usage" else record["usage"]).pop(lacks)
    server.script.extend([send(200, record)] * 3)
    options = "--prices", price_list, "--limit", 3
    output = run(*options)
    assert read_results(output).counts["without_usage"] == 3
    n_bytes = [sum(len(message["content"].encode()) for message in body["messages"]) for body in server.bodies]
    most_dollars = (
        sum(n * 100 + body["max_tokens"] * 1000 for n, body in zip(n_bytes, server.bodies, strict=True)) / 1e6
    )
    for name in (RESULTS, PREDICTIONS):
        (output / name).unlink()
    for others in (("--seed", 5), ("--max_new_tokens", 1)):
        said = spent_before(run, *options, *others)
        assert most_dollars < said < 1.2 * most_dollars, others
    assert len(server.bodies) == 3


def test_answers_of_an_earlier_version_without_usage_count_as_long_ones(run, server, price_list):
    """Nothing in their lines says how long their prompts were, unless this run has the same requests."""
    server.script.extend([send(200, chat("alarm_set", usage=False))] * 3)
    options = "--prices", price_list, "--limit", 3
    output = run(*options)
    for name in (RESULTS, PREDICTIONS):
        (output / name).unlink()
    path = output / "answers.jsonl"
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert all(line.pop("at_most") for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    each = 16_384 * (100 + 1000) / 1e6
    assert spent_before(run, *options, "--seed", 5) == pytest.approx(3 * each, abs=1e-3)
    assert spent_before(run, *options, "--seed", 5, "--row_length", 32_768) == pytest.approx(6 * each, abs=1e-3)
    assert spent_before(run, *options, "--max_new_tokens", 1) == pytest.approx(3 * each, abs=1e-3)
    assert spent_before(run, *options, "--limit", 6) < each
    assert 3 * EACH < read_results(run(*options)).settings["dollars"] < each and len(server.bodies) == 3


def test_what_is_in_flight_is_reserved():
    request = Request(Example("1", "", {}), [{"role": "user", "content": "x" * 900}], 10, 0, False, False)
    list_price = Prices(1000.0, 1000.0, "", "")
    amount = most(list_price, request)
    assert 0.91 < amount < 1.0
    budget = Budget(2.5 * amount, list_price)
    assert [budget.reserve(request) for _ in range(3)] == [True, True, False]
    budget.spend(request, 0.4 * amount)  # less than it reserved
    assert budget.reserve(request) and not budget.reserve(request)
    assert budget.spent == pytest.approx(0.4 * amount) and budget.reserved == pytest.approx(2 * amount)
    assert not budget.lose(request)  # charged, and there is no space for another attempt
    assert budget.spent == pytest.approx(1.4 * amount) and budget.reserved == pytest.approx(amount)


def test_a_budget_is_never_passed():
    """Threads reserve, spend less, lose attempts; whatever the order, the sum stays below the limit."""
    rng = random.Random(0)
    list_price = Prices(1000.0, 1000.0, "", "")
    requests = [
        Request(Example(str(i), "", {}), [{"role": "user", "content": "x" * rng.randrange(2000)}], 10, 0, False, False)
        for i in range(300)
    ]
    budget = Budget(100.0, list_price)
    sums, refused = [], []

    def work(own: list[Request]) -> None:
        for request in own:
            if not budget.reserve(request):
                refused.append(request)
                continue
            if rng.random() < 0.2 and not budget.lose(request):
                refused.append(request)
                continue
            budget.spend(request, most(list_price, request) * rng.random())
            sums.append(budget.spent + max(budget.reserved, 0))

    threads = [threading.Thread(target=work, args=(requests[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused and max(sums) <= 100.0 + 1e-9 and budget.spent > 80 and budget.reserved == pytest.approx(0)
    assert prices.LIST.name == "prices.toml"
