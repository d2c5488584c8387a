"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self, TypeVar

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
    """Iterate with a progress bar (rate and time left) on stderr, from `TRACKED_FROM` items on."""
    if len(items) < TRACKED_FROM:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, description=what)


class Bar:
    """A progress bar on a terminal. Without a terminal, subclasses print their own lines.

    Args:
        what: a word before the bar.
        total: number of items.
        show: False: this process prints nothing.
        columns: the bar's columns.
    """

    def __init__(self, what: str, total: int, show: bool, *columns: ProgressColumn) -> None:
        self.total, self.done, self.show = total, 0, show
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if show and console.is_terminal:
            self.bar = Progress(TextColumn(what), *columns, console=console, transient=True)
            self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> Self:
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
        """Called after ``n`` more items if there is no terminal."""
        raise NotImplementedError
