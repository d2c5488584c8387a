"""Reports of entire runs: their figures, what is hostile in them, and what does not agree."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections import Counter

import pytest

from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.tasks import TASKS, ClassField, MultiField, Task, TokenField
from eval.baselines import BaselineConfig, run_baselines
from eval.combine import combine
from eval.kept_lines import sha256_of
from eval.page.classes import LabelScores, scores_table
from eval.page.head import multi_section
from eval.page.intervals import between
from eval.page.report import FIELDS_SHOWN, read_run, report
from eval.page.slots import TokenCounts, types_table
from eval.probabilities import as_stored, most_probable
from eval.results import PREDICTIONS, RESULTS, Prediction, Results, read_results, write_run
from tests.children import peak_memory
from tests.eval.page.runs import check_harmless, predicted, scored
from tests.launching import ROOT, TICKETS

OLD = ROOT / "tests" / "old_files" / "scored"
JOINT = TASKS["massive_joint"]
STRANGE = [
    "<script>alert('1')</script>", "\"quoted\" & 'more'", "</td></table>", "שלום עולם", "مرحبا", "🙂👩‍👩‍👧", "天気",
    "bell\a\x1b[31m", "turned\u202eround", "x" * 3000, "$\\frac{1}{2}$ ${HOME}", "{braces} %s %(a)s",
]  # fmt: skip


def titles(page: str) -> list[str]:
    return [re.sub("<[^>]*>", "", title) for title in re.findall(r"<h2>(.*?)</h2>", page)]


def answer_all(task: Task, examples: list[Example]) -> list[Prediction]:
    """Answers of which some are wrong, unreadable, cut or of another length."""
    draw, found = random.Random(0), []
    for i, example in enumerate(examples):
        other = draw.choice(examples)
        labels = dict(example.labels)
        for field in task.fields:
            if isinstance(field, ClassField) and draw.random() < 0.3:
                labels[field.name] = other.labels[field.name]
            if isinstance(field, TokenField) and draw.random() < 0.3:
                types = (*other.word_labels(field.name), *[field.other] * 99)
                labels[field.name] = types[: len(example.words) + draw.choice((-1, 0, 1))]
        raw = task.write(labels, example.words)
        raw = draw.choice([raw] * 12 + ["", raw[:-3], f"It is {raw}", raw.replace("_", " "), "[1]"])
        found.append(predicted(task, example, raw, n_prompt_tokens=100 + i % 50, n_new_tokens=5))
    return found


def add_probabilities(task: Task, predictions: list[Prediction]) -> None:
    draw = random.Random(0)
    for p in predictions:
        for field in (own for own in task.fields if isinstance(own, ClassField)):
            logits = [draw.gauss(0, 1) + 5 * (label == p.parsed[field.name]) for label in field.labels]
            p.top[field.name], p.log_probs[field.name] = most_probable(field, logits), as_stored(logits)


def test_a_joint_run_on_the_sample(tmp_path):
    examples = load_examples(JOINT, "test", "sample")
    predictions = answer_all(JOINT, examples)
    add_probabilities(JOINT, predictions)
    run = scored(tmp_path, JOINT, examples, predictions, data="sample", prompt={"task": "x"}, settings={"seed": 3},
                 cost={"seconds_per_example": 0.25}, shots=2)  # fmt: skip
    read = check_harmless(page := report(run))
    assert titles(page) == [
        "Figures", "Labels: intent", "Entities: slots", "Probabilities: intent", "Answers that could not be read",
        "Accuracy by length", "Training",
    ]  # fmt: skip
    metrics = read_results(run).metrics
    n_right = sum(p.parsed == p.gold for p in predictions)
    assert read.texts.count(between(n_right, len(predictions))) == 2, "on a card and in the table"
    for value in (metrics["fields"]["intent"]["accuracy"], metrics["fields"]["slots"]["f1"], metrics["exact_match"]):
        assert f"{value:.1%}" in read.texts and f"{value:.2%}" in read.texts
    for text in (
        "massive_joint",
        "sample, test",
        "2 shots",
        "0.25 s",
        "seed",
        "read leniently",
        "JSON of another form",
    ):
        assert text in read.texts, text
    assert len(read.named("svg")) == 3
    wrong = [p for p in predictions if p.parsed["intent"] not in (None, p.gold["intent"])]
    texts = {example.id: example.text for example in examples}
    shown = [p for p in wrong if texts[p.id] in read.texts]
    assert wrong and len(shown) >= 10, "confused pairs have texts"


def test_other_systems_have_pages(tmp_path):
    run_baselines(BaselineConfig("massive_joint", "sample", output=tmp_path / "base"))
    for name in ("majority", "tfidf_lr"):
        read = check_harmless(report(tmp_path / "base" / name))
        assert "This system gives labels, and writes no text." in read.texts and "words of the text" in read.texts
    run_baselines(BaselineConfig("massive_intent", "sample", output=tmp_path / "intent"))
    run_baselines(BaselineConfig("massive_slots", "sample", output=tmp_path / "slots"))
    combine(tmp_path / "intent" / "tfidf_lr", tmp_path / "slots" / "tfidf_lr", tmp_path / "dual")
    read = check_harmless(page := report(tmp_path / "dual"))
    assert "joined" in read.text and {"Labels: intent", "Entities: slots"} <= set(titles(page))
    assert not read.text.count("Texts are not shown")


@pytest.mark.parametrize("folder", sorted(OLD.glob("*/")), ids=lambda folder: folder.name)
def test_old_runs_have_pages(folder):
    task = str(TICKETS) if "tickets" in folder.name else None
    check_harmless(report(folder, task=task))


def test_whatever_labels_texts_and_answers_are(tmp_path, monkeypatch, caplog):
    class_field, multi = ClassField("<b>mood</b>", tuple(STRANGE)), MultiField("'m\u202e'", tuple(STRANGE))
    tokens = TokenField("🙂 slots", tuple(STRANGE))
    task = Task("<i>mine", "custom", (class_field, multi, tokens))
    examples, predictions = [], []
    for i in range(120):
        text = STRANGE[i % len(STRANGE)].replace(" ", "_") + " and more"
        labels = {class_field.name: STRANGE[i % 12], multi.name: (STRANGE[i % 12], STRANGE[(i + 1) % 12]),
                  tokens.name: (STRANGE[i % 12], "Other", "Other")}  # fmt: skip
        example = Example(f"<id {i}> {STRANGE[i % 12]}", text, labels)
        if i % 3 == 0:
            changed = {class_field.name: STRANGE[(i + 5) % 12], tokens.name: (STRANGE[(i + 3) % 12],) * 3}
            labels = labels | changed
        raw = task.write(labels, example.words) if i % 5 else STRANGE[i % 12]
        raw = json.dumps({"task1": STRANGE[i % 12] + "!"}) if i % 7 == 0 else raw
        examples.append(example)
        predictions.append(predicted(task, example, raw, n_prompt_tokens=i + 1))
    clean = [p for p in predictions if p.parsed[class_field.name] is not None]
    kept = {p.id for p in clean}
    add_probabilities(task, clean)
    about = dict(system=STRANGE[0], data=STRANGE[1], model=STRANGE[2], checkpoint=STRANGE[3],
                 settings={STRANGE[0]: STRANGE[1], "a": {STRANGE[2]: [STRANGE[7]]}}, versions={"x": STRANGE[0]},
                 prompt={"text": STRANGE[0] + STRANGE[8]})  # fmt: skip
    monkeypatch.setattr("eval.page.texts._tasks", lambda results, given: [task])
    monkeypatch.setattr("eval.page.texts.splits_of", lambda task: ("test",))
    monkeypatch.setattr("eval.page.texts.load_examples", lambda *given: examples)
    runs = {
        "all": scored(tmp_path / "all", task, examples, predictions, **about),
        "sure": scored(tmp_path / "sure", task, [e for e in examples if e.id in kept], clean, **about),
    }
    for name, run in runs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of letters that a font does not have
            page = report(run)
        read = check_harmless(page)
        for text in STRANGE[:7]:
            assert text in read.texts
        assert STRANGE[9] not in page and "x" * 80 in read.texts and " … (3,000 characters)" in read.texts
        assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page) and r"turned\u202eround" in read.texts
        assert len(read.named("svg")) == (3 if name == "sure" else 2)
        assert ("answers have no probability" in read.text) == (name == "all")
    assert not caplog.records


def test_labels_and_texts_have_the_direction_of_their_script(tmp_path):
    task = Task("mine", "custom", (ClassField("m", ("שלום", "b")),))
    example = Example("a", "x", {"m": "b"})
    page = report(scored(tmp_path, task, [example], [predicted(task, example, "שלום")]))
    assert page.count('<bdi dir="auto" class="label">שלום</bdi>') >= 3
    assert "Texts are not shown: " in page and "Give --task its .toml file" in page


def test_sections_are_omitted_with_a_reason(tmp_path):
    task = Task("mine", "custom", (TokenField("s", ("x",)),))
    example = Example("a", "hello", {"s": ("Other",)})
    run = scored(tmp_path, task, [example], [Prediction("a", example.labels, "", example.labels)])
    read = check_harmless(page := report(run))
    assert page.count("Not shown: ") == 4 and "Only class fields have probabilities." in read.texts
    assert "There are no entities" in read.text
    results = read_results(tmp_path)
    results.metrics |= {"n_examples": 0, "exact_match": 0.0, "fields": {"s": {"f1": 0.0}}}
    write_run(tmp_path, results, [])
    assert "No example was scored." in check_harmless(report(tmp_path)).texts


def test_the_type_of_no_entity_is_that_of_the_task(tmp_path):
    task = Task("mine", "custom", (TokenField("s", ("x", "Other"), other="none"),))
    example = Example("a", "one two", {"s": ("x", "none")}, {"s": ("B-x", "O")})
    prediction = Prediction("a", example.labels, "", {"s": ("none", "none")}, gold_bio=example.bio)
    run = scored(tmp_path, task, [example], [prediction])
    results, counts, _ = read_run(run)
    assert counts.tokens["s"].n_gold == {"x": 1} and results.metrics["fields"]["s"]["f1"] == 0.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_examples": 9}, "metrics.n_examples is 9, and the answers in predictions.jsonl give 40"),
        ({"exact_match": 0.999}, "metrics.exact_match is 0.999, and"),
        ({"fields": {"intent": {"accuracy": 0.99}}}, "metrics.fields.intent.accuracy is 0.99, and"),
        ({"fields": {"slots": {"f1": 0.99}}}, "metrics.fields.slots.f1 is 0.99, and"),
    ],
)
def test_figures_that_were_changed_are_refused(tmp_path, change, message):
    examples = load_examples(JOINT, "test", "sample")[:40]
    run = scored(tmp_path, JOINT, examples, answer_all(JOINT, examples), data="sample")
    report(run)
    record = json.loads((run / RESULTS).read_text())
    for name, value in change.items():
        if isinstance(value, dict):
            for field, own in value.items():
                record["metrics"]["fields"][field] |= own
        else:
            record["metrics"][name] = value
    (run / RESULTS).write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"{message}.*Score again"):
        report(run)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    examples = load_examples(JOINT, "test", "sample")[:40]
    run = scored(tmp_path / "run", JOINT, examples, answer_all(JOINT, examples), data="sample")
    text = (run / PREDICTIONS).read_text()
    (run / PREDICTIONS).write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="is not of the scoring that wrote results.json"):
        report(run)
    (run / PREDICTIONS).unlink()
    with pytest.raises(UserError, match="has no predictions.jsonl, the answers. Score again"):
        report(run)
    with pytest.raises(UserError, match="is not a scored run"):
        report(tmp_path)
    with pytest.raises(UserError, match=r"--train .* has no log.jsonl"):
        report(run, train=tmp_path)


@pytest.mark.parametrize("n, folded, left_out", [(26, "1 more {}", ""), (301, "275 more {}s", "1 more {}"),
                                                 (302, "275 more {}s", "2 more {}s")])  # fmt: skip
def test_labels_after_the_first_may_have_the_same_f1(n, folded, left_out):
    """Here all have 0%."""
    names = [f"label {i:03}" for i in range(n)]
    figures = {"per_label": {name: {"f1": 0.0, "support": 1} for name in names}}
    results = Results("s", "t", {"m": "multi"}, "d", "test", {"fields": {"m": figures}})
    tables = [
        ("label", scores_table([LabelScores(name, 0, 0, 0, 1, 0) for name in names])),
        ("type", types_table(TokenCounts("s", n_gold=Counter(names)))),
        ("label", multi_section("m", results)),
    ]
    for (what, shown), folds in zip(tables, (True, True, False), strict=True):
        expected = [f"{folded} with the same or a higher F1"] * folds
        expected += [f"Not shown: {left_out} with the same or a higher F1."] * bool(left_out)
        assert re.findall(r"[^>]* more [^<]*", shown) == [text.format(what) for text in expected]


def test_a_page_stays_small(tmp_path):
    """The most that a page shows: more fields, labels and errors than it has space for, and long names."""
    draw = random.Random(0)
    labels = [tuple(f"{k}/{i}/" + "long name " * 30 for i in range(100)) for k in range(FIELDS_SHOWN + 2)]
    task = Task("mine", "custom", tuple(ClassField(f"field {k}", own) for k, own in enumerate(labels)))
    examples, predictions = [], []
    for i in range(1500):
        gold = {field.name: draw.choice(own) for field, own in zip(task.fields, labels, strict=True)}
        answer = {field.name: draw.choice(own) for field, own in zip(task.fields, labels, strict=True)}
        examples.append(Example(str(i), "x", gold))
        predictions.append(Prediction(str(i), dict(gold), "", answer, n_prompt_tokens=i + 1))
    page = report(scored(tmp_path, task, examples, predictions))
    assert len(page.encode()) < 5_000_000
    assert titles(page).count("Other fields") == 1 and "2 more fields have their figures above" in page


@pytest.mark.slow
def test_a_million_predictions(tmp_path):
    """A thousand predictions, a thousand times under other ids: neither memory nor the page grow with them."""
    times, task = 1000, TASKS["massive_intent"]
    draw, labels = random.Random(0), task.fields[0].labels
    examples = [Example(f"e{i}", "some words", {"intent": draw.choice(labels)}) for i in range(1000)]
    answers = [predicted(task, own, draw.choice([own.labels["intent"]] * 4 + ["alarm_set", "?"])) for own in examples]
    run = scored(tmp_path, task, examples, answers)
    lines = (run / PREDICTIONS).read_text().splitlines(keepends=True)
    with (run / PREDICTIONS).open("w") as file:
        for k in range(times):
            file.writelines(re.sub('"id": ?"e', f'"id":"{k}/e', line, count=1) for line in lines)
    stored = json.loads((run / RESULTS).read_text())
    for metrics in (stored["metrics"], *stored["metrics"]["fields"].values(), stored["metrics"].get("lenient") or {}):
        for name in ("n_examples", "n_unparsed"):
            if name in metrics:
                metrics[name] *= times
    stored["predictions"] = sha256_of(run / PREDICTIONS)
    (run / RESULTS).write_text(json.dumps(stored))
    _, peak = peak_memory("from eval.page.__main__ import main; main(sys.argv[2:])", str(run), timeout=300)
    page = (run / "report.html").read_text()
    assert "1,000,000" in page and len(page) < 1_000_000
    assert peak < 300 << 20
