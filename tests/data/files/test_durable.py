"""Files reach the disk before they get their final names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data.files import durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were synced, in order."""
    names: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), real(fd))[1]
    )
    monkeypatch.setattr(durable, "_noted", False)
    return names


def test_a_folder_is_synced_after_its_files(tmp_path: Path, synced: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "b", "sub/c"):
        (tmp_path / name).write_text(name)
    durable.sync_folder(tmp_path)
    assert sorted(synced) == sorted(["a", "b", "c", "sub", tmp_path.name]) and synced[-1] == tmp_path.name
    assert synced.index("c") < synced.index("sub")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_sync_folders_is_noted_once(
    number: int, tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses_folders(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", refuses_folders)
    durable.sync_folder(tmp_path)
    durable.sync(tmp_path)
    assert len(caplog.messages) == 1 and "does not sync folders" in caplog.messages[0]


@pytest.mark.parametrize(("is_folder", "number"), [(False, errno.EINVAL), (False, errno.EIO), (True, errno.EIO)])
def test_other_failures_are_raised(
    is_folder: bool, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError) as error:
        durable.sync(tmp_path if is_folder else tmp_path / "file")
    assert error.value.errno == number


def test_a_text_has_its_old_contents_or_the_new_ones(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    durable.write_text(path, "old")
    assert synced[-1] == tmp_path.name and len(synced) == 2, "the file, then its folder"

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        durable.write_text(path, "new")
    assert error.value.filename == str(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["config.toml"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    durable.write_text(tmp_path / "link", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "link").read_text() == "ours"
