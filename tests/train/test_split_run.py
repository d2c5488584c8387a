"""A run on a task whose splits are cut: resumed, scored and used with the same cut, and with no other."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from checkpoints_tools.checksums import write_checksums
from data.errors import UserError
from data.source import load_examples
from data.task_file import read_task
from data.tasks import get_task
from data.trained_texts import hash_texts, read_trained_texts
from tests.launching import ROOT, TICKETS, call_main, environment

COMMON = ["--model", "llama_debug", "--device", "cpu", "--cache_dir", "cache"]
TRAIN = [*COMMON, "--init", "random", "--checkpoint", "base", "--batch_size", 4, "--row_length", 1024,
         "--precision", "fp32", "--steps", 2, "--save_every", 1,
         "--task", "task/tickets.toml", "--output", "run"]  # fmt: skip
SPLIT = "[split]\ntest = 0.25\ndev = 0.25\n"
SCORE = [*COMMON, "--task", "task/tickets.toml", "--max_new_tokens", 3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``task`` (24 rows in one file, cut into 12, 6 and 6) and ``run``, of 2 steps."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tests/old_files/llama", project / "base")
    shutil.copytree(TICKETS.parent, project / "task")
    task = project / "task/tickets.toml"
    task.write_text(task.read_text().replace('test = "test.csv"\n', f"\n{SPLIT}"))
    assert SPLIT in task.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        call_main(patch, "train.py", *TRAIN)
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "project"))
    return Path.cwd()


def change(old: str, new: str) -> None:
    task = Path("task/tickets.toml")
    assert old in task.read_text()
    task.write_text(task.read_text().replace(old, new))


@pytest.mark.parametrize("weights", ["run/export", "run/checkpoints/step_000002"])
def test_an_export_and_a_checkpoint_are_scored_on_what_was_not_trained_on(
    project: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task("task/tickets.toml")
    train = {example.text for example in load_examples(task, "train")}
    assert len(train) == 12
    for split in ("test", "dev"):
        call_main(monkeypatch, "eval.py", *SCORE, "--checkpoint", weights, "--split", split, "--output", split)
        lines = [json.loads(line) for line in Path(split, "predictions.jsonl").read_text().splitlines()]
        examples = load_examples(task, split)
        assert [line["id"] for line in lines] == [example.id for example in examples] and len(lines) == 6
        assert train.isdisjoint(example.text for example in examples)


def test_a_run_with_another_cut_is_another_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = partial(call_main, monkeypatch, "train.py", *TRAIN, "--resume")
    shutil.rmtree("run/checkpoints/step_000002")
    change(SPLIT, SPLIT + "seed = 1\n")
    message = (
        "task split: the checkpoint has 'test 0.25, dev 0.25, stratified by queue, seed 0', this run has .* seed 1'"
    )
    with pytest.raises(UserError, match=message):
        resume()
    change(SPLIT + "seed = 1\n", SPLIT + "seed = 0  # the default\n")
    resume()
    assert Path("run/checkpoints/step_000002").is_dir()


@pytest.mark.parametrize(
    ("new", "split", "refused"),
    [
        (SPLIT + "seed = 1\n", "test", True),
        (SPLIT + "seed = 1\n", "dev", True),
        (SPLIT + "seed = 1\n", "train", False),
        (SPLIT.replace("0.25\n", "0.3\n"), "test", True),
        ("", "train", False),
    ],
)
def test_another_cut_is_not_scored(
    project: Path, new: str, split: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(SPLIT, new)
    score = partial(call_main, monkeypatch, "eval.py", *SCORE, "--checkpoint", "run/export", "--split", split,
                    "--output", "scored", "--limit", 2)  # fmt: skip
    if refused:
        message = "was trained with the split 'test 0.25, .* may be among those that were trained on. Write .split. as"
        with pytest.raises(UserError, match=message):
            score()
        assert not Path("scored").exists()
    else:
        score()


def test_a_model_that_was_trained_on_everything_is_not_scored_on_a_part(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("run/export/task.json")
    record = json.loads(file.read_text())
    del record["split"]  # as if the run had been started without [split]
    file.write_text(json.dumps(record))
    write_checksums(file.parent)
    with pytest.raises(UserError, match="was trained with the split 'none'"):
        call_main(monkeypatch, "eval.py", *SCORE, "--checkpoint", "run/export", "--output", "scored")


@pytest.mark.parametrize("weights", ["run/export", "run/checkpoints/step_000002"])
def test_texts_that_were_trained_on_are_counted_when_the_table_has_changed(
    project: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their ids, line numbers and white space are now."""
    score = partial(call_main, monkeypatch, "eval.py", *SCORE, "--checkpoint", weights)

    def said_and_counted(split: str, output: str) -> tuple[bool, int]:
        capsys.readouterr()
        score("--split", split, "--output", output)
        said = capsys.readouterr().out
        n = json.loads(Path(output, "results.json").read_text())["counts"]["trained_on"]
        return f"warning: {n} of these " in said and "Score with the table of the training" in said, n

    trained = {" ".join(example.text.split()) for example in load_examples(get_task("task/tickets.toml"), "train")}
    assert said_and_counted("test", "same") == (False, 0)
    assert said_and_counted("train", "train") == (False, 12)

    table = Path("task/train.csv")
    header, *rows = table.read_text().splitlines()
    assert len(rows) == 24
    table.write_text("\n".join([header, *(row.replace(" ", "  ", 1) for row in reversed(rows))]) + "\n")
    test = load_examples(get_task("task/tickets.toml"), "test")
    moved = [" ".join(example.text.split()) in trained for example in test]
    assert 0 < sum(moved) < 6
    assert said_and_counted("test", "moved") == (True, sum(moved))
    capsys.readouterr()
    call_main(monkeypatch, "eval.py", "--compare", "moved", "same")


def test_a_model_that_is_trained_again_knows_the_texts_of_both_trainings(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = read_trained_texts(Path("run/export"))
    assert once is not None and len(once) == 12
    change(SPLIT, SPLIT + "seed = 1\n")
    again = [*COMMON, "--checkpoint", "run/export", "--task", "task/tickets.toml", "--batch_size", 4, "--row_length",
             1024, "--precision", "fp32", "--steps", 2, "--save_every", 1, "--output", "again"]  # fmt: skip
    call_main(monkeypatch, "train.py", *again)
    both = read_trained_texts(Path("again/export"))
    own = hash_texts(example.text for example in load_examples(get_task("task/tickets.toml"), "train"))
    assert both is not None and set(both.tolist()) == {*once.tolist(), *own.tolist()} and len(both) > 12

    def forget(folder: str) -> None:
        Path(folder, "trained_texts.npy").unlink()
        write_checksums(Path(folder))

    def resumed() -> list[int] | None:
        for made in ("again/checkpoints/step_000002", "again/export"):
            shutil.rmtree(made, ignore_errors=True)
        call_main(monkeypatch, "train.py", *again, "--resume")
        found = read_trained_texts(Path("again/export"))
        return None if found is None else found.tolist()

    forget("run/export")
    assert resumed() == both.tolist(), "the checkpoint knows it, whatever the folder that it began from says now"
    forget("again/checkpoints/step_000001")
    assert resumed() is None, "older code did not say what it was trained on: a part would look like all of it"


def test_a_run_without_test_examples_says_so_before_and_names_what_works(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(f"\n{SPLIT}", "")
    shutil.rmtree("run")
    capsys.readouterr()
    call_main(monkeypatch, "train.py", *TRAIN)
    said = capsys.readouterr().out.splitlines()
    (note,) = [i for i, line in enumerate(said) if line.startswith("note: no test examples: ")]
    assert note < next(i for i, line in enumerate(said) if line.startswith("step 1/2"))
    heading, line = said[-2:]
    assert heading.startswith("To label new text") and "To score the model:" not in said
    done = subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and '"predicted_' in done.stdout, done.stderr

    score = partial(call_main, monkeypatch, "eval.py", *SCORE, "--checkpoint", "run/export", "--output", "scored")
    message = r"no test examples, and run.export was trained on the train files. Name other labelled texts as test in "
    with pytest.raises(
        UserError, match=rf"{message}\[files\]. To cut them from train, write \[split\] and train again"
    ):
        score()
    change("[files]\n", '[files]\ndev = "test.csv"\n')
    with pytest.raises(UserError, match="as test in .files.. Or give --split dev. To cut"):
        score()
    score("--split", "dev")
    change("[files]\n", '[files]\ntest = "test.csv"\n')
    score("--output", "scored 2")


def test_new_texts_need_neither_the_file_nor_the_cut(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("task")
    task = read_task(Path("run/export"))
    assert task is not None and task.split == "test 0.25, dev 0.25, stratified by queue, seed 0"
    Path("in.txt").write_text("where is my parcel\n")
    call_main(monkeypatch, "predict.py", "--checkpoint", "run/export", "--input", "in.txt", "--output", "out.jsonl",
              "--max_new_tokens", 3, "--device", "cpu")  # fmt: skip
    assert len(Path("out.jsonl").read_text().splitlines()) == 1
