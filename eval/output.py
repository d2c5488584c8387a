"""The output folder of a scoring, checked before any work: can it be written, and is it free?

It is free if it has no result, or that of the same scoring, which the new one replaces. Another split, limit, name,
model or setting is another result, and is never replaced. Nor is anything that this program did not make.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import UserError, shortened
from data.files.documents import parse_json, read_json
from data.files.paths import check_links
from data.json_text import to_json
from eval.kept_lines import sha256_of
from eval.results import PREDICTIONS, RESULTS, Results, new_name

# Settings that say how a result came about, not what was scored: they may differ.
HOW = ("ranks", "tp", "device", "threads", "trained_with", "kept_answers", "train_and_predict_seconds",
       "reported_models", "prices", "dollars", "concurrency", "seconds_of_asking", "resent", "lost")  # fmt: skip
SHOWN = 40  # characters of a value in a message

log = logging.getLogger("eval")


def default_output(model: str, split: str, limit: int | None) -> Path:
    """The output folder of a scoring that names none; another split or limit is another folder.

    Args:
        model: what is scored, with its task.
    """
    name = model.replace("/", "-") + ("" if split == "test" else f"-{split}")
    return Path("runs/eval") / (name if limit is None else f"{name}-limit{limit}")


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make the folder and see that files can be written there. If it is new and still empty afterwards, remove it.

    Raises:
        UserError: it is a file, or cannot be made or written.
    """
    check_links(f"--output {folder}", folder)
    is_new = not os.path.lexists(folder)
    if not is_new and not folder.is_dir():
        raise UserError(f"--output {folder}: this is a file, and results need a folder. Give another name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--output {folder} cannot be written: {error.strerror or error}. Give another folder, or make it writable."
        ) from error
    for name in (RESULTS, PREDICTIONS, new_name(RESULTS), new_name(PREDICTIONS)):
        if (folder / name).is_dir():
            raise UserError(f"--output {folder}: {name} there is a folder. Rename it, or give another --output.")
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def check_free(folder: Path, new: Results) -> None:
    """Check that a result in the folder, if there is one, is of the same scoring.

    Args:
        new: what will be scored; without metrics, counts and cost.

    Raises:
        UserError: the folder has the result of another scoring, which the message tells apart, or a file of such a
            name that is none of ours.
    """
    old = _result_in(folder)
    if old is None:
        return
    before, now = _what(old), _what(parse_json(to_json(dataclasses.asdict(new)), "the result", Results))
    differ = [
        f"{name} ({_shown(before[name])} there, {_shown(now[name])} now)"
        for name in before
        if name in now and before[name] != now[name]
    ]
    if differ:
        raise UserError(
            f"--output {folder} has the result of another scoring, with another {', '.join(differ)}. Give another "
            f"--output, or remove {RESULTS} and {PREDICTIONS} there if you do not need them."
        )
    log.info("%s has the result of an earlier scoring of the same, which this one will replace", folder)


def _result_in(folder: Path) -> Results | None:
    """The result in a folder, also if the program was killed between writing its two files; None: it has none."""
    results, predictions = folder / RESULTS, folder / PREDICTIONS
    if not os.path.lexists(results):
        if not os.path.lexists(predictions):
            return None
        results = folder / new_name(RESULTS)
        if os.path.lexists(folder / new_name(PREDICTIONS)):  # not renamed yet
            predictions = folder / new_name(PREDICTIONS)
        if not results.is_file():
            raise _not_ours(folder, PREDICTIONS, f"there is no {RESULTS}")
    try:
        found = read_json(results, Results)
    except UserError as error:
        raise _not_ours(folder, results.name, str(error).rstrip(".")) from None
    if found.predictions and predictions.is_file() and sha256_of(predictions) != found.predictions:
        raise _not_ours(folder, PREDICTIONS, f"it does not belong to {results.name}")
    return found


def _not_ours(folder: Path, name: str, why: str) -> UserError:
    return UserError(
        f"--output {folder} has a file {name} that is no result of ours ({why}), and it would be overwritten. Give "
        "another --output, or move the file."
    )


def _what(results: Results) -> dict[str, Any]:
    """What tells a scoring from others, by name; without what an older version did not record."""
    found: dict[str, Any] = {
        "name": results.system,
        "task": results.task,
        "fields": results.fields,
        "data": results.data,
        "split": results.split,
        "model": results.model,
        "checkpoint": results.checkpoint,
        "shots": results.shots,
    }
    found |= {name: value for name, value in results.settings.items() if name not in HOW}
    prompt = results.prompt or {}
    found |= {f"prompt.{name}": value for name, value in prompt.items() if name != "template_from"}
    hashes = {"weights": results.weights, "examples": results.examples}
    return found | {name: value for name, value in hashes.items() if value}


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else "none" if value is None else to_json(value)
    return shortened(text, SHOWN)
