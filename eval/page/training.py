"""The learning curve of the training run whose model was scored: ``log.jsonl`` in its folder (`train.metrics`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_tools.formats import EXPORTS
from data.errors import UserError
from data.files.documents import parse_line, read_lines
from eval.page import charts
from eval.page.html import Html, foreign, legend, note, omitted, section, tag
from eval.page.style import SERIES
from eval.results import Results

TITLE = "Training"
LOG = "log.jsonl"
NOT_FIGURES = ("step", "time", "score")  # of a line with held-out figures; "score" is their mean
POINTS = 80  # of a curve: the steps are divided into so many parts, each with its mean, lowest and highest loss


@dataclass
class TrainingLog:
    """What a log says.

    Attributes:
        losses: by step.
        scores: figures of the held-out examples, by step and name.
        is_weighted: the losses are weighted by class.
        last_event: how the run ended, if it is "interrupted", "stopped" or "early_end"; else empty.
    """

    losses: dict[int, float] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    is_weighted: bool = False
    last_event: str = ""


def read_log(path: Path) -> TrainingLog:
    """Read a log. If a step occurs twice, the later line is valid. A last line that is not complete is left out.

    Raises:
        UserError: it cannot be read, or is no log.
    """
    found = TrainingLog()
    for where, line in read_lines(path):
        if not line.endswith(b"\n"):
            break  # the run is being written, or was killed
        record: dict[str, Any] = parse_line(line, where, dict[str, Any])
        event, step = record.get("event"), record.get("step")
        if event in ("interrupted", "stopped", "early_end", "resume"):
            found.last_event = event if event != "resume" else ""
        if isinstance(step, bool) or not isinstance(step, int):
            continue
        if event is None and _is_number(record.get("loss")):
            found.losses[step] = float(record["loss"])
            found.is_weighted |= record.get("weighted") is True
        elif event == "score":
            figures = {name: float(value) for name, value in record.items() if _is_number(value)}
            found.scores[step] = {name: value for name, value in figures.items() if name not in NOT_FIGURES}
    if not found.losses and not found.scores:
        raise UserError(f"{path} has neither steps nor scores. Give --train the --output folder of train.py.")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_log(run: Path, train: Path | None) -> Path | None:
    """The log of a training run.

    Args:
        run: the folder of the scored run; a log there or one folder above is that of its training.
        train: the training run's folder, if it is given.

    Raises:
        UserError: ``train`` has no log.
    """
    if train is not None:
        if not (train / LOG).is_file():
            raise UserError(f"--train {train} has no {LOG}. Give the --output folder of train.py.")
        return train / LOG
    return next((path for path in (run / LOG, run.absolute().parent / LOG) if path.is_file()), None)


def training_section(results: Results, run: Path, train: Path | None) -> Html:
    """Loss and held-out figures by step.

    Raises:
        UserError: ``train`` is given and has no log that can be read.
    """
    path = find_log(run, train)
    if path is None:
        return omitted(TITLE, "Give --train the folder of the training run for its learning curve.")
    try:
        log = read_log(path)
    except UserError as error:
        if train is not None:
            raise
        return omitted(TITLE, str(error))
    steps = np.array(sorted(log.losses))
    drawn, what = [], "weighted loss" if log.is_weighted else "loss"
    if len(steps):
        x, mean, low, high = binned(steps, np.array([log.losses[step] for step in steps.tolist()]))
        caption = f"{what.capitalize()} of {len(steps):,} steps." + ("" if len(x) == len(steps) else
                  f" A point is the mean of about {len(steps) / len(x):.0f} steps, the band their range.")  # fmt: skip
        drawn.append(charts.curves([(x, mean)], what, caption, None if len(x) == len(steps) else (low, high)))
    figures = list(dict.fromkeys(name for own in log.scores.values() for name in own))[: len(SERIES)]
    if figures:
        at = sorted(log.scores)
        lines = [([s for s in at if name in log.scores[s]], [log.scores[s][name] for s in at if name in log.scores[s]])
                 for name in figures]  # fmt: skip
        is_share = all(0 <= value <= 1 for _, values in lines for value in values)
        drawn.append(charts.curves(lines, "held-out figure", "Figures of the held-out examples.", percent=is_share))
    ends = {"interrupted": "The run was interrupted.", "stopped": "The run stopped with a loss that is not finite.",
            "early_end": "The run ended early (--patience)."}  # fmt: skip
    return section(
        TITLE,
        tag("p", "Run ", foreign(path.parent.resolve().name, 200), ". ", ends.get(log.last_event, "")),
        _belongs(results, path.parent),
        legend(dict(zip(SERIES, figures, strict=False))) if figures else Html(),
        tag("div", *drawn, class_="charts"),
    )


def binned(steps: np.ndarray, losses: np.ndarray) -> tuple[Sequence[float], ...]:
    """Up to `POINTS` parts of a curve: middle step, mean, lowest and highest loss of each."""
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    middle = [float(steps[own].mean()) for own in parts]
    return middle, *([float(of(losses[own])) for own in parts] for of in (np.mean, np.min, np.max))


def _belongs(results: Results, run: Path) -> Html:
    """Whether the scored weights, or those of one of two joined runs, are those that the run has exported."""
    exports = [folder for name in EXPORTS if (folder := run / name).is_dir()]
    if not results.weights or not exports:
        return Html()
    from eval.weights import hash_weights  # imports PyTorch, which takes seconds

    scored, is_joined = results.weights.split(" + "), "combined" in results.settings
    try:
        same = [folder.name for folder in exports if hash_weights(folder) in scored]
    except (UserError, OSError):
        return Html()
    if same and is_joined:
        return note(f"The weights of its {' and '.join(same)} are among those of the two joined runs.")
    if same:
        return note(f"The scored weights are those of its {' and '.join(same)}.")
    if is_joined and len(scored) < 2:
        return Html()  # one of the two does not say what it scored
    names = " or ".join(folder.name for folder in exports)
    return note(f"The scored weights are not those of its {names}: it is another run, or it was trained on since.")
