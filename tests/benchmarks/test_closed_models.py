"""The benchmark of models behind an API: the table of costs adds up, and what it counts of an interruption is true."""

from __future__ import annotations

import re
import urllib.request

import pytest

from benchmarks import closed_models
from benchmarks.closed_models import Options, main, write_cl100k
from benchmarks.counting_proxy import CountingProxy
from data.errors import UserError
from tests.eval.api.server import FakeServer


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_costs_adds_up(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    output = tmp_path / "page.md"
    tasks = ("massive_intent", "massive_joint")
    main(
        Options(newsgroups="sample", massive="sample", tasks=tasks, output=output), ["--massive", "/secret/en-US.jsonl"]
    )
    text = output.read_text()
    rows = [cells(line) for line in text.splitlines() if line.startswith("| gpt-") and len(cells(line)) > 5]
    assert len(rows) == 12 and "12 runs with 18 figures" in text
    assert [row[1:4] for row in rows[:4]] == [[task, k, n] for task, n in zip(tasks, "12", strict=True) for k in "05"]
    assert all(row[9] == "characters / 4" for row in rows) and "Characters / 4 against" not in text
    lines = [cells(line) for line in text.splitlines() if re.match(r"\| (gpt-|all)\S* \| \$", line)]
    totals = {name: figures for name, *figures in lines}
    for name in ("gpt-4", "gpt-4o", "gpt-3.5-turbo"):
        cost = sum(float(row[10].strip("$")) for row in rows if row[0] == name)
        assert float(totals[name][0].strip("$")) == pytest.approx(cost, abs=0.03)
    assert float(totals["all"][0].strip("$")) == pytest.approx(
        sum(float(totals[name][0].strip("$")) for name in totals if name != "all"), abs=0.02
    )
    four = next(row for row in rows if row[0] == "gpt-4")  # its cost is nearly all of its prompts
    assert float(four[10].strip("$")) == pytest.approx(30 * int(four[6].replace(",", "")) / 1e6, rel=0.05)
    assert "/secret" not in text and "PATH/TO/en-US.jsonl" in text


def test_the_vocabulary_is_llama3s(tmp_path):
    (tmp_path / "other.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(UserError, match="this is not the tokenizer.model of Llama 3"):
        write_cl100k(tmp_path / "other.model", tmp_path)
    with pytest.raises(UserError, match="no such file"):
        write_cl100k(tmp_path / "none.model", tmp_path)


def test_the_proxy_counts():
    server = FakeServer()
    with CountingProxy(server.url) as proxy:
        for body in (b'{"messages": [{"content": "a"}]}', b'{"messages": [{"content": "b"}]}') * 2:
            request = urllib.request.Request(
                f"{proxy.url}/chat/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as response:
                assert b"alarm_set" in response.read()
        assert (proxy.n_requests, proxy.n_answered, proxy.n_repeated) == (4, 4, 2) and len(server.bodies) == 4
    server.close()


@pytest.mark.slow
def test_a_row_through_a_server(smollm2_gguf, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs the PyPI package xllamacpp (pip install xllamacpp)")
    output = tmp_path / "page.md"
    options = Options(
        gguf=smollm2_gguf,
        newsgroups="sample",
        massive="sample",
        server=True,
        tasks=("massive_intent",),
        n=2,
        output=output,
    )
    main(options, ["--server"])
    text = output.read_text()
    row = next(cells(line) for line in text.splitlines() if line.startswith("| massive_intent"))
    assert row[1] == "intent accuracy" and row[4].endswith("of 2") and float(row[5]) > 0 and float(row[6]) > 0
    for line in text.splitlines():
        if line.startswith("| SIG"):
            name, n, kept, requests, repeated = cells(line)
            assert n == "8" and 3 <= int(kept) < 8 and int(requests) == 8 + int(repeated)
            assert repeated == "0" if name != "SIGKILL" else int(repeated) <= 2
    assert "python -m benchmarks.closed_models --server" in text and closed_models.ROW_LENGTH < 8192
