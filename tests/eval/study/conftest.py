"""A study whose commands are short Python programs, so that its runner is tested in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.example import Example, hash_examples
from data.tasks import TASKS
from eval.results import Prediction, Results, field_kinds, measure, write_run
from eval.study import run
from eval.study.file import Study, StudyCell, read_study
from eval.study.plan import Step, cell_folder, score_folder
from tests.launching import ROOT

SCORE = """
import shutil, sys
shutil.copytree(sys.argv[2], sys.argv[1], dirs_exist_ok=True)
print("scored", sys.argv[1])
"""


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a scoring leaves: a result of three examples, two of them right. The programs copy it."""
    folder, task = tmp_path_factory.mktemp("scored"), TASKS["massive_intent"]
    examples = [Example(str(i), "text", {"intent": "alarm_set"}) for i in range(3)]
    predictions = [
        Prediction(e.id, e.labels, "", {"intent": "alarm_set" if i else None}) for i, e in enumerate(examples)
    ]
    results = Results("s", task.name, field_kinds(task), "sample", "test", measure(task, examples, predictions))
    results.examples = hash_examples(examples)
    write_run(folder, results, predictions)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "trial.toml"
    file.write_text('[[cells]]\nmodels = ["llama_debug"]\ntasks = ["massive_intent"]\nseeds = [0, 1, 2]\n')
    return read_study(file)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, scored: Path) -> Callable[..., None]:
    """Replace training and scoring: ``programs(train=..., eval=...)`` have the text of a program, or one by seed.

    A training must make the file that its first argument names.
    """

    def replace(**texts: str | dict[int, str]) -> None:
        def steps_of(study: Study, own: StudyCell, output: Path) -> list[Step]:
            def text(kind: str, default: str) -> str:
                found = texts.get(kind, default)
                return found if isinstance(found, str) else found.get(own.cell.seed, default)

            model = cell_folder(output, own.cell) / "train/export/config.json"
            model.parent.mkdir(parents=True, exist_ok=True)
            make = "import sys; from pathlib import Path; Path(sys.argv[1]).write_text('model')"
            assert own.cell.task == "massive_intent"
            folders = [str(score_folder(output, own.cell)), str(scored)]
            return [
                Step("train", (sys.executable, "-c", text("train", make), str(model)), model),
                Step("eval", (sys.executable, "-c", text("eval", SCORE), *folders), None),
            ]

        def report_step(own: StudyCell, output: Path) -> Step:
            return Step("page", (sys.executable, "-c", texts.get("page", "")), None)

        monkeypatch.setattr(run, "steps_of", steps_of)
        monkeypatch.setattr(run, "report_step", report_step)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    replace()
    return replace
