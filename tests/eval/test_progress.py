"""The line that predict.py shows while it works."""

from __future__ import annotations

import itertools
import sys

import pytest

from eval import progress
from eval.progress import RowProgress
from tests.screen import Screen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_rows_rate_and_time_left(clock: list[float]) -> None:
    bar = RowProgress(lambda: 0.5, show=False, n_before=1000)
    bar.read(1000)  # so 2,000 rows are half of the input
    clock[0] += 10
    bar.advance(500)
    assert bar.line() == "1,500 rows, 50.0 rows/s, about 0:00:50 left"


def test_no_time_left_without_a_total(clock: list[float]) -> None:
    bar = RowProgress(lambda: None, show=False)
    clock[0] += 2
    bar.done += 5
    assert bar.line() == "5 rows, 2.5 rows/s"


def test_a_line_now_and_then_on_standard_error(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress(itertools.repeat(0.5).__next__, show=True) as bar:
        for _ in range(70):
            clock[0] += 1
            bar.read(2)
            bar.advance(2)
    out, err = capsys.readouterr()
    expected = [f"predicted {n} rows, 2.0 rows/s, about {left} left" for n, left in ((60, "0:00:30"), (120, "0:01:00"))]
    assert out == "" and err.splitlines() == expected
    with RowProgress(itertools.repeat(0.5).__next__, show=False) as bar:
        clock[0] += 100
        bar.advance(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("known", [True, False])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], known: bool) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    parts = itertools.count()
    with RowProgress(lambda: next(parts) / 100 if known else None, show=True) as bar:
        assert bar.bar is not None
        bar.read(2000)
        bar.advance(1234)
        bar.bar.refresh()
    out, err = capsys.readouterr().out, screen.getvalue()
    assert out == "" and "1,234 rows, " in err and ("left" in err) == known and ("━" in err) == known
