"""Models behind an API: what the GPT cells of the paper's Table 3 cost, and a row of the table through a local server.

    python -m benchmarks.closed_models --newsgroups 20news-bydate.tar.gz --massive en-US.jsonl \\
        --llama3_tokenizer checkpoints/llama3_8b/tokenizer.model
    python -m benchmarks.closed_models --newsgroups 20news-bydate.tar.gz --massive en-US.jsonl --server --n 200

The first counts the tokens of the requests of each run, and asks nothing. Each of the 36 runs (three models, six tasks,
zero-shot and five-shot) gives one figure of the table or, if joint, two: 48 in all.

With ``--server``, the package ``xllamacpp`` (pip install xllamacpp) serves SmolLM2's GGUF on one thread of this
machine. ``eval.py --model api`` scores it on all six tasks, beside our own decoder with the same weights on the same
examples.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import (
    RESULTS,
    ROOT,
    Inputs,
    checkpoint_folder,
    find_gguf,
    load_average,
    run_program,
    say,
    table,
    write_result,
)
from benchmarks.counting_proxy import CountingProxy
from checkpoints_tools.registry import MODELS, ApiModel
from data.errors import UserError
from data.files.paths import PathText
from data.tasks import TASKS
from eval.api.estimate import Estimate, estimate
from eval.api.prices import Prices, read_prices
from eval.api.setup import ApiSetup, open_api
from eval.api.tokens import FOLDER, SHA256, by_characters
from eval.config import EvalConfig
from eval.report import figures
from eval.results import Results, read_results

CL100K_LINES = 100_256  # at the beginning of Llama 3's tokenizer.model, which are cl100k_base byte for byte
SHOTS = (0, 5)
ROW_LENGTH = 6144  # with --server: three quarters of its context, as tokens are estimated


@dataclass
class Options(Inputs):
    """Cost of the paper's GPT cells, or a row of the table through a local server."""

    newsgroups: PathText | None = None
    """20 Newsgroups: a path of the release, or 'sample'; default: what `python -m data.download 20ng` wrote."""
    massive: PathText | None = None
    """MASSIVE: the same; `--data` is not used."""
    llama3_tokenizer: Path | None = None
    """Llama 3's tokenizer.model, which contains the vocabulary of GPT-4 and GPT-3.5; default: tiktoken's cache, or
    characters / 4."""
    server: bool = False
    """Score SmolLM2 through a local server instead."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks."""
    n: int = 200
    """With --server: examples of each task."""
    concurrency: int = 2
    """With --server: requests in flight."""


def main(options: Options, argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if options.server:
            load, body = load_average(), through_a_server(options, Path(folder))
            output = options.output or RESULTS / "closed_models_server.md"
            write_result("closed_models", "SmolLM2 behind an API", body, argv, output, load)
            return
        if options.llama3_tokenizer is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = folder
            write_cl100k(options.llama3_tokenizer, Path(folder))
        write_result("closed_models", "Tokens and cost of the GPT cells", costs(options), argv, options.output, None)


def data_of(options: Options, task: str) -> str | None:
    return options.newsgroups if TASKS[task].dataset == "20ng" else options.massive


# --- tokens and cost --------------------------------------------------------------------------------------------------


def write_cl100k(tokenizer: Path, folder: Path) -> None:
    """Write ``cl100k_base`` into a cache folder of tiktoken's, from Llama 3's vocabulary.

    Raises:
        UserError: not Llama 3's file.
    """
    if not tokenizer.is_file():
        raise UserError(f"--llama3_tokenizer {tokenizer}: no such file.")
    content = b"".join(tokenizer.read_bytes().splitlines(keepends=True)[:CL100K_LINES])
    if hashlib.sha256(content).hexdigest() != SHA256["cl100k_base"]:
        raise UserError(f"--llama3_tokenizer {tokenizer}: this is not the tokenizer.model of Llama 3.")
    (folder / hashlib.sha1(f"{FOLDER}/cl100k_base.tiktoken".encode()).hexdigest()).write_bytes(content)


def costs(options: Options) -> str:
    """The table of all runs, the sums, and how far the estimate by characters is off where both are known."""
    rows, off, sums, n_figures = [], [], dict[str, list[float]](), 0
    for name, spec in MODELS.items():
        if not isinstance(spec, ApiModel) or not spec.base_url:
            continue
        prices = read_prices(name)
        assert prices is not None
        sums[name] = [0.0, 0.0]
        for task in options.tasks:
            for shots in SHOTS:
                say(f"{name}, {task}, {shots}-shot")
                config = EvalConfig(model=name, task=task, shots=shots, seed=options.seed, data=data_of(options, task))
                setup = open_api(config, spec)
                found = estimate(setup.task, setup.requests, setup.counter)
                dollars = found.dollars(prices)
                n_figures += len(setup.task.fields)
                sums[name] = [a + b for a, b in zip(sums[name], dollars, strict=True)]
                rows.append(row(name, task, shots, setup, found, dollars))
                if name == "gpt-4" and setup.counter.how.startswith("tiktoken"):
                    rough = estimate(setup.task, recounted(setup), by_characters(""))
                    off.append([task, shots, f"{found.n_input:,}", f"{rough.n_input / found.n_input:.3f}"])
    header = ["model", "task", "shots", "figures of Table 3", "requests", "truncated", "prompt tokens", "per request",
              "answer tokens", "counted by", "cost", "at most"]  # fmt: skip
    total_rows = [[name, f"${a:,.2f}", f"${b:,.2f}", f"${a / 2:,.2f}"] for name, (a, b) in sums.items()]
    total_rows.append(["all", *(f"${sum(s[i] for s in sums.values()):,.2f}" for i in (0, 1)),
                       f"${sum(s[0] for s in sums.values()) / 2:,.2f}"])  # fmt: skip
    parts = [
        f"What `eval.py --model MODEL --task TASK --shots N` would send for the whole test split: {len(rows)} runs "
        f"with {n_figures} figures. Answers are counted as long as the gold answers; at most: as long as they may be. "
        f"Prices: {_prices_line()}. The Batch API (`--dump_requests`) costs half.",
        "",
        table(header, rows),
        "",
        "## In all",
        "",
        table(["model", "cost", "at most", "as a batch"], total_rows),
    ]
    if off:
        parts += [
            "",
            "## Characters / 4 against the vocabulary",
            "",
            "Prompt tokens of GPT-4's requests, counted by `cl100k_base`, and the estimate by characters / 4 divided "
            "by that:",
            "",
            table(["task", "shots", "tokens", "estimate / tokens"], off),
        ]
    return "\n".join(parts)


def row(name: str, task: str, shots: int, setup: ApiSetup, found: Estimate, dollars: tuple[float, float]) -> list[str]:
    return [
        name,
        task,
        str(shots),
        str(len(setup.task.fields)),
        f"{found.n_requests:,}",
        f"{found.n_truncated:,}",
        f"{found.n_input:,}",
        f"{found.n_input / found.n_requests:,.0f}",
        f"{found.n_output:,}",
        setup.counter.how.split(":")[0],
        f"${dollars[0]:,.2f}",
        f"${dollars[1]:,.2f}",
    ]


def recounted(setup: ApiSetup) -> list:
    """The same requests with their tokens counted by characters."""
    counter = by_characters("")
    return [
        type(request)(request.example, request.messages, request.max_tokens, counter.of_messages(request.messages),
                      request.truncated, request.shortened)
        for request in setup.requests
    ]  # fmt: skip


def _prices_line() -> str:
    prices: Prices | None = read_prices("gpt-4o")
    assert prices is not None
    return f"{prices.source} ({prices.date}), `eval/api/prices.toml`"


# --- through a server -------------------------------------------------------------------------------------------------


@contextmanager
def serve(gguf: Path, n_slots: int, context: int = 8192) -> Iterator[str]:
    """Serve a GGUF in a process of its own on one thread, with a context for each slot; yields the base URL."""
    words = [sys.executable, "-m", "benchmarks.gguf_server", str(gguf), "--slots", str(n_slots)]
    words += ["--context", str(context)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise UserError("the server did not start. It needs the package xllamacpp: pip install xllamacpp")
            yield url
        finally:
            process.kill()


def through_a_server(options: Options, folder: Path) -> str:
    gguf = find_gguf(options.gguf)
    with checkpoint_folder(options) as checkpoint, serve(gguf, options.concurrency) as url:
        rows = []
        for task in options.tasks:
            say(f"{task}: through the server")
            common = f"--task {task} --limit {options.n} --seed {options.seed} --row_length {ROW_LENGTH}".split()
            if (data := data_of(options, task)) is not None:
                common += ["--data", data]
            theirs = scored(folder / f"{task}_api", *api_words(url, options), *common)
            say(f"{task}: our decoder")
            words = ["--checkpoint", str(checkpoint), *"--model smollm2_135m --device cpu --precision fp32".split()]
            ours = scored(folder / f"{task}_ours", *words, *common)
            rows += compare(task, theirs, ours, same_answers(folder, task))
        say("interrupted and continued")
        repeated = interruption(options, folder, url)
    header = ["task", "figure", "through the server", "our decoder", "same answers", "requests/s", "our examples/s"]
    return "\n".join([
        f"SmolLM2-135M, never fine-tuned, zero-shot, {options.n} test examples of each task. The server (llama.cpp) "
        f"has the quantized weights and computes with them, on one thread, with {options.concurrency} requests in "
        "flight and without reusing prompts; our decoder has the same weights in fp32. Answers count as the same if "
        "one begins with the other, because their limits differ.",
        "",
        table(header, rows),
        "",
        "## Interrupted in the middle",
        "",
        "massive_intent, ended by a signal when half of the examples were answered, and continued by the same command. "
        "After SIGINT and SIGTERM the answers in flight are waited for; after SIGKILL those requests are sent again.",
        "",
        repeated,
    ])  # fmt: skip


def api_words(url: str, options: Options) -> list[str]:
    words = f"--model api --api_model smollm2 --base_url {url} --concurrency {options.concurrency} --timeout 600 --yes"
    return words.split()


def scored(output: Path, *words: str) -> Results:
    done = subprocess.run(
        [sys.executable, "eval.py", *words, "--output", str(output)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    if done.returncode:
        raise UserError(f"eval.py {' '.join(words)} ended with status {done.returncode}.")
    return read_results(output)


def same_answers(folder: Path, task: str) -> str:
    """How many answers are the same text, as far as both go: they have other limits."""
    sides = [(folder / f"{task}_{side}" / "predictions.jsonl").read_text().splitlines() for side in ("api", "ours")]
    pairs = [(json.loads(a)["raw"].strip(), json.loads(b)["raw"].strip()) for a, b in zip(*sides, strict=True)]
    return f"{sum(a.startswith(b) or b.startswith(a) for a, b in pairs)} of {len(pairs)}"


def compare(task: str, theirs: Results, ours: Results, same: str) -> list[list[str]]:
    rows = []
    for i, (name, value) in enumerate(figures(theirs).items()):
        n = theirs.metrics["n_examples"]
        rates = [f"{n / theirs.settings['seconds_of_asking']:.2f}", f"{n / ours.cost['seconds']:.2f}"]
        start, end = ([task], [same, *rates]) if i == 0 else ([""], [""] * 3)
        rows.append([*start, name, f"{value:.1%}", f"{figures(ours)[name]:.1%}", *end])
    return rows


def interruption(options: Options, folder: Path, url: str) -> str:
    """End a run in the middle in three ways, continue it, and count what the server got."""
    rows = []
    for name in ("SIGINT", "SIGTERM", "SIGKILL"):
        n, output = max(8, options.n // 5), folder / f"interrupted_{name}"
        with CountingProxy(url) as proxy:
            words = f"--task massive_intent --limit {n} --max_new_tokens 8 --output {output}".split()
            if options.massive is not None:
                words += ["--data", options.massive]
            command = [sys.executable, "eval.py", *api_words(proxy.url, options), *words]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while proxy.n_answered < n // 2 and process.poll() is None:
                    time.sleep(0.02)
                process.send_signal(getattr(signal, name))
            n_kept = len((output / "answers.jsonl").read_text().splitlines()) - 1
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            rows.append([name, str(n), str(n_kept), str(proxy.n_requests), str(proxy.n_repeated)])
    header = ["signal", "examples", "answers kept", "requests in both runs", "examples asked twice"]
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(run_program("closed_models", Options, main))
