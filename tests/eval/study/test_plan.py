"""From cells to commands: the shipped studies, what is shared, and what makes a cell this cell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_tools.registry import MODELS
from data.errors import UserError
from eval.kept_lines import sha256_of
from eval.study import listing, plan, records
from eval.study.estimate import Estimate, Estimates, total
from eval.study.file import Study, StudyCell, read_study
from tests.eval.study.runs import write_cell
from tests.launching import ROOT, environment

FILES = ROOT / "eval/study/files"
COUNTS = {"table3": 144, "one_gpu": 60, "miniature": 40}


def finish(folder: Path, own: StudyCell, **seconds: float) -> None:
    """Make a cell one that is done, in so many seconds."""
    score = plan.score_folder(folder / "out", own.cell)
    score.parent.mkdir(parents=True)
    write_cell(folder / "made", own.cell).folder.rename(score)
    result = sha256_of(score / "results.json")
    records.write_record(folder / "out", own.cell, records.Record("done", {}, seconds=seconds, result=result))


def read(folder: Path, text: str) -> Study:
    file = folder / "trial.toml"
    file.write_text(text, encoding="utf-8")
    return read_study(file)


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_studies_have_valid_commands(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASSIVE", "sample")
    monkeypatch.setenv("NEWSGROUPS", "sample")
    study = read_study(FILES / f"{name}.toml")
    assert len(study.cells) == COUNTS[name]
    plan.check_options(study, tmp_path)
    assert {p.stem for p in FILES.glob("*.toml")} == COUNTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_shipped_studies_have_a_dry_run(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eval.study", str(FILES / f"{name}.toml"), "--dry_run"]
    env = environment() | {"MASSIVE": "sample", "NEWSGROUPS": "sample"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"{COUNTS[name]} cells: {COUNTS[name]} open." in done.stdout, done.stderr
    cells = read_study(FILES / f"{name}.toml").cells
    assert sum(" eval.py " in line for line in done.stdout.splitlines()) == len(cells)
    assert sum(" train.py " in line for line in done.stdout.splitlines()) == sum(own.cell.tuned for own in cells)
    assert not (tmp_path / "out").exists()


def test_the_full_table_has_all_of_its_cells(tmp_path: Path) -> None:
    cells = {own.cell for own in read_study(FILES / "table3.toml").cells}
    rows = {cell.row for cell in cells}
    assert len(rows) == 24 and {len([c for c in cells if c.row == row]) for row in rows} == {6}


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "trial.toml"
    file.write_text(
        'ranks = 2\n[tasks.massive_intent]\ndata = "sample"\n'
        '[models.llama_debug]\ncheckpoint = "given"\nconvert = "a.gguf"\n'
        '[[cells]]\nmodels = ["llama_debug"]\ntasks = ["massive_intent"]\nshots = [5]\ntuned = [false, true]\n'
    )
    command = [sys.executable, "-m", "eval.study", str(file), "--dry_run", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    lines = done.stdout.splitlines()
    assert sum("checkpoints_tools.convert a.gguf given" in line for line in lines) == 1  # shared
    (line,) = (line for line in lines if " train.py " in line)
    start, _, options = line.partition(" train.py ")
    assert start.endswith("--standalone --nproc_per_node 2")
    assert options == (
        "--model llama_debug --checkpoint given --task massive_intent --data sample --shots 5 --seed 0 --optim adamw "
        "--save_every 500 --keep 1 --resume auto "
        f"--output {tmp_path}/out/cells/llama_debug-massive_intent-5shot-tuned-seed0/train"
    )
    assert "2 cells: 2 open" in done.stdout


def test_data_that_are_not_there_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data.source.DOWNLOAD_DIR", tmp_path / "none")
    monkeypatch.setattr(plan, "_there", set())
    text = '{}[[cells]]\nmodels = ["llama_debug"]\ntasks = ["massive_intent", "massive_slots", "20ng_7"]\n'
    study = read(tmp_path, text.format('[tasks.20ng_7]\ndata = "sample"\n'))
    kinds = [[step.kind for step in plan.steps_of(study, own, tmp_path / "out")] for own in study.cells]
    assert kinds == [["data", "train", "eval"]] * 2 + [["train", "eval"]]
    listing.print_commands(study, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" -m ")[1] for line in lines if "data.download" in line] == ["data.download massive"]


def test_wrong_options_are_said_once_and_before_anything_runs(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        '[train]\nlr = "fast"\nbatchsize = 3\n[[cells]]\nmodels = ["llama_debug"]\ntasks = ["20ng_20", "20ng_7"]\n',
    )
    with pytest.raises(UserError) as error:
        plan.check_options(study, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all("trial.toml: train.py:" in line for line in lines)
    assert "unknown option --batchsize. Did you mean '--batch_size'?" in str(error.value)
    assert "cell llama_debug-20ng_20-0shot-tuned-seed0" in lines[0]


def test_a_training_that_exports_nothing_is_refused_before_anything_runs(tmp_path: Path) -> None:
    text = '[train]\nexport = {}\n[[cells]]\nmodels = ["llama_debug"]\ntasks = ["20ng_7"]\n'
    with pytest.raises(UserError, match=r"train.py: export = off: the study scores the model .* Remove it. \(cell "):
        plan.check_options(read(tmp_path, text.format("false")), tmp_path / "out")
    plan.check_options(read(tmp_path, text.format("true")), tmp_path / "out")


def test_a_task_without_the_examples_to_score_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,q\nx,a\ny,b\n")
    toml = tmp_path / "t.toml"
    toml.write_text('name="t"\n[files]\ntrain="train.csv"\n[[fields]]\nname="q"\ntype="class"\nlabels=["a","b"]\n')
    study = f'{{}}[tasks.mine]\ntask = "{toml}"\n[[cells]]\nmodels = ["llama_debug"]\ntasks = ["mine"]\n'
    with pytest.raises(UserError, match=rf"eval.py: {toml}: no test file; .* write test = 0.1 below .*\(cell "):
        plan.check_options(read(tmp_path, study.format("")), tmp_path / "out")
    toml.write_text(toml.read_text() + "[split]\ndev = 0.5\n")
    with pytest.raises(UserError, match="no test file"):
        plan.check_options(read(tmp_path, study.format("")), tmp_path / "out")
    plan.check_options(read(tmp_path, study.format('[eval]\nsplit = "dev"\n')), tmp_path / "out")


def test_examples_are_the_same_for_all_cells_of_a_task(tmp_path: Path) -> None:
    """``--seed`` of eval.py chooses the examples of --limit; few-shot examples have a seed of their own."""
    study = read(
        tmp_path,
        "[eval]\nlimit = 100\n"
        '[[cells]]\nmodels = ["llama_debug"]\ntasks = ["20ng_7"]\nshots = [5]\ntuned = [true, false]\nseeds = [1, 2]\n',
    )
    options = [plan.eval_options(own, tmp_path) for own in study.cells]
    assert {found["seed"] for found in options} == {0}
    assert [found.get("shots_seed") for found in options] == [None, None, 1, 2]  # a fine-tuned one has its own stored
    assert [plan.train_options(study, own, tmp_path)["seed"] for own in study.cells[:2]] == [1, 2]


def test_what_makes_a_cell_this_cell(tmp_path: Path) -> None:
    text = '{}[[cells]]\nmodels = ["llama_debug"]\ntasks = ["20ng_7"]\n'

    def identity(options: str, output: str = "out") -> dict:
        study = read(tmp_path, text.format(options))
        return plan.identity(study, study.cells[0], tmp_path / output)

    plain = identity("")
    assert identity("", "moved") == plain
    assert identity("ranks = 4\n[train]\nsave_every = 7\nkeep = 2\n[eval]\nbatch_tokens = 99\n") == plain
    others = ["[train]\nlr = 1e-3\n", "[eval]\nlimit = 3\n", 'optim = "adamw_sr"\n', '[eval]\ndecode = "labels"\n']
    # With the first four a training may be resumed, and yet other results come of them.
    others += [
        f"[train]\n{more}\n" for more in ("patience = 2", "eval_every = 5", "fit_heads = true", 'export_dtype = "fp32"')
    ]
    others += ["[eval]\nmax_new_tokens = 5\n", '[models.llama_debug]\ncheckpoint = "x"\nconvert = "a.gguf"\n']
    for other in others:
        assert identity(other) != plain, other


def test_estimates_come_from_other_seeds_or_a_plan_and_are_summed(tmp_path: Path) -> None:
    text = '{}[[cells]]\nmodels = ["llama_debug"]\ntasks = ["20ng_7"]\nseeds = [0, 1]\n'
    study = read(tmp_path, text.format(""))
    estimates = Estimates(study, tmp_path / "out")
    assert estimates.of(study.cells[0]) == Estimate() and estimates.left() == ""
    study = read(tmp_path, text.format('gpu = "h200"\ndollars_per_gpu_hour = 36.0\nranks = 2\n'))
    found = Estimates(study, tmp_path / "out").of(study.cells[0])
    assert found.seconds and found.how == "planned for h200"
    assert found.dollars == pytest.approx(2 * 36.0 * found.seconds / 3600)
    assert total([Estimate(), Estimate(3661.0), Estimate(0.0, 2.5)]) == "1:01:01, $2.50 and 1 cells of unknown length"
    assert total([Estimate(240.0), Estimate(0.0, 2.5)], jobs=4) == "1:00, $2.50"


def test_another_seed_that_is_done_is_the_best_estimate(tmp_path: Path) -> None:
    study = read(tmp_path, '[[cells]]\nmodels = ["llama_debug"]\ntasks = ["massive_intent"]\nseeds = [0, 1, 2]\n')
    done, begun, other = study.cells
    finish(tmp_path, done, train=90.0, eval=10.0)
    records.write_record(tmp_path / "out", begun.cell, records.Record("open", {}, seconds={"train": 30.0}))
    estimates = Estimates(study, tmp_path / "out")
    assert [estimates.of(own).seconds for own in (begun, other)] == [70.0, 100.0]
    assert estimates.left() == "2:50" and estimates.of(other).how == "as with another seed"


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    text = 'gpu = "a100-80g"\noptim = "{}"\nranks = 8\n[[cells]]\nmodels = ["llama3_70b"]\ntasks = ["20ng_7"]\n'
    for optim, fits in (("adamw_sr_8bit", True), ("adamw", False)):
        study = read(tmp_path, text.format(optim) + "eval = { tp = 8 }\n")
        found = Estimates(study, tmp_path / "out").of(study.cells[0])
        assert found.seconds and ("NOT fit" in found.how) != fits


def test_closed_models_cost_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))
    text = '[tasks.massive_intent]\ndata = "sample"\n[eval]\nlimit = {}\n[[cells]]\nmodels = ["gpt-4"]\n'
    dollars = []
    for limit in (10, 20):
        study = read(tmp_path, text.format(limit) + 'tasks = ["massive_intent"]\ntuned = [false]\n')
        found = Estimates(study, tmp_path / "out").of(study.cells[0])
        assert found.dollars is not None and found.seconds is None and found.how == "counted"
        dollars.append(found.dollars)
    assert 1.8 < dollars[1] / dollars[0] < 2.2


@pytest.mark.parametrize("model, how", [("gpt-4", "counted; "), ("api", "")])
def test_a_seed_that_is_done_tells_the_time_of_a_closed_model_and_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, how: str
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))
    text = 'dollars_per_gpu_hour = 36.0\n[tasks.massive_intent]\ndata = "sample"\n[eval]\nlimit = 10\n'
    if model == "api":  # whose price is not known
        text += 'api_model = "mine"\nbase_url = "http://localhost:1/v1"\n'
    text += (
        f'[[cells]]\nmodels = ["{model}"]\ntasks = ["massive_intent"]\ntuned = [false]\nshots = [5]\nseeds = [0, 1]\n'
    )
    done, other = read(tmp_path, text).cells
    before = Estimates(read(tmp_path, text), tmp_path / "out").of(other)
    assert before.seconds is None and (before.dollars is not None) == (model == "gpt-4")
    finish(tmp_path, done, eval=100.0)
    found = Estimates(read(tmp_path, text), tmp_path / "out").of(other)
    assert found == Estimate(100.0, before.dollars, how + "time as with another seed")


def test_closed_models_are_not_put_under_torchrun(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        'ranks = 8\n[[cells]]\nmodels = ["gpt-4o"]\ntasks = ["massive_intent"]\ntuned = [false]\nshots = [5]\n',
    )
    (own,) = study.cells
    assert MODELS["gpt-4o"] is own.spec and own.ranks == 1
    assert "--yes on" in plan.steps_of(study, own, tmp_path)[-1].line
