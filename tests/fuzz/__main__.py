"""Fuzz the parsers of the product: a table of what they did with damaged inputs, then every kind of failure.

python -m tests.fuzz [PARSER ...] [--seconds 120] [--seed 0]     all parsers if none is named
python -m tests.fuzz gguf --seed 17 --inputs 1 --keep FOLDER     one input again, with its traceback; the file is kept

The status is 1 if anything was found.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch: threads do not survive a fork

# isort: split
import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

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


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("parsers", nargs="*", metavar="PARSER", help=f"known: {', '.join(PARSERS)}")
    arguments.add_argument("--seconds", type=float, default=120.0, help="for each parser")
    arguments.add_argument("--inputs", type=int, help="for each parser, at most")
    arguments.add_argument("--seed", type=int, default=0, help="of the first input; the next has the next seed")
    arguments.add_argument("--keep", type=Path, help="write the sample with the first input into this new folder")
    arguments.add_argument("--json", type=Path, help="write the reports to this file too")
    given = arguments.parse_args()
    if unknown := set(given.parsers) - PARSERS.keys():
        arguments.error(f"no parser {', '.join(sorted(unknown))}; known: {', '.join(PARSERS)}")
    chosen = [PARSERS[name] for name in given.parsers or PARSERS]
    if given.keep is not None:
        print(f"written to {keep(chosen[0], given.seed, given.keep)}")
    reports = []
    for parser in chosen:
        reports.append(fuzz(parser, given.seed, given.inputs, given.seconds))
        print(findings(reports[-1]), flush=True)
        if given.inputs == 1:
            print("".join(finding.detail for finding in reports[-1].findings))
    print(f"\n{table(reports)}")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(report) for report in reports]))
    return 1 if any(report.findings for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
