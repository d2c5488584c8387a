"""For the tests of ``predict.py``: rows with predictions, a program that writes such rows, texts, and options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.source import load_examples
from data.task_file import task_hash
from data.tasks import get_task
from eval.predict.classifier import Classifier
from eval.predict.inputs import Row
from eval.predict.outputs import open_output
from eval.stored_calibration import Calibration, FieldCalibration, hash_prompt
from tests.launching import ROOT, TICKETS

OLD = ROOT / "tests" / "old_files"
PROGRAM = ROOT / "predict.py"
IN_FP32 = ("--device", "cpu", "--precision", "fp32")
IDENTITY = {"input": "abc", "checkpoint": "def"}
COLUMNS, PREDICTED = ("text", "n"), ("label", "error")
TEXTS = ("a", 'two\nlines, "quoted"', "", "crlf\r\n", "\rlone cr", "é\u2028 日本", '"', "last\n\n")
ROWS = [
    (Row(f"t, line {i}", {"text": text, "n": i}, text), {"label": "x", "error": None}) for i, text in enumerate(TEXTS)
]

Rows = Sequence[tuple[Row, Mapping[str, Any]]]


class Killed(Exception):
    """Stands for the end of the process."""


def write(path: Path, rows: Rows = ROWS, finish: bool = True, **options: Any) -> int:
    """Write those rows that an interrupted run has not written; returns how many it had."""
    with open_output(path, COLUMNS, PREDICTED, **{"identity": IDENTITY, **options}) as output:
        skipped = output.n_written
        output.write(rows[skipped:])
        assert output.n_written == len(rows)
        if finish:
            output.finish()
    return skipped


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def one(columns: dict[str, Any], prediction: dict[str, Any] | None = None) -> Rows:
    return [(Row("t, line 7", columns, None), prediction or {"label": "x", "error": None})]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_of(name: str) -> list[str]:
    by_id = {e.id: e.text for e in load_examples("massive", "train", "sample")}
    by_id |= {e.id: e.text for e in load_examples(get_task(TICKETS), "test")}
    return [by_id[line["id"]] for line in lines(OLD / "scored" / name / "predictions.jsonl")]


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def store_temperature(folder: Path, temperature: float) -> None:
    """Store a calibration with an export of the tickets, as ``eval.py --calibrate`` does."""
    setup = Classifier.load(folder, device="cpu", precision="fp32").setup
    assert setup.prompt is not None
    fields = {name: FieldCalibration(temperature, 0.2, 0.1) for name in ("queue", "urgency")}
    made = {"task": task_hash(setup.task), "prompt": hash_prompt(setup.prompt.build(setup.task))}
    Calibration(1, fields, 9, "dev", "", **made).save(folder)


WRITER = """
import sys, time
from eval.predict.inputs import Row
from eval.predict.outputs import OutputClosed, open_output
path, n = sys.argv[1], int(sys.argv[2])
rows = [(Row("", {"text": f"line\\n{i}", "n": i}, ""), {"label": "x", "error": None}) for i in range(n)]
try:
    with open_output(path, ("text", "n"), ("label", "error"), identity={"input": "abc", "checkpoint": "def"}) as output:
        for i in range(0, n, 100):
            output.write(rows[i : i + 100])
            output.flush()
            print(output.n_written, file=sys.stderr, flush=True)
            time.sleep(float(sys.argv[3]))
        output.finish()
except OutputClosed:
    pass
"""
