"""The command line of ``python -m eval.page``."""

from __future__ import annotations

import pytest

from data.source import load_examples
from data.tasks import TASKS
from eval.page.__main__ import main
from eval.page.report import PROGRAM
from eval.results import RESULTS
from tests.eval.page.runs import check_harmless, predicted, scored
from tests.launching import TICKETS

INTENT = TASKS["massive_intent"]


@pytest.fixture
def run(tmp_path):
    examples = load_examples(INTENT, "test", "sample")
    answers = ["alarm_set", "who knows", *(example.class_label("intent") for example in examples[2:])]
    predictions = [predicted(INTENT, own, raw) for own, raw in zip(examples, answers, strict=True)]
    return scored(tmp_path / "run", INTENT, examples, predictions, data="massive")


def test_it_writes_a_page(run, tmp_path, capsys):
    assert main([str(run), "--data", "sample"]) == 0
    assert f"written to {run / 'report.html'} (0." in capsys.readouterr().out
    first = (run / "report.html").read_text(encoding="utf-8")
    assert "who knows" in check_harmless(first).texts and "Texts are not shown" not in first
    assert main([str(run / RESULTS), "--data", "sample", "--output", str(tmp_path / "a" / "b.html")]) == 0
    assert (tmp_path / "a" / "b.html").read_text(encoding="utf-8") == first, "the same run has the same page"
    assert main([str(run), "--data", "sample"]) == 0, "its own page is replaced"


def test_mistakes_are_named(run, tmp_path, capsys):
    (tmp_path / "notes.html").write_text("mine")
    for arguments, message in {
        (str(tmp_path / "none"),): "there is no folder '",
        (str(tmp_path),): "is not a scored run: it has no results.json",
        (str(run), "--output", str(tmp_path / "notes.html")): f"is a file that {PROGRAM} did not make",
        (str(run), "--output", str(run)): "this is no file",
        (str(run), "--data", str(tmp_path / "none")): "none",
        (str(run), "--task", str(TICKETS)): "is task 'tickets', and the run is of 'massive_intent'",
        (str(run), "--train", str(run)): "has no log.jsonl",
    }.items():
        assert main(list(arguments)) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and "Traceback" not in err
    assert not (run / "report.html").exists() and (tmp_path / "notes.html").read_text() == "mine"


def test_texts_that_are_not_found_are_no_mistake(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("data.source.DOWNLOAD_DIR", tmp_path / "none")
    assert main([str(run)]) == 0
    assert "note: texts are not shown: no data" in capsys.readouterr().err
    assert "Texts are not shown: " in (run / "report.html").read_text(encoding="utf-8")


def test_it_can_be_interrupted(run, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.page.report.read_run", interrupted)
    assert main([str(run)]) == 130
