"""What to use with few labelled texts: our fine-tuning with its defaults, against regressions on texts and embeddings.

    python -m benchmarks.few_labels --tasks reuters.toml scenarios.toml --encoder MINILM [--decoder SMOLLM2]

For each task, number of texts a label, and draw, every system learns from the same drawn training texts and labels the
same test texts:

    tfidf      TF-IDF + logistic regression, as `python -m eval.baselines`
    frozen     logistic regression of scikit-learn on the encoder's embeddings: the mean of its tokens, of length 1
    states     the same on the decoder's states after four fifths of its layers: the mean of its tokens, standardized
    repeated   the same, where it has read the text twice and is asked for its topic: on the mean of both readings and
               on the question's last token
    setfit     SetFit with its defaults, on the same encoder, with the Python of ``--setfit`` that has it
    setfit20   SetFit with 20 pairs of equal and 20 of unequal labels for each text, as in its paper; by default it
               takes all pairs, whose number grows with the square of the texts
    heads      train.py --model bert --steps 0: its heads alone, fitted to the encoder as it is
    encoder    train.py --model bert, with the defaults for a task of one's own
    decoder    train.py --model smollm2_135m, the same
    fitted     train.py --model llama_heads --steps 0: the decoder's heads alone
    headed     train.py --model llama_heads, with the defaults

Ours run as a user would run them. Each finished run is a line of ``--work``/runs.jsonl, with its seconds. The same
command goes on where it was interrupted; tasks, systems and draws may be added.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import ROOT, load_average, run_program, say, table, write_result
from benchmarks.embeddings import embed, read_twice
from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.tasks import ClassField, Task, get_task
from eval.baselines import tfidf_lr

SYSTEMS = {
    "tfidf": "TF-IDF + logistic regression",
    "frozen": "frozen encoder + logistic regression",
    "states": "frozen decoder + logistic regression",
    "repeated": "frozen decoder, text twice and a question",
    "setfit": "SetFit, its defaults",
    "setfit20": "SetFit, `num_iterations=20`",
    "heads": "encoder, its heads alone (`--steps 0`)",
    "encoder": "encoder, fine-tuned here",
    "decoder": "decoder, fine-tuned here",
    "fitted": "decoder with heads, these alone (`--steps 0`)",
    "headed": "decoder with heads, fine-tuned here",
    "vote": "vote of five decoders, fine-tuned here",
}
VOTERS = 5
SETFIT = """
import csv, json, sys
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
folder, output, encoder, seed, iterations = sys.argv[1:]
read = lambda name: list(csv.DictReader(open(f"{folder}/{name}.csv", encoding="utf-8", newline="")))
train, test = read("train"), read("test")
model = SetFitModel.from_pretrained(encoder, labels=sorted({row["label"] for row in train}))
data = Dataset.from_dict({key: [row[key] for row in train] for key in ("text", "label")})
how = TrainingArguments(output_dir=output, seed=int(seed), num_iterations=int(iterations) or None)
Trainer(model, how, train_dataset=data).train()
print(json.dumps([str(label) for label in model.predict([row["text"] for row in test])]))
"""


@dataclass
class Args:
    """Compare what can be learned from few labelled texts."""

    tasks: list[str]
    """TOML files of tasks with one class field."""
    encoder: Path
    """Folder of a BERT that embeds sentences by their mean."""
    work: Path
    """Folder for the runs; the same folder continues them."""
    decoder: Path | None = None
    """Converted SmolLM2 folder, for the systems states, repeated, decoder, fitted, headed and vote."""
    setfit: Path | None = None
    """A Python interpreter with the package setfit, for the system setfit."""
    systems: list[str] = field(default_factory=lambda: ["tfidf", "frozen", "heads", "encoder"])
    """Which of tfidf, frozen, states, repeated, setfit, setfit20, heads, encoder, decoder, fitted, headed, vote."""
    per_label: list[int] = field(default_factory=lambda: [8, 16, 64])
    """Training texts of each label; of a label that has fewer, all."""
    draws: int = 5
    """Draws of the training texts."""
    test: int = 1000
    """Test texts, the same for all."""
    other_test: bool = False
    """Take other test texts than those whose figures the pages have: for choosing settings."""
    jobs: int = 1
    """Runs at the same time. Their seconds then say little."""
    words: int | None = None
    """Cut the texts to so many words, for all systems; default: whole texts. White space becomes single spaces."""
    train_options: str = ""
    """More options for train.py, as one string: ``--train_options='--lr 2e-5'``."""
    output: Path | None = None
    """Result file; default benchmarks/results/few_labels.md."""


@dataclass(frozen=True)
class Drawn:
    """The texts of one run, and the folder in which they are written as CSV files with a task file."""

    folder: Path
    task: Task
    train: list[Example]
    test: list[Example]
    n: int
    seed: int

    @property
    def file(self) -> Path:
        return self.folder / "task.toml"

    @property
    def key(self) -> tuple[str, int, int]:
        return self.task.name, self.n, self.seed

    @property
    def name(self) -> str:
        """The one field's."""
        return self.task.fields[0].name

    @property
    def gold(self) -> list[str]:
        return [example.class_label(self.name) for example in self.test]


def draw(args: Args, path: str, n: int, seed: int) -> Drawn:
    """Draw training texts of each label, and the test texts, and write them down."""
    task = get_task(path)
    if len(task.fields) != 1 or not isinstance(task.fields[0], ClassField):
        raise UserError(f"{path}: this benchmark needs a task with one class field.")
    name, rng = task.fields[0].name, random.Random(seed)
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in load_examples(task, "train", None):
        by_label[example.class_label(name)].append(example)
    train = [
        example for label in sorted(by_label) for example in rng.sample(by_label[label], min(n, len(by_label[label])))
    ]
    test = load_examples(task, "test", None)
    chosen = random.Random(0).sample(test, min(args.test, len(test)))
    if args.other_test:
        ids = {example.id for example in chosen}
        rest = [example for example in test if example.id not in ids]
        chosen = random.Random(1).sample(rest, min(args.test, len(rest)))
    test = chosen
    folder = args.work / task.name / f"{n}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, examples in (("train", train), ("test", test)):
        with (folder / f"{file}.csv").open("w", encoding="utf-8", newline="") as stream:
            rows = [[" ".join(e.text.split()[: args.words]), e.class_label(name)] for e in examples]
            csv.writer(stream).writerows([["text", "label"], *rows])
    texts = "".join(json.dumps({"text": " ".join(e.text.split()[: args.words])}) + "\n" for e in test)
    (folder / "test.jsonl").write_text(texts, encoding="utf-8")
    (folder / "task.toml").write_text(
        f'name = "{task.name}"\n[files]\ntrain = "train.csv"\ntest = "test.csv"\n'
        '[[fields]]\nname = "label"\ntype = "class"\nlabels_from = "train"\n'
    )
    own = get_task(str(folder / "task.toml"))
    return Drawn(folder, own, load_examples(own, "train", None), load_examples(own, "test", None), n, seed)


def tfidf(args: Args, drawn: Drawn) -> list[str]:
    return [str(labels[drawn.name]) for labels in tfidf_lr(drawn.task, drawn.train, drawn.test, drawn.seed)]


def frozen(args: Args, drawn: Drawn) -> list[str]:
    embedded = [embed(args.encoder, tuple(e.text for e in examples)) for examples in (drawn.train, drawn.test)]
    labels = [example.class_label(drawn.name) for example in drawn.train]
    return [str(x) for x in LogisticRegression(max_iter=1000).fit(embedded[0], labels).predict(embedded[1])]


def states(args: Args, drawn: Drawn) -> list[str]:
    assert args.decoder is not None
    texts = [tuple(e.text for e in examples) for examples in (drawn.train, drawn.test)]
    train, test = (embed(args.decoder, some, decoder=True) for some in texts)
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    labels = [example.class_label(drawn.name) for example in drawn.train]
    return [str(x) for x in regression.fit(train.numpy(), labels).predict(test.numpy())]


def repeated(args: Args, drawn: Drawn) -> list[str]:
    assert args.decoder is not None
    train, test = (read_twice(args.decoder, tuple(e.text for e in examples)) for examples in (drawn.train, drawn.test))
    inputs, width = [some.flatten(1).numpy() for some in (train, test)], train[0].numel()
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=3 / width, max_iter=1000))
    labels = [example.class_label(drawn.name) for example in drawn.train]
    return [str(x) for x in regression.fit(inputs[0], labels).predict(inputs[1])]


def setfit(args: Args, drawn: Drawn, iterations: int = 0) -> list[str]:
    output = drawn.folder / f"setfit{iterations}"
    words = [str(drawn.folder), str(output), str(args.encoder.resolve()), str(drawn.seed), str(iterations)]
    done = subprocess.run([str(args.setfit), "-c", SETFIT, *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"setfit failed:\n{done.stderr[-2000:]}")
    shutil.rmtree(output, ignore_errors=True)  # checkpoints
    return json.loads(done.stdout.splitlines()[-1])


def setfit20(args: Args, drawn: Drawn) -> list[str]:
    return setfit(args, drawn, 20)


def heads(args: Args, drawn: Drawn) -> list[str]:
    return ours(args, drawn, "heads", "bert", args.encoder, "--steps", "0")


def encoder(args: Args, drawn: Drawn) -> list[str]:
    return ours(args, drawn, "bert", "bert", args.encoder)


def decoder(args: Args, drawn: Drawn) -> list[str]:
    assert args.decoder is not None
    return ours(args, drawn, "smollm2", "smollm2_135m", args.decoder)


def fitted(args: Args, drawn: Drawn) -> list[str]:
    assert args.decoder is not None
    return ours(args, drawn, "fitted", "llama_heads", args.decoder, "--steps", "0")


def headed(args: Args, drawn: Drawn) -> list[str]:
    assert args.decoder is not None
    return ours(args, drawn, "headed", "llama_heads", args.decoder)


def vote(args: Args, drawn: Drawn) -> list[str]:
    """The labels whose probabilities, over trainings with other seeds, add up to most."""
    assert args.decoder is not None
    labels = []
    voters = [answers(args, drawn, f"vote{seed}", "smollm2_135m", args.decoder, seed) for seed in range(VOTERS)]
    for rows in zip(*voters, strict=True):
        sums: dict[str, float] = defaultdict(float)
        for row in rows:
            sums[row["predicted_label"]] += row["predicted_label_probability"]
        labels.append(max(sums, key=sums.__getitem__))
    return labels


def ours(args: Args, drawn: Drawn, name: str, model: str, checkpoint: Path, *options: str) -> list[str]:
    return [row["predicted_label"] for row in answers(args, drawn, name, model, checkpoint, drawn.seed, *options)]


def answers(
    args: Args, drawn: Drawn, name: str, model: str, checkpoint: Path, seed: int, *options: str
) -> list[dict[str, Any]]:
    """Train, label the test texts, and return the rows of the output."""
    run, output = drawn.folder / name, drawn.folder / f"{name}.jsonl"
    output.unlink(missing_ok=True)
    common = ["--model", model, "--task", str(drawn.file), "--save_every", "0", "--seed", str(seed)]
    more = [*options, *args.train_options.split(), "--resume", "auto", "--output", str(run)]
    texts = drawn.folder / "test.jsonl"
    for script, words in (
        ("train.py", [*common, "--checkpoint", str(checkpoint), *more]),
        ("predict.py", ["--checkpoint", str(run / "export"), "--input", str(texts), "--output", str(output)]),
    ):
        done = subprocess.run([sys.executable, script, *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{script} failed in {drawn.folder}:\n{done.stderr[-2000:]}")
    lines = output.read_text(encoding="utf-8").splitlines()
    shutil.rmtree(run)  # checkpoints and export: up to 3 GB, of every run
    return [json.loads(line) for line in lines]


RUN: dict[str, Callable[[Args, Drawn], list[str]]] = {
    "tfidf": tfidf, "frozen": frozen, "states": states, "repeated": repeated, "setfit": setfit, "setfit20": setfit20,
    "heads": heads, "encoder": encoder, "decoder": decoder, "fitted": fitted, "headed": headed, "vote": vote,
}  # fmt: skip


def run(args: Args, argv: list[str]) -> None:
    load, args.work = load_average(), args.work.resolve()
    unknown = [system for system in args.systems if system not in RUN]
    if unknown:
        raise UserError(f"--systems {' '.join(unknown)}: expected some of {', '.join(RUN)}.")
    needed = {"setfit": "setfit", "setfit20": "setfit"} | dict.fromkeys(
        ("states", "repeated", "decoder", "fitted", "headed", "vote"), "decoder"
    )
    for system, option in needed.items():
        if system in args.systems and getattr(args, option) is None:
            raise UserError(f"system {system} needs --{option}.")
    args.work.mkdir(parents=True, exist_ok=True)
    same = {key: getattr(args, key) for key in ("words", "test", "other_test", "train_options")}
    same["encoder"] = str(args.encoder)
    settings = args.work / "settings.json"
    if settings.exists() and (found := json.loads(settings.read_text())) != same:
        raise UserError(f"{args.work} has runs of other settings: {found}, not {same}. Name another --work.")
    settings.write_text(json.dumps(same))
    file = args.work / "runs.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    finished = {(r["task"], r["n"], r["draw"], r["system"]) for r in done}
    # Each folder is written once, before any of its systems runs.
    drawn = [draw(args, path, n, seed) for seed in range(args.draws) for path in args.tasks for n in args.per_label]
    left = [(d, system) for d in drawn for system in args.systems if (*d.key, system) not in finished]
    pool, failed = ThreadPoolExecutor(args.jobs), []
    try:
        for future in as_completed([pool.submit(measure, args, *one) for one in left]):
            try:
                found = future.result()
            except UserError as error:
                failed.append(str(error))
                say(failed[-1])
                continue
            done.append(found)
            say(json.dumps(found))
            with file.open("a") as stream:
                stream.write(json.dumps(found) + "\n")
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(left)} runs failed; the same command tries them again. {failed[0]}")
    asked = [r for r in done if r["system"] in args.systems and r["n"] in args.per_label and r["draw"] < args.draws]
    names = [get_task(path).name for path in args.tasks]
    body = "\n\n".join(report(name, [r for r in asked if r["task"] == name]) for name in names)
    write_result("few_labels", "Few labelled texts", body, argv, args.output, load)


def measure(args: Args, drawn: Drawn, system: str) -> dict[str, Any]:
    begin = time.perf_counter()
    answers = RUN[system](args, drawn)
    seconds = time.perf_counter() - begin
    right = sum(a == b for a, b in zip(answers, drawn.gold, strict=True))
    task, n, seed = drawn.key
    return {"task": task, "n": n, "draw": seed, "system": system, "seconds": seconds, "texts": len(drawn.train),
            "accuracy": 100 * right / len(drawn.gold)}  # fmt: skip


def report(name: str, done: list[dict[str, Any]]) -> str:
    """A task's table of mean accuracies, with the draws' standard deviation."""
    amounts = sorted({r["n"] for r in done})
    rows = []
    for system in (key for key in SYSTEMS if any(r["system"] == key for r in done)):
        cells = []
        for n in amounts:
            found = [r["accuracy"] for r in done if r["system"] == system and r["n"] == n]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread} ({len(found)})" if found else "not run")
        rows.append([SYSTEMS[system], *cells])
    texts = ", ".join(f"{n} a label are {max(r['texts'] for r in done if r['n'] == n):,}" for n in amounts)
    header = ["accuracy in %: mean ± standard deviation (draws)", *(f"{n} a label" for n in amounts)]
    return f"## {name}\n\nTraining texts: {texts}.\n\n{table(header, rows)}"


def main(argv: list[str] | None = None) -> int:
    return run_program("few_labels", Args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
