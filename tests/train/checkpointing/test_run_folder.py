"""Nothing in a run folder is deleted or overwritten that no run has made, and an export is replaced by a whole one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import UserError
from tests.launching import ROOT, call_main
from train.checkpointing import run_folder
from train.resolve import load_config
from train.setup import open_run

OLD = ROOT / "tests" / "old_files"


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every path in a folder with its contents."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def folder_with(path: Path, *names: str) -> None:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("precious")


def link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(parents=True)
    path.symlink_to("elsewhere")


IN_THE_WAY: dict[str, Callable[[Path], None]] = {
    "export/thesis.txt": lambda out: folder_with(out / "export", "thesis.txt"),
    "an HF model in export/": lambda out: folder_with(out / "export", "config.json", "model.safetensors"),
    "best/notes": lambda out: folder_with(out / "best", "notes"),
    "an export of another run": lambda out: folder_with(out / "export", "config.json", "training.json"),
    "export is a link": lambda out: link(out / "export"),
    "best is a dangling link": lambda out: (out / "best").symlink_to("nowhere"),
    "export is a file": lambda out: (out / "export").write_text("precious"),
    ".best.new": lambda out: folder_with(out / ".best.new", "notes"),
    ".export.old": lambda out: folder_with(out / ".export.old", "notes"),
    "task.json": lambda out: (out / "task.json").write_text("precious"),
    "prompt.json": lambda out: (out / "prompt.json").write_text("precious"),
    "log.jsonl": lambda out: (out / "log.jsonl").write_text('{"level": "info"}\n'),
    "task.json is a folder": lambda out: folder_with(out / "task.json", "notes"),
    "log.jsonl is a link": lambda out: (out / "log.jsonl").symlink_to("nowhere"),
    "checkpoints/vgg.pt": lambda out: folder_with(out / "checkpoints", "vgg.pt"),
    "checkpoints is a file": lambda out: (out / "checkpoints").write_text("precious"),
    "tensorboard is a file": lambda out: (out / "tensorboard").write_text("precious"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_no_run_has_made_is_named_before_any_work(what: str, train_args: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    IN_THE_WAY[what](tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError) as error:
        open_run(load_config(train_args))
    named = what.split("/")[0].split(" ")[-1] if what.startswith("an ") else what.split("/")[0].split(" ")[0]
    assert f"\n  {named}: " in str(error.value) or what == "an export of another run"
    assert "Nothing was changed. Name another --output, or move it out of the way." in str(error.value)
    assert snapshot(tmp_path / "run") == before


def test_all_that_is_in_the_way_is_named_together(train_args: list[str], tmp_path: Path) -> None:
    for what in ("export/thesis.txt", "best/notes", "task.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        IN_THE_WAY[what](tmp_path / "run")
    with pytest.raises(UserError, match=r"(?s)\n  export: .*\n  best: .*\n  task.json: "):
        open_run(load_config(train_args))


def test_other_files_and_empty_folders_are_in_nobodys_way(train_args: list[str], tmp_path: Path) -> None:
    folder_with(tmp_path / "run", "notes.txt", "config.json")
    for name in ("export", "best"):
        (tmp_path / "run" / name).mkdir()
    open_run(load_config(train_args))


def test_a_users_export_in_a_run_folder_is_refused_and_ours_is_not(tmp_path: Path) -> None:
    for name in ("tickets", "intent", "joint"):  # of older code, before training.json
        run = tmp_path / name
        shutil.copytree(OLD / name, run)
        assert run_folder.has_run(run)
        run_folder.check(run)
        shutil.rmtree(run / "export", ignore_errors=True)
        folder_with(run / "export", "thesis.txt")
        with pytest.raises(UserError, match="export: no run has exported it"):
            run_folder.check(run)


# --- replacing --------------------------------------------------------------------------------------------------------


def export(folder: Path, step: int) -> None:
    folder.mkdir()
    for name in ("config.json", "training.json", "best.json", "model.safetensors", "README.md"):
        (folder / name).write_text(json.dumps({"step": step}))


def step_of(folder: Path) -> int:
    return json.loads((folder / "best.json").read_text())["step"]


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_before_change(moment: int, of: int, patch: pytest.MonkeyPatch, replace: Callable[[], None]) -> None:
    """The process ends before the n-th change of the disk, of so many."""
    left = moment
    real = {name: getattr(Path, name) for name in ("rename", "unlink", "rmdir")}

    def counted(name: str) -> Callable:
        def change(path: Path, *args: object) -> object:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return real[name](path, *args)

        return change

    with patch.context() as inner:
        for name in real:
            inner.setattr(Path, name, counted(name))
        if moment < of:
            with pytest.raises(Killed):
                replace()
        else:
            replace()
            assert left == 0, "all moments were tried"


@pytest.mark.parametrize("moment", range(9))
def test_a_kill_leaves_the_old_or_the_new_export(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start finds a whole export under its name."""
    best = tmp_path / "best"
    export(best, 1)
    export(run_folder.new_folder(best), 2)
    killed_before_change(moment, 8, monkeypatch, lambda: run_folder.replace_export(best))
    run_folder.recover(tmp_path)
    for folder in run_folder.leftovers(tmp_path):
        run_folder.discard(folder, ours=True)
    assert step_of(best) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_leaves_the_old_or_the_new_checkpoint(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step that is saved again; it may be the only one."""
    folder, new = tmp_path / "checkpoints" / "step_000004", tmp_path / "checkpoints" / ".step_000004.partial"
    for path, text in ((folder, "old"), (new, "new")):
        path.mkdir(parents=True)
        for name in ("run.json", "__0_0.distcp"):
            (path / name).write_text(text)
    killed_before_change(moment, 5, monkeypatch, lambda: run_folder.replace_checkpoint(folder, new))
    run_folder.recover_checkpoints(tmp_path)
    for leftover in run_folder.leftovers(tmp_path):
        run_folder.discard(leftover, ours=True)
    assert [path.name for path in folder.parent.iterdir()] == ["step_000004"]
    text = b"old" if moment < 2 else b"new"
    assert snapshot(folder) == {"run.json": text, "__0_0.distcp": text}


def test_each_name_is_on_the_disk_before_the_next_one_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, new = tmp_path / "step_000004", tmp_path / ".step_000004.partial"
    for path in (folder, new):
        path.mkdir()
        (path / "run.json").touch()
    done: list[str] = []
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(run_folder, "sync", lambda path: done.append(f"sync {path.relative_to(tmp_path)}"))
    run_folder.replace_checkpoint(folder, new)
    assert done == [
        "step_000004 -> .step_000004.old", "sync .", ".step_000004.partial -> step_000004", "sync .",
    ]  # fmt: skip


def test_ranks_take_a_checkpoint_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One renames it, the others may see it before that."""
    old = run_folder.old_folder(tmp_path / "checkpoints" / "step_000004")
    old.mkdir(parents=True)
    (old / "run.json").touch()
    real = Path.rename

    def after_another(path: Path, target: Path) -> Path:
        real(path, target)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", after_another)
    run_folder.recover_checkpoints(tmp_path)
    assert [path.name for path in old.parent.iterdir()] == ["step_000004"]


def test_the_old_export_comes_back_if_there_is_no_new_one(tmp_path: Path) -> None:
    export(run_folder.old_folder(tmp_path / "best"), 1)
    run_folder.recover(tmp_path)
    assert step_of(tmp_path / "best") == 1


def test_an_incomplete_new_export_of_older_code_replaces_nothing(tmp_path: Path) -> None:
    export(tmp_path / "best", 1)
    new = run_folder.new_folder(tmp_path / "best")
    export(new, 2)
    (new / "training.json").unlink()
    (new / "task.json").write_text("{}")
    run_folder.recover(tmp_path)
    assert step_of(tmp_path / "best") == 1
    assert run_folder.leftovers(tmp_path) == [new]


def test_what_safetensors_was_writing_is_not_kept(tmp_path: Path) -> None:
    """It writes .tmpXXXXXX beside a file and renames it; a killed run leaves that behind."""
    new = run_folder.new_folder(tmp_path / "best")
    export(new, 2)
    (new / "model.safetensors").rename(new / ".tmpM4CQbN")
    partial = new.rename(tmp_path / "..best.new.partial-1-a")
    assert run_folder.leftovers(tmp_path) == [partial]
    run_folder.discard(partial, ours=True)
    assert not list(tmp_path.iterdir())


def test_a_small_file_that_a_killed_program_was_writing_is_not_kept(tmp_path: Path) -> None:
    """eval.py --calibrate writes two into an export of a run that goes on later."""
    best = tmp_path / "best"
    export(best, 1)
    for name in (".calibration.json.0123abcd.new", ".checksums.json.0123abcd.new", ".mine.json.0123abcd.new"):
        (best / name).touch()
    export(run_folder.new_folder(best), 2)
    run_folder.replace_export(best)
    assert [path.name for path in (tmp_path / "kept_best").iterdir()] == [".mine.json.0123abcd.new"]


def test_what_a_user_put_into_an_export_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 3):
        best = tmp_path / "best"
        if not best.exists():
            export(best, 1)
        (best / "notes.txt").write_text("precious")
        (best / "scored").mkdir()
        (best / "scored" / "results.json").write_text("{}")
        export(run_folder.new_folder(best), step)
        run_folder.replace_export(best)
        assert step_of(best) == step
    for kept in (tmp_path / "kept_best", tmp_path / "kept_best_2"):
        assert sorted(snapshot(kept)) == ["notes.txt", "scored/results.json"]
        assert any(str(kept) in message for message in caplog.messages)


def test_an_edited_model_card_is_kept(tmp_path: Path) -> None:
    from checkpoints_tools.checksums import write_checksums

    best = tmp_path / "best"
    for edited in (False, True):
        export(run_folder.new_folder(best), 1)
        write_checksums(run_folder.new_folder(best))
        run_folder.replace_export(best)
        if edited:
            stat = (best / "checksums.json").stat()
            (best / "README.md").write_text("what I think of it")
            os.utime(best / "README.md", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    export(run_folder.new_folder(best), 2)
    run_folder.replace_export(best)
    assert snapshot(tmp_path / "kept_best") == {"README.md": b"what I think of it"}


@pytest.mark.parametrize(("split", "is_kept"), [("dev", True), ("held-out", False)])
def test_a_calibration_by_eval_is_kept(tmp_path: Path, split: str, is_kept: bool) -> None:
    """It is among the checksums, as what the run has written is. The run fits those of held-out examples again."""
    from checkpoints_tools.checksums import replace_file, write_checksums

    best, content = tmp_path / "best", json.dumps({"format": 1, "split": split})
    for step in (1, 2):
        export(run_folder.new_folder(best), step)
        write_checksums(run_folder.new_folder(best))
        run_folder.replace_export(best)
        if step == 1:
            replace_file(best, "calibration.json", content)
    assert not (best / "calibration.json").exists()
    kept = tmp_path / "kept_best"
    assert (snapshot(kept) == {"calibration.json": content.encode()}) if is_kept else not kept.exists()


@pytest.mark.parametrize("what", ["a file", "a link", "a user's folder"])
def test_what_appears_during_the_run_is_moved_aside(what: str, tmp_path: Path) -> None:
    export_folder, theirs = tmp_path / "export", tmp_path / "theirs"
    folder_with(theirs, "config.json")
    if what == "a file":
        export_folder.write_text("precious")
    elif what == "a link":
        export_folder.symlink_to(theirs)
    else:
        folder_with(export_folder, "config.json")
    export(run_folder.new_folder(export_folder), 4)
    run_folder.replace_export(export_folder)
    assert step_of(export_folder) == 4 and os.path.lexists(tmp_path / "kept_export")
    assert (theirs / "config.json").read_text() == "precious"


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_a_checkpoint_that_was_being_replaced(
    train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    args = [*train_args, "--save_every", "4", "--export", "off", "--resume", "auto"]
    call_main(monkeypatch, "train.py", *args)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000006")
    only = tmp_path / "run" / "checkpoints" / "step_000004"
    only.rename(run_folder.old_folder(only))
    call_main(monkeypatch, "train.py", *args)
    assert f"resuming after step 4 from {only}" in capsys.readouterr().out


def test_keep_deletes_only_checkpoints(train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's ``step_000001`` stays; ``step_000004`` makes way under another name; notes in a checkpoint are kept."""
    args = [*train_args, "--save_every", "1", "--keep", "1"]
    call_main(monkeypatch, "train.py", *args, "--steps", "6", "--export", "off")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "step_000006")
    call_main(monkeypatch, "train.py", *args[:-2], "--output", tmp_path / "other", "--keep", "9", "--export", "off")
    for step in (2, 3):
        shutil.copytree(tmp_path / "other" / "checkpoints" / f"step_00000{step}", checkpoints / f"step_00000{step}")
    folder_with(checkpoints / "step_000001", "mine.txt")
    folder_with(checkpoints / "step_000004", "task.json")
    folder_with(checkpoints / ".step_000005.partial", "mine.txt", "__0_0.distcp")
    (checkpoints / "step_000002" / "notes.txt").write_text("precious")
    call_main(monkeypatch, "train.py", *args, "--resume", "--export", "off")
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["kept_step_000002", "kept_step_000004", "kept_step_000005", "step_000001", "step_000006"]
    assert snapshot(checkpoints / "kept_step_000002") == {"notes.txt": b"precious"}
    assert snapshot(checkpoints / "kept_step_000004") == {"task.json": b"precious"}
    assert snapshot(checkpoints / "kept_step_000005") == {"mine.txt": b"precious"}
    assert snapshot(checkpoints / "step_000001") == {"mine.txt": b"precious"}


# --- on the disk ------------------------------------------------------------------------------------------------------


def test_exports_and_checkpoints_are_on_the_disk_before_they_have_their_names(
    train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[tuple[int, int]] = set()  # by inode
    missing: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(fd: int) -> None:
        real_sync(fd)
        stat = os.fstat(fd)
        synced.add((stat.st_ino, stat.st_mtime_ns))

    def rename(source, target, **kwargs) -> None:
        if Path(target).name in (".export.new", ".best.new") or Path(target).name.startswith("step_"):
            for path in (Path(source), *Path(source).iterdir()):
                if (path.stat().st_ino, path.stat().st_mtime_ns) not in synced:
                    missing.append(f"{Path(target).name}: {path.name}")
            renamed.append(Path(target).name)
        real_rename(source, target, **kwargs)

    renamed: list[str] = []
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    call_main(monkeypatch, "train.py", *train_args, "--save_every", "3", "--holdout", "0.3", "--eval_every", "3")
    assert {".export.new", ".best.new", "step_000003", "step_000006"} <= set(renamed)
    assert missing == []
