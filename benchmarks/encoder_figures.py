"""Fine-tune an encoder on single tasks and on their joint task, and compare the scores.

    python -m benchmarks.encoder_figures --checkpoint PATH --massive PATH --newsgroups PATH

For each task this runs `train.py` (by default with the paper's recipe) and `eval.py` on the complete test split. In
``--output``, ``<task>`` is the training run and ``<task>_after`` its scores. The two single runs of a joint task are
combined (the paper's "dual" pair). TF-IDF with logistic regression is scored on the same data.

Finished stages are kept and an interrupted training is resumed. ``--tabulate`` starts nothing and only tabulates the
finished stages.
"""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.common import RESULTS, ROOT, say, table, write_result
from benchmarks.finetune import call, read_log, run_once, train_once
from data.command_line import cli
from data.errors import UserError
from eval.combine import combine
from eval.report import figures
from eval.results import Results, read_results

# Joint task -> the single tasks that together answer the same.
PARTS = {"massive_joint": ("massive_intent", "massive_slots"), "20ng_joint": ("20ng_7", "20ng_20")}
BASELINE = "tfidf_lr"


@dataclass
class Options:
    """Train, score and compare an encoder on single tasks and on their joint task."""

    checkpoint: Path | None = None
    """Hugging Face folder of a RoBERTa or BERT encoder; not needed with --tabulate."""
    model: str = "bert"
    """Its architecture or preset."""
    tasks: list[str] = field(default_factory=lambda: ["massive_joint", "massive_intent", "massive_slots"])
    """The tasks, in this order."""
    massive: str = "sample"
    """MASSIVE: a file or folder of the release, or 'sample'."""
    newsgroups: str = "sample"
    """20 Newsgroups: a file or folder of the release, or 'sample'."""
    epochs: float | None = None
    """Passes over the training split; default: the paper's, 20 on MASSIVE and 10 on 20 Newsgroups."""
    lr: float | None = None
    """Peak learning rate; default: the paper's, 1e-5."""
    max_length: int | None = None
    """Longest document in tokens; default: the paper's, 512."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of compute, in training and scoring."""
    train_torchrun: int = 1
    """Ranks to train on."""
    tabulate: bool = False
    """Start nothing; tabulate the finished runs."""
    prefix: list[str] = field(default_factory=lambda: [""])
    """Run folders are named <prefix><task>; --tabulate accepts several prefixes, to compare recipes."""
    output: Path = ROOT / "runs" / "encoder_figures"
    """Folder of the runs."""
    plot: bool = False
    """Draw the loss curves into a PNG next to the result file."""
    result: Path | None = None
    """Result file; default benchmarks/results/encoder_figures.md."""

    def data(self, task: str) -> str:
        return self.massive if task.startswith("massive") else self.newsgroups


@dataclass(frozen=True)
class Run:
    """One task fine-tuned with one recipe, and the folders of its training and scores."""

    output: Path
    prefix: str
    task: str

    @property
    def folder(self) -> Path:
        return self.output / f"{self.prefix}{self.task}"

    @property
    def scores(self) -> Path:
        return self.output / f"{self.prefix}{self.task}_after"

    @property
    def recipe(self) -> str:
        """Epochs and peak learning rate, from the run's configuration."""
        config = tomllib.loads((self.folder / "config.toml").read_text())
        train = config["train"]
        length = f"{train['epochs']:g} epochs" if "epochs" in train else f"{train['steps']} steps"
        return f"{length} at {config['optim']['lr']:g}"


def main() -> None:
    options = cli(Options, description=__doc__)
    if not options.tabulate:
        if len(options.prefix) > 1:
            raise UserError("several --prefix are for --tabulate: train one recipe at a time.")
        if options.checkpoint is None:
            raise UserError("no --checkpoint given: the folder with the encoder to fine-tune.")
        for task in options.tasks:
            train_and_score(options, Run(options.output, options.prefix[0], task))
        for task in [name for name in options.tasks if name in PARTS]:
            score_baseline(options, task)
    output = options.result or RESULTS / "encoder_figures.md"
    body = report(options)
    if options.plot:
        draw(options, output.with_suffix(".png"))
        body += f"\n\n![Training loss by step]({output.with_suffix('.png').name})"
    write_result(
        "encoder_figures", "An encoder on single tasks and on joint ones", body, sys.argv[1:], output, load=None
    )


def train_and_score(options: Options, run: Run) -> None:
    task, precision = run.task, options.precision
    common = ["--model", options.model, "--task", task, "--data", options.data(task), "--precision", precision]
    chosen = {"epochs": options.epochs, "lr": options.lr, "max_length": options.max_length}
    given = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", str(value))]
    train_once(run.folder, [*common, "--checkpoint", str(options.checkpoint), *given], options.train_torchrun)
    run_once(run.scores, [*common, "--checkpoint", str(run.folder / "export")])


def score_baseline(options: Options, task: str) -> None:
    folder = options.output / f"baselines_{task}"
    if (folder / BASELINE / "results.json").is_file():
        say(f"{folder.name}: scored before")
        return
    arguments = ["--task", task, "--data", options.data(task), "--output", str(folder)]
    call([sys.executable, "-m", "eval.baselines", *arguments])


# --- the report -------------------------------------------------------------------------------------------------------


def finished(options: Options) -> list[Run]:
    """The runs that have been trained and scored.

    Raises:
        UserError: nothing is finished yet.
    """
    runs = [Run(options.output, prefix, task) for prefix in options.prefix for task in options.tasks]
    found = [run for run in runs if (run.scores / "results.json").is_file()]
    if not found:
        raise UserError(f"nothing in {options.output} is finished: no {runs[0].scores}.")
    return found


def report(options: Options) -> str:
    """The figures as Markdown: scores data set by data set, then how each run was trained."""
    done, parts = finished(options), []
    for joint, singles in PARTS.items():
        rows = [
            (f"{'joint' if run.task == joint else 'single'}: {run.task}, {run.recipe}", read_results(run.scores))
            for run in done
            if run.task in (joint, *singles)
        ]
        if rows:
            parts.append(scores_table(joint, [*rows, *dual_and_baseline(options, joint, done)]))
    parts.append(training_table(done))
    return "\n\n".join(parts)


def dual_and_baseline(options: Options, joint: str, done: list[Run]) -> list[tuple[str, Results]]:
    """The rows that follow an encoder's runs: dual pairs and the baseline, as far as they are finished."""
    found = []
    for prefix in options.prefix:
        pair = [run for run in done if run.prefix == prefix and run.task in PARTS[joint]]
        if len(pair) == len(PARTS[joint]):
            folder = options.output / f"{prefix}dual_{joint}"
            if not (folder / "results.json").is_file():
                combine(*(run.scores for run in pair), folder)
            found.append((f"dual: the two single ones, {pair[0].recipe}", read_results(folder)))
    baseline = options.output / f"baselines_{joint}" / BASELINE
    if (baseline / "results.json").is_file():
        results = read_results(baseline)
        found.append((results.system, results))
    return found


def scores_table(joint: str, rows: list[tuple[str, Results]]) -> str:
    """One data set's runs, with a column for each figure; a field that a run does not answer is empty."""
    names = list(dict.fromkeys(name for _, run in rows for name in figures(run)))
    cells = []
    for label, run in rows:
        own, seconds = figures(run), run.cost.get("seconds_per_example")
        cells.append([
            label, *(f"{own[name]:.1%}{strict_f1(run, name)}" if name in own else "" for name in names),
            "" if seconds is None else f"{seconds:.4f}",
        ])  # fmt: skip
    header = ["", *(f"{name} (strict)" if name.endswith(" f1") else name for name in names), "seconds / example"]
    n = {run.metrics["n_examples"] for _, run in rows}
    assert len(n) == 1, f"runs of {joint} were scored on different numbers of examples: {n}"
    return f"**{joint.partition('_')[0]}**, all {n.pop():,} examples of the test split:\n\n{table(header, cells)}"


def strict_f1(run: Results, name: str) -> str:
    """The strict F1 in brackets after a slots F1; empty for other figures and for data without gold brackets."""
    value = run.metrics["fields"][name.removesuffix(" f1")]["strict_f1"] if name.endswith(" f1") else None
    return "" if value is None else f" ({value:.1%})"


def training_table(done: list[Run]) -> str:
    """The recipe of each run, its loss by quarter of the run, and its speed."""
    rows = []
    for run in done:
        config = tomllib.loads((run.folder / "config.toml").read_text())
        steps, seconds, _, losses = read_log(run.folder / "log.jsonl")
        size = max(1, len(losses) // 4)
        quarters = [losses[i * size : (i + 1) * size] for i in range(4)]
        last = losses[-max(1, len(losses) // 20) :]
        stopped = plateau_step(run.folder / "log.jsonl")
        rows.append([
            f"{run.task}, {run.recipe}", config["batch"].get("max_length", ""), config["train"]["precision"],
            f"{steps:,} x {config['batch']['batch_size']}", ", ".join(f"{sum(q) / len(q):.3f}" for q in quarters if q),
            f"{sum(last) / len(last):.3f}", "never" if stopped is None else f"at step {stopped:,}",
            f"{seconds / 60:.0f}", f"{steps * config['batch']['batch_size'] / seconds:.0f}",
        ])  # fmt: skip
    header = ["trained", "max length", "compute", "steps x samples", "mean loss by quarter", "of the last 5%",
              "loss stopped falling", "minutes", "examples/s"]  # fmt: skip
    return (
        "How they were trained, with linear decay. A joint run's loss is the sum of its fields'; minutes and "
        f"examples/s are those of a machine with other work to do.\n\n{table(header, rows)}"
    )


def plateau_step(path: Path) -> int | None:
    """The step at which the loss stopped falling according to the log (`train.metrics.Plateau`)."""
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next((event["step"] for event in events if event.get("event") == "plateau"), None)


def draw(options: Options, path: Path) -> None:
    """Plot each run's training loss by epoch, averaged over a fiftieth of the run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for run in finished(options):
        records = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        steps = {record["step"]: record for record in records if "loss" in record and "lr" in record}
        ordered = [steps[n] for n in sorted(steps)]
        size = max(1, len(ordered) // 50)
        groups = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
        axes.plot([group[-1]["epoch"] for group in groups], [sum(r["loss"] for r in g) / len(g) for g in groups],
                  label=f"{run.task}, {run.recipe}")  # fmt: skip
    axes.set(xlabel="epoch", ylabel="training loss (sum of the fields')", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
