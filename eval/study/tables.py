"""The tables of a study, written into its folder after every cell: report.html, table.md and three files of CSV."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.files.durable import write_text
from data.terminal import say
from eval.kept_lines import writable
from eval.study.file import Study
from eval.study.page import REPORT, study_page
from eval.study.records import doubts, outcome
from eval.study.render import comparisons_csv, csv_text, markdown, runs_csv, show_study
from eval.study.table import build_table


def write(study: Study, output: Path, show_it: bool = False) -> None:
    """Make the tables of what is done, and write them.

    Args:
        show_it: also print them, and where they are.

    Raises:
        UserError: the folder cannot be written.
    """
    outcomes = [outcome(output, own.cell) for own in study.cells]
    table = replace(build_table(outcomes), doubts=tuple(doubts(study, output, outcomes)))
    texts = {REPORT: study_page(study.name, table, outcomes, output), "table.md": markdown(table)}
    texts |= {"table.csv": csv_text(table), "runs.csv": runs_csv(table), "comparisons.csv": comparisons_csv(table)}
    with writable(output):
        for name, text in texts.items():
            write_text(output / name, text)
    if show_it:
        show_study(table)
        say(f"written to {', '.join(str(output / name) for name in texts)}")
