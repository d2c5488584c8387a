"""``predict.py``, interrupted and continued: as never interrupted, and not with another input, model or option."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from datasets import Dataset

from checkpoints_tools.checksums import write_checksums
from checkpoints_tools.formats import CALIBRATION_FILE
from checkpoints_tools.inspect import main as inspect_main
from data.errors import UserError
from eval.predict import run as run_module
from eval.predict.config import PredictConfig
from eval.weights import fingerprint
from tests.eval.predict.rows import IN_FP32, OLD, PROGRAM, Killed, store_temperature, texts_of, write_texts
from tests.launching import TICKETS, command, environment


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_continued_is_as_never_interrupted(run, killed_after, tmp_path, caplog, ending):
    source = write_texts(tmp_path / "in.jsonl", [*texts_of("tickets"), "", 'a "quoted"\nline'])
    run("--input", source, "--output", tmp_path / f"all.{ending}")
    output = tmp_path / f"out.{ending}"
    killed_after(2)
    with pytest.raises(Killed):
        run("--input", source, "--output", output)
    assert not output.exists() and (tmp_path / f"out.{ending}.partial").exists()
    killed_after(None)
    with caplog.at_level("INFO"):
        summary = run("--input", source, "--output", output)
    assert "continuing after the 4 rows that are done" in caplog.text and summary.n_rows == 10 - 4
    assert output.read_bytes() == (tmp_path / f"all.{ending}").read_bytes()
    assert [path.name for path in tmp_path.glob("out.*")] == [output.name]


def test_a_folder_that_datasets_saved_is_continued(run, killed_after, tmp_path):
    """Also with the output in it; not after one of its files has changed."""
    folder, texts = tmp_path / "saved", texts_of("tickets")

    def save(texts: list[str]) -> None:
        Dataset.from_dict({"text": texts}).save_to_disk(folder, num_shards=2)

    save(texts)
    assert len(list(folder.glob("*.arrow"))) == 2
    run("--input", folder, "--output", tmp_path / "all.jsonl")
    words = ("--input", folder, "--output", folder / "out.jsonl")
    killed_after(2)
    with pytest.raises(Killed):
        run(*words)
    killed_after(None)
    options = PredictConfig(input=str(folder), output=str(folder / "out.jsonl"))
    assert run_module._kept(options).endswith("out.jsonl.partial; the same command continues.")
    save([*texts[:-1], "another"])
    with pytest.raises(UserError, match=r"out\.jsonl\.partial was made .* with another input"):
        run(*words)
    save(texts)
    assert run(*words).n_rows == len(texts) - 4 == 4
    assert (folder / "out.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


def test_records_that_could_not_be_read_before_an_interruption_count(run, killed_after, tmp_path, caplog):
    """The status of the whole file does not depend on where it was interrupted."""
    texts = [json.dumps({"text": text}) for text in texts_of("tickets")[:4]]
    lines = ["not json", texts[0], "{}", *texts[1:]]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    words = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    killed_after(2)
    with pytest.raises(Killed):
        run(*words)
    killed_after(None)
    with caplog.at_level("INFO"):
        summary = run(*words)
    assert (summary.n_rows, summary.n_unreadable, summary.n_problems) == (2, 2, 0)
    assert "in.jsonl, line 1: not JSON" in caplog.text and "in.jsonl, line 3: no column 'text'" in caplog.text
    third = (tmp_path / "out.jsonl").read_text().splitlines()[2]
    assert json.loads(third)["predicted_error"] == "no column 'text'."


def test_what_is_left_of_another_run_is_refused(run, killed_after, tickets, tmp_path):
    source, output = write_texts(tmp_path / "in.jsonl", texts_of("tickets")), tmp_path / "out.jsonl"
    killed_after(1)
    with pytest.raises(Killed):
        run("--input", source, "--output", output)
    killed_after(None)
    other = shutil.copytree(tickets, tmp_path / "other")
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(UserError, match=r"out\.jsonl\.partial was made .* with another checkpoint"):
        run("--input", source, "--output", output, checkpoint=other)
    with pytest.raises(UserError, match="another max_new_tokens: none, and not '3'"):
        run("--input", source, "--output", output, "--max_new_tokens", 3)
    write_texts(source, texts_of("tickets")[:-1])
    with pytest.raises(UserError, match=r"out\.jsonl\.partial was made .* with another input"):
        run("--input", source, "--output", output)


def test_a_task_file_that_has_changed_is_another_task(run, killed_after, tmp_path):
    """Its path is not what it is."""
    task = Path(shutil.copytree(TICKETS.parent, tmp_path / "task")) / "tickets.toml"
    source, output = write_texts(tmp_path / "in.jsonl", texts_of("tickets")), tmp_path / "out.jsonl"
    given = {"checkpoint": OLD / "meta"}
    killed_after(1)
    with pytest.raises(Killed):
        run("--input", source, "--output", output, "--task", task, "--max_new_tokens", 2, **given)
    killed_after(None)
    moved = Path(shutil.copytree(task.parent, tmp_path / "moved")) / "tickets.toml"
    task.write_text(task.read_text().replace('"billing"', '"bills"'))
    with pytest.raises(UserError, match=r"out\.jsonl\.partial was made .* with another task"):
        run("--input", source, "--output", output, "--task", task, "--max_new_tokens", 2, **given)
    assert run("--input", source, "--output", output, "--task", moved, "--max_new_tokens", 2, **given).n_rows == 6


def test_a_checkpoint_is_known_by_its_files(tickets, tmp_path):
    copy = shutil.copytree(tickets, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(tickets)
    (copy / "README.md").write_text("another card")
    assert fingerprint(copy) == fingerprint(tickets)
    write_checksums(copy)
    before = fingerprint(copy)
    store_temperature(copy, 2.0)
    assert fingerprint(copy) == before
    (copy / "task.json").write_text((copy / "task.json").read_text().replace("billing", "Billing"))
    assert fingerprint(copy) not in (before, fingerprint(tickets))


@pytest.mark.parametrize("to_file", [True, False])
def test_a_signal_keeps_the_finished_rows(tickets, tmp_path, to_file):
    write_texts(tmp_path / "in.jsonl", texts_of("tickets") * 4000)
    target = tmp_path / "out.jsonl" if to_file else "-"
    words = command(PROGRAM, "--checkpoint", tickets, *IN_FP32, "--input", tmp_path / "in.jsonl", "--output", target)
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("loaded"):
            break
    partial = tmp_path / "out.jsonl.partial"
    while to_file and not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "SIGINT: stopped." in errors and "Traceback" not in errors
    assert ("the same command continues" in errors) == to_file
    assert partial.exists() == to_file


def test_what_a_signal_leaves_to_be_continued(tmp_path):
    """The message names no file that is not there, and tells nobody to continue what cannot be."""
    options = PredictConfig(input="-", output=str(tmp_path / "out.csv"))
    assert run_module._kept(options) == ""
    (tmp_path / "out.csv.partial").touch()
    assert run_module._kept(options) == "", "no row is done"
    (tmp_path / "out.csv.partial").write_text("text,predicted_label\na,b\n")
    kept = run_module._kept(options)
    assert kept.endswith("out.csv.partial; they cannot be continued, the input is read only once.")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_is_not_continued_with_another_threshold(run, tmp_path, killed_after, ending):
    """Also where it has a column more or less."""
    write_texts(tmp_path / "in.jsonl", texts_of("tickets")[:6])
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / f"out.{ending}")
    killed_after(1)
    with pytest.raises(Killed):
        run(*files, "--abstain_below", "0.5")
    killed_after(None)
    for other, shown in ((("--abstain_below", "0.6"), "'0.6'"), ((), "none")):
        with pytest.raises(UserError, match=f"another abstain_below: '0.5', and not {shown}. Start it with the same"):
            run(*files, *other)
    assert run(*files, "--abstain_below", "0.5").n_rows == 4


def test_a_file_is_continued_only_at_the_calibration_of_its_rows(run, tickets, tmp_path, killed_after):
    """What the message and the page advise works: to start over, another output, and the calibration of then."""
    folder = shutil.copytree(tickets, tmp_path / "export")
    write_checksums(folder)
    source = write_texts(tmp_path / "in.jsonl", texts_of("tickets"))

    def label(name: str, *more: str, keeping: int | None = None) -> bytes:
        killed_after(keeping)
        run("--input", source, "--output", tmp_path / name, *more, checkpoint=folder)
        return (tmp_path / name).read_bytes()

    def begin(name: str, *more: str) -> None:
        with pytest.raises(Killed):
            label(name, *more, keeping=2)

    plain = label("plain.jsonl")
    begin("over.jsonl"), begin("back.jsonl"), begin("free.jsonl", "--decode", "free")
    store_temperature(folder, 2.0)
    begin("warm.jsonl")
    kept = (folder / CALIBRATION_FILE).read_bytes()
    other = "another calibration: none, and not 'queue 2.0, urgency 2.0'. One file.* Remove that .*, or give another"
    with pytest.raises(UserError, match=other):
        label("over.jsonl")
    (tmp_path / "over.jsonl.partial").unlink()
    warm = label("over.jsonl")
    assert label("other.jsonl") == warm != plain
    label("free.jsonl", "--decode", "free")  # has no probabilities

    (folder / CALIBRATION_FILE).unlink()
    assert inspect_main([str(folder), "--checksums", "write"]) == 0
    assert label("back.jsonl") == plain
    store_temperature(folder, 3.0)
    with pytest.raises(UserError, match="another calibration: 'queue 2.0, .* 2.0', and not 'queue 3.0, .* 3.0'"):
        label("warm.jsonl")
    (folder / CALIBRATION_FILE).write_bytes(kept)
    assert inspect_main([str(folder), "--checksums", "write"]) == 0
    assert label("warm.jsonl") == warm


def test_a_file_is_not_continued_with_another_way_of_decoding(run, tmp_path, killed_after):
    write_texts(tmp_path / "in.jsonl", texts_of("tickets")[:6])
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    killed_after(1)
    with pytest.raises(Killed):
        run(*files)
    killed_after(None)
    with pytest.raises(UserError, match="decode"):
        run(*files, "--decode", "free")
    assert run(*files, "--decode", "labels").n_rows == 4
