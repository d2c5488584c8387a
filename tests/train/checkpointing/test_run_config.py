"""``config.toml`` and the other small files of a run: ours until somebody changes them, and written anew by a start."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from checkpoints_tools.checksums import find_damage
from data.errors import UserError
from data.files.documents import permitted
from tests.launching import call_main
from train.checkpointing import run_folder


def test_a_users_config_in_the_output_folder_stays(
    train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    text = "# my notes\n[train]\nsteps = 2\n"
    (run / "config.toml").write_text(text)
    args = [*train_args, "--config", str(run / "config.toml"), "--export", "off"]
    i = args.index("--steps")
    del args[i : i + 2]
    call_main(monkeypatch, "train.py", *args)
    assert (run / "config.toml").read_text() == text
    assert "steps = 2" in (run / "config.resolved.toml").read_text()
    assert f"{run / 'config.resolved.toml'} has all" in capsys.readouterr().out
    call_main(monkeypatch, "train.py", *args, "--resume")
    assert (run / "config.toml").read_text() == text


def test_our_config_is_ours_until_somebody_changes_it(tmp_path: Path) -> None:
    for values in ("lr = 1\n", "lr = 2\n"):
        run_folder.write_config(tmp_path, values)
        assert (tmp_path / "config.toml").read_text().split("\n", 1)[1] == values
    with (tmp_path / "config.toml").open("a") as file:
        file.write("# why 2\n")
    changed = (tmp_path / "config.toml").read_text()
    run_folder.write_config(tmp_path, "lr = 3\n")
    assert (tmp_path / "config.toml").read_text() == changed
    assert (tmp_path / "config.resolved.toml").read_text().endswith("lr = 3\n")
    (tmp_path / "config.resolved.toml").write_text("mine")
    run_folder.write_config(tmp_path, "lr = 4\n")
    assert (tmp_path / "kept_config.resolved.toml").read_text() == "mine"


def test_a_start_killed_while_it_wrote_its_small_files_can_be_repeated(
    train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step the folder has config.toml, task.json and prompt.json, and no log."""
    call_main(monkeypatch, "train.py", *train_args, "--export", "off")
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints")
    (run / "log.jsonl").unlink()
    assert {path.name for path in run.iterdir()} >= {"config.toml", "task.json", "prompt.json"}
    for name in ("config.toml", "task.json", "prompt.json", "resume.sh"):
        (run / f".{name}.0123abcd.new").write_text("half")
    call_main(monkeypatch, "train.py", *train_args)
    assert not list(run.glob(".*"))
    assert find_damage(run / "export") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
@pytest.mark.parametrize("name", ["config.toml", "task.json", "prompt.json", "resume.sh"])
def test_a_small_file_that_the_disk_refuses_is_named(
    name: str, number: int, train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the disk's space does not see that a disk has no inodes left, nor quotas and limits of a process."""
    sync = os.fsync

    def refused(fd: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")).name.startswith(f".{name}."):
            raise OSError(number, os.strerror(number))
        sync(fd)

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(UserError) as error, permitted():
        call_main(monkeypatch, "train.py", *train_args)
    assert str(error.value) == f"cannot write {tmp_path / 'run' / name}: {os.strerror(number)}."
