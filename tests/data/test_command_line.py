"""The help of a program says an option's whole sentences, as the source has them over several lines."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from data.command_line import cli


@dataclass
class Section:
    rate: float = 0.5
    """The first words of the help,
    and those of its second line.

    A paragraph of its own."""


@dataclass
class Base:
    old_name: str = "x"
    """Inherited: one line,
    then another."""


@dataclass
class Options(Base):
    bare: int = 0
    section: Section = field(default_factory=Section)
    """The section's title."""


def test_the_sentences_of_the_help_are_whole(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli(Options, ["--help"], prog="program")
    shown = capsys.readouterr().out
    assert "The first words of the help, and those of its second line. " in shown
    assert "second line. A paragraph" not in shown and "A paragraph of its own. (default: 0.5)" in shown
    assert "--old_name STR" in shown and "Inherited: one line, then another. (default: x)" in shown


def test_words_are_read() -> None:
    assert cli(Options, ["--bare", "3", "--section.rate", "2"]) == Options(bare=3, section=Section(2.0))
