"""Whether a run is the same is decided by its contents, wherever its files are: resumed and scored after moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

from checkpoints_tools.architectures import architecture_of
from checkpoints_tools.checksums import write_checksums
from checkpoints_tools.hf_config import read_config
from data.errors import UserError
from eval.weights import find_weights
from tests.launching import ROOT, TICKETS, call_main
from train import together
from train.checkpointing.base import tokenizer_in_run
from train.checkpointing.checkpoint import RUN_FILE, read_state, steps_in
from train.resolve import load_config
from train.setup import open_run
from train.together import require_same

Train = Callable[..., None]
COMMON = ["--model", "llama_debug", "--device", "cpu", "--cache_dir", "cache"]
TRAIN = [*COMMON, "--init", "random", "--batch_size", 4, "--row_length", 1024, "--save_every", 2, "--precision", "fp32"]
CHANGES = {
    "labels": ('["low", "high"]', '["low", "high", "none"]', "task field urgency, labels: only this run has 'none'"),
    "fields": ('name = "urgency"', 'name = "x"\ncolumn = "urgency"', "fields: the checkpoint has 'queue, urgency'"),
    "instruction": (
        'text_column = "text"',
        'instruction = "Sort."',
        "instruction: the checkpoint has '', this run has",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` (a tokenizer), ``task`` and ``run``: 4 steps with checkpoints, options all relative."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tests/old_files/llama", project / "base")
    shutil.copytree(TICKETS.parent, project / "task")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        call_main(patch, "train.py", *TRAIN, "--checkpoint", "base", "--task", "task/tickets.toml", "--output", "run",
                  "--steps", 4)  # fmt: skip
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, on what may be another machine: the first one is not where run.json says; the current folder."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "elsewhere/project"))
    for folder in steps_in(Path("run/checkpoints")):
        edit_run_file(folder, lambda record: move(record, str(finished), "/not/here"))
    return Path.cwd()


def move(record: dict, old: str, new: str) -> None:
    for name in ("checkpoint", "output"):
        assert record["config"][name].startswith(old)
        record["config"][name] = record["config"][name].replace(old, new)


def edit_run_file(folder: Path, edit: Callable[[dict], None]) -> None:
    record = json.loads((folder / RUN_FILE).read_text())
    edit(record)
    (folder / RUN_FILE).write_text(json.dumps(record))
    write_checksums(folder)


@pytest.fixture
def resume(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Take two steps more: first as if the run had been ended after step 2."""
    shutil.rmtree("run/checkpoints/step_000004", ignore_errors=True)
    return partial(call_main, monkeypatch, "train.py", *TRAIN, "--resume", "--steps", 4)


def lengths(run: Path) -> list[str]:
    return [folder.name for folder in steps_in(run / "checkpoints")]


# --- the task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["same file", "copied with its data", "data elsewhere"])
def test_the_same_task_by_another_path(project: Path, resume: Train, kind: str) -> None:
    task = "task/../task/tickets.toml"
    if kind != "same file":
        shutil.move("task", "moved")
        task = str(project / "moved/mine.toml")
        text = Path("moved/tickets.toml").read_text()
        if kind == "data elsewhere":
            shutil.move("moved/train.csv", "data.csv")
            text = "# changed\n" + text.replace('"train.csv"', f'"{project}/data.csv"')
        Path(task).write_text(text)
    resume("--checkpoint", "base", "--task", task, "--output", "run")
    assert lengths(Path("run")) == ["step_000002", "step_000004"]


@pytest.mark.parametrize("part", CHANGES)
def test_a_task_whose_content_changed_is_refused_by_what_changed(project: Path, resume: Train, part: str) -> None:
    old, new, message = CHANGES[part]
    task = Path("task/tickets.toml")
    assert old in task.read_text()
    task.write_text(task.read_text().replace(old, new))
    with pytest.raises(UserError, match="belongs to a different run") as error:
        resume("--checkpoint", "base", "--task", task, "--output", "run")
    assert message in str(error.value) and "task_content" not in str(error.value)


def test_the_content_of_the_task_is_compared_without_task_json(project: Path, resume: Train) -> None:
    def other(record: dict) -> None:
        record["identity"]["task_content"] = "another"

    folder = Path("run/checkpoints/step_000002")
    (folder / "task.json").unlink()
    edit_run_file(folder, other)
    with pytest.raises(UserError, match="task_content: the checkpoint has another, this run has"):
        resume("--checkpoint", "base", "--task", "task/tickets.toml", "--output", "run")


@pytest.mark.parametrize("has_task_json", [True, False])
def test_a_checkpoint_of_older_code(project: Path, resume: Train, has_task_json: bool) -> None:
    def older(record: dict) -> None:
        del record["identity"]["task_content"]
        record["config"] |= {"task": "no/longer/tickets.toml", "checkpoint": "base", "output": "run"}

    folder = Path("run/checkpoints/step_000002")
    if not has_task_json:
        (folder / "task.json").unlink()
    edit_run_file(folder, older)
    resume("--checkpoint", "base", "--task", "task/tickets.toml", "--output", "run")
    assert read_state(Path("run/checkpoints/step_000004")).identity["task_content"]


def test_ranks_may_have_the_task_at_other_paths_but_no_other_task(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree("task", tmp_path / "there")

    def of(task: Path) -> tuple:
        config = load_config([*map(str, TRAIN), "--checkpoint", "base", "--steps", "1", "--task", str(task)])
        return config, open_run(config)

    rank_0, rank_1 = of(Path("task/tickets.toml")), of(tmp_path / "there/tickets.toml")
    sent: list = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(together.dist, "all_gather_object", lambda out, mine: sent.append(mine))
    require_same(*rank_0)
    require_same(*rank_1)
    assert sent[0] == sent[1] and "task_content" in sent[0]


def test_an_export_names_its_task_not_a_path(finished: Path) -> None:
    found = json.loads((finished / "run/export/training.json").read_text())
    assert found["options"]["task"] == "tickets" and str(finished) not in json.dumps(found)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_it_is_found_from_every_folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()  # another one of the same name
    folder = finished / "run/checkpoints/step_000004"
    assert find_weights(folder).base == finished / "base"
    call_main(monkeypatch, "eval.py", *COMMON, "--checkpoint", folder, "--task", finished / "task/tickets.toml",
              "--limit", 2, "--max_new_tokens", 3, "--output", "scored")  # fmt: skip
    (tmp_path / "in.txt").write_text("where is my parcel\n")
    call_main(monkeypatch, "predict.py", "--checkpoint", folder, "--input", "in.txt", "--output", "out.jsonl",
              "--max_new_tokens", 3, "--device", "cpu")  # fmt: skip
    assert Path("scored/results.json").is_file() and Path("out.jsonl").is_file()


@pytest.mark.parametrize("older", [False, True])
def test_it_is_found_beside_a_run_that_was_moved_with_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, older: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = project / "run/checkpoints/step_000004"
    if older:
        edit_run_file(folder, lambda record: record["config"].update(checkpoint="base", output="run"))
    monkeypatch.chdir("/")
    caplog.set_level("INFO")
    assert find_weights(folder).base == project / "base"
    assert f"is taken from {project}/base, not from" in caplog.text


@pytest.mark.parametrize("where", ["export", "best"])
def test_it_is_found_in_a_run_folder_that_was_moved_alone(project: Path, where: str, tmp_path: Path) -> None:
    shutil.rmtree("base")
    run = Path(shutil.move("run", tmp_path / "run"))
    (run / "export").rename(run / where)
    assert find_weights(run / "checkpoints/step_000004").base == run / where
    (tmp_path / "link").symlink_to(run / "checkpoints/step_000004")
    assert find_weights(tmp_path / "link").base == run / where


def test_another_tokenizer_is_not_taken(project: Path, tmp_path: Path) -> None:
    shutil.rmtree("run/export")
    settings = project / "base/tokenizer_config.json"
    settings.write_text(settings.read_text().replace("{", '{"x": 1, ', 1))
    folder = Path("run/checkpoints/step_000004")
    with pytest.raises(UserError, match="contains no tokenizer") as error:
        find_weights(folder)
    for line in (
        "  /not/here/base: there is no such folder",
        f"  {project}/base: its tokenizer is not the one that the run was started with",
        f"  {project}/run/export: there is no such folder",
    ):
        assert line in str(error.value)
    assert find_weights(folder, needed=False).base == project / "base"  # of a plan
    shutil.rmtree("base")
    assert find_weights(folder, needed=False).base == Path("/not/here/base")


@pytest.mark.parametrize("base", ["beside", "in the export"])
def test_a_run_is_resumed_in_another_folder(
    project: Path, resume: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str
) -> None:
    found = project / "base" if base == "beside" else project / "run/export"
    if base == "in the export":
        shutil.rmtree("base")
    monkeypatch.chdir(tmp_path)
    resume(
        "--config", project / "run/config.toml", "--output", project / "run", "--task", project / "task/tickets.toml"
    )
    assert lengths(project / "run") == ["step_000002", "step_000004"]
    assert read_state(project / "run/checkpoints/step_000004").config["checkpoint"] == str(found)
    assert f'checkpoint = "{found}"' in (project / "run/config.toml").read_text()


@pytest.fixture
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Train]:
    """A run that was moved without its base, whose export has other tokenizer files; and what resumes it."""
    name, _, pooling = request.param.partition(", ")
    base, run = Path(shutil.copytree(ROOT / "tests/old_files" / name, tmp_path / "base")), tmp_path / "run"
    if pooling:
        (base / "1_Pooling").mkdir()
        (base / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": pooling}))
    args = ["--model", "llama" if name == "meta" else "roberta", "--checkpoint", base, "--task", TICKETS,
            "--device", "cpu", "--precision", "fp32", "--cache_dir", tmp_path / "cache", "--batch_size", 4,
            "--row_length", 1024, "--steps", 2, "--save_every", 1]  # fmt: skip
    call_main(monkeypatch, "train.py", *args, "--output", run)
    exported = {path.name: path.read_bytes() for path in (run / "export").glob("tokenizer*")}
    assert exported != {path.name: path.read_bytes() for path in base.glob("tokenizer*")}
    shutil.rmtree(base)
    shutil.rmtree(run / "checkpoints/step_000002")
    moved = Path(shutil.move(run, tmp_path / "moved"))
    return moved, partial(call_main, monkeypatch, "train.py", *args, "--output", moved, "--resume")


@pytest.mark.parametrize("alone", ["roberta", "meta"], indirect=True)
def test_a_runs_own_export_has_its_tokenizer_in_other_files(alone: tuple[Path, Train], tmp_path: Path) -> None:
    run, resume = alone
    first, last = run / "checkpoints/step_000001", run / "checkpoints/step_000002"
    assert find_weights(first).base == run / "export"
    started = read_state(first).identity["tokenizer"]
    tokenizer = architecture_of(read_config(run / "export")).load_tokenizer(run / "export")
    assert tokenizer_in_run(tokenizer, run / "export", run) == started != tokenizer.fingerprint
    assert tokenizer_in_run(tokenizer, run / "export", tmp_path) == tokenizer.fingerprint, "another run begins with it"
    resume()
    assert read_state(last).identity["tokenizer"] == started
    again = Path(shutil.move(run, tmp_path / "again"))
    assert find_weights(again / "checkpoints/step_000002").base == again / "export"
    training = json.loads((again / "export/training.json").read_text())
    assert training["identity"].pop("tokenizer") == started
    (again / "export/training.json").write_text(json.dumps(training))
    write_checksums(again / "export")
    with pytest.raises(UserError, match="export: its tokenizer is not the one that the run was started with"):
        find_weights(again / "checkpoints/step_000002")


@pytest.mark.parametrize("alone", ["roberta, mean"], indirect=True)
def test_an_encoders_head_is_known_without_the_folder_that_says_it(alone: tuple[Path, Train]) -> None:
    run, resume = alone
    with pytest.raises(UserError, match="the head is 'mean', not 'linear'"):
        resume("--head", "linear")
    shutil.copytree(run / "checkpoints/step_000001", run / "checkpoints/step_000003")
    (run / "checkpoints/step_000003" / RUN_FILE).write_text("{")
    resume()
    assert read_state(run / "checkpoints/step_000002").config["head"] == "mean"


def test_a_run_whose_tokenizer_is_nowhere_is_not_resumed(
    project: Path, resume: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree("base")
    shutil.rmtree("run/export")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="/not/here/base: there is no such folder"):
        resume("--checkpoint", "base", "--task", project / "task/tickets.toml", "--output", project / "run")


def test_a_plain_start_does_not_go_on_with_another_base(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as error:
        call_main(monkeypatch, "train.py", *TRAIN, "--checkpoint", "typo", "--task", "task/tickets.toml",
                  "--output", "run", "--steps", 4)  # fmt: skip
    assert "goes on with" not in caplog.text + str(error.value) and "typo" in str(error.value)
