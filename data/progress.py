"""How far long work has come: a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")

TRACKED_FROM = 2000  # items from which `track` shows a bar


class Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


def track(items: Sequence[T], what: str = "tokenizing") -> Iterator[T]:
    """Iterate with a progress bar (rate and time left) on stderr when there are enough items to wait for."""
    if len(items) < TRACKED_FROM:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, description=what)


class Bar:
    """A bar on a terminal, and nothing where there is none: subclasses decide what to print there.

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
