"""The folder that a run started from, whose tokenizer its training checkpoints need, wherever the run folder is now.

``run.json`` names it with its absolute path (older code: as it was typed). A run folder may have been moved, alone or
together with that folder, or copied to another machine. So it is looked for at several places, and the tokenizer there
must be the run's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints_tools.architectures import Tokenizer
from checkpoints_tools.checksums import check_small_files
from checkpoints_tools.registry import get_model_spec
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.errors import UserError
from data.files.documents import read_json
from train.checkpointing.checkpoint import RUN_FILE, TRAINING_FILE, RunState, Training, read_state, steps_in
from train.config import TrainConfig

log = logging.getLogger(__name__)


def find_base(folder: Path, needed: bool = True) -> Path:
    """The folder with the tokenizer of a training checkpoint.

    Args:
        folder: the training checkpoint, in its run folder.
        needed: the tokenizer will be loaded, so it must be there.

    Raises:
        UserError: ``run.json`` names no folder; or the tokenizer is nowhere: the message says where it was looked for.
    """
    state = read_state(folder)
    if not state.config["checkpoint"]:
        raise UserError(f"{folder / RUN_FILE} does not say which checkpoint the run started from: it is damaged.")
    named, problems = Path(state.config["checkpoint"]), dict[Path, str]()
    for place in _places(folder, state):
        problem = _problem(place, state, folder) if needed else "" if place.is_dir() else "there is no such folder"
        if not problem:
            if needed and place != named:
                why = problems[named].rstrip(".")
                log.info("note: the tokenizer of %s is taken from %s, not from %s: %s.", folder, place, named, why)
            return place
        problems[place] = problem
    if not needed:
        return named
    tried = "".join(f"\n  {place}: {problem}" for place, problem in problems.items())
    raise UserError(
        f"training checkpoint {folder} contains no tokenizer. Its run started from {named}, whose tokenizer it needs, "
        f"and it was not found:{tried}\nRestore that folder, or score the run's export."
    )


def _places(folder: Path, state: RunState) -> Iterator[Path]:
    named, output = state.config["checkpoint"], state.config.get("output")
    yield Path(named)
    for here in (Path(os.path.abspath(folder)), folder.resolve()):  # where the path leads, through links
        run = here.parent.parent
        if isinstance(output, str) and os.path.isabs(named) == os.path.isabs(output):  # both from the same folder
            yield Path(os.path.normpath(run / os.path.relpath(named, output)))
        yield from (run / "export", run / "best")


def _problem(place: Path, state: RunState, folder: Path) -> str:
    """Why a place does not have the tokenizer of a training checkpoint's run; empty if it has."""
    if not place.is_dir():
        return "there is no such folder"
    try:
        check_small_files(place)
        tokenizer = get_model_spec(state.config["model"]).architecture.load_tokenizer(tokenizer_folder(place))
        found = tokenizer_in_run(tokenizer, place, folder.resolve().parent.parent)
    except UserError as error:
        return str(error)
    same = found == state.identity.get("tokenizer", found)
    return "" if same else "its tokenizer is not the one that the run was started with"


def tokenizer_in_run(tokenizer: Tokenizer, folder: Path, run: Path) -> str:
    """The fingerprint by which a run knows the tokenizer of a folder.

    The run's own exports have other files of the same tokenizer: with the longest document of an encoder, or with the
    ``tokenizer.json`` that a decoder's ``tokenizer.model`` lacks. They say which tokenizer the run was started with.
    """
    file = folder / TRAINING_FILE
    if folder.resolve().parent != run.resolve() or not file.is_file():
        return tokenizer.fingerprint
    return (read_json(file, Training).identity or {}).get("tokenizer", tokenizer.fingerprint)


def with_moved_base(config: TrainConfig) -> TrainConfig:
    """The options of a run to resume, with ``checkpoint`` where it is now if nothing is where it was.

    Raises:
        UserError: see `find_base`.
    """
    named, steps = config.model.checkpoint, steps_in(config.checkpoint.output / "checkpoints")
    if config.checkpoint.resume == "off" or named is None or named.is_dir() or not steps:
        return config
    problems: list[UserError] = []
    for folder in reversed(steps):  # the newest may be damaged
        try:
            found: dict[str, Any] = {"checkpoint": find_base(folder)}
        except UserError as error:
            problems.append(error)
        else:
            log.info("note: there is no folder %s; the run goes on with %s.", named, found["checkpoint"])
            typed = tuple(pair for pair in config.as_typed if pair[0] != "checkpoint")
            return replace(config, model=replace(config.model, **found), as_typed=typed)
    raise problems[0]
