"""``~`` and environment variables in paths: what they stand for, what is refused by name, and what is left alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from data.errors import UserError
from data.files.documents import permitted
from data.files.paths import PathText, expand, expand_options, parsed_paths


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.chdir(tmp_path)
    return home


def test_what_they_stand_for(home: Path) -> None:
    assert expand("~") == str(home)
    assert expand("~/a b") == expand("$HOME/a b") == expand("${HOME}/a b") == f"{home}/a b"
    assert expand("~root/x") == str(Path("~root").expanduser() / "x") != "~root/x"
    assert expand("${SCRATCH}_2/$SCRATCH") == "/scratch/me_2//scratch/me"


def test_a_variable_may_begin_with_a_home_folder_and_is_not_expanded_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS", "~/runs/$SCRATCH")
    assert expand("$RUNS/a") == f"{home}/runs/$SCRATCH/a"


@pytest.mark.parametrize("text", ["", "-", "sample", "20ng_20", "a/b~c", "cost$5", "a$", "a$.csv", "runs/x~"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert expand(text) == text


@pytest.mark.parametrize("text", ["$NOT_SET/x", "a/${NOT_SET}", "$NOT_SET"])
def test_a_variable_that_is_not_set(text: str) -> None:
    with pytest.raises(UserError, match="the environment variable NOT_SET is not set"):
        expand(text)


def test_a_variable_that_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "")
    with pytest.raises(UserError, match="the environment variable SCRATCH is empty"):
        expand("$SCRATCH/runs")  # would be /runs


@pytest.mark.parametrize("text", ["${SCRATCH", "${SCRATCH:-x}/y", "${}/y"])
def test_what_only_a_shell_knows(text: str) -> None:
    with pytest.raises(UserError, match=r"as in \$NAME or \$\{NAME\}; found \$\{"):
        expand(text)


def test_a_user_whose_home_is_not_known() -> None:
    with pytest.raises(UserError, match="the home folder of nobody-has-this-name is not known"):
        expand("~nobody-has-this-name/x")


def test_a_path_that_exists_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "$NOT_SET").mkdir()
    (tmp_path / "~$letter.csv").touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/$SCRATCH").touch()
    assert expand("$NOT_SET") == "$NOT_SET" and expand("~$letter.csv") == "~$letter.csv"
    assert expand("$SCRATCH", Path("inner")) == "$SCRATCH" and expand("$SCRATCH") == "/scratch/me"
    with pytest.raises(UserError, match="NOT_SET is not set"):
        expand("$NOT_SET/new")  # of an earlier program; nothing new is put there


@dataclass(frozen=True)
class _Section:
    data: PathText | None = None
    note: str = "$NOT_SET"


@dataclass(frozen=True)
class _Options:
    source: Annotated[Path, tyro.conf.Positional]
    section: _Section = field(default_factory=_Section)
    both: tuple[Path, Path] | None = None
    more: tuple[Path, ...] = ()
    ours: Path = Path("/code of $NOT_SET")
    name: str = "~"


def test_all_paths_of_an_options_object_and_nothing_else(home: Path) -> None:
    given = _Options(Path("~/in"), _Section("$SCRATCH/d"), (Path("~/a"), Path("b")), (Path("$SCRATCH"),))
    assert parsed_paths(given) == _Options(
        home / "in", _Section("/scratch/me/d"), (home / "a", Path("b")), (Path("/scratch/me"),)
    )


def test_every_path_that_cannot_be_expanded_is_named() -> None:
    problems: list[str] = []
    kept = expand_options(_Options(Path("$NOT_SET"), _Section("${OTHER}/x")), problems)
    assert [problem.split(":")[0] for problem in problems] == ["source = $NOT_SET", "data = ${OTHER}/x"]
    assert kept.source == Path("$NOT_SET")
    with pytest.raises(UserError, match=r"(?s)NOT_SET is not set.*OTHER is not set"):
        parsed_paths(_Options(Path("$NOT_SET"), _Section("${OTHER}/x")))


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 300), Path("/" + "a/" * 3000)):
        for use in (Path.exists, Path.is_file, Path.mkdir, Path.open, os.listdir):
            with pytest.raises(UserError) as error, permitted():
                use(path)
            assert str(error.value).startswith(f"{str(path)[:60]}... is too long for a path, or a name in it is.")
