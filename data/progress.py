"""A progress bar on a terminal, and nothing where there is none: what to say there is the caller's business."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn


class Bar:
    """Counts what is done against all there is.

    Args:
        what: a word before the bar.
        total: of whatever is counted.
        show: False: this process says nothing.
        columns: what the bar is made of.
    """

    def __init__(self, what: str, total: int, show: bool, *columns: ProgressColumn) -> None:
        self.total, self.done, self.show = total, 0, show
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if show and console.is_terminal:
            self.bar = Progress(TextColumn(what), *columns, console=console, transient=True)
            self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> Bar:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.advance(self.task, n)
        elif self.show:
            self.say(n)

    def say(self, n: int) -> None:
        """Called where there is no terminal, after ``n`` more are done."""
        raise NotImplementedError
