"""predict.py: rows per second beside eval.py on the same texts, and peak memory by the length of the input.

    python -m benchmarks.predict --data PATH/TO/en-US.jsonl --models runs/joint/export runs/encoder/export
    python -m benchmarks.predict --data PATH/TO/en-US.jsonl --memory_model PATH/TO/EXPORT

Each model labels the same utterances with both programs, alternately. ``--memory_model`` labels a thousand lines and a
million; its peak is the resident memory of the process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import ROOT, load_average, run_program, say, table, write_result
from checkpoints_tools.registry import get_model_spec
from data.errors import UserError


@dataclass
class Options:
    """Rate and memory of predict.py."""

    data: Path
    """MASSIVE in its JSON-lines format; utterances are drawn from all splits."""
    models: list[Path] = field(default_factory=list)
    """Exports of runs on massive_joint, decoders or encoders, whose rates are measured."""
    names: list[str] | None = None
    """Their names in the table; default: their folders."""
    eval_models: list[str] | None = None
    """--model of eval.py for each; default: smollm2_135m for all."""
    n: int = 10_000
    """Utterances to label."""
    batch_tokens: int = 16_384
    """Maximum tokens in a batch, for both programs."""
    memory_model: Path | None = None
    """Export that labels the short and the long file; it should be small. Default: no measurement of memory."""
    lines: tuple[int, int] = (1_000, 1_000_000)
    """Lines of the short and the long file."""
    seed: int = 0
    """Seed for drawing the utterances."""
    result: Path | None = None
    """Result file; default benchmarks/results/predict.md."""


def main(options: Options, argv: list[str]) -> None:
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        body = report(options, Path(folder))
    write_result("predict", "Labelling new text: rate and memory", body, argv, options.result, load)


def report(options: Options, folder: Path) -> str:
    records = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    if len(records) < options.n:
        raise UserError(f"--n {options.n}: {options.data} has only {len(records)} utterances.")
    records = random.Random(options.seed).sample(records, options.n)
    write(folder / "texts.jsonl", [{"id": record["id"], "text": record["utt"]} for record in records])
    write(folder / "labelled.jsonl", [record | {"partition": "test"} for record in records])
    rows = []
    names = options.names or [model.parent.name for model in options.models]
    models = options.eval_models or ["smollm2_135m"] * len(options.models)
    for name, model, path in zip(names, models, options.models, strict=True):
        say(f"{name}: predict.py")
        output = folder / f"{name}.jsonl"
        common = ["--checkpoint", str(path), "--batch_tokens", str(options.batch_tokens)]
        predicted = seconds_of("predict.py", *common, "--input", str(folder / "texts.jsonl"), "--output", str(output))
        say(f"{name}: eval.py")
        scored = folder / f"{name}_eval"
        common += ["--decode", "labels"] if get_model_spec(model).kind == "decoder" else []  # as predict.py by default
        common += ["--model", model, "--data", str(folder / "labelled.jsonl"), "--output", str(scored)]
        evaluated = seconds_of("eval.py", *common, "--cache_dir", str(folder / "cache"))
        same = same_answers(output, scored / "predictions.jsonl")
        rates = [f"{options.n / seconds:.1f}" for seconds in (predicted, evaluated)]
        rows.append([name, *rates, f"{predicted / evaluated:.2f}", f"{same:,} of {options.n:,}"])
    header = ["", "predict.py, rows/s", "eval.py, rows/s", "seconds, predict / eval", "the same intent"]
    parts = [
        f"{options.n:,} utterances, seconds of the whole program with loading, batches of {options.batch_tokens:,} "
        "tokens. eval.py also computes its metrics.",
        "",
        table(header, rows),
    ]
    parts = parts if rows else []
    if options.memory_model is not None:
        parts += ["", memory(options, folder, records)]
    return "\n".join(parts)


def memory(options: Options, folder: Path, records: list[dict]) -> str:
    """Peak resident memory of predict.py on a short and on a long file."""
    assert options.memory_model is not None
    rows, peaks = [], []
    for n in options.lines:
        write(folder / "lines.jsonl", ({"id": i, "text": records[i % len(records)]["utt"]} for i in range(n)))
        (folder / "out.jsonl").unlink(missing_ok=True)
        say(f"memory: {n:,} lines")
        words = ["--checkpoint", str(options.memory_model), "--batch_tokens", str(options.batch_tokens)]
        words += ["--input", str(folder / "lines.jsonl"), "--output", str(folder / "out.jsonl")]
        start = time.perf_counter()
        peaks.append(peak_of("predict.py", *words))
        rows.append([f"{n:,}", f"{peaks[-1] / 1e6:,.0f} MB", f"{n / (time.perf_counter() - start):,.0f}"])
    grown = (peaks[-1] - peaks[0]) / 1e6
    return (
        f"A tiny model, so that the rows are what counts. The long file takes {grown:,.0f} MB more than the short "
        "one:\n\n" + table(["lines", "peak resident memory", "rows/s"], rows)
    )


def write(path: Path, records) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def seconds_of(program: str, *arguments: str) -> float:
    start = time.perf_counter()
    run(program, *arguments)
    return time.perf_counter() - start


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, program, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{program} {' '.join(arguments)} ended with status {done.returncode}.")


def peak_of(program: str, *arguments: str) -> int:
    """Peak resident bytes of a program: a process of its own starts it, whose children are only this one."""
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    words = [sys.executable, "-c", code, sys.executable, program, *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise UserError(f"{program} {' '.join(arguments)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1]) * 1024


def same_answers(predicted: Path, scored: Path) -> int:
    """The number of utterances to which both programs give the same intent."""
    with predicted.open(encoding="utf-8") as ours, scored.open(encoding="utf-8") as theirs:
        pairs = zip(map(json.loads, ours), map(json.loads, theirs), strict=True)
        return sum(row["predicted_intent"] == line["parsed"]["intent"] for row, line in pairs)


if __name__ == "__main__":
    sys.exit(run_program("predict", Options, main))
