"""How the training split is divided, and how often a step takes it."""

from __future__ import annotations

import pytest

from data.decoder.fewshot import choose_shots
from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS, get_task
from tests.launching import ROOT
from train import options
from train.config import TrainConfig
from train.config_file import to_toml
from train.resolve import load_config
from train.setup import open_run
from train.training_data import count_steps, describe_few, divide


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
    assert 'shot_ids = ["a", "b c"]' in to_toml(config)


def test_a_step_that_takes_the_data_several_times_says_so(
    train_args: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def said(*more: str) -> str:
        caplog.clear()
        setup = open_run(load_config([*train_args, *more]))
        steps = setup.loader.batch_size / setup.loader.units_per_epoch
        assert ("a step of --batch_size" in caplog.text) == (steps > 1)
        return caplog.text

    # 24 samples of about 70 tokens fill 2 rows of 1024.
    text = said("--batch_unit", "rows", "--batch_size", "8")
    assert (
        "a step of --batch_size 8 rows takes the 24 training samples, which fill 2 row(s) of --row_length 1024, "
        in text
    )
    assert "4.0 times. Set --batch_size to 2 or less, a smaller --row_length, or --batch_unit samples." in text
    assert "times" not in said("--batch_unit", "rows", "--batch_size", "2")
    text = said("--batch_size", "60")
    assert (
        "a step of --batch_size 60 samples takes the 24 training samples 2.5 times. Set --batch_size to 24 or" in text
    )
    assert "times" not in said("--batch_size", "24")


def test_a_warm_up_is_shorter_than_the_run(train_args: list[str]) -> None:
    """The steps of epochs are known when the data are: here 6."""
    steps = train_args.index("--steps")
    more = "--epochs 1 --batch_unit samples --batch_size 4 --warmup_steps".split()
    some = [*train_args[:steps], *train_args[steps + 2 :], *more]
    with pytest.raises(UserError, match="^warmup_steps = 6 must be less than the 6 steps of the run.$"):
        open_run(load_config([*some, "6"]))
    for warmup in ("5", "0.99"):
        assert open_run(load_config([*some, warmup])).total_steps == 6


@pytest.mark.parametrize(
    "words", [["--steps", "1" + "0" * 20], ["--epochs", "1e308"], ["--epochs", "2e9"], ["--min_steps", "2000000000"]]
)
def test_more_steps_than_a_run_can_take(train_args: list[str], words: list[str]) -> None:
    """Also as epochs of one step each."""
    at = train_args.index("--steps")
    epochs = [] if words[0] != "--min_steps" else ["--epochs", "1"]
    args = [*train_args[:at], *train_args[at + 2 :], *words, *epochs, "--batch_unit", "samples", "--batch_size", "24"]
    with pytest.raises(UserError, match=f"^{words[0][2:]} = .*: a run has at most 1,000,000,000 steps.$"):
        open_run(load_config(args))


def test_few_texts_a_label_are_said_to_users_of_their_own_task() -> None:
    task = get_task(str(ROOT / "data/sample/tickets/tickets.toml"))
    everything = load_examples(task, "train", None)
    assert describe_few(task, everything, "encoder") is None, "100 or more of each label"
    note = describe_few(task, everything[:40], "encoder")
    assert note is not None and note.startswith("few training texts: half of the labels of queue have at most 10, half")
    assert "The heads alone (--steps 0)" in note and describe_few(task, [], "encoder") is None
    assert "heads alone (--steps 0) were no worse" in (describe_few(task, everything[:40], "decoder with heads") or "")
    assert "all-MiniLM-L6-v2 (--model bert) was ahead" in (describe_few(task, everything[:40], "decoder") or "")
    one = everything[:1]
    assert describe_few(task, one * 31, "encoder") and not describe_few(task, one * 32, "encoder")
    assert describe_few(task, one * 64, "decoder") and not describe_few(task, one * 65, "decoder")
    rare = [e for e in everything if e.labels["queue"] != "billing" or e.id == everything[0].id]
    assert describe_few(task, rare, "encoder") is None, "one rare label is another matter"
    paper = TASKS["massive_intent"]
    assert describe_few(paper, load_examples(paper, "train", "sample"), "encoder") is None


def test_few_examples_are_taken_until_the_least_number_of_steps() -> None:
    class Loader:
        @staticmethod
        def n_steps_for(epochs: float) -> int:
            return round(5 * epochs)

    def steps(**values: object) -> int:
        return count_steps(options.build(TrainConfig, [values]), Loader())

    assert steps(epochs=3.0) == 15 and steps(epochs=3.0, min_steps=40) == 40 and steps(epochs=9.0, min_steps=40) == 45
    assert steps(steps=7, min_steps=40) == 7
