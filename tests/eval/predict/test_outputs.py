"""The output of predict.py: what is written to files and to standard output, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from eval.predict.outputs import OutputClosed, open_output
from tests.eval.predict.rows import COLUMNS, PREDICTED, ROOT, ROWS, TEXTS, WRITER, one, write

# --------------------------------------------------------------------------------------------- what is written


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[5] == '{"text": "é\u2028 日本", "n": 5, "label": "x", "error": null}' and lines[-1] == ""
    assert [json.loads(line)["text"] for line in lines[:-1]] == list(TEXTS)
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "out.CSV"
    write(path)
    assert path.read_bytes().startswith(b'text,n,label,error\na,0,x,\n"two\nlines, ""quoted""",1,x,\n,2,x,\n')
    with open(path, encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file, strict=True))
    assert [row["text"] for row in read] == list(TEXTS)


def test_values_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    values = {"text": ["é", None], "n": {"a": True}}
    write(path, [*one(values, {"label": 1.5, "error": False}), *one({"n": "half \ud800"}), *one({})])
    with open(path, encoding="utf-8", newline="") as file:
        read = list(csv.reader(file))
    assert read[1:] == [
        ['["é", null]', '{"a": true}', "1.5", "false"],
        ["", "half \\ud800", "x", ""],
        ["", "", "x", ""],
    ]


def test_half_a_character_and_other_columns_in_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    values = {"other": "\\ half \ud800 é", "\udcff": 1}
    write(path, one(values))
    assert json.loads(path.read_text(encoding="utf-8")) == {**values, "label": "x", "error": None}


def test_nan_and_infinity_of_the_input_become_json(tmp_path: Path) -> None:
    """Python reads them from JSON lines, and would write them; JSON has neither. As those in Parquet."""
    values = {"text": [float("nan"), 1.5], "n": float("-inf")}
    write(tmp_path / "out.jsonl", one(values))
    found = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)
    assert found == {"text": [None, 1.5], "n": "-inf", "label": "x", "error": None}
    write(tmp_path / "out.csv", one(values))
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == '"[null, 1.5]",-inf,x,'


def test_standard_output() -> None:
    stdout = io.BytesIO()
    with open_output("-", COLUMNS, PREDICTED, stdout=stdout) as output:
        assert output.n_written == 0
        output.write(ROWS)
        output.finish()
    assert [json.loads(line)["text"] for line in stdout.getvalue().splitlines()] == list(TEXTS)
    stdout = io.BytesIO()
    with open_output("-", COLUMNS, PREDICTED, "csv", stdout=stdout) as output:
        output.write(ROWS[:1])
    assert stdout.getvalue() == b"text,n,label,error\na,0,x,\n"


def test_the_format_of_a_file_without_ending(tmp_path: Path) -> None:
    write(tmp_path / "out", format="csv")
    assert (tmp_path / "out").read_bytes().startswith(b"text,n,label")


# --------------------------------------------------------------------------------------------- what is refused


def test_a_column_that_both_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the input already has a column 'label', .* --prefix"):
        with open_output(tmp_path / "out.csv", ("text", "label"), PREDICTED):
            pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="t, line 7 already has a column 'error'"):
        write(tmp_path / "out.jsonl", one({"text": "a", "error": "b"}))


def test_a_column_that_the_header_lacks(tmp_path: Path) -> None:
    lacks = "t, line 7: column 'm' is not in the CSV's header.* --output_format jsonl."
    with pytest.raises(UserError, match=f"{lacks}$"):
        write(tmp_path / "out.csv", one({"text": "a", "m": 3}))
    path = tmp_path / "out.csv"
    with pytest.raises(UserError, match=f"{lacks} The rows that are done are in {path}.partial. Remove that file"):
        write(path, [ROWS[0], *one({"text": "a", "m": 3})], identity=None)
    assert (tmp_path / "out.csv.partial").read_bytes() == b"text,n,label,error\na,0,x,\n", "they are kept"


@pytest.mark.parametrize(("name", "n_read"), [("out.csv", 2), ("out.jsonl", 3)])
def test_columns_of_records_that_come_later(tmp_path: Path, name: str, n_read: int) -> None:
    """They are looked at before there is a file that other options could not continue."""
    read: list[str] = []
    ahead = (("first", ("text",)), ("second", ("m",)), ("third", ("error",)))
    message = "second: column 'm' is not in" if n_read == 2 else "third already has a column 'error'"
    with pytest.raises(UserError, match=message):
        write(tmp_path / name, records=(read.append(record[0]) or record for record in ahead))
    assert len(read) == n_read and not list(tmp_path.iterdir())


def test_other_columns_than_declared(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write(tmp_path / "out.csv", one({"text": "a"}, {"label": "x"}))


def test_a_wrong_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nothing")
    (tmp_path / "there.csv.partial").mkdir()
    for name, message in (
        ("out.tsv", "--output .*out.tsv: the ending '.tsv' is not one of .jsonl, .csv. .* --output_format jsonl, csv"),
        ("out", "the ending '' is not"),
        ("none/out.csv", f"{tmp_path}/none does not exist. Make it: mkdir -p {tmp_path}/none"),
        ("file/out.csv", f"{tmp_path}/file is not a folder"),
        ("dangling.csv", "this is an existing file. Remove it, or give another name"),
        ("there.csv", "cannot write .*there.csv.partial: Is a directory"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path / name)
    with pytest.raises(UserError, match="this is a folder"):
        write(tmp_path, format="csv")


def test_an_existing_output(tmp_path: Path) -> None:
    write(tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(UserError, match="out.csv: this is an existing file"):
        write(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written() -> None:
    # Root may write into any ordinary folder, but no one makes files in this one.
    with pytest.raises(UserError, match="cannot write /sys/out.csv.partial: (Permission denied|Read-only file system)"):
        write(Path("/sys/out.csv"))


def test_the_input_is_not_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "out.csv"
    for name in ("out.csv", "out.csv.partial", "out.csv.partial.json"):
        (tmp_path / name).write_text("text\na\n")
        with pytest.raises(UserError, match=f"--output {source} would overwrite the input {tmp_path / name}"):
            write(source, source=tmp_path / name)
        assert (tmp_path / name).read_text() == "text\na\n"
        (tmp_path / name).unlink()
    (tmp_path / "link.csv").symlink_to(source)
    source.write_text("text\na\n")
    with pytest.raises(UserError, match="would overwrite the input"):
        write(tmp_path / "link.csv", source=source)


def test_a_full_disk() -> None:
    stdout = open("/dev/full", "wb")
    with open_output("-", COLUMNS, PREDICTED, stdout=stdout) as output:
        output.write(ROWS)
        with pytest.raises(UserError, match="cannot write standard output: No space left on device.$"):
            output.flush()
    with pytest.raises(OSError, match="No space left"):
        stdout.close()


# ----------------------------------------------------------------------------------- standard output of a process


def test_a_pipe_that_closes() -> None:
    command = f"{sys.executable} -c '{WRITER}' - 20000 0 2> >(grep -v '^[0-9]' >&2) | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["text"] == "line\n0"


def test_standard_output_of_a_process() -> None:
    program = WRITER.replace("try:", "print('before')\ntry:") + "print('after')"
    command, buffered = [sys.executable, "-c", program, "-", "2", "0"], {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, cwd=ROOT, env=buffered, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert (lines[0], len(lines), lines[3], done.returncode) == ("before", 4, "after", 0)


def test_a_closed_pipe_in_this_process() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stdout = open(writing, "wb")
    with pytest.raises(OutputClosed), open_output("-", COLUMNS, PREDICTED, stdout=stdout) as output:
        output.write(ROWS)
        output.flush()
    with pytest.raises(BrokenPipeError):
        stdout.close()
