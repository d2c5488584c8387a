"""How the training split is divided."""

from __future__ import annotations

from data.decoder.fewshot import choose_shots
from data.source import load_examples
from data.tasks import TASKS
from train import options
from train.config import TrainConfig
from train.setup import divide


def test_holding_out_changes_no_few_shot_examples() -> None:
    """Scored before fine-tuning, a model gets the shots of the whole split: fine-tuning has to show the same."""
    task = TASKS["massive_intent"]
    everything = load_examples(task, "train", "sample")
    whole = choose_shots(everything, task, 5, seed=3)
    config = options.build(TrainConfig, [dict(shots=5, seed=3, holdout=0.5, eval_every=1)])
    held_out, shots, rest = divide(everything, task, config)
    assert shots == whole
    assert held_out and rest
    parts = [example.id for part in (held_out, shots, rest) for example in part]
    assert sorted(parts) == sorted(example.id for example in everything), "each example is in one part"
