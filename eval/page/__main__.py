"""Write an HTML report of one scored run: what is right, what is wrong, and how.

    python -m eval.page RUN_FOLDER [--output FILE.html] [--data PATH] [--task FILE.toml] [--train RUN]

RUN_FOLDER is the ``--output`` folder of ``eval.py`` or ``eval.py --combine``, or one of the two of ``eval.baselines``.
The report is one file that any browser shows without a network. Its sections: figures with their uncertainty; for each
field a confusion matrix or kinds of entity errors, figures of each label, and examples; how sure the answers are;
answers that could not be read; accuracy by length; the learning curve.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data import terminal
from data.command_line import cli
from data.errors import UserError
from data.files.documents import permitted
from data.files.paths import PathText, parsed_paths

PROGRAM = "python -m eval.page"


@dataclass
class PageArgs:
    """Write an HTML report of one scored run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The --output folder of eval.py."""
    output: Path | None = None
    """The file to write. Default: report.html in the run's folder."""
    data: PathText | None = None
    """Built-in tasks: the data that was scored, for the texts: a copy of the release, or 'sample'. Default: that of the
    run's name, or the folder that data.download writes to. A task file names its own data."""
    task: PathText | None = None
    """The .toml file of a task of your own, for the texts; of two joined runs that of either."""
    train: Path | None = None
    """The --output folder of the training run, for its learning curve."""


def write_report(args: PageArgs) -> Path:
    """Write the report of a run; returns its file.

    Raises:
        UserError: see `eval.page.report.report` and `eval.page.output`.
    """
    from eval.page.output import check_output, write_page  # these import scikit-learn, which takes seconds
    from eval.page.report import report
    from eval.results import folder_of

    folder = folder_of(args.run)
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'. Give the --output folder of eval.py.")
    output = args.output or folder / "report.html"
    check_output(output, PROGRAM)
    write_page(output, report(folder, args.data, args.train, args.task))
    return output


def main(argv: list[str] | None = None) -> int:
    terminal.open_streams()
    args = cli(PageArgs, argv, prog=PROGRAM)
    terminal.show_logs("stderr")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its notes on fonts and folders say nothing of a run
    try:
        with permitted():
            written = write_report(parsed_paths(args))
    except UserError as error:
        terminal.say(f"error: {error}", "stderr")
        return error.status
    except KeyboardInterrupt:
        return 130
    terminal.say(f"written to {written} ({written.stat().st_size / 2**20:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.status_of(main()))
