"""Every program reads ``~`` and environment variables in its paths, wherever they are written."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from benchmarks import batch_flips, common
from checkpoints_tools import convert, inspect
from data import check, download, new
from data.errors import UserError
from data.files.paths import PathText
from data.source import load_examples
from data.tasks import get_task
from eval import baselines
from eval import resolve as eval_resolve
from eval.config import EvalConfig
from eval.page import __main__ as run_page
from eval.predict import config as predict_config
from train import options, resolve
from train.config import TrainConfig
from train.config_file import to_toml

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
TRAIN = ["--model", "llama_debug", "--task", "20ng_7"]
PREDICT = ["--checkpoint", "c", "--input", "-"]
UNSET = "$NOT_SET/x"
NAMED = "the environment variable NOT_SET is not set"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path


def paths_of(cls: type) -> list[str]:
    return [name for name, option in options.options_of(cls).items() if "Path" in str(option.type)]


@pytest.mark.parametrize("name", [*paths_of(TrainConfig), "task", "data"])
def test_train(home: Path, name: str) -> None:
    if name not in ("config", "task"):
        found = options.flatten(resolve.load_config([*TRAIN, f"--{name}=~/x"]))[name]
        assert found == type(found)(home / "x")
    with pytest.raises(UserError, match=NAMED) as error:
        resolve.load_config([*TRAIN, f"--{name}", UNSET])
    assert "\n" not in str(error.value)  # no second complaint about the same path


def test_the_configuration_file_of_a_run_keeps_what_was_typed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/here")
    config = resolve.load_config([*TRAIN, "--output=$SCRATCH/run", "--data", "~/d", "--cache_dir", "c"])
    saved = to_toml(config)
    assert 'output = "$SCRATCH/run"' in saved and 'data = "~/d"' in saved and 'cache_dir = "c"' in saved
    (home / "config.toml").write_text(saved)
    assert resolve.load_config(["--config", "~/config.toml"]).checkpoint.output == Path("/scratch/here/run")
    monkeypatch.setenv("SCRATCH", "/scratch/there")  # another machine
    there = resolve.load_config(["--config", "~/config.toml"])
    assert there.checkpoint.output == Path("/scratch/there/run") and there.data.data == str(home / "d")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(UserError, match="SCRATCH is not set"):
        resolve.load_config(["--config", "~/config.toml"])
    assert resolve.load_config(["--config", "~/config.toml", "--output", "here"]).checkpoint.output == Path("here")


@pytest.mark.parametrize("name", [*paths_of(EvalConfig), "task", "data"])
def test_eval(name: str) -> None:
    with pytest.raises(UserError, match=NAMED):
        eval_resolve.load_config(["--model", "llama_debug", f"--{name}", UNSET, *["b"] * (name == "combine")])


def test_a_task_file_in_the_home_folder(home: Path) -> None:
    (home / "t").symlink_to(SAMPLE / "tickets")
    found = eval_resolve.load_config(["--model", "llama_debug", "--task=~/t/tickets.toml"]).task
    assert found == str(home / "t/tickets.toml")


@pytest.mark.parametrize("name", ["config", "checkpoint", "task", "input", "output"])
def test_predict(home: Path, name: str) -> None:
    with pytest.raises(UserError, match=NAMED):
        predict_config.load_config([*PREDICT, f"--{name}", UNSET])
    found = predict_config.load_config(["--checkpoint=~/c", "--input=~/i.csv", "--output=$HOME/o.csv"])
    assert (found.checkpoint, found.input, found.output) == (home / "c", f"{home}/i.csv", f"{home}/o.csv")
    assert predict_config.load_config(PREDICT).input == predict_config.load_config(PREDICT).output == "-"


def test_the_tools(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main, argv in {
        convert.main: [UNSET, "~/new"], inspect.main: [UNSET], download.main: ["20ng", "--to", UNSET],
        check.main: [UNSET], new.main: [UNSET], run_page.main: ["run", "--train", UNSET],
    }.items():  # fmt: skip
        assert main(argv) == 2
        assert NAMED in capsys.readouterr().err
    assert check.main(["~/t.toml"]) == 2 and f"{home}/t.toml" in capsys.readouterr().err
    assert new.main(["~/t.csv"]) == 2 and f"{home}/t.csv" in capsys.readouterr().err
    assert run_page.main(["~/run"]) == 2 and f"{home}/run" in capsys.readouterr().err
    assert inspect.main(["~/there"]) == 2 and f"{home}/there" in capsys.readouterr().err


def test_the_baselines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(baselines, "run_baselines", lambda config: asked.append(config) or [])
    monkeypatch.setattr(baselines, "show_comparison", lambda runs: None)
    monkeypatch.setattr("sys.argv", ["baselines", "--task=~/t.toml", "--data", "~/d", "--output", "$HOME/o"])
    baselines.main()
    assert (asked[0].task, asked[0].data, asked[0].output) == (f"{home}/t.toml", f"{home}/d", home / "o")


def test_the_benchmarks(home: Path) -> None:
    asked = []
    argv = ["--checkpoint=~/c", "--data=~/d"]
    common.run_program("batch_flips", batch_flips.Options, lambda given, _: asked.append(given), argv)
    assert (asked[0].checkpoint, asked[0].data) == (home / "c", f"{home}/d")
    assert common.run_program("batch_flips", batch_flips.Options, lambda *_: 0, ["--checkpoint", UNSET]) == 2


def test_files_in_a_task_file(home: Path, tmp_path: Path) -> None:
    (home / "train.csv").write_text("text,kind\nx,a\ny,b\n")
    (home / "$odd.csv").write_text("text,kind\nz,a\n")
    task = tmp_path / "tasks/t.toml"
    task.parent.mkdir()
    fields = '[[fields]]\nname = "kind"\ntype = "class"\nlabels = ["a", "b"]\n'
    task.write_text(f'name = "t"\n[files]\ntrain = "~/train.csv"\ntest = "../$odd.csv"\n{fields}')
    assert [e.text for e in load_examples(get_task(task), "train")] == ["x", "y"]
    assert [e.text for e in load_examples(get_task(task), "test")] == ["z"]
    task.write_text(f'name = "t"\n[files]\ntrain = "{UNSET}.csv"\n{fields}')
    with pytest.raises(UserError, match=r"t\.toml: train file \$NOT_SET/x\.csv: " + NAMED):
        get_task(task)


def test_names_of_data_are_marked_as_paths() -> None:
    """An option called data or task is a path for all programs: a new one is not forgotten."""
    for cls in (EvalConfig, predict_config.PredictConfig, baselines.BaselineConfig, type(TrainConfig().data)):
        hints = typing.get_type_hints(cls, include_extras=True)
        marked = typing.get_args(PathText)[1]
        for name in {"data", "task", "input", "output"} & hints.keys():
            if hints[name] in (Path, Path | None):
                continue
            assert str(marked) in str(hints[name]), (cls, name)
