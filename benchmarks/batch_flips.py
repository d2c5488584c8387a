"""Measure how often an answer depends on its batch: decode the same test examples in batches of several sizes.

    python -m benchmarks.batch_flips --checkpoint RUN/export --data PATH [--limit 300]

`eval.py` decodes them one at a time, then in batches with several token limits, in each precision. Mathematically an
answer does not depend on its batch. But sums in another order round differently, which can flip an argmax of two nearly
equal logits. Only the first flip of an answer counts, because later tokens have another context.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import run_program, table, write_result
from benchmarks.finetune import call
from data.files.paths import PathText
from eval.metrics import main_figures
from eval.results import Prediction, Results, read_predictions, read_results, stored_task


@dataclass
class Options:
    """Decode the same examples in batches of several sizes and count the answers that differ."""

    checkpoint: Path
    """A fine-tuned model: an export, or a run's checkpoints/step_N folder."""
    data: PathText = "sample"
    """The data set: a path, or 'sample'."""
    model: str = "smollm2_135m"
    """The checkpoint's preset."""
    task: str = ""
    """The task; default: the built-in one that the checkpoint was fine-tuned on."""
    limit: int = 300
    """Test examples, drawn by seed."""
    batch_tokens: tuple[int, ...] = (256, 1024, 4096)
    """Limits on a batch's tokens; each is compared with one request at a time."""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    """Number formats of weights and compute."""
    output: Path | None = None
    """Result file; default benchmarks/results/batch_flips.md."""


@dataclass(frozen=True)
class Comparison:
    """The differences between answers decoded alone and in batches.

    Attributes:
        n_text: answers whose text differs.
        n_parsed: answers that are parsed as another label or list.
        n_tokens: tokens emitted when decoding one request at a time, stop tokens included.
    """

    n_text: int
    n_parsed: int
    n_tokens: int


def compare(alone: list[Prediction], batched: list[Prediction]) -> Comparison:
    assert [p.id for p in alone] == [p.id for p in batched], "the two runs scored other examples"
    pairs = list(zip(alone, batched, strict=True))
    return Comparison(
        n_text=sum((a.raw, a.stopped) != (b.raw, b.stopped) for a, b in pairs),
        n_parsed=sum(a.parsed != b.parsed for a, b in pairs),
        n_tokens=sum(a.n_new_tokens for a in alone),
    )


def run(options: Options, argv: list[str]) -> None:
    rows, name, n_examples = [], "", 0
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precisions:
            results, alone = score(options, precision, 1, Path(folder))
            name, n_examples = results.task, len(alone)
            rows.append([precision, "one at a time", "", "", "", *figures(results)])
            for n in options.batch_tokens:
                results, batched = score(options, precision, n, Path(folder))
                found = compare(alone, batched)
                rows.append(
                    [precision, f"{n:,} tokens", found.n_text, f"{found.n_text / found.n_tokens:.3%}", found.n_parsed]
                    + figures(results)
                )
    header = ["precision", "batch", "answers that differ", "of emitted tokens", "read differently"]
    header += list(main_figures(stored_task(results), results.metrics))
    body = (
        f"{n_examples:,} test examples of {name}, each answer compared with that of the same model decoding it alone, "
        f"in the same precision. *Of emitted tokens*: one flipped argmax for each answer that differs.\n\n"
        f"{table(header, rows)}"
    )
    write_result("batch_flips", "What a batch does to its answers", body, argv, options.output, None)


def figures(results: Results) -> list[str]:
    return [f"{figure:.1%}" for figure in main_figures(stored_task(results), results.metrics).values()]


def score(options: Options, precision: str, batch_tokens: int, folder: Path) -> tuple[Results, list[Prediction]]:
    output = folder / f"{precision}-{batch_tokens}"
    command = [sys.executable, "eval.py", "--model", options.model, "--checkpoint", str(options.checkpoint.resolve())]
    command += ["--data", options.data, "--limit", str(options.limit), "--precision", precision]
    command += ["--batch_tokens", str(batch_tokens), "--output", str(output)]
    command += ["--task", options.task] if options.task else []
    call(command)
    return read_results(output), read_predictions(output)


if __name__ == "__main__":
    sys.exit(run_program("batch_flips", Options, run))
