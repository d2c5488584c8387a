"""Fuzz the parsers of the product: a table of what they did with damaged inputs, then every kind of failure.

python -m tests.fuzz [PARSER ...] [--seconds 120] [--seed 0]     all parsers if none is named
python -m tests.fuzz gguf --seed 17 --inputs 1 --keep FOLDER     one input again, with its traceback; the file is kept

The status is 1 if anything was found.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch: threads do not survive a fork

# isort: split
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tests.fuzz.parsers import PARSERS
from tests.fuzz.runner import Limits, Parser, Report, fuzz, input_of, write_sample

SHOWN = 3  # seeds of a group


def table(reports: list[Report]) -> str:
    """The figures as Markdown."""
    limits = Limits()
    lines = [
        f"| parser | inputs | read | exceptions | crashes | over {limits.seconds:g} s | over 1 GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        counts = " | ".join(f"{report.count(kind):,}" for kind in ("exception", "crash", "time", "memory"))
        lines.append(f"| {report.parser} | {report.inputs:,} | {report.read:,} | {counts} |")
    return "\n".join(lines)


def findings(report: Report) -> str:
    """The findings of a parser in groups, each with seeds to repeat it."""
    lines = [f"\n### {report.parser}\n"] if report.findings else []
    for (kind, what, where), found in report.groups().items():
        seeds = ", ".join(f"{finding.seed} ({finding.file})" for finding in found[:SHOWN])
        message = f": {found[0].message}" if found[0].message else ""
        lines.append(f"- {len(found)}× {kind}, {what}, `{where}`{message}. Seeds {seeds}")
    return "\n".join(lines)


def keep(parser: Parser, seed: int, folder: Path) -> Path:
    """Write the sample with the mutated file of a seed into a new folder."""
    name, content = input_of(parser, write_sample(parser, folder), seed)
    (folder / name).write_bytes(content)
    return folder / name


@dataclass
class FuzzArgs:
    """Give damaged files to the parsers of the product; print what must not happen and a table."""

    parsers: Annotated[tuple[Literal[*PARSERS], ...], tyro.conf.Positional] = ()
    """Those to test; default: all."""
    seconds: float = 120.0
    """For each parser."""
    inputs: int | None = None
    """For each parser, at most."""
    seed: int = 0
    """Of the first input; the next has the next seed."""
    keep: Path | None = None
    """New folder for the sample with the first input of the first parser."""
    json: Path | None = None
    """File for the reports."""


def main() -> int:
    args = tyro.cli(FuzzArgs, prog="python -m tests.fuzz", use_underscores=True)
    chosen = [PARSERS[name] for name in args.parsers or PARSERS]
    if args.keep is not None:
        print(f"written to {keep(chosen[0], args.seed, args.keep)}")
    reports = []
    for parser in chosen:
        reports.append(fuzz(parser, args.seed, args.inputs, args.seconds))
        print(findings(reports[-1]), flush=True)
        if args.inputs == 1:
            print("".join(finding.detail for finding in reports[-1].findings))
    print(f"\n{table(reports)}")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(report) for report in reports]))
    return 1 if any(report.findings for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
