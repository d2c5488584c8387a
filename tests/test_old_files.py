"""Files that commit 460b5c9 wrote, read by today's code: `tests/old_files/README.md` says what they are.

The programs are called as from the command line, in this process, so that what is tested is what a user with such files
does.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from data.errors import UserError
from data.task_file import read_task
from tests.launching import ROOT, call_main

OLD = ROOT / "tests" / "old_files"
RUNS = ("tickets", "intent", "joint")
# On the CPU that wrote the files everything is equal bit for bit. With other instruction sets the losses of the run
# with 8-bit states moved by 1.1%, and 1% of its weights were rounded otherwise. A run that forgets the optimizer's
# states, or an encoder's that forgets its random numbers, ends with 29% to 85% other weights.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
MOST_OTHER_WEIGHTS = 0.05

Program = Callable[..., None]


@pytest.fixture
def old_root(tmp_path: Path) -> Path:
    """What the old files find relative to the root of the repository, with the tickets of that time."""
    root = tmp_path / "root"
    (root / "data" / "sample").mkdir(parents=True)
    (root / "data" / "sample" / "tickets").symlink_to(OLD / "data" / "tickets")
    (root / "tests").symlink_to(ROOT / "tests")
    return root


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, old_root: Path) -> Program:
    """``program("eval.py", *arguments)``, from the folder that old files name others relative to."""
    monkeypatch.chdir(old_root)

    return partial(call_main, monkeypatch)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain(value: object) -> object:
    """An option's value however it is written: old files say "on" and "off"."""
    return {"on": True, "off": False}.get(value, str(value) if isinstance(value, Path) else value)


def run_state(name: str) -> dict[str, Any]:
    return read_json(OLD / name / "checkpoints" / "step_000094" / "run.json")


def test_the_files_hold_what_is_written_otherwise_today() -> None:
    states = [run_state(name) for name in RUNS]
    for state in states:
        assert {"on", "off"} < set(map(str, state["config"].values())), "options that were text"
    assert {state["config"]["optim"] for state in states} == {"adamw", "adamw_sr_bf16", "adamw_sr_8bit"}
    assert states[0]["identity"]["model_config"]["head_dim"] is None, "as runs from Meta's folders left it"
    assert isinstance(states[1]["identity"]["model_config"]["head_dim"], int)


@pytest.mark.parametrize("name", RUNS)
def test_config_toml_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    old = tomllib.loads((OLD / name / "config.toml").read_text(encoding="utf-8"))
    load_config = runpy.run_path(str(ROOT / "train.py"))["load_config"]
    config = load_config(["--config", str(OLD / name / "config.toml")])
    for section, values in old.items():
        found = dataclasses.asdict(getattr(config, section))
        assert {key: plain(value) for key, value in values.items()} == {key: plain(found[key]) for key in values}


# What today's files say beyond the old ones: there were no answers of spans, no choice of shots, no lenient reading, no
# figures of probabilities.
NEW_COUNTS = {"spans_not_found": 0}
NEW_FLAGS = {"n_not_found": 0, "multi_top": {}, "abstained": [], "n_labels": {}}
NEW_FIGURES = {"ece", "nll", "accuracy_at_80", "accuracy_at_90"}
NEW_IN_PROMPT = {"shots_choice": "balanced", "wording": "clean", "template_from": "", "answer_tokens": None}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_arrives_where_the_old_code_did(name: str, program: Program, tmp_path: Path) -> None:
    run = shutil.copytree(OLD / name, tmp_path / name)
    shutil.rmtree(run / "export")
    before = read_lines(run / "log.jsonl")
    program("train.py", "--config", run / "config.toml", "--output", run, "--cache_dir", tmp_path / "c", "--resume")
    after = read_lines(run / "log.jsonl")[len(before) :]
    assert after.pop(0)["step"] == 94
    expected = [line for line in before if line["step"] > 94]
    tolerance = LOSS_TOLERANCE[run_state(name)["config"]["precision"]]
    exact = ("event", "step", "epoch", "examples", "label_tokens", "real_tokens", "computed_tokens", "score")
    for new, old in zip(after, expected, strict=True):
        assert {key: new.get(key) for key in exact} == {key: old.get(key) for key in exact}
        for key in {"loss", "lr", "loss/intent", "loss/slots"} & old.keys():
            assert new[key] == pytest.approx(old[key], rel=tolerance), key
    new, old = (load_file(folder / "export" / "model.safetensors") for folder in (run, OLD / name))
    assert new.keys() == old.keys()
    n_other = sum((new[key] != old[key]).sum().item() for key in old)
    assert n_other <= MOST_OTHER_WEIGHTS * sum(tensor.numel() for tensor in old.values())
    for file in sorted(path.name for path in (OLD / name / "export").glob("*.json")):
        if file == "labels.json":  # today's exports have task.json instead
            task = read_task(run / "export")
            assert task is not None
            found = {field.name: list(field.labels) for field in task.fields}
        else:
            found = read_json(run / "export" / file)
        if file == "prompt.json":
            assert found["template_from"], "a new export says why it has this template"
            assert found["answer_tokens"] > 1, "and the longest answer that it was trained on"
            found |= {"template_from": "", "answer_tokens": None}
        old_file = read_json(OLD / name / "export" / file)
        assert found == (old_file | NEW_IN_PROMPT if file == "prompt.json" else old_file), file


def test_another_value_of_a_switch_is_refused_by_its_name_alone(program: Program, tmp_path: Path) -> None:
    run = shutil.copytree(OLD / "tickets", tmp_path / "tickets")
    text = (run / "config.toml").read_text(encoding="utf-8")
    assert 'packing = "off"' in text
    (run / "config.toml").write_text(text.replace('packing = "off"', 'packing = "on"'), encoding="utf-8")
    with pytest.raises(UserError) as error:
        program("train.py", "--config", run / "config.toml", "--output", run, "--cache_dir", tmp_path / "c", "--resume")
    assert "packing: the checkpoint has" in str(error.value) and str(error.value).count("the checkpoint has") == 1


TICKETS = ("--model", "llama", "--task", "data/sample/tickets/tickets.toml", "--checkpoint")
FEW = ("--data", "sample", "--split", "train", "--limit", "24", "--seed", "7")
SCORED = {
    "tickets": (*TICKETS, OLD / "tickets/export"),
    "tickets_step": (*TICKETS, OLD / "tickets/checkpoints/step_000094"),
    "intent": ("--model", "llama", *FEW, "--checkpoint", OLD / "intent/export"),
    "joint": ("--model", "roberta", *FEW, "--checkpoint", OLD / "joint/export"),
    "joint_step": ("--model", "roberta", *FEW, "--checkpoint", OLD / "joint/checkpoints/step_000094"),
}


@pytest.mark.parametrize("name", SCORED)
def test_scored_as_the_old_code_did(name: str, program: Program, tmp_path: Path) -> None:
    where = ("--output", tmp_path / "scored", "--cache_dir", tmp_path / "cache")
    program("eval.py", *SCORED[name], "--device", "cpu", "--precision", "fp32", *where)
    new, old = (read_json(folder / "results.json") for folder in (tmp_path / "scored", OLD / "scored" / name))
    lenient = new["metrics"].pop("lenient", None)
    assert (lenient is None) == (old["prompt"] is None)
    assert not lenient or lenient["exact_match"] >= old["metrics"]["exact_match"]
    has_probabilities = name.startswith("joint")  # an encoder's
    assert (new["metrics"].pop("coverage", None) is not None) == has_probabilities
    for field, figures in new["metrics"]["fields"].items():
        found = {figure for figure in NEW_FIGURES if figures.pop(figure, None) is not None}
        assert found == (NEW_FIGURES if has_probabilities and field == "intent" else set())
    old["counts"] |= NEW_COUNTS
    old["prompt"] = old["prompt"] and old["prompt"] | NEW_IN_PROMPT
    for key in ("system", "task", "fields", "data", "split", "metrics", "checkpoint", "shots", "prompt", "counts"):
        assert new[key] == old[key], key
    for key in ("prompt_tokens", "computed_tokens", "new_tokens"):
        assert new["cost"][key] == old["cost"][key]
    new, old = (read_lines(folder / "predictions.jsonl") for folder in (tmp_path / "scored", OLD / "scored" / name))
    assert 1 < sum(not line["unparsed"] for line in old), "there were answers to read"
    for after, before in zip(new, old, strict=True):
        likeliest, expected = ({field: dict(top) for field, top in line.pop("top").items()} for line in (after, before))
        assert (after.pop("lenient") is None) == (lenient is None)
        boundaries = after.pop("parsed_bio")  # old files have none
        assert all(len(tags) == len(before["parsed"][field]) for field, tags in boundaries.items())
        assert after.pop("log_probs").keys() == expected.keys()
        assert after == before | NEW_FLAGS
        assert likeliest.keys() == expected.keys()
        for field, top in likeliest.items():
            assert top == pytest.approx(expected[field], abs=1e-4)


def test_scored_runs_are_compared_and_combined(program: Program, tmp_path: Path) -> None:
    scored = OLD / "scored"
    folders = sorted(folder for folder in scored.iterdir() if folder.is_dir())
    program("eval.py", "--compare", *folders, "--markdown", tmp_path / "compared.md")
    assert (tmp_path / "compared.md").read_text() == (scored / "compared.md").read_text()
    program("eval.py", "--combine", scored / "intent", scored / "slots", "--output", tmp_path / "dual")
    new, old = (read_json(folder / "results.json") for folder in (tmp_path / "dual", scored / "dual"))
    assert new.pop("predictions") and new.pop("examples") and new.pop("weights") == "", "the old files have no hashes"
    assert new.pop("texts") == ""
    assert new.pop("labels") == {} and new["settings"].pop("temperature") == {}, "they have no probabilities"
    assert new | {"versions": {}} == old | {"versions": {}, "counts": old["counts"] | NEW_COUNTS, "others": {}}
    after, before = (read_lines(folder / "predictions.jsonl") for folder in (tmp_path / "dual", scored / "dual"))
    assert after == [line | NEW_FLAGS | {"lenient": None, "parsed_bio": {}, "log_probs": {}} for line in before]
