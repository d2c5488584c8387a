"""The run folder: which files in it are the run's, and how exports, checkpoints and leftovers are replaced or deleted.

Nothing is deleted or overwritten that this program did not make. `check` says so before any work. Whatever appears
during the run, such as a user's notes in ``best/``, is moved aside, to a name that begins with ``kept_``.

An export replaces that of an earlier step like this, on rank 0. Each step is on the disk before the next one begins. So
does a checkpoint, from ``.step_000012.partial``, that is saved again: of a run that was stopped before a scoring::

    .best.new        written, under yet another name, synced, renamed: complete
    best  -> .best.old
    .best.new -> best
    .best.old        deleted

If the process is killed in between, `recover` finishes the work when the run is started again, and
`recover_checkpoints` takes the old one back.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from checkpoints_tools.checksums import CHECKSUMS, read_checksums
from checkpoints_tools.formats import CALIBRATION_FILE, EXPORTS, HELD_OUT, METADATA
from data.errors import UserError
from data.files.documents import read_json
from data.files.durable import sync, unfinished, write_text
from train.checkpointing.checkpoint import RUN_FILE, TRAINING_FILE, steps_in

log = logging.getLogger(__name__)

CONFIG, OTHER_CONFIG = "config.toml", "config.resolved.toml"
_SMALL = (CONFIG, OTHER_CONFIG, "task.json", "prompt.json", "resume.sh")  # what a start writes
# Names of files in exports and checkpoints that have no checksums, or no readable ones.
_MADE = re.compile(
    r"(part-\d+|model(-\d+-of-\d+)?)\.safetensors|model\.safetensors\.index\.json|README\.md"
    r"|(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|vocab\.txt|merges\.txt|tokenizer\.model|chat_template\.jinja"
    r"|(task|prompt|labels|training|best|run|calibration|checksums)\.json"
    r"|trained_texts\.npy|\.metadata(\.tmp)?|__\d+_\d+\.distcp|rng_\d+\.pt"
    r"|\.tmp[A-Za-z0-9]{6}"  # what safetensors is writing
)
_FIRST_LINE = re.compile(r"# train\.py wrote this file; sha256 of the lines below: ([0-9a-f]{64})\n")
_ADVICE = "Name another --output, or move it out of the way."


def new_folder(folder: Path) -> Path:
    """Where a complete export waits until it replaces ``folder``."""
    return folder.with_name(f".{folder.name}.new")


def old_folder(folder: Path) -> Path:
    """Where the export or checkpoint before is until it is deleted."""
    return folder.with_name(f".{folder.name}.old")


def is_export(folder: Path) -> bool:
    """Whether a run, also of older code, has exported this folder. A link to a folder is not the run's."""
    ours = (TRAINING_FILE, "task.json", "prompt.json", "labels.json")
    found = not folder.is_symlink() and (folder / "config.json").is_file()
    return found and any((folder / name).is_file() for name in ours)


def is_checkpoint(folder: Path) -> bool:
    """Whether a run has saved this folder, complete or damaged. A link to a folder is not the run's."""
    return not folder.is_symlink() and ((folder / RUN_FILE).is_file() or (folder / METADATA).is_file())


def checkpoints_in(output: Path) -> list[Path]:
    """The checkpoints that the run has saved, complete or damaged, oldest first."""
    return [folder for folder in steps_in(output / "checkpoints") if is_checkpoint(folder)]


def has_run(output: Path) -> bool:
    """Whether a run has trained in this folder: it has a log or a checkpoint of ours."""
    return _is_log(output / "log.jsonl") or bool(checkpoints_in(output))


def has_config(output: Path) -> bool:
    """Whether a start has written its options into this folder."""
    return any(path.exists() and _is_config(path) for path in (output / CONFIG, output / OTHER_CONFIG))


def _is_log(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        begun = file.read(8)
    return any(ours.startswith(begun) for ours in (b'{"step":', b'{"event"'))


def check(output: Path) -> None:
    """Check that nothing in the run folder would have to be deleted or overwritten that is not the run's.

    Raises:
        UserError: names everything that is in the way.
    """
    taken, started = [], has_run(output)
    prepared = started or has_config(output)  # config.toml is written first
    for name in EXPORTS:
        hidden = (new_folder(output / name), old_folder(output / name))
        for folder in (output / name, *hidden):
            # A killed process may have deleted any part of a hidden one.
            if (why := _not_an_export(folder, started, partly=folder in hidden)) is not None:
                taken.append(f"{folder.name}: {why}")
    checkpoints = output / "checkpoints"
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        taken.append("checkpoints: it is not a folder")
    elif not started and checkpoints.is_dir() and any(checkpoints.iterdir()):
        taken.append("checkpoints: no run has saved what is in it")
    if os.path.lexists(output / "tensorboard") and not (output / "tensorboard").is_dir():
        taken.append("tensorboard: it is not a folder")
    for name in ("log.jsonl", "task.json", "prompt.json"):
        path = output / name
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            taken.append(f"{name}: it is not a file of the run")
        elif path.exists() and not prepared:
            taken.append(f"{name}: no run has written it")
    if taken:
        raise UserError(
            f"output = {output} has what the run would replace:\n"
            + "\n".join(f"  {one}" for one in taken)
            + f"\nNothing was changed. {_ADVICE}"
        )


def _not_an_export(folder: Path, started: bool, partly: bool) -> str | None:
    """Why an export must not replace ``folder``; None if it may."""
    if folder.is_symlink():
        return f"it is a link, to {os.readlink(folder)}; exports need a folder of their own on the disk of --output"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        return "it is not a folder"
    if partly and started:
        return None
    if not is_export(folder):
        return "no run has exported it"
    return None if started else "it is an export of a run that is not in this folder any more"


# --- replacing and deleting -------------------------------------------------------------------------------------------


def replace_export(folder: Path) -> None:
    """Put the complete `new_folder` in the place of ``folder``."""
    _replace(folder, new_folder(folder), is_export(folder))


def replace_checkpoint(folder: Path, new: Path) -> None:
    """Put the complete checkpoint ``new`` in the place of ``folder``."""
    _replace(folder, new, is_checkpoint(folder))


def _replace(folder: Path, new: Path, ours: bool) -> None:
    old = old_folder(folder)
    discard(old, ours=True)
    if ours:
        folder.rename(old)
        sync(folder.parent)
    else:
        discard(folder, ours=False)
    new.rename(folder)
    sync(folder.parent)
    discard(old, ours=True)


def recover(output: Path) -> None:
    """Finish the replacements that a killed process has begun. What else it left is deleted later (`leftovers`)."""
    for folder in (output / name for name in EXPORTS):
        new, old = new_folder(folder), old_folder(folder)
        if is_export(new) and (new / TRAINING_FILE).is_file():  # without: older code had not completed it
            log.info("%s was complete when the run was stopped: it is %s now", new, folder)
            replace_export(folder)
        elif is_export(old) and not folder.exists():
            log.info("%s is restored from %s", folder, old)
            old.rename(folder)
            sync(output)
    for path in output.iterdir():
        if unfinished(path) in _SMALL:
            path.unlink()


def recover_checkpoints(output: Path) -> None:
    """Take back a checkpoint that was to be replaced when the process was killed. Every rank may do so at once."""
    for old in (output / "checkpoints").glob(".step_*.old"):
        folder = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if is_checkpoint(old) and not os.path.lexists(folder):
            with suppress(FileNotFoundError):  # another rank was faster
                old.rename(folder)
                log.info("%s is restored from %s", folder, old)
                sync(folder.parent)


def leftovers(output: Path) -> list[Path]:
    """What a killed process did not finish writing or deleting."""
    found = [path for ending in ("partial", "old") for path in (output / "checkpoints").glob(f".step_*.{ending}")]
    for name in EXPORTS:
        found += [new_folder(output / name), old_folder(output / name)]
        found += output.glob(f"..{name}.new.partial-*")
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def clean(output: Path) -> None:
    """Finish what a killed process has begun, and delete what else it left."""
    recover(output)
    for folder in leftovers(output):
        log.info("removing %s: incomplete", folder)
        discard(folder, ours=True)


def discard(folder: Path, ours: bool) -> None:
    """Free the name ``folder``, if it is taken: delete what the run has made, and move the rest aside.

    Args:
        ours: the folder as such is the run's. False: it is moved as it is.
    """
    name = re.sub(r"^\.+|(\.new|\.old)?(\.partial.*)?$", "", folder.name)
    if ours and folder.name.startswith("step_"):  # under a name by which it is found if this process is killed now
        discard(hidden := folder.with_name(f".{name}.old.partial"), ours=True)
        folder = folder.rename(hidden)
    if folder.is_dir() and not folder.is_symlink():
        if ours:
            for path in _made_in(folder):
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    if not os.path.lexists(folder):
        return
    name, n = f"kept_{name}", 1
    while os.path.lexists(aside := folder.with_name(name if n == 1 else f"{name}_{n}")):
        n += 1
    folder.rename(aside)
    sync(folder.parent)
    log.warning("note: files of %s that are not this run's, or not as it wrote them, are kept in %s.", folder, aside)


class _Calibration(msgspec.Struct):
    """What is read of a calibration here."""

    split: str


def _made_in(folder: Path) -> list[Path]:
    """The files in an export, a checkpoint or a part of one that a run has written."""
    try:
        sums = read_checksums(folder)
    except UserError:
        sums = {}
    made = [path for path in folder.iterdir() if path.name in sums or _MADE.fullmatch(unfinished(path) or path.name)]
    made = [path for path in made if path.is_file() and not path.is_symlink()]
    card, summed = folder / "README.md", folder / CHECKSUMS
    if card in made and summed in made and card.stat().st_mtime_ns > summed.stat().st_mtime_ns:
        made.remove(card)  # somebody has edited it since
    return [path for path in made if path.name != CALIBRATION_FILE or not _is_by_eval(path)]


def _is_by_eval(calibration: Path) -> bool:
    """Whether ``eval.py --calibrate`` has stored a calibration, which a training cannot fit again."""
    try:
        return read_json(calibration, _Calibration).split != HELD_OUT
    except UserError:
        return False


# --- config.toml ------------------------------------------------------------------------------------------------------


def config_file(output: Path) -> Path:
    """Where the run's options are written: ``config.toml``, or, if that is somebody's, ``config.resolved.toml``."""
    return output / (CONFIG if _is_config(output / CONFIG) else OTHER_CONFIG)


def _is_config(path: Path) -> bool:
    """Whether `write_config` may write the file: it does not exist, or is just as `write_config` wrote it."""
    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    content = path.read_bytes()
    line, _, rest = content.partition(b"\n")
    found = _FIRST_LINE.fullmatch(line.decode("utf-8", "replace") + "\n")
    return found is not None and found[1] == hashlib.sha256(rest).hexdigest()


def write_config(output: Path, toml: str) -> None:
    """Write the run's options to `config_file`."""
    path = config_file(output)
    if path.name == OTHER_CONFIG:
        if not _is_config(path):
            discard(path, ours=False)
        log.info(
            "note: %s is not as this program writes it, so it stays. All options are in %s.", output / CONFIG, path
        )
    digest = hashlib.sha256(toml.encode()).hexdigest()
    write_text(path, f"# train.py wrote this file; sha256 of the lines below: {digest}\n{toml}")
