"""The layers of options, what is refused, and that everything wrong is said at once and by its name."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from data.errors import UserError
from eval.config import EvalConfig
from eval.predict.config import PredictConfig
from tests.launching import TICKETS
from train import options
from train.config import ENCODER_ONLY, RECIPES, TrainConfig
from train.config_file import to_toml
from train.optim.formats import OPTIMIZERS
from train.resolve import load_config
from train.setup import open_run

# A folder is only looked into later.
BASE = ["--model", "smollm2_135m", "--checkpoint", "anywhere", "--task", "massive_intent"]


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        load_config([*BASE, *argv])
    return str(error.value)


def test_each_layer_wins_over_the_one_below(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("batch_size = 5\n[optim]\nlr = 2e-5\nclip = 3\n")
    default = load_config(["--model", "llama_debug", "--checkpoint", "x", "--task", "20ng_7"])
    assert default.optim.clip == TrainConfig().optim.clip
    recipe = load_config(BASE)
    assert recipe.batch.batch_size == RECIPES["smollm2"]["batch_size"] == 32
    toml = load_config([*BASE, "--config", str(file)])
    assert (toml.batch.batch_size, toml.optim.lr, toml.optim.clip) == (5, 2e-5, 3.0)
    top = load_config([*BASE, "--config", str(file), "--lr", "7e-5", "--batch_size=6"])
    assert (top.batch.batch_size, top.optim.lr, top.optim.clip) == (6, 7e-5, 3.0)
    assert top.batch.row_length == RECIPES["smollm2"]["row_length"]


def test_the_model_may_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[model]\nmodel = "llama3_70b"\ncheckpoint = "x"\n[data]\ntask = "20ng_joint"\n')
    config = load_config(["--config", str(file)])
    assert (config.train.steps, config.optim.lr, config.batch.row_length) == (8000, 1e-6, 16_384)


@pytest.mark.parametrize(
    ("model", "steps"), [("llama2_7b", 4000), ("llama3_8b", 4000), ("llama2_70b", 8000), ("llama3_70b", 8000)]
)
def test_the_papers_recipes(model: str, steps: int) -> None:
    config = load_config(["--model", model, "--checkpoint", "x", "--task", "20ng_joint"])
    assert (config.train.steps, config.train.epochs, config.batch.batch_size) == (steps, None, 8)
    assert (config.optim.lr, config.optim.warmup_steps, config.optim.schedule) == (1e-6, 0, "linear")
    assert (config.optim.beta1, config.optim.beta2, config.optim.weight_decay, config.optim.clip) == (0.9, 0.95, 0, 1)


ODD_TEXTS = (
    'a "b"', "it\'s", "C:\\new\\table", "line\nbreak", "\r\n", "\ttab", "\x00\x01\x1b[31m\x7f\x85",
    "\u2028\u200b\ufeff", "café cafe\u0301 ☃ \U0001f600", '"""', "'''", "#no = comment", " around ",
    "[section]", "\\", "${HOME}", "%s",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_any_text_comes_back_from_the_saved_file(text: str, tmp_path: Path) -> None:
    values = {"output": Path("runs") / text, "checkpoint": Path(text), "shot_ids": (text, "b"), "task": text}
    written = options.build(TrainConfig, [values])
    file = tmp_path / "config.toml"
    file.write_text(to_toml(written, {"optim": "why"}), encoding="utf-8")
    problems: list[str] = []
    layers = options.read_layers(TrainConfig, ["--config", str(file)], problems)
    read = options.flatten(options.parse(TrainConfig, [words for layer in layers for words in layer]))
    assert not problems and {name: read[name] for name in values} == values


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (f"[{'1, ' * 50_000}]", "steps is a list of 50,000, or of lists: expected"),
        (f"{{{', '.join(f'a{n} = 1' for n in range(5000))}}}", "steps is a table: expected"),
        ("[[[1]]]", "steps is a list of 1, or of lists"),
    ],
)
def test_values_that_no_option_has_are_not_parsed(value: str, message: str, tmp_path: Path) -> None:
    """To make words of them, or to print them, took minutes."""
    file = tmp_path / "bad.toml"
    file.write_text(f"[train]\nsteps = {value}\n")
    assert message in refusal("--config", str(file))


def test_a_name_that_is_not_utf8_is_refused_at_once() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    found = refusal("--output", name)
    assert (
        found.startswith(r"output = 'caf\udce9': not UTF-8, so it cannot be recorded. Rename")
        and "PYTHONUTF8=1" in found
    )


def test_steps_replace_the_recipes_epochs_and_the_other_way(tmp_path: Path) -> None:
    assert load_config(BASE).train.epochs == 1.0
    steps = load_config([*BASE, "--steps", "7"]).train
    assert (steps.steps, steps.epochs) == (7, None)
    file = tmp_path / "run.toml"
    file.write_text("steps = 7\n")
    epochs = load_config([*BASE, "--config", str(file), "--epochs", "2"]).train
    assert (epochs.steps, epochs.epochs) == (None, 2.0)
    assert "give one of the two" in refusal("--steps", "7", "--epochs", "2")


def test_the_saved_config_gives_the_same_run(tmp_path: Path) -> None:
    config = load_config([*BASE, "--steps", "7", "--tensorboard", "--data", 'a "quoted" \\ path'])
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    again = load_config(["--config", str(file)])
    left, right = options.flatten(config), options.flatten(again)
    assert left.pop("config") is None and right.pop("config") == file
    assert left == right


def test_flags_with_and_without_values() -> None:
    assert load_config([*BASE, "--resume"]).checkpoint.resume == "on"
    assert load_config([*BASE, "--resume", "--no_resume"]).checkpoint.resume == "off"
    assert load_config([*BASE, "--batch-size", "9"]).batch.batch_size == 9
    assert load_config([*BASE, "--weight_decay", "1e-2"]).optim.weight_decay == 0.01
    assert "--resume = 'yes': expected on | off | auto" in refusal("--resume=yes")
    assert "--no_resume takes no value (found 'on')" in refusal("--no_resume", "on")
    assert "--lr needs a value: a number." in refusal("--lr")
    assert "--class_weights needs a value: text and more." in refusal("--class_weights")
    assert "--class_weights is given more than once" in refusal("--class_weights", "a=4", "--class_weights", "b=2")
    assert "epochs = inf: must be above 0, and finite" in refusal("--epochs", "inf")
    assert "seed = 18446744073709551616" in refusal("--seed", str(2**64))


def test_every_boolean_is_given_in_all_its_forms() -> None:
    switches = [option for option in options.options_of(TrainConfig).values() if option.is_switch]
    assert {"packing", "export", "plan"} <= {option.name for option in switches}
    forms = {
        True: ["--{}", "--{} on", "--{}=on", "--{} true"],
        False: ["--no_{}", "--{} off", "--{}=off", "--{} false"],
    }
    for option in switches:
        for wanted, written in forms.items():
            for form in written:
                argv = [*form.format(option.name).split(), "--activation_checkpointing", "full"]
                if option.name in ENCODER_ONLY:
                    argv += ["--model", "roberta_base"]
                if option.name == "compile" or (option.name, wanted) == ("plan", True):
                    continue  # the plan's is a device of its own
                assert options.flatten(load_config([*BASE, *argv]))[option.name] is wanted, argv


@pytest.mark.parametrize("name", ["resume", "async_save"])
def test_a_switch_may_have_one_more_value(name: str, tmp_path: Path) -> None:
    forms = {"on": [[], ["on"], ["true"]], "off": [["off"], ["False"]], "auto": [["auto"]]}
    for wanted, written in forms.items():
        for values in written:
            argv = [f"--{name}", *values]
            assert options.flatten(load_config([*BASE, *argv]))[name] == wanted, argv
            if values:
                assert options.flatten(load_config([*BASE, "=".join(argv)]))[name] == wanted, argv
    assert options.flatten(load_config([*BASE, f"--{name}", "auto", f"--no_{name}"]))[name] == "off"
    # As older code wrote it, and as it is written now.
    for text, wanted in (("true", "on"), ("false", "off"), ('"on"', "on"), ('"off"', "off"), ('"auto"', "auto")):
        (tmp_path / "run.toml").write_text(f"[checkpoint]\n{name} = {text}\n")
        config = load_config([*BASE, "--config", str(tmp_path / "run.toml")])
        assert options.flatten(config)[name] == wanted
        (tmp_path / "again.toml").write_text(to_toml(config))
        again = load_config([*BASE, "--config", str(tmp_path / "again.toml")])
        assert options.flatten(again)[name] == wanted
    assert options.flatten(load_config([*BASE, "--config", str(tmp_path / "run.toml"), f"--no_{name}"]))[name] == "off"


@pytest.mark.parametrize(
    ("argv", "want"),
    [
        (["--learning_rat", "1"], "unknown option --learning_rat."),
        (["--batchsize", "1"], "Did you mean '--batch_size'?"),
        (["--task", "massive_intents"], "Did you mean 'massive_intent'?"),
        (["--model", "smollm_135m"], "Did you mean 'smollm2_135m'?"),
        (["--schedule", "liner"], "linear | cosine | constant"),
        (["--batch_size", "2.5"], "a whole number"),
        (["--packing", "maybe"], "--packing = 'maybe': expected true or false."),
        (["--async_save", "maybe"], "auto | on | off"),
        (["--resume", "maybe"], "--resume = 'maybe': expected on | off | auto."),
        (["--lr", "1e-4", "stray"], "'stray' is not an option"),
        (["--no_lr"], "unknown option --no_lr. Did you mean '--lr'?"),
        (["--optim_reason", "x"], "unknown option --optim_reason."),
        (["stray"], "'stray' is not an option"),
        (["--batch_size", "0"], "batch_size = 0: must be at least 1"),
        (["--lr", "-1"], "lr = -1.0"),
        (["--lr", "nan"], "lr = nan"),
        (["--eps", "inf"], "eps = inf: must be above 0, and finite."),
        (["--weight_decay", "inf"], "weight_decay = inf: must be 0 or more, and finite."),
        (["--holdout", "0.1"], "give --eval_every"),
        (["--eval_every", "10"], "give --holdout"),
        (["--steps", "5", "--warmup_steps", "5"], "warmup_steps = 5 must be less than steps = 5."),
        (["--warmup_steps", "1.5"], "warmup_steps = 1.5: must be 0 or more, and whole from 1 on."),
        (["--warmup_steps", "-0.1"], "warmup_steps = -0.1: must be 0 or more"),
        (["--init", "random"], "init = random is for debug models"),
        (["--joint_order", "section"], "20ng_joint only"),
        (["--config", "nowhere.toml"], "cannot read nowhere.toml: No such file"),
    ],
)
def test_refused(argv: list[str], want: str) -> None:
    assert want in refusal(*argv)


@pytest.mark.parametrize("cls", [TrainConfig, EvalConfig, PredictConfig])
def test_every_option_says_what_it_expects(cls: type) -> None:
    n_refused = 0
    for name in options.options_of(cls).keys() - {"config"}:
        problems: list[str] = []
        options.read_layers(cls, ["--" + name, "no such thing"], problems)
        for problem in problems:
            assert problem.startswith(f"--{name} = 'no such thing': expected ") or "takes no value" in problem
        n_refused += bool(problems)
    assert n_refused > 10


def test_a_preset_is_looked_for_under_its_name_and_said_how_to_get(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(["--model", "llama3_70b", "--task", "20ng_joint"])
    assert config.model.checkpoint == Path("checkpoints/llama3_70b")
    with pytest.raises(UserError, match="hf download meta-llama/Meta-Llama-3-70B-Instruct"):
        open_run(config)


def test_any_other_llama_needs_a_folder() -> None:
    with pytest.raises(UserError, match="model = llama is whatever its folder holds: give --checkpoint"):
        load_config(["--model", "llama", "--task", "20ng_7"])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("learning_rate = 1", "unknown key 'learning_rate'"),
        ("[optim]\nlrr = 1", "unknown key 'lrr' in [optim]. Did you mean 'lr'?"),
        ("[optim]\nbatch_size = 1", "unknown key 'batch_size' in [optim]"),
        ("[optimizer]\nlr = 1", "unknown section [optimizer]. Did you mean 'optim'?"),
        ('lr = "1e-4"', 'lr = "1e-4": expected a number'),
        ("batch_size = 2.5", "a whole number"),
        ("batch_size = true", "a whole number"),
        ("resume = 1", "on | off | auto"),
        ('resume = "yes"', "on | off | auto"),
        ('packing = "maybe"', 'packing = "maybe": expected true or false'),
        ("async_save = 1", "auto | on | off"),
        ("optim = true", "adamw"),
        ("data = 5", "data = 5: expected text"),
        ('steps = "None"', "a whole number"),
        ("optim_reason = 'x'", "unknown key 'optim_reason'"),
        ("lr = = 1", "not TOML"),
    ],
)
def test_bad_files(text: str, want: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    message = refusal("--config", str(file))
    assert want in message and "bad.toml" in message


def test_files_of_older_code_are_read(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text('packing = "off"\n[train]\nactivation_checkpointing = "full"\nactivation_offload = "on"\n')
    config = load_config([*BASE, "--config", str(file)])
    assert config.batch.packing is False and config.train.activation_offload is True
    assert load_config([*BASE, "--config", str(file), "--packing"]).batch.packing is True


def test_the_file_says_why_an_optimizer_was_chosen() -> None:
    on_cpu = [*BASE, "--device", "cpu"]
    auto, named = load_config(on_cpu), load_config([*on_cpu, "--optim", "adamw"])
    assert auto.optim_reason == (
        "chosen by --optim auto: the default on CPUs, everything in fp32; --optim adamw pins it"
    )
    assert f'optim = "adamw" # {auto.optim_reason}\n' in to_toml(auto, {"optim": auto.optim_reason})
    assert named.optim_reason == "" and 'optim = "adamw"\n' in to_toml(named, {"optim": named.optim_reason})


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("foo = 1\nclip = -1\n")
    message = refusal("--config", str(file), "--taks", "x", "--lr", "abc", "--model", "lama", "--batch_size", "0")
    for part in ("6 problems", "'foo'", "clip = -1", "--taks", "'abc'", "'lama'", "batch_size = 0"):
        assert part in message, part


def test_the_same_words_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """tyro takes a tenth of a second each time."""
    parsed, cli = [], options.cli

    def counted(*args: object, **how: typing.Any) -> object:
        parsed.append((how["args"], how["default"]))
        return cli(*args, **how)

    monkeypatch.setattr(options, "cli", counted)
    config = load_config(["--model", "llama_debug", "--task", "20ng_7", "--seed", "987654"])
    assert config.train.seed == 987654 and len(parsed) > 1
    assert len(parsed) == len([p for i, p in enumerate(parsed) if p not in parsed[:i]])


def test_help_lists_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in options.options_of(TrainConfig):
        assert f"--{name}" in shown or f"--no_{name}" in shown, name


def test_optimizers_by_name() -> None:
    assert set(typing.get_args(options.options_of(TrainConfig)["optim"].type)) == {"auto", *OPTIMIZERS}
    assert load_config([*BASE, "--device", "cpu"]).optim.optim == "adamw"
    config = load_config([*BASE, "--optim", "adamw_sr"])
    assert (config.optim.optim, config.train.precision) == ("adamw_sr", "bf16"), "on every machine"
    assert "optim = adamw_sr stores the weights in bf16" in refusal("--optim", "adamw_sr", "--precision", "fp32")


@pytest.mark.parametrize("model", ["llama2_7b", "llama3_70b", "smollm2_135m"])
def test_steps_on_a_users_own_task_follow_its_examples(model: str) -> None:
    """The paper's 8,000 steps of 8 would be 160 passes over 400 texts."""

    def steps(*more: str) -> tuple[float | None, int | None, int]:
        train = load_config(["--model", model, "--checkpoint", "x", "--device", "cpu", *more]).train
        return train.epochs, train.steps, train.min_steps

    own = ["--task", str(TICKETS)]
    assert steps(*own) == (3.0, None, 40)
    assert steps(*own, "--epochs", "2") == (2.0, None, 0), "who names epochs gets them"
    assert steps(*own, "--steps", "9") == (None, 9, 0)
    assert steps(*own, "--epochs", "2", "--min_steps", "5") == (2.0, None, 5)
    assert steps("--task", "20ng_7")[2] == 0
    with pytest.raises(UserError, match="min_steps = -1: must be 0 or more"):
        steps(*own, "--min_steps", "-1")
