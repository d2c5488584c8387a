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


def test_few_shot_examples_have_a_choice_and_a_seed_of_their_own() -> None:
    task = TASKS["massive_intent"]
    everything = load_examples(task, "train", "sample")
    ids = (everything[9].id, everything[2].id)
    for given, wanted in (
        (dict(shots=5, shots_seed=4), choose_shots(everything, task, 5, seed=4)),
        (dict(shots=5, shots_choice="random"), choose_shots(everything, task, 5, 3, "random")),
        (dict(shots_choice="ids", shot_ids=ids), [everything[9], everything[2]]),
    ):
        _, shots, rest = divide(everything, task, options.build(TrainConfig, [dict(seed=3), given]))
        assert shots == wanted and not {shot.id for shot in shots} & {example.id for example in rest}


def test_ids_of_examples_are_saved_with_the_options() -> None:
    config = options.build(TrainConfig, [dict(shots_choice="ids", shot_ids=("a", "b c"))])
    assert 'shot_ids = ["a", "b c"]' in options.to_toml(config)
