"""The report of encoder runs on single and joint tasks: the commands it runs parse, and it says what they found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import encoder_figures, finetune
from benchmarks.encoder_figures import Options, Run, finished, report, train_and_score
from data.errors import UserError
from data.source import load_examples
from data.tasks import get_task
from eval.metrics import compute_metrics
from eval.resolve import load_config as eval_config
from eval.results import Prediction, Results, field_kinds, write_run
from train.resolve import load_config as train_config


def test_commands_are_the_papers_recipe_unless_told_otherwise(tmp_path: Path, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(finetune, "call", commands.append)
    options = Options(checkpoint=Path("minilm"), output=tmp_path)
    train_and_score(options, Run(tmp_path, "", "massive_slots"))
    train_and_score(replace(options, epochs=3, lr=5e-5, max_length=128), Run(tmp_path, "", "20ng_joint"))
    (train, score, short, _) = (command[2:] for command in commands)
    config = train_config(train)
    assert (config.train.epochs, config.optim.lr, config.batch.max_length) == (20, 1e-5, None)
    assert config.checkpoint.output == tmp_path / "massive_slots"
    config = train_config(short)
    assert (config.train.epochs, config.optim.lr, config.batch.max_length) == (3, 5e-5, 128)
    scored = eval_config(score)
    assert (scored.checkpoint, scored.output) == (tmp_path / "massive_slots/export", tmp_path / "massive_slots_after")


def write_task(folder: Path, task_name: str, n_right: int) -> None:
    """A finished run, as train.py and eval.py leave it, whose first ``n_right`` of eight answers are right."""
    task = get_task(task_name)
    examples = load_examples(task, "test", "sample")[:8]
    wrong = {f.name: "no such label" for f in task.fields}
    predictions = [
        Prediction(e.id, {f.name: e.labels[f.name] for f in task.fields}, "",
                   {f.name: e.labels[f.name] for f in task.fields} if i < n_right else
                   {name: ("Other",) * len(e.words) if name == "slots" else "x" for name in wrong}, gold_bio=e.bio)
        for i, e in enumerate(examples)
    ]  # fmt: skip
    metrics = compute_metrics(task, examples, predictions)
    results = Results(task_name, task_name, field_kinds(task), "sample", "test", metrics, model="bert",
                      cost={"seconds_per_example": 0.0025})  # fmt: skip
    write_run(folder / f"{task_name}_after", results, predictions)
    run = folder / task_name
    run.mkdir()
    run.joinpath("config.toml").write_text(
        '[batch]\nbatch_size = 4\nmax_length = 99\n[optim]\nlr = 1e-05\n[train]\nepochs = 20.0\nprecision = "bf16"\n'
    )
    steps = [{"step": n, "epoch": n / 2, "loss": 8.0 / n, "lr": 1e-5, "examples": 4, "examples_per_second": 2.0,
              "real_tokens": 9, "time": 100.0 + 2 * n} for n in range(1, 9)]  # fmt: skip
    lines = [*steps[:6], {"event": "plateau", "step": 6, "time": 112.0}, *steps[6:]]
    run.joinpath("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_single_dual_and_joint_stand_in_one_table(tmp_path: Path) -> None:
    options = Options(output=tmp_path)
    with pytest.raises(UserError, match="nothing in .* is finished"):
        finished(options)
    for task, n_right in (("massive_joint", 6), ("massive_intent", 4)):
        write_task(tmp_path, task, n_right)
    assert "dual" not in report(options)
    write_task(tmp_path, "massive_slots", 2)
    lines = report(options).splitlines()
    (joint,) = [line for line in lines if line.startswith("| joint: massive_joint")]
    (dual,) = [line for line in lines if line.startswith("| dual")]
    (intent,) = [line for line in lines if line.startswith("| single: massive_intent")]
    assert "75.0%" in joint and "0.0025" in joint
    assert "| 50.0% |  |  | 0.0025 |" in intent
    assert "| 50.0% |" in dual and dual.endswith("| 0.0050 |")
    (trained,) = [line for line in lines if line.startswith("| massive_slots, 20 epochs at 1e-05 |")]
    # by quarter of 8, 4, 2.667, 2, ...; 4 examples in 2 seconds
    assert "| 99 | bf16 | 8 x 4 | 6.000, 2.333, 1.467, 1.071 | 1.000 | at step 6 |" in trained
    assert trained.endswith("| 2 |")


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    write_task(tmp_path, "massive_intent", 4)
    encoder_figures.draw(Options(output=tmp_path), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
