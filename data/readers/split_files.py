"""The files of each split of a user's own task: paths and patterns in the ``[files]`` table of its TOML file.

train = "train.csv"
train = ["shop.csv", "phone.jsonl.gz"]
train = "parts/part-*.csv"
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.files.documents import readable
from data.files.paths import expand
from data.readers.columnar import saved_files
from data.readers.lines import GZIP
from data.readers.sources import IN_BOTH, Source
from data.readers.tables import ENDINGS, NEXT_STEPS, ending_of

LINES = "lines"  # a format without labels

log = logging.getLogger("data")


def split_files(table: dict[str, str | list[str]], path: Path, any_ending: bool) -> dict[str, tuple[Path, ...]]:
    """By split, the absolute paths of its files: those that are named, in that order, those of a pattern sorted.

    Args:
        table: by split, a path or a list of paths, relative to the folder of the task file; ``*``, ``?``, ``[...]`` and
            ``**`` match as in a shell.
        path: the task file.
        any_ending: the format of the files is known otherwise.

    Raises:
        UserError: a file that is missing, of an unknown kind, or twice in a split; a pattern that matches nothing, or
            that matches a file of another split.
    """
    found = {split: _files(value, split, path, any_ending) for split, value in table.items()}
    splits: dict[Path, str] = {}
    for split, files in found.items():
        for file in files:
            other = splits.setdefault(file.resolve(), split)
            if other == split:
                continue
            what = f"{path}: {file.name} is a {other} file and a {split} file"
            if any(_is_pattern(text, path.resolve().parent) for own in (split, other) for text in _listed(table[own])):
                raise UserError(f"{what}. Write the pattern so that it matches the files of one split only.")
            log.warning("%s: %s", what, IN_BOTH)
    return found


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _is_pattern(text: str, folder: Path) -> bool:
    """A file that exists under this very name is no pattern, whatever its name."""
    return glob.has_magic(text) and not (folder / text).exists()


def _files(value: str | list[str], split: str, path: Path, any_ending: bool) -> tuple[Path, ...]:
    folder = path.resolve().parent
    found: dict[Path, Path] = {}
    if not _listed(value):
        raise UserError(f"{path}: the list of {split} files is empty.")
    for text in _listed(value):
        try:
            name = expand(text, folder)
        except UserError as error:
            raise UserError(f"{path}: {split} file {error}") from error
        with readable(folder):
            is_pattern = _is_pattern(name, folder)
            names = sorted(glob.glob(name, root_dir=folder, recursive=True)) if is_pattern else [name]
        own = [folder / name for name in names]
        if not own:
            raise UserError(f"{path}: no {split} file matches {text!r} in {folder}.")
        for file in own:
            _check(file, split, path, any_ending)
            same = found.setdefault(file.resolve(), file)
            if same is not file:
                raise UserError(f"{path}: the {split} file {file.name} is named twice, the second time by {text!r}.")
    return tuple(found.values())


def _check(file: Path, split: str, path: Path, any_ending: bool) -> None:
    with readable(file):
        there, is_folder = file.exists(), file.is_dir()
    if is_folder:
        saved_files(file)
        return
    ending = ending_of(file)
    if not any_ending and ENDINGS.get(ending) in (None, LINES):
        listed = ", ".join(end for end, format in ENDINGS.items() if format != LINES and not end.endswith(GZIP))
        step = NEXT_STEPS.get(ending.removesuffix(GZIP))
        advice = f'{f"{step} Else" if step else "Or"} name the format of all files, such as format = "conll".'
        raise UserError(
            f"{path}: {split} file {file.name!r} must end in one of {listed}, the texts also with {GZIP}. {advice}"
        )
    if not there:
        raise UserError(f"{path}: no {split} file at {file}.")


def id_prefixes(files: Sequence[Source]) -> list[str]:
    """What tells the lines of several files apart in ids: their names, or their paths if names are the same."""
    if len(files) == 1:
        return [""]
    paths = [file for file in files if isinstance(file, Path)]
    assert len(paths) == len(files), "of the hub, a split is one source"
    names = [file.name for file in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(paths)
        names = [file.relative_to(common).as_posix() for file in paths]
    return [f"{name}:" for name in names]
