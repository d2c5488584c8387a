"""``predict.py`` on JSON, in which each record has columns of its own."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.errors import UserError
from eval.predict import run as run_module

CLASH = ({"predicted_queue": 2}, "out.jsonl", ("--prefix", "new_"), "already has a column 'predicted_queue'")
NOT_IN_HEADER = ({"b": 2}, "out.csv", ("--output_format", "jsonl"), ": column 'b' is not in the CSV's header")


def document(format: str, other: dict) -> str:
    records = [json.dumps({"text": text, **more}) for text, more in (("a", {}), ("b", other), ("c", {}))]
    return f"[{', '.join(records)}]" if format == "json" else "\n".join(["not json", *records])


@pytest.mark.parametrize("format", ["json", "jsonl"])
@pytest.mark.parametrize(("other", "name", "advice", "message"), [CLASH, NOT_IN_HEADER], ids=["clash", "header"])
def test_what_a_message_recommends_is_accepted(run, monkeypatch, tmp_path, format, other, name, advice, message):
    """It was refused: OUTPUT.partial had rows that were made with other options."""
    source, output = tmp_path / f"in.{format}", tmp_path / name
    source.write_text(document(format, other))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build_model", lambda *_: pytest.fail("the model was loaded"))
        for target in (output, "-"):
            with pytest.raises(
                UserError, match=f"in.{format}, [a-z]* {2 + (format == 'jsonl')}.*{message}.*{advice[0]}"
            ):
                run("--input", source, "--output", target, "--output_format", output.suffix[1:])
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    run("--input", source, "--output", output, *advice)
    found = [json.loads(line) for line in output.read_text().splitlines()][-3:]
    assert [row["text"] for row in found] == ["a", "b", "c"] and found[1] | other == found[1]


def test_from_standard_input_the_rows_that_are_done_are_kept(run, monkeypatch, tmp_path):
    """Its columns cannot be looked at before, and the message says what to do first."""
    output = tmp_path / "out.jsonl"

    def label(*more):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(document("jsonl", CLASH[0]).encode())))
        run("--input", "-", "--format", "jsonl", "--output", output, *more)

    partial = Path(f"{output}.partial")
    with pytest.raises(
        UserError, match=f"standard input, line 3 already .* are in {partial}. Remove that file to start"
    ):
        label()
    assert [json.loads(line).get("text") for line in partial.read_text().splitlines()] == [None, "a"]
    partial.unlink()
    label("--prefix", "new_")
    assert len(output.read_text().splitlines()) == 4
