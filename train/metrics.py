"""What a run reports on the terminal and as JSON lines in its folder: losses, speed, utilization, progress."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from data import terminal
from data.errors import UserError
from train.log_file import LogFile

log = logging.getLogger(__name__)

# Dense bf16 peaks in FLOP/s from NVIDIA's data sheets (SXM), by a part of the device's name.
PEAK_BF16_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}

SPEED_WINDOW = 20  # steps over which speeds are averaged
SEPARATOR = "  "  # of a step's figures


def device_peak(name: str) -> float | None:
    """The bf16 peak of a device in FLOP/s; None if unknown."""
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)


def memory_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


class Speed:
    """Rates over the last few steps; time between steps (saving, scoring) is not counted."""

    def __init__(self) -> None:
        self._window: deque[tuple[float, int, int, float]] = deque(maxlen=SPEED_WINDOW)

    def add(self, seconds: float, n_tokens: int, n_examples: int, flops: float) -> None:
        self._window.append((seconds, n_tokens, n_examples, flops))

    def rates(self) -> tuple[float, float, float, float]:
        """Tokens, examples and FLOP per second, and seconds per step."""
        seconds, tokens, examples, flops = (sum(column) for column in zip(*self._window, strict=True))
        return tokens / seconds, examples / seconds, flops / seconds, seconds / len(self._window)


class Plateau:
    """Detects that the training loss has stopped falling ("until convergence", section 5.7 of the paper).

    The rule: the mean loss of the last ``window`` steps is not at least 1% below that of the ``window`` before them.
    A resumed run starts counting anew.
    """

    def __init__(self, total_steps: int) -> None:
        self.window = max(50, total_steps // 10)
        self._losses: deque[float] = deque(maxlen=2 * self.window)
        self._found = False

    def add(self, loss: float) -> bool:
        """Add a step's loss; True once, when the loss has stopped falling."""
        self._losses.append(loss)
        if self._found or len(self._losses) < 2 * self.window:
            return False
        losses = list(self._losses)
        before, now = sum(losses[: self.window]), sum(losses[self.window :])
        self._found = now > 0.99 * before
        return self._found


def check_tensorboard() -> None:
    """Raise UserError if the package for ``--tensorboard`` is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError("--tensorboard: the package is not installed. pip install tensorboard") from None


class BarAndLine(Progress):
    """A progress bar with a line of text below it, which may be wider than the terminal."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.line)


class RunLog:
    """The reporter of rank 0; on other ranks its methods do nothing.

    ``log.jsonl`` gets one line per step and per event. A run that is not resumed writes it anew, over that of a start
    that was killed; a resumed run appends. If a step occurs twice, the later line is valid.
    """

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        total_steps: int,
        start_step: int,
        resumed: bool,
        log_every: int,
        tensorboard: bool,
    ) -> None:
        self._active = active
        self._board: Any = None
        self._progress: BarAndLine | None = None
        self._log_every, self._total, self._start_step = log_every, total_steps, start_step
        if not active:
            return
        self._file = LogFile(folder / "log.jsonl", resumed)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Steps that are taken again replace those of the start before.
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = terminal.start_bar(BarAndLine, *columns, stream="stdout", transient=False)
        if self._progress is not None:
            self._task = self._progress.add_task("", total=total_steps, completed=start_step)

    def step(self, record: dict[str, Any]) -> None:
        """Report one step; ``record["step"]`` counts from 1."""
        if not self._active:
            return
        self._file.write({**record, "time": round(time.time(), 3)})
        with self._drawing():
            for name, value in record.items():
                if self._board is not None and isinstance(value, int | float) and name not in ("step", "weighted"):
                    self._board.add_scalar(name, value, record["step"])
        parts = describe(record)
        if self._progress is not None:
            self._progress.line = SEPARATOR.join(parts)
            self._progress.update(self._task, completed=record["step"])
        if record["step"] % self._log_every == 0 or record["step"] in (self._start_step + 1, self._total):
            step = f"step {record['step']:>{len(str(self._total))}}/{self._total}"
            terminal.say(fitting([step, *parts], terminal.width() if terminal.is_terminal("stdout") else None))

    def event(self, name: str, **values: Any) -> None:
        """Report something that is not a step, e.g. a held-out score."""
        if not self._active:
            return
        self._file.write({"event": name, **values, "time": round(time.time(), 3)})
        with self._drawing():
            for key, value in values.items():
                if self._board is not None and isinstance(value, float) and "step" in values:
                    self._board.add_scalar(f"{name}/{key}", value, values["step"])

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Whatever TensorBoard's writer raises ends the drawing, not the run: its thread does not recover."""
        try:
            yield
        except Exception as error:  # where TensorFlow is installed, a full disk is not an OSError
            self._board = None
            log.warning("warning: tensorboard/ gets no more figures: %s. log.jsonl has all of them.", error)

    def close(self) -> None:
        terminal.stop_bar(self._progress)
        with self._drawing():
            if self._board is not None:
                self._board.close()
        if self._active:
            self._file.close()


def describe(record: dict[str, Any]) -> list[str]:
    """The figures of one step, the most important ones first."""
    parts = [
        f"{'weighted loss' if record.get('weighted') else 'loss'} {record['loss']:.4f}",
        f"lr {record['lr']:.2e}",
        f"grad norm {record['grad_norm']:.3f}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"{record['examples_per_second']:.2f} examples/s",
    ]
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    parts.append(f"{record['memory_gib']:.1f} GiB")
    parts.append(f"{duration(record['seconds_left'])} left")
    return parts


def fitting(parts: Sequence[str], width: int | None) -> str:
    """The first of ``parts`` as a line of at most ``width`` characters; None: all of them."""
    line = parts[0]
    for part in parts[1:]:
        if width is not None and len(line + SEPARATOR + part) > width:
            break
        line += SEPARATOR + part
    return line


def duration(seconds: float) -> str:
    """Format seconds as ``h:mm:ss``, or as ``m:ss`` below one hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
