"""Several cells of a study at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from eval.study import plan, records, run
from eval.study.commands import shares
from eval.study.file import Study, read_study
from eval.study.plan import Step
from tests.eval.study.going import FAIL, SLOW, go, states
from tests.launching import ROOT, environment
from train.errors import Interrupted

MEETING = """
import os, sys, time
from pathlib import Path
here = Path({folder!r})
(here / os.environ["OMP_NUM_THREADS"]).write_text("")
Path({folder!r}, str(os.getpid())).touch()
for _ in range(600):
    if len([p for p in here.iterdir() if p.name not in "12"]) >= 2: break
    time.sleep(0.05)
else:
    sys.exit("error: alone")
Path(sys.argv[1]).write_text("model")
"""


def test_two_cells_run_at_the_same_time(
    study: Study,
    programs: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each of the first two waits for the other one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    programs(train=MEETING.format(folder=str(meeting)), eval={2: FAIL})
    assert 1 <= go(study, tmp_path / "out", jobs=2) <= 3
    assert states(study, tmp_path / "out") == ["done", "done", "failed"]
    assert (meeting / "2").exists() and not (meeting / "1").exists(), "half of four cores"
    assert all(records.outcome(tmp_path / "out", own.cell).jobs == 2 for own in study.cells[:2])
    printed = capsys.readouterr().out
    assert f"{study.cells[0].cell.name}: done after 0:0" in printed and "scored" not in printed
    assert "failed: eval: status 2: error: no such data: x" in printed


def test_cells_at_the_same_time_are_stopped_together(study: Study, programs: Callable, tmp_path: Path) -> None:
    """One command is stopped by somebody; the other one saves and ends, and the third does not begin."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    stopped = (
        "import sys, time\nfrom pathlib import Path\nwhile not Path({!r}).exists(): time.sleep(0.05)\nsys.exit(143)"
    )
    slow = SLOW.format(saved=str(saved), ready=str(ready))
    programs(train={0: stopped.format(str(ready)), 1: slow})
    with pytest.raises(Interrupted, match=f"{study.cells[0].cell.name}") as error:
        go(study, tmp_path / "out", jobs=2)
    assert error.value.signum == signal.SIGTERM and saved.read_text() == str(int(signal.SIGTERM))
    assert states(study, tmp_path / "out") == ["open"] * 3
    assert not (plan.cell_folder(tmp_path / "out", study.cells[2].cell) / records.LOG).exists()


def test_what_cells_share_is_made_once(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, of_cell = tmp_path / "made", run.steps_of
    convert = "import sys, time; time.sleep(0.5); open(sys.argv[1], 'a').write('once'); open(sys.argv[2], 'w')"
    words = (sys.executable, "-c", convert, str(tmp_path / "count"), str(made))
    monkeypatch.setattr(run, "steps_of", lambda *given: [Step("convert", words, made), *of_cell(*given)])
    go(study, tmp_path / "out", jobs=3)
    assert states(study, tmp_path / "out") == ["done"] * 3 and (tmp_path / "count").read_text() == "once"


@pytest.mark.parametrize("kind", ["convert", "data"])
def test_what_another_study_made_meanwhile_is_taken(
    study: Study, programs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of two studies that convert or fetch the same, the second one's command finds it there, and fails."""
    made, of_cell = tmp_path / "made", run.steps_of
    late = "import sys; open(sys.argv[1], 'w'); sys.exit('error: made exists and is not empty; remove it')"
    step = Step(kind, (sys.executable, "-c", late, str(made)), made if kind == "convert" else None)

    def steps_of(*given: Any) -> list[Step]:
        return [*([step] if kind == "convert" or not made.exists() else []), *of_cell(*given)]

    monkeypatch.setattr(run, "steps_of", steps_of)
    go(study, tmp_path / "out")
    assert states(study, tmp_path / "out") == ["done"] * 3
    assert "made exists" in (plan.cell_folder(tmp_path / "out", study.cells[0].cell) / records.LOG).read_text()


def test_shares_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert shares(1) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [own["CUDA_VISIBLE_DEVICES"] for own in shares(3)] == ["4", "7", "4"]
    assert {own["OMP_NUM_THREADS"] for own in shares(3)} == {"5"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert shares(2) == [{"OMP_NUM_THREADS": "1"}] * 2


def test_a_cell_on_several_ranks_runs_alone(study: Study, programs: Callable, tmp_path: Path) -> None:
    study.path.write_text("ranks = 2\n" + study.path.read_text())
    with pytest.raises(UserError, match=r"--jobs 2: 3 cells run on several ranks, such as .* on 2, .* Omit --jobs"):
        run.check_jobs(read_study(study.path), tmp_path / "out", False, jobs=2)
    run.check_jobs(read_study(study.path), tmp_path / "out", False, jobs=1)


def test_wrong_jobs_are_refused_before_anything_is_written(study: Study, tmp_path: Path) -> None:
    study.path.write_text("ranks = 2\n" + study.path.read_text())
    command = [sys.executable, "-m", "eval.study", str(study.path), "--output", str(tmp_path / "out"), "--jobs"]
    for jobs, text in (("0", "--jobs 0: give at least 1."), ("2", "--jobs 2: 3 cells run on several ranks")):
        done = subprocess.run([*command, jobs], cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr
        assert not done.stdout and not (tmp_path / "out").exists()
