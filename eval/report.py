"""Tables of scored runs, for the terminal (rich) and for documents (Markdown), and which run is best.

A table has one row per run and one column per figure. Runs of different tasks have different figures: a cell
without a figure is empty, never zero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from data.commands import command
from data.errors import UserError
from data.files.durable import write_text
from data.terminal import literal, say, show, width
from eval.kept_lines import writable
from eval.metrics import main_figures
from eval.results import RESULTS, TRAINED_ON, Results, folder_of, read_results, stored_task

Row = tuple[str, list[str]]
FIRST_COLUMN = "system"
TABLE_START = f"| {FIRST_COLUMN} | ".encode()  # of a Markdown file
LABELS_SHOWN = 30  # of a multi field, with their figures
_NAMES = {  # of figures whose key does not say enough
    "ece": "calibration error",
    "nll": "-log p of the gold label",
    "ece_uncalibrated": "calibration error, no temperature",
    "nll_uncalibrated": "-log p, no temperature",
    "accuracy_at_80": "accuracy of the surest 80%",
    "accuracy_at_90": "accuracy of the surest 90%",
}
SYSTEM_WIDTH = 16  # of a table at least, if a name is as long
COUNTS_AND_COSTS = ("examples", "unparsed", "s/example", "prompt tok", "computed tok", "new tok")


def figures(results: Results) -> dict[str, float]:
    """The run's main figures by column name; see :func:`eval.metrics.main_figures`."""
    return main_figures(stored_task(results), results.metrics)


def lenient_figures(results: Results) -> dict[str, float]:
    """The main figures of the lenient reading; empty if the answers are not text."""
    metrics = results.metrics.get("lenient")
    return main_figures(stored_task(results), metrics) if metrics else {}


def all_figures(runs: Sequence[Results]) -> list[dict[str, float]]:
    """Each run's main figures by column name, and those of the lenient reading that differ from the strict in any run.

    Most are higher. An F1 can be lower: an answer that only the lenient reading reads may have wrong labels.
    """
    strict, lenient = [figures(run) for run in runs], [lenient_figures(run) for run in runs]
    differing = {name for own, more in zip(strict, lenient, strict=True) for name in more if more[name] != own[name]}
    return [
        own | {f"{name}, lenient": more[name] for name in more if name in differing}
        for own, more in zip(strict, lenient, strict=True)
    ]


def shared_figures(run: Results, other: Results) -> list[str]:
    """The main figures by which two runs can be compared."""
    theirs = figures(other)
    return [name for name in figures(run) if name in theirs and _is_shared(name, run, other)]


def _is_shared(name: str, run: Results, other: Results) -> bool:
    """Whether a figure that both runs have is of the same thing: an exact match is of all fields of a run."""
    return name.removesuffix(", lenient") != "exact match" or run.fields.keys() == other.fields.keys()


def comparison(runs: Sequence[Results]) -> tuple[list[str], list[Row]]:
    """Column names, and each run's name and cells: the main figures, then counts and costs."""
    found = all_figures(runs)
    columns = list(dict.fromkeys(name for own in found for name in own))
    columns.sort(key=lambda name: name.endswith(", lenient"))  # after all strict ones
    rows = []
    for run, own in zip(runs, found, strict=True):
        cells = [f"{own[name]:.1%}" if name in own else "" for name in columns]
        cells += [
            f"{run.metrics['n_examples']:,}",
            f"{run.metrics['n_unparsed']:,}",
            _cost(run, "seconds_per_example", ".4f"),
            _cost(run, "prompt_tokens", ".1f"),
            _cost(run, "computed_tokens", ".1f"),
            _cost(run, "new_tokens", ".1f"),
        ]
        rows.append((run.system, cells))
    return [*columns, *COUNTS_AND_COSTS], rows


def _cost(run: Results, name: str, form: str) -> str:
    return format(run.cost[name], form) if name in run.cost else ""


def show_comparison(runs: Sequence[Results]) -> None:
    """Print the comparison, with the counts and costs for which the terminal is wide enough."""
    tables, left_out = comparison_tables(runs, width())
    for table in tables:
        show(table)
    if left_out:
        say(f"The terminal is too narrow for: {', '.join(left_out)}.")


def comparison_tables(runs: Sequence[Results], available: int) -> tuple[list[Table], list[str]]:
    """The comparison for the terminal, without counts and costs of zero: several tables if one is too narrow.

    Each column's best figure is bold; of exact matches, the best among runs of the same fields.

    Args:
        available: characters in a line.

    Returns:
        The tables, each with the main figures for which it is wide enough; the counts and costs that are omitted
        because they do not fit into the last one.
    """
    columns, rows = comparison(runs)
    names = columns[: -len(COUNTS_AND_COSTS)]
    kept = [i for i, name in enumerate(columns) if name in names or any(cells[i].strip("0.") for _, cells in rows)]
    # Figures are never cut, but names are broken: a heading between words (one longer than a line, anywhere), a
    # system's name anywhere.
    systems = max(len(system) for system in (FIRST_COLUMN, *(system for system, _ in rows)))
    longest = available - _table_width([min(systems, SYSTEM_WIDTH), 0])
    numbers = {i: max(len(cells[i]) for _, cells in rows) for i in kept}
    widths = {i: max(numbers[i], min(longest, max(map(len, columns[i].split())))) for i in kept}
    if _table_width([systems, *(max(numbers[i], len(columns[i])) for i in kept)]) <= available:
        return [_comparison_table(runs, kept, {})], []
    parts, left_out = [kept[:1]], list[str]()
    for i in kept[1:]:
        wider = [min(systems, SYSTEM_WIDTH), *(widths[k] for k in (*parts[-1], i))]
        if not left_out and _table_width(wider) <= available:
            parts[-1].append(i)
        elif columns[i] in names:
            parts.append([i])
        else:
            left_out.append(columns[i])
    rest = available - max(_table_width([0, *(widths[i] for i in part)]) for part in parts)
    widths[-1] = max(1, min(systems, rest))
    return [_comparison_table(runs, part, widths) for part in parts], left_out


def _comparison_table(runs: Sequence[Results], kept: Sequence[int], widths: Mapping[int, int]) -> Table:
    """A table of some columns, by their places in `comparison`.

    Args:
        widths: characters of each of them, and of the systems' names at -1; empty: as many as there are.
    """
    columns, rows = comparison(runs)
    table = Table()
    table.add_column(FIRST_COLUMN, overflow="fold", width=widths.get(-1))
    for i in kept:
        table.add_column(literal(columns[i]), justify="right", overflow="fold", width=widths.get(i))
    rivals = list(zip(runs, all_figures(runs), strict=True))
    for (run, own), (system, cells) in zip(rivals, rows, strict=True):
        best = {
            name: max(theirs[name] for other, theirs in rivals if name in theirs and _is_shared(name, run, other))
            for name in own
        }
        marked = [
            literal(cells[i], "bold" if columns[i] in own and own[columns[i]] == best[columns[i]] else "") for i in kept
        ]
        table.add_row(literal(system), *marked)
    return table


def _table_width(columns: Sequence[int]) -> int:
    """Characters of a line of rich's table, whose columns have these widths: a border and spaces around each."""
    return sum(columns) + 3 * len(columns) + 1


def markdown(runs: Sequence[Results]) -> str:
    """The comparison as a Markdown table, with the notes below it."""
    columns, rows = comparison(runs)
    lines = [[FIRST_COLUMN, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[system, *cells] for system, cells in rows]
    table = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return table + "".join(f"\n{note}\n" for note in notes(runs))


def notes(runs: Sequence[Results]) -> list[str]:
    """What to know of the figures before they are compared: different examples, and examples that were trained on."""
    groups = _on_different_examples(runs)
    found = [f"note: scored on different examples: {'; '.join(groups)}."] if groups else []
    for run in runs:
        if run.split != "train" and (n := run.counts.get(TRAINED_ON, 0)):
            those = f"{n:,} of its {run.metrics['n_examples']:,} examples {'has' if n == 1 else 'have'}"
            found.append(f"note: {run.system}: {those} a text of the training (docs/scoring.md).")
    return found


def show_details(results: Results) -> None:
    """Print all figures of one run, under a line that says which run it is."""
    say(f"{results.system}: {results.task}, {results.data} {results.split}")
    show(details_table(results))


def details_table(results: Results) -> Table:
    """All figures of one run, grouped by field; counts and costs of zero are omitted."""
    table = Table("field", "figure", "value")

    def group(what: str, rows: Mapping[str, float | int | None]) -> None:
        for i, (name, value) in enumerate((k, v) for k, v in rows.items() if not _is_no_count(v)):
            table.add_row(literal("" if i else what), literal(figure_name(name)), show_figure(name, value))
        table.add_section()

    for field, own in results.metrics["fields"].items():
        per_label = own.get("per_label", {})
        group(field, {name: value for name, value in own.items() if name != "per_label"})
        for i, (label, scores) in enumerate(list(per_label.items())[:LABELS_SHOWN]):
            what = ", ".join(f"{name} {show_figure(name, value)}" for name, value in scores.items())
            table.add_row(literal("" if i else f"{field}, each label"), literal(label), literal(what))
        if len(per_label) > LABELS_SHOWN:
            table.add_row("", f"{len(per_label) - LABELS_SHOWN} more", f"in {RESULTS}")
        table.add_section()
    if len(results.fields) > 1:
        group("all fields", {"exact match": results.metrics["exact_match"]})
    if abstaining := results.metrics.get("abstaining"):
        given = f"given from {abstaining['below']} on"
        for field, own in abstaining["fields"].items():
            group(f"{field}, {given}", own)
        if len(abstaining["fields"]) > 1 or len(results.fields) > 1:
            group(f"all class fields {given}", {name: abstaining[name] for name in ("answered", "exact_match")})
    counts = {"scored": results.metrics["n_examples"], "with an unparsed field": results.metrics["n_unparsed"]}
    group("examples", counts | results.counts)
    if lenient := lenient_figures(results):
        unparsed = results.metrics["lenient"]["n_unparsed"]
        group("read leniently", lenient | {"examples with an unparsed field": unparsed})
    for i, (name, cost) in enumerate((name, cost) for name, cost in results.cost.items() if cost):
        unit = "" if name.startswith("seconds") else " per example"
        table.add_row("" if i else "cost", name.replace("_", " ") + unit, f"{cost:,.4g}")
    return table


def _is_no_count(value: float | int | None) -> bool:
    return isinstance(value, int) and value == 0


def figure_name(name: str) -> str:
    """The name of a figure of `Results.metrics` in tables."""
    return _NAMES.get(name, name.replace("_", " "))


def show_figure(name: str, value: float | int | None) -> str:
    """A figure as tables have it."""
    if value is None:
        return "no gold boundaries" if name.startswith("strict") else "none"
    if name.startswith("nll"):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2%}"


def lost_to(winner: Results, other: Results) -> dict[str, str]:
    """The main figures of both in which ``winner`` does not beat ``other``, with a sentence for each."""
    ours, theirs = figures(winner), figures(other)
    return {
        name: f"{name}: {winner.system} {ours[name]:.1%} does not beat {other.system} {theirs[name]:.1%}"
        for name in shared_figures(winner, other)
        if not ours[name] > theirs[name]
    }


def _named(runs: Sequence[Results], folders: Sequence[Path]) -> list[Results]:
    """The runs with names that differ: the folder follows a system's name that several have."""
    systems = [run.system for run in runs]
    return [
        replace(run, system=f"{run.system} ({folder})") if systems.count(run.system) > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def _on_different_examples(runs: Sequence[Results]) -> list[str]:
    """The runs with a common figure that were scored on different examples, in groups on the same ones."""
    groups: list[list[Results]] = []
    for run in runs:
        if any(shared_figures(run, other) and not _same_examples(run, other) for other in runs):
            for group in groups:
                if all(_same_examples(run, other) for other in group):
                    group.append(run)
                    break
            else:
                groups.append([run])
    return [f"{', '.join(run.system for run in own)}: {own[0].metrics['n_examples']:,} examples" for own in groups]


def _same_examples(run: Results, other: Results) -> bool:
    """Whether two runs were scored on the same examples, or texts if their tasks differ; of older files, as many."""
    is_one_task = (run.task, run.fields) == (other.task, other.fields)  # a task's file may have got a field since
    ours, theirs = ((r.examples if is_one_task else r.texts) for r in (run, other))
    if ours and theirs:
        return ours == theirs
    return bool(run.metrics["n_examples"] == other.metrics["n_examples"])


def _check_markdown(path: Path) -> None:
    """Check that a table can be written, and overwrites nothing but another table."""
    name = f"--markdown {path}"
    if path.is_dir():
        raise UserError(f"{name}: this is a folder. Give the name of a file.")
    if _is_device(path):
        return
    start = b""
    with writable(name, " Give another file."):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
        if path.exists():
            with path.open("rb") as file:
                start = file.read(len(TABLE_START))
    if start not in (b"", TABLE_START):
        raise UserError(f"{name} is a file that is no table of ours, and it would be overwritten. Give another name.")


def _is_device(path: Path) -> bool:
    """Whether a path is a device or a pipe, which is written as it is. A file is replaced by a complete one."""
    return path.exists() and not path.is_file()


def compare_command(*folders: Path) -> str:
    """The command that shows scored runs beside each other."""
    return command("eval.py", {"compare": folders})


def compare(
    folders: Sequence[Path],
    winner: Path | None = None,
    winner_figure: str | None = None,
    markdown_file: Path | None = None,
) -> bool:
    """Print the runs in one table. Optionally write it as Markdown, and check whether one run beats all others.

    Args:
        winner: the run that is expected to beat the others; None: no check.
        winner_figure: the figure that decides; None: all main figures. Other figures in which ``winner`` is not ahead
            are printed too.

    Returns:
        False if ``winner`` is given and does not beat every other run in the deciding figures.

    Raises:
        UserError: a folder is not a scored run, ``winner`` is not among the runs, lacks ``winner_figure``, shares no
            figure with another run, or was scored on other examples than one.
    """
    if markdown_file is not None:
        _check_markdown(markdown_file)
    runs = _named([read_results(folder) for folder in folders], folders)
    if winner is None and winner_figure is not None:
        raise UserError(f"--winner_figure {winner_figure!r} needs --winner, the run that should be ahead in it.")
    places, best = [folder_of(folder).resolve() for folder in folders], winner and folder_of(winner).resolve()
    if best is not None and best not in places:
        raise UserError(f"--winner {winner}: not among the compared runs ({', '.join(map(str, folders))}).")
    show_comparison(runs)
    for note in notes(runs):
        say(note)
    if markdown_file is not None:
        with writable(markdown_file):
            if _is_device(markdown_file):
                markdown_file.write_text(markdown(runs), encoding="utf-8")
            else:
                write_text(markdown_file.resolve(), markdown(runs))
        say(f"written to {markdown_file}")
    if best is None:
        return True
    expected = runs[places.index(best)]
    known = figures(expected)
    if winner_figure is not None and winner_figure not in known:
        raise UserError(f"--winner_figure {winner_figure!r}: {expected.system} has only {', '.join(known)}.")
    others = [run for run, place in zip(runs, places, strict=True) if place != best]
    if not others:
        raise UserError(f"--winner {winner}: no other run is compared with it.")
    compared: dict[str, list[str]] = {}  # systems, by the figures in which they were compared
    for other in others:
        shared = [name for name in shared_figures(expected, other) if winner_figure in (None, name)]
        if not shared:
            has = [name if _is_shared(name, expected, other) else f"{name} of other fields" for name in figures(other)]
            raise UserError(f"--winner {winner}: {other.system} has no such figure, only {', '.join(has)}.")
        what = "every figure" if len(shared) == len(known) and not winner_figure else ", ".join(shared)
        compared.setdefault(what, []).append(other.system)
    if apart := [other.system for other in others if not _same_examples(expected, other)]:
        raise UserError(
            f"--winner {winner}: {expected.system} was scored on other examples than {', '.join(apart)}, so their "
            "figures do not say which is better. Score both on the same examples: the same data, --split and --limit."
        )
    lost = [(name, line) for other in others for name, line in lost_to(expected, other).items()]
    for _, line in lost:
        say(line)
    ahead = not any(winner_figure in (None, name) for name, _ in lost)
    if ahead:
        beaten = "; ".join(f"{', '.join(systems)} in {what}" for what, systems in compared.items())
        say(f"{expected.system} beats {beaten}")
    return ahead
