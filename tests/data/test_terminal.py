"""Lines, tables and bars: as they are, on any stream, whatever the environment says."""

from __future__ import annotations

import ast
import io
import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from rich.progress import BarColumn, Progress
from rich.table import Table

from data import terminal
from data.progress import Regular, track
from tests.launching import ROOT
from tests.screen import ABOUT_COLOUR, LINE_UP, Screen

TEXT = "run [lr=1e-4] [/b] [link=x]:smile:"
SETTINGS = [{}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": ""}, {"NO_COLOR": "1"}, {"TTY_COMPATIBLE": "1"},
            {"TTY_INTERACTIVE": "1"}]  # fmt: skip
WITHOUT_CURSOR = [{"TERM": "dumb"}, {"TERM": "unknown"}, {"TTY_COMPATIBLE": "0"}, {"TTY_INTERACTIVE": "0"}]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ABOUT_COLOUR:
        monkeypatch.delenv(name, raising=False)
    yield
    terminal.end()  # of a bar that a failed test has left


def on_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """From now on both streams are a terminal; pytest replaces them after the fixtures."""
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def start(stream: terminal.Stream = "stdout") -> Progress | None:
    bar = terminal.start_bar(Progress, BarColumn(), stream=stream, transient=False)
    if bar is not None:
        bar.add_task("", total=2, completed=1)
    return bar


# --- bars -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [*SETTINGS, *WITHOUT_CURSOR], ids=str)
def test_a_file_never_gets_a_bar(settings, monkeypatch, capsys) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for stream in ("stdout", "stderr"):
        assert start(stream) is None
        with Regular("work", 3, True) as progress:
            assert progress.bar is None
            progress.advance(3)
    terminal.say("a line")
    out, err = capsys.readouterr()
    assert (out, err) == ("a line\n", "")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_terminal_gets_lines_above_its_bar(settings, monkeypatch) -> None:
    screen = on_screen(monkeypatch)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bar = start()
    terminal.say("a line")
    print("of another package")
    terminal.stop_bar(bar)
    lines = screen.lines()
    assert LINE_UP in screen.getvalue() or "\x1b[2K" in screen.getvalue(), "the bar is drawn anew below each line"
    last_bar = max(i for i, line in enumerate(lines) if "━" in line)
    assert lines.index("a line") < lines.index("of another package") < last_bar


@pytest.mark.parametrize("settings", WITHOUT_CURSOR, ids=str)
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(settings, monkeypatch) -> None:
    screen = on_screen(monkeypatch)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert start() is None
    terminal.say("a line")
    assert screen.getvalue() == "a line\n"


def test_lines_that_go_to_a_file_stay_there_while_a_bar_is_on_the_terminal(monkeypatch, capsys) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = start("stderr")
    assert bar is not None
    terminal.say("to the file")
    print("of another package")
    terminal.stop_bar(bar)
    assert capsys.readouterr().out == "to the file\nof another package\n"
    assert "━" in screen.getvalue() and "package" not in screen.getvalue()


def test_there_is_one_bar_at_a_time(monkeypatch) -> None:
    screen = on_screen(monkeypatch)
    bar = start()
    assert start() is None
    with Regular("inner", 3, True) as inner:
        assert inner.bar is None
        terminal.stop_bar(None)
    assert bar is not None and bar.live.is_started, "the inner one has not stopped the outer one"
    terminal.stop_bar(bar)
    assert start() is not None
    terminal.end()
    assert screen.getvalue().endswith("\x1b[?25h"), "an error leaves the cursor visible"
    assert start() is not None
    terminal.end()


def test_tracking(monkeypatch, capsys, caplog) -> None:
    monkeypatch.setattr("data.progress.TRACKED_FROM", 20)
    monkeypatch.setattr("data.progress.LOG_INTERVAL", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(track(range(20), "counting [b]")) == list(range(20))
        assert list(track(range(19))) == list(range(19))
    assert capsys.readouterr() == ("", "") and len(caplog.messages) == 20
    assert caplog.messages[4].startswith("counting [b]: 5 of 20, ")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(track(range(20), "counting [b]")) == list(range(20))
    assert "counting [b]" in screen.getvalue() and "20/20" in screen.getvalue()


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bar", [False, True])
def test_texts_are_shown_as_they_are(with_bar, monkeypatch) -> None:
    screen = on_screen(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    bar = start() if with_bar else None
    path = "/a/very/long/path [b]" * 20
    terminal.say(TEXT)
    terminal.say(path)
    terminal.show_logs()
    logging.getLogger("test").info("%s logged", TEXT)
    terminal.stop_bar(bar)
    lines = screen.lines()
    assert TEXT in lines and path in lines and f"{TEXT} logged" in lines


def test_tables_show_texts_as_they_are(capsys) -> None:
    table = Table(TEXT, title=TEXT)
    table.add_column(terminal.literal(TEXT))
    table.add_row(TEXT, terminal.literal(TEXT + "\x1b[2J"))
    terminal.show(table)
    out = capsys.readouterr().out
    assert out.count(TEXT) == 5 and "\\x1b[2J" in out and "\x1b" not in out


def test_control_characters_are_written_out(capsys) -> None:
    terminal.say("a\x1b]0;title\x07b\tc\nd\re\x9b", "stderr")
    assert capsys.readouterr().err == "a\\x1b]0;title\\x07b\tc\nd\\x0de\\x9b\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_letters_that_the_encoding_lacks(encoding, stream, monkeypatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, stream, file)
    terminal.open_streams()
    terminal.say("天 ü \ud800", stream)
    table = Table("天")
    table.add_row("\udcff")
    terminal.console(stream).print(table)
    file.flush()
    written = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "\\ud800" in written and "\\udcff" in written
    assert ("天" if encoding == "utf-8" else "\\u5929") in written


def test_a_stream_that_was_closed_before_the_start(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    terminal.open_streams()
    terminal.say("nobody sees this")
    assert start() is None
    sys.stdout.close()


# --- nothing else prints ----------------------------------------------------------------------------------------------


def test_nothing_prints_but_the_terminal() -> None:
    """So that what holds here holds for every program."""
    folders = ("model", "data", "train", "eval", "checkpoints_tools")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    printing = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "Console", "sys.stdout.write", "sys.stderr.write", "logging.basicConfig"):
                printing.append(f"{path.relative_to(ROOT)}: {called}")
    assert {line.split(":")[0] for line in printing} == {"data/terminal.py"}, printing


# --- readers that end, or are full ------------------------------------------------------------------------------------

PRINT = "from data import terminal; terminal.open_streams(); terminal.say('x' * 200_000); import sys; "


def test_what_cannot_be_written_ends_no_program_but_is_a_failure() -> None:
    code = PRINT + "sys.exit(terminal.status_of(int(sys.argv[1])))"
    with open("/dev/full", "wb") as full:
        for status, ended in ((0, 1), (3, 3)):
            line = [sys.executable, "-c", code, str(status)]
            done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
            missing = "error: not all could be printed (No space left on device).\n" if status == 0 else ""
            assert (done.returncode, done.stderr) == (ended, missing)


def test_a_reader_that_wants_no_more_is_no_failure() -> None:
    code = PRINT + "terminal.say('on'); sys.exit(terminal.status_of(0))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(3) == b"xxx"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


def test_a_slow_reader_gets_everything() -> None:
    process = subprocess.Popen([sys.executable, "-c", PRINT], cwd=ROOT, stdout=subprocess.PIPE)
    time.sleep(1)
    assert process.communicate()[0] == b"x" * 200_000 + b"\n"
