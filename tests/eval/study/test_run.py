"""A study goes on where it ended, skips what failed, and trusts no result that it did not see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import DISK_FULL, UserError
from eval.results import RESULTS
from eval.study import __main__ as program
from eval.study import listing, plan, records, run, tables
from eval.study.cells import Cell
from eval.study.file import Study, read_study
from eval.study.page import REPORT
from tests.eval.study.going import FAIL, SLOW, commands, go, states, wait_for
from tests.launching import ROOT, command, environment, with_signals
from train.errors import Interrupted
from train.run_lock import process_start


def test_finished_cells_are_not_repeated(study: Study, programs: Callable, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert states(study, output) == ["open"] * 3
    assert go(study, output) == 3
    assert states(study, output) == ["done"] * 3
    before = [path.stat().st_mtime_ns for path in sorted(output.rglob("*.json"))]
    assert go(study, output) == 0
    assert [path.stat().st_mtime_ns for path in sorted(output.rglob("*.json"))] == before
    record = records.read_record(output, study.cells[0].cell)
    assert record is not None and record.seconds.keys() == {"train", "eval"} and record.code == records.code_hash()


def test_a_failed_cell_is_recorded_and_skipped_until_retry(study: Study, programs: Callable, tmp_path: Path) -> None:
    output = tmp_path / "out"
    programs(eval={1: FAIL})
    assert go(study, output) == 3
    assert states(study, output) == ["done", "failed", "done"]
    assert records.outcome(output, study.cells[1].cell).why == "eval: status 2: error: no such data: x"
    programs()
    assert go(study, output) == 0
    assert go(study, output, retry=True) == 1
    assert states(study, output) == ["done"] * 3
    assert commands(study, output, 1) == ["train", "fail", "eval", "page"]


def test_a_killed_command_is_a_failure(study: Study, programs: Callable, tmp_path: Path) -> None:
    programs(train={0: "import os; os.kill(os.getpid(), 9)"})
    go(study, tmp_path / "out")
    assert states(study, tmp_path / "out") == ["failed", "done", "done"]
    assert "SIGKILL" in records.outcome(tmp_path / "out", study.cells[0].cell).why


@pytest.mark.parametrize("name", [RESULTS, "predictions.jsonl"])
def test_a_result_that_was_edited_is_no_result(study: Study, programs: Callable, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    go(study, output)
    file = plan.score_folder(output, study.cells[0].cell) / name
    text = file.read_text()
    file.write_text(text.replace("0.66", "0.99") if name == RESULTS else text.replace("alarm_set", "alarm_unset"))
    assert file.read_text() != text
    assert states(study, output) == ["failed", "done", "done"]
    assert go(study, output) == 0
    assert go(study, output, retry=True) == 1
    assert states(study, output) == ["done"] * 3 and file.read_text() == text
    assert file.with_name(f"{name}.changed").read_text() != text, "nothing of the user's is lost"


@pytest.mark.parametrize("name", [RESULTS, "predictions.jsonl"])
def test_a_result_that_was_deleted_is_no_result(study: Study, programs: Callable, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    go(study, output)
    file = plan.score_folder(output, study.cells[0].cell) / name
    file.unlink()
    assert states(study, output) == ["failed", "done", "done"] and go(study, output) == 0
    assert f"{name} is missing" in records.outcome(output, study.cells[0].cell).why
    assert go(study, output, retry=True) == 1 and states(study, output) == ["done"] * 3 and file.is_file()


def test_a_damaged_record_is_one_failed_cell(study: Study, programs: Callable, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go(study, output)
    (plan.cell_folder(output, study.cells[1].cell) / records.RECORD).write_text('{"state": "do')
    run.check_unchanged(study, output)
    listing.print_cells(study, output)
    assert states(study, output) == ["done", "failed", "done"]
    assert "--retry runs the cell again" in records.outcome(output, study.cells[1].cell).why
    (plan.cell_folder(output, study.cells[1].cell) / records.RECORD).write_text('{"state": "x"}')  # no full stop
    why = records.outcome(output, study.cells[1].cell).why
    assert "'x'. --retry runs" in why and ".." not in why.replace(str(output), "")
    assert go(study, output, retry=True) == 1 and states(study, output) == ["done"] * 3


def test_a_command_that_died_with_its_machine_is_not_running(study: Study, tmp_path: Path) -> None:
    record = records.Record("running", {}, pid=os.getpid(), started=process_start(os.getpid()) - 1)
    records.write_record(tmp_path, study.cells[0].cell, record)
    assert states(study, tmp_path)[0] == "open"


def test_what_a_killed_study_left_undone_is_made_up_for(study: Study, programs: Callable, tmp_path: Path) -> None:
    """A report and the removal of weights come after the record that a cell is done."""
    study.path.write_text(f'keep = "results"\n{study.path.read_text()}')
    study, output = read_study(study.path), tmp_path / "out"
    programs(page=FAIL)
    go(study, output)
    folder = plan.cell_folder(output, study.cells[0].cell)
    left = folder / "train/checkpoints/step_4/.metadata"
    left.parent.mkdir(parents=True)
    left.touch()
    report = plan.score_folder(output, study.cells[0].cell) / REPORT
    programs(page=f"open({str(report)!r}, 'w').write('new')")
    assert go(study, output) == 0
    assert report.read_text() == "new" and not left.exists()
    before = commands(study, output, 0)
    go(study, output)
    assert commands(study, output, 0) == before, "it is there"
    (plan.score_folder(output, study.cells[0].cell) / RESULTS).unlink()
    report.write_text("of a result before")
    go(study, output, retry=True)
    assert report.read_text() == "new"


PROGRAM = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from train import stopping
stopping.watch()
from eval.study import run
from eval.study.plan import Step
from eval.study.file import read_study
from train.errors import Interrupted
run.steps_of = lambda study, own, output: [Step("train", (sys.executable, "-c", {slow!r}), None)]
try:
    run.run_study(read_study(Path({file!r})), Path({output!r}), False, lambda: None, "again")
except Interrupted as stop:
    print(stop); sys.exit(128 + stop.signum)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_study_that_is_stopped_stops_its_command(
    study: Study, programs: Callable, tmp_path: Path, signum: signal.Signals
) -> None:
    """The command saves and ends, also if the study is killed; the next start waits for that, and goes on."""
    output, saved, ready = tmp_path / "out", tmp_path / "saved", tmp_path / "ready"
    slow = SLOW.format(saved=str(saved), ready=str(ready))
    program = tmp_path / "study.py"
    program.write_text(PROGRAM.format(root=str(ROOT), slow=slow, file=str(study.path), output=str(output)))
    process = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, text=True, preexec_fn=with_signals, env=environment()
    )
    wait_for(ready.exists)
    process.send_signal(signum)
    process.wait(timeout=60)
    if signum == signal.SIGKILL:
        assert states(study, output) == ["running", "open", "open"]
    else:
        assert process.stdout is not None and "To continue:\n  again" in process.stdout.read()
        assert process.returncode == 128 + signum and saved.exists(), "it waited for its command"
        assert states(study, output) == ["open"] * 3
    assert go(study, output) == 3
    assert saved.read_text() == str(int(signal.SIGTERM if signum == signal.SIGKILL else signum))


def test_the_next_start_waits_for_a_command_that_was_left_behind(
    study: Study, programs: Callable, tmp_path: Path
) -> None:
    output, cell = tmp_path / "out", study.cells[0].cell
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = records.Record("running", plan.identity(study, study.cells[0], output))
    record.pid, record.started = sleeper.pid, process_start(sleeper.pid)
    records.write_record(output, cell, record)
    begin = time.monotonic()
    threading.Timer(1.0, lambda: (sleeper.kill(), sleeper.wait())).start()
    assert go(study, output) == 3 and time.monotonic() - begin >= 0.9


LAUNCHER = """
import subprocess, sys
subprocess.run([sys.executable, "-c", {rank!r}], start_new_session=True)
"""
RANK = """
import os, time
from pathlib import Path
launcher = os.getppid()
Path({ready!r}).touch()
while os.getppid() == launcher: time.sleep(0.05)
time.sleep(2)
Path({saved!r}).touch()
"""
NEXT = "import sys; from pathlib import Path; assert Path({saved!r}).exists(); Path(sys.argv[1]).touch()"


def test_the_next_start_waits_for_a_rank_whose_launcher_has_died(
    study: Study, programs: Callable, tmp_path: Path
) -> None:
    """As torchrun does when its study is killed, or ended by a second signal."""
    output, saved, ready = tmp_path / "out", tmp_path / "saved", tmp_path / "ready"
    launcher = LAUNCHER.format(rank=RANK.format(saved=str(saved), ready=str(ready)))
    program = tmp_path / "study.py"
    program.write_text(PROGRAM.format(root=str(ROOT), slow=launcher, file=str(study.path), output=str(output)))
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.DEVNULL, env=environment())
    wait_for(ready.exists)
    record = records.read_record(output, study.cells[0].cell)
    process.kill()
    process.wait()
    assert record is not None
    wait_for(lambda: process_start(record.pid) != record.started)
    assert states(study, output) == ["running", "open", "open"] and not saved.exists()
    programs(train={0: NEXT.format(saved=str(saved))})
    assert go(study, output) == 3 and states(study, output) == ["done"] * 3


def test_a_study_that_waits_for_a_command_that_was_left_behind_can_be_stopped(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = records.Record("running", {}, pid=os.getpid(), started=process_start(os.getpid()))
    records.write_record(tmp_path / "out", study.cells[0].cell, record)
    monkeypatch.setattr(run, "WAIT_SECONDS", 20.0)

    def told_soon(runner: run._Runner) -> None:
        threading.Timer(0.5, runner.commands.stop, [signal.SIGINT]).start()

    monkeypatch.setattr(run._Runner, "finish_earlier", told_soon)
    with pytest.raises(Interrupted, match=f"stopped in {study.cells[0].cell.name}") as stopped:
        go(study, tmp_path / "out")
    assert stopped.value.signum == signal.SIGINT
    assert records.read_record(tmp_path / "out", study.cells[0].cell) == record, "the next start waits for it, too"


def test_a_command_without_a_result_is_a_failure(study: Study, programs: Callable, tmp_path: Path) -> None:
    programs(eval={0: "print('nothing')"})
    assert go(study, tmp_path / "out") == 3
    assert states(study, tmp_path / "out") == ["failed", "done", "done"]
    assert "has no results.json" in records.outcome(tmp_path / "out", study.cells[0].cell).why


def test_a_full_disk_ends_the_study_and_its_command(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be noted must not be run on: nobody would know of it."""
    programs(train={0: "import time; print('begins', flush=True); time.sleep(60)"})
    folder = plan.cell_folder(tmp_path / "out", study.cells[0].cell)
    (folder / records.LOG).mkdir(parents=True)  # it cannot be written, whoever we are
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"log\.txt"):
        go(study, tmp_path / "out")
    record = records.read_record(tmp_path / "out", study.cells[0].cell)
    assert record is not None and process_start(record.pid) != record.started and time.monotonic() - begin < 30


FULL = """
import errno
from train.parallel.distributed import run_guarded
from eval.kept_lines import writable
def main():
    with writable("results.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
run_guarded(main)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_command_that_meets_a_full_disk_ends_the_study(
    study: Study, programs: Callable, tmp_path: Path, ranks: int
) -> None:
    """The next cell would meet it, too. Nothing has failed: the same command goes on."""
    (tmp_path / "full.py").write_text(FULL)
    words = command(tmp_path / "full.py", ranks=ranks)
    programs(train={0: f"import subprocess, sys; sys.exit(subprocess.run({words!r}).returncode)"})
    with pytest.raises(UserError, match=f"^{study.cells[0].cell.name}: .*results.json: No space left") as error:
        go(study, tmp_path / "out")
    assert error.value.status == DISK_FULL and states(study, tmp_path / "out") == ["open"] * 3
    assert not plan.cell_folder(tmp_path / "out", study.cells[1].cell).joinpath(records.RECORD).exists()
    programs()
    assert go(study, tmp_path / "out") == 3


def test_a_command_that_does_not_end_is_named(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = records.Record("running", {}, pid=os.getpid(), started=process_start(os.getpid()))
    records.write_record(tmp_path / "out", study.cells[0].cell, record)
    monkeypatch.setattr(run, "WAIT_SECONDS", 0.1)
    with pytest.raises(UserError, match=f"process {os.getpid()}, .* is still running"):
        go(study, tmp_path / "out")


def test_a_command_that_somebody_else_stops_ends_the_study(study: Study, programs: Callable, tmp_path: Path) -> None:
    programs(train={0: "import sys; sys.exit(130)"})
    with pytest.raises(Interrupted) as stopped:
        go(study, tmp_path / "out")
    assert stopped.value.signum == signal.SIGINT
    assert states(study, tmp_path / "out") == ["open"] * 3


def test_a_changed_study_file_is_refused(study: Study, programs: Callable, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go(study, output)
    run.check_unchanged(study, output)
    text = study.path.read_text()
    study.path.write_text("[train]\nlr = 2e-5\nkeep = 3\n" + text)
    with pytest.raises(UserError) as error:
        run.check_unchanged(read_study(study.path), output)
    assert "train lr (none there, 2e-05 now)" in str(error.value) and "keep" not in str(error.value)
    study.path.write_text(text.replace("[0, 1, 2]", "[0, 1, 2, 3]"))  # more cells are no change
    more = read_study(study.path)
    run.check_unchanged(more, output)
    assert go(more, output) == 1
    assert records.forgotten(output, [own.cell for own in study.cells]) == [more.cells[3].cell.name]


def test_a_cell_that_failed_may_get_other_options_for_what_it_has_nothing_of(
    study: Study, programs: Callable, tmp_path: Path
) -> None:
    output, text = tmp_path / "out", study.path.read_text()
    programs(train=FAIL)
    go(study, output)
    study.path.write_text("[train]\nlr = 2e-5\n[eval]\nlimit = 3\n" + text)
    run.check_unchanged(corrected := read_study(study.path), output)
    folder = plan.cell_folder(output, study.cells[0].cell)
    for name, option in (("train/checkpoints/step_4", "train lr"), ("score/.partial", "eval limit")):
        (folder / name).mkdir(parents=True)
        with pytest.raises(UserError) as error:
            run.check_unchanged(corrected, output)
        assert f"cell {study.cells[0].cell.name} was started with other options: {option} (none" in str(error.value)
        assert str(error.value).count(" there, ") == 1, "of what is there only"
        (folder / name).rmdir()
    programs()
    assert go(corrected, output, retry=True) == 3
    run.check_unchanged(corrected, output)
    with pytest.raises(UserError, match="eval limit .* train lr"):
        run.check_unchanged(study, output)


def test_another_file_to_convert_is_refused_once_the_checkpoint_is_there(study: Study, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    record = records.Record("failed", {"convert": "a.gguf", "eval checkpoint": str(tmp_path / "made")})
    records.write_record(tmp_path, cell := study.cells[0].cell, record)
    now = record.options | {"convert": "b.gguf"}
    assert records.changed_options(tmp_path, cell, now) == []
    (tmp_path / "made/config.json").touch()
    assert records.changed_options(tmp_path, cell, now) == ["convert (a.gguf there, b.gguf now)"]


def test_cells_of_other_code_or_data_are_named(
    study: Study, programs: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    go(study, output)
    capsys.readouterr()
    listing.print_cells(study, output)
    assert "note:" not in capsys.readouterr().out
    cell = study.cells[1].cell
    record = records.read_record(output, cell)
    assert record is not None and record.code == records.code_hash()
    record.code, record.examples = "0123456789ab", "other"
    records.write_record(output, cell, record)
    listing.print_cells(study, output)
    shown = capsys.readouterr().out
    assert f"1 cells were finished by other code than this: {cell.name}" in shown
    assert "cells of massive_intent were scored on different data" in shown
    tables.write(study, output)
    for name in (REPORT, "table.md"):
        text = (output / name).read_text()
        assert "finished by other code than this" in text and "scored on different data" in text, name


def test_a_folder_has_one_study(tmp_path: Path) -> None:
    one = [Cell("minilm", "massive_intent", 0, True)]
    records.claim(tmp_path / "out", "one", one)
    records.claim(tmp_path / "out", "one", one)
    with pytest.raises(UserError, match="has the study 'one', and this one is 'two'"):
        records.claim(tmp_path / "out", "two", one)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(UserError, match=r"files of no study \(notes.txt\)"):
        records.claim(tmp_path / "other", "one", one)
    records.write_record(tmp_path / "out", one[0], records.Record("open", {}))
    records.claim(tmp_path / "out", "one", [*one, Cell("minilm", "massive_slots", 0, True)])
    with pytest.raises(UserError, match="another study of the name 'one': its cells, such as minilm-massive_intent"):
        records.claim(tmp_path / "out", "one", [Cell("other", "massive_intent", 0, True)])


def test_a_start_that_was_killed_while_it_claimed_its_folder_can_be_repeated(tmp_path: Path) -> None:
    cells = [Cell("minilm", "massive_intent", 0, True)]
    for name in (".study.json.0123abcd.new", ".run.lock.0123456789abcdef"):  # the second may be of another start
        (tmp_path / name).write_text("half")
    records.claim(tmp_path, "one", cells)
    assert {path.name for path in tmp_path.iterdir()} == {records.STUDY, ".run.lock.0123456789abcdef"}


def test_tables_are_written_after_every_cell(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write, written = tmp_path / "out", tables.write, list[tuple[bool, int]]()

    def noted(study: Study, output: Path, show_it: bool = False) -> None:
        written.append((show_it, states(study, output).count("done")))
        write(study, output, show_it)

    monkeypatch.setattr(tables, "write", noted)
    monkeypatch.setattr(sys, "argv", ["eval.study", str(study.path), "--output", str(output)])
    program.main()
    assert written == [(False, 1), (False, 2), (False, 3), (True, 3)]
    files = {"report.html", "table.md", "table.csv", "runs.csv", "comparisons.csv"}
    assert {path.name for path in output.iterdir()} == files | {"cells", "study.json"}


HOLD = """
import sys, time; from pathlib import Path; from train import run_lock
with run_lock.held(Path(sys.argv[1])): print("held", flush=True); time.sleep(60)
"""


def test_one_process_at_a_time(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.study", str(study.path), "--output", str(tmp_path / "out")])
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {other.pid}"):
            program.main()
        other.kill()
    assert states(study, tmp_path / "out") == ["open"] * 3


def test_a_report_that_fails_is_no_failure_of_the_cell(study: Study, programs: Callable, tmp_path: Path) -> None:
    programs(page=FAIL)
    assert go(study, tmp_path / "out") == 3
    assert states(study, tmp_path / "out") == ["done"] * 3


MAKE = """
import sys; from pathlib import Path
model = Path(sys.argv[1]); model.write_text('model')
for name in {names}:
    path = model.parent.parent / name; path.parent.mkdir(parents=True, exist_ok=True); path.touch()
"""


@pytest.mark.parametrize(("keep", "left"), [("exports", ["export", "log"]), ("results", ["log"])])
def test_weights_of_finished_cells(
    study: Study, programs: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, keep: str, left: list
) -> None:
    study.path.write_text(f'keep = "{keep}"\n{study.path.read_text()}')
    made = ("checkpoints/step_4/.metadata", "export/task.json", "best/config.json", "best/task.json", "log")
    programs(train=MAKE.format(names=made))
    go(read_study(study.path), tmp_path / "out")
    folder = plan.cell_folder(tmp_path / "out", study.cells[0].cell) / "train"
    assert sorted(path.name for path in folder.iterdir()) == (["best", *left] if keep == "exports" else left)
    names = ("checkpoints",) if keep == "exports" else ("checkpoints", "export", "best")
    said = f'  removed, because of keep = "{keep}": {", ".join(str(folder / name) for name in names)}\n'
    assert said in capsys.readouterr().out
    assert (folder.parent / records.LOG).read_text().endswith(said)
    go(read_study(study.path), tmp_path / "out")
    assert "removed" not in capsys.readouterr().out, "nothing is there any more"


def test_files_that_somebody_put_beside_weights_are_kept(study: Study, programs: Callable, tmp_path: Path) -> None:
    study.path.write_text(f'keep = "results"\n{study.path.read_text()}')
    made = ("checkpoints/step_4/.metadata", "export/task.json", "checkpoints/step_4/mine", "export/mine", "best/mine")
    programs(train=MAKE.format(names=made))
    go(read_study(study.path), tmp_path / "out")
    folder = plan.cell_folder(tmp_path / "out", study.cells[0].cell) / "train"
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert left == ["checkpoints/kept_step_4/mine", "kept_best/mine", "kept_export/mine"]
