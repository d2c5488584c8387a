"""Run a study, or go on with it: ``python -m eval.study FILE.toml``; ``--help`` lists the options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data import terminal
from data.command_line import cli
from data.commands import python, quoted
from data.errors import UserError
from data.files.paths import parsed_paths

DESCRIPTION = """Run a study: models, tasks, shots, fine-tuned or not, seeds; and put all results into one table.

The same command goes on with a study that was interrupted. Finished runs are not repeated."""


@dataclass(frozen=True)
class StudyArgs:
    file: Annotated[Path, tyro.conf.Positional]
    """The study file (docs/studies.md)."""
    output: Path | None = None
    """Folder of the study's runs and tables; default: runs/studies/<name>."""
    dry_run: bool = False
    """Print what is done and what is left, with estimates of time and cost, and all commands; run nothing."""
    table: bool = False
    """Make the tables of what is done, and run nothing."""
    retry: bool = False
    """Run cells again whose commands failed, or whose results are damaged or were changed."""
    jobs: int = 1
    """Cells at the same time, for models that do not fill the machine; with several GPUs each cell gets one."""


def main() -> None:
    args = parsed_paths(cli(StudyArgs, prog="python -m eval.study", description=DESCRIPTION))
    if args.dry_run and args.table:
        raise UserError("--dry_run and --table: give one of the two.")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give at least 1.")
    from eval.study import listing, records, tables
    from eval.study.file import read_study
    from eval.study.plan import check_options
    from eval.study.run import check_jobs, check_unchanged, run_study
    from train import run_lock

    study = read_study(args.file)
    output = args.output or Path("runs/studies") / study.name
    cells = [own.cell for own in study.cells]
    check_options(study, output)
    records.check_claim(output, study.name, cells)
    check_jobs(study, output, args.retry, args.jobs)
    if args.dry_run:
        check_unchanged(study, output)
        listing.print_cells(study, output)
        listing.print_commands(study, output)
        return
    if args.table and not (output / records.STUDY).is_file():
        raise UserError(f"--output {output} has no study yet. Omit --table to run it.")
    with run_lock.held(output):
        records.claim(output, study.name, cells)
        check_unchanged(study, output)
        if not args.table:
            listing.print_cells(study, output)
            again = " ".join(map(quoted, [python(), "-m", "eval.study", *sys.argv[1:]]))
            run_study(study, output, args.retry, lambda: tables.write(study, output), again, args.jobs)
        tables.write(study, output, show_it=True)
    failed = [own.cell.name for own in study.cells if records.outcome(output, own.cell).state == "failed"]
    if failed and not args.table:
        names = ", ".join(failed[:5]) + (", ..." if failed[5:] else "")
        raise UserError(
            f"{len(failed)} of {len(study.cells)} cells failed: {names}. Their reasons are in the table. --retry runs "
            "them again."
        )


if __name__ == "__main__":
    terminal.open_streams()
    from train.parallel.distributed import run_guarded, set_up_logging

    set_up_logging()
    run_guarded(main)
