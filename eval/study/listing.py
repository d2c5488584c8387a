"""What a study has done and what is left, as a table for the terminal, and the commands of what is left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table

from data.terminal import literal, say, show
from eval.study.estimate import Estimate, Estimates, total
from eval.study.file import Study
from eval.study.plan import steps_of
from eval.study.records import doubts, forgotten, outcome, readable_record
from train.metrics import duration


def print_cells(study: Study, output: Path) -> None:
    """Print every cell with its state, the time that it took, and the estimate of what is left."""
    estimates = Estimates(study, output)
    table = Table()
    for name, right in (("cell", False), ("state", False), ("took", True), ("left", True), ("estimate", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    counts, left = Counter[str](), list[Estimate]()
    outcomes = [outcome(output, own.cell) for own in study.cells]
    for own, found in zip(study.cells, outcomes, strict=True):
        counts[found.state] += 1
        record = readable_record(output, own.cell)
        took = duration(sum(record.seconds.values())) if record is not None and record.seconds else ""
        if found.state == "done":
            table.add_row(literal(own.cell.name), "done", took, "", "")
            continue
        estimate = estimates.of(own)
        left.append(estimate)
        state = f"failed: {found.why}" if found.state == "failed" else found.state
        table.add_row(literal(own.cell.name), literal(state), took, total([estimate]), literal(estimate.how))
    show(table)
    states = ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "running", "open") if counts[state])
    say(f"{study.name}: {len(study.cells)} cells: {states}. Left, estimated: {total(left) or 'not known'}")
    for doubt in doubts(study, output, outcomes):
        say(f"note: {doubt}")
    if names := forgotten(output, [own.cell for own in study.cells]):
        say(f"note: not in the study file, and not in the tables: {', '.join(names[:5])}")


def print_commands(study: Study, output: Path) -> None:
    """Print the commands of all cells that are not done, each shared one once."""
    seen: set[str] = set()
    for own in study.cells:
        if outcome(output, own.cell).state == "done":
            continue
        say(f"\n# {own.cell.name}")
        for step in steps_of(study, own, output):
            if step.line not in seen and not step.is_done:
                seen.add(step.line)
                say(step.line)
