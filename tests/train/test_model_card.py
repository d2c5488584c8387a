"""The model card of an export, whichever start of the run has written it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from checkpoints_tools.checksums import write_checksums
from data.tasks import ClassField
from tests.train.scripted_scorer import ScriptedScorer
from train.checkpointing.checkpoint import RUN_FILE, steps_in
from train.model_card import _field_row
from train.resolve import load_config
from train.scorer import HeldOutScore
from train.setup import open_run
from train.trainer import Trainer


@pytest.mark.parametrize("older", [False, True])
def test_a_start_that_only_exports_has_the_held_out_figures(
    older: bool, world, train_args: list[str], tmp_path: Path
) -> None:
    run, scores = tmp_path / "run", iter([0.25, 0.75])
    args = [*train_args, "--holdout", "0.25", "--eval_every", "3", "--save_every", "3"]

    def start(*more: str) -> str:
        config = load_config([*args, *more])
        scorer = ScriptedScorer(lambda model, stop: HeldOutScore({"accuracy": next(scores)}, 0.5))
        Trainer(config, open_run(config), world, scorer).run()
        return (run / "export/README.md").read_text()

    card = start()
    assert "On 6 training examples that were held out:\n" in card and "| accuracy | 75.0% |" in card
    shutil.rmtree(run / "export")
    if older:
        newest = steps_in(run / "checkpoints")[-1]
        record = json.loads((newest / RUN_FILE).read_text())
        assert record.pop("figures") == {"accuracy": 0.75}
        (newest / RUN_FILE).write_text(json.dumps(record))
        write_checksums(newest)
        start("--resume")
        figures = "6 training examples were held out; the run's `log.jsonl` has their figures.\n"
        assert f"## Figures\n\n{figures}" in (run / "export/README.md").read_text()
        assert '"accuracy": 0.75' in (run / "log.jsonl").read_text()
    else:
        assert start("--resume") == card


@pytest.mark.parametrize(("label", "written"), [("plain", "`plain`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```")])
def test_a_label_is_code_whatever_its_backticks(label: str, written: str) -> None:
    assert _field_row(ClassField("kind", (label,))) == ["kind", "text", f"1: {written}"]


def test_without_held_out_examples_the_card_says_so(world, train_args: list[str], tmp_path: Path) -> None:
    config = load_config(train_args)
    Trainer(config, open_run(config), world).run()
    assert "No example was held out of the training." in (tmp_path / "run/export/README.md").read_text()
