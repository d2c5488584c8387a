"""From a CSV file with three classes to the first training step and the first prediction: seconds, and lines to write.

    python -m benchmarks.first_prediction --checkpoint checkpoints/smollm2_135m

Runs the two commands as a user would, on three queues of the sample's tickets, in a folder of its own.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, load_average, run_program, table, write_result
from data.errors import UserError

QUEUES = ("billing", "delivery", "technical")
TOML = """name = "mail"
[files]
train = "train.csv"
[[fields]]
name = "queue"
type = "class"
labels_from = "train"
"""


@dataclass
class Options:
    """Seconds from a CSV to a prediction."""

    checkpoint: Path
    """Converted SmolLM2 folder."""
    epochs: float = 1.0
    """Passes over the 300 rows."""
    result: Path | None = None
    """Result file; default benchmarks/results/first_prediction.md."""


def main(options: Options, argv: list[str]) -> None:
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        body = report(options, Path(folder))
    write_result("first_prediction", "From a CSV file to the first prediction", body, argv, options.result, load)


def report(options: Options, folder: Path) -> str:
    with (ROOT / "data/sample/tickets/train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["queue"] in QUEUES]
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "queue"], *([row["text"], row["queue"]] for row in rows)])
    (folder / "mail.toml").write_text(TOML)
    train = ["train.py", "--model", "smollm2_135m", "--checkpoint", str(options.checkpoint.resolve())]
    train += ["--task", str(folder / "mail.toml"), "--epochs", str(options.epochs), "--output", str(folder / "run")]
    first_step, trained = watch(train, "step ")
    predict = ["predict.py", "--checkpoint", str(folder / "run" / "export"), "--input", "-"]
    answer, _ = watch(predict, '{"text"', "my parcel is late\n")
    return "\n".join(
        [
            f"A CSV with {len(rows)} rows of `text,queue` and three classes. To write: {len(TOML.splitlines())} lines "
            "of TOML, and two commands.",
            "",
            "```toml",
            TOML.rstrip(),
            "```",
            "",
            table(
                ["", "seconds"],
                [
                    ["`train.py` to the end of its first step", f"{first_step:.1f}"],
                    [f"`train.py` to the end of {options.epochs:g} epoch(s) and the export", f"{trained:.1f}"],
                    ["`predict.py` to the label of a line on standard input", f"{answer:.1f}"],
                    ["all together", f"{trained + answer:.1f}"],
                ],
            ),
        ]
    )


def watch(words: list[str], mark: str, typed: str = "") -> tuple[float, float]:
    """Run a program; seconds to the first line that begins with ``mark``, and to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(typed)
    process.stdin.close()
    seen = None
    for line in process.stdout:
        if seen is None and line.startswith(mark):
            seen = time.perf_counter() - start
    if process.wait() or seen is None:
        raise UserError(f"{' '.join(words)} ended with status {process.returncode}, without a line {mark!r}...")
    return seen, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(run_program("first_prediction", Options, main))
