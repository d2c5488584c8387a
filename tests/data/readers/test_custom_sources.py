"""A user's own task whose examples are in Parquet, Arrow, JSON, CoNLL, a saved data set or one of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from data.errors import UserError
from data.example import Example
from data.readers import hub
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from data.readers.hub import HubSplit
from data.source import load_examples
from data.tasks import get_task

QUEUE = '[[fields]]\nname = "queue"\ntype = "class"\nlabels_from = "train"\n'
PARTS = '[[fields]]\nname = "parts"\ntype = "token"\nlabels_from = "train"\n'
FEATURES = Features({"text": Value("string"), "queue": ClassLabel(names=["sales", "help"])})
WORDS = Features({"tokens": List(Value("string")), "parts": List(ClassLabel(names=["O", "B-city", "I-city"]))})
CITY = {"tokens": ["to", "New", "York"], "parts": ["O", "B-city", "I-city"]}
SPANS = {"text": "to New York, ok", "parts": [{"start": 3, "end": 11, "label": "city"}]}


def task(folder: Path, head: str, fields: str = QUEUE) -> Path:
    (folder / "task.toml").write_text(f'name = "t"\n{head}\n{fields}')
    return folder / "task.toml"


def train(folder: Path, head: str, fields: str = QUEUE) -> list[Example]:
    return read_custom(read_custom_spec(task(folder, head, fields)), "train")


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"text": ["a", "b"], "queue": [0, 1]}, features=FEATURES)


WRITERS: dict[str, Callable[[Dataset, Path], Any]] = {
    "train.parquet": lambda rows, path: rows.to_parquet(path),
    "train.arrow": lambda rows, path: rows.save_to_disk(path),  # a folder, whatever its name
    "saved": lambda rows, path: rows.save_to_disk(path),
    "train.json": lambda rows, path: path.write_text(json.dumps({"data": [
        {"text": row["text"], "queue": FEATURES["queue"].names[row["queue"]]} for row in rows]})),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_classes_by_their_names(tmp_path: Path, rows: Dataset, name: str) -> None:
    WRITERS[name](rows, tmp_path / name)
    examples = train(tmp_path, f'[files]\ntrain = "{name}"')
    assert [(example.id, example.text, example.labels) for example in examples] == [
        ("t/train/1", "a", {"queue": "sales"}),
        ("t/train/2", "b", {"queue": "help"}),
    ]


@pytest.mark.parametrize(("kind", "label"), [
    ("class", "\ud800"), ("multi", ["\ud800"]), ("token", ["\ud800"]), ('token"\ntags = "spans', [[0, 1, "\ud800"]]),
])  # fmt: skip
def test_half_a_character_is_no_label(tmp_path: Path, kind: str, label: Any) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a", "queue": label}))
    with pytest.raises(UserError, match=r"number 1: label '\\ud800' holds half a character"):
        train(tmp_path, '[files]\ntrain = "t.jsonl"', QUEUE.replace("class", kind))


def test_what_is_no_id(tmp_path: Path) -> None:
    fields = QUEUE.replace('labels_from = "train"', 'labels = ["a", "b"]')
    for value, shown in (("\ud800", r'"\\ud800"'), ([1], r"\[1\]")):
        (tmp_path / "t.jsonl").write_text(json.dumps({"id": value, "text": "a", "queue": "a"}))
        with pytest.raises(UserError, match=f"line 1: 'id' must be an id, a text or a number; found {shown}"):
            train(tmp_path, 'id_column = "id"\n[files]\ntrain = "t.jsonl"', fields)


def test_a_missing_class(tmp_path: Path) -> None:
    Dataset.from_dict({"text": list("abc"), "queue": [0, -1, 1]}, features=FEATURES).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="t.parquet, row 2: 'queue' is null"):
        train(tmp_path, '[files]\ntrain = "t.parquet"')
    assert len(train(tmp_path, 'missing = "skip"\n[files]\ntrain = "t.parquet"')) == 2


def test_a_saved_split_without_classes(tmp_path: Path, rows: Dataset) -> None:
    unlabelled = Dataset.from_dict({"text": list("ab"), "queue": [-1, -1]}, features=rows.features)
    DatasetDict({"train": rows, "test": unlabelled}).save_to_disk(tmp_path / "saved")
    task(tmp_path, 'dataset = "saved"\nsplits = { train = "train", test = "test" }')
    with pytest.raises(UserError, match=r"To do without it, remove test from splits\. Texts without labels are for pr"):
        load_examples(get_task(tmp_path / "task.toml"), "test")


def test_columns_that_the_task_does_not_use_may_be_anything(tmp_path: Path) -> None:
    """Dates after the year 9999 cannot be read."""
    table = pa.table({"text": ["a", "b"], "queue": ["x", "y"], "due": pa.array([2**31 - 1] * 2, pa.date32())})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [example.text for example in train(tmp_path, '[files]\ntrain = "t.parquet"')] == ["a", "b"]
    with pytest.raises(UserError, match="t.parquet, row 1: cannot be read"):
        train(tmp_path, 'text = "{text} {due}"\n[files]\ntrain = "t.parquet"')
    with pytest.raises(UserError, match="no column 'duw'. Did you mean 'due'?"):
        train(tmp_path, 'id_column = "duw"\n[files]\ntrain = "t.parquet"')


# --------------------------------------------------------------------------------------------------- saved and hub


def test_a_saved_data_set_with_its_splits(tmp_path: Path, rows: Dataset) -> None:
    DatasetDict({"train": rows, "validation": rows.select([1])}).save_to_disk(tmp_path / "saved")
    head = 'dataset = "saved"\nsplits = { train = "train", test = "validation" }'
    assert len(train(tmp_path, head)) == 2
    (example,) = load_examples(get_task(tmp_path / "task.toml"), "test")
    assert (example.id, example.labels) == ("t/test/1", {"queue": "help"})
    with pytest.raises(UserError, match="no dev file; splits has only train, test. Hold out"):
        read_custom(read_custom_spec(tmp_path / "task.toml"), "dev")
    for head, message in (
        ('dataset = "saved"', "saved has no split 'test' .for test.. Known: train, validation"),
        ('dataset = "saved"\nsplits.train = "train[:90%]"', r"'train\[:90%\]' .for train., but parts .* test = 0.1"),
        ('dataset = "saved"\nsplits.train = "train+validation"', "whole splits are read .train, validation."),
        ('dataset = "saved/train"', "must be a folder which save_to_disk .* It is one split: name it in .files."),
        ('dataset = "saved"\nrevision = "v2"', "revision is for data sets of the hub"),
        ('dataset = "saved"\ndataset_config = "en"', "dataset_config is for data sets of the hub"),
        ('dataset = "saved"\nsplits = { valid = "train" }', "splits: unknown key 'valid'"),
        ('dataset = "saved"\nsplits = { train = 3 }', "splits.* must be a text"),
        ('dataset = "savd"', "dataset 'savd' is neither a folder .* nor the name of a data set of the hub"),
        ('dataset = "a/b/c"', "neither a folder"),
        ('dataset = "saved"\nencoding = "utf-16"\nsplits.train = "train"', "encoding is for files of text; the"),
        ('dataset = "saved"\nformat = "json"', "give either a dataset or format"),
        ('dataset = "saved"\n[files]\ntrain = "x.csv"', "give either a dataset or files"),
        ('splits = { train = "x" }\n[files]\ntrain = "x.csv"', "splits is for a dataset, and none is named"),
    ):
        with pytest.raises(UserError, match=message):
            train(tmp_path, head)


def test_a_split_in_two_splits(tmp_path: Path, rows: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    train(tmp_path, 'dataset = "saved"')
    assert "in both splits" not in caplog.text
    train(tmp_path, 'dataset = "saved"\nsplits = { train = "train", test = "train" }')
    assert "the data set's split 'train' is the train split and the test split: its examples are in both" in caplog.text


def test_a_data_set_of_the_hub(tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library does with the name is tested in `test_hub.py`."""
    asked: list[HubSplit] = []
    monkeypatch.setattr(hub, "_load", lambda source: asked.append(source) or rows)
    fields = QUEUE.replace('labels_from = "train"', 'labels = ["sales", "help"]')
    head = 'dataset = "me/mail"\ndataset_config = "en"\nrevision = "v2"'
    spec = read_custom_spec(task(tmp_path, head, fields))
    assert spec.files["test"] == (HubSplit("me/mail", "en", "v2", "test"),) and not asked, (
        "no network for the task alone"
    )
    examples = read_custom(spec, "train")
    assert [example.labels["queue"] for example in examples] == ["sales", "help"]
    assert asked == [HubSplit("me/mail", "en", "v2", "train")]
    with pytest.raises(UserError, match="me/mail, en, v2, train: no column 'queu'. Did you mean 'queue'"):
        train(tmp_path, head, fields + 'column = "queu"')


# --------------------------------------------------------------------------------------------------- words and tags


@pytest.mark.parametrize("scheme", ["", 'tags = "iob2"\n'])
def test_lists_of_words_and_classes(tmp_path: Path, scheme: str) -> None:
    Dataset.from_dict({"tokens": [CITY["tokens"]], "parts": [[0, 1, 2]]}, features=WORDS).to_parquet(
        tmp_path / "t.parquet"
    )
    (example,) = train(tmp_path, 'tokens_column = "tokens"\n[files]\ntrain = "t.parquet"', PARTS + scheme)
    assert (example.text, example.labels["parts"]) == ("to New York", ("Other", "city", "city"))
    assert example.bio["parts"] == ("O", "B-city", "I-city")
    assert get_task(tmp_path / "task.toml").text_column == "tokens"


def test_numbers_with_names(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": CITY["tokens"], "parts": [0, 1, 2]}))
    head = 'tokens_column = "tokens"\n[files]\ntrain = "t.jsonl"'
    fields = '[[fields]]\nname = "parts"\ntype = "token"\nnames = { 0 = "O", 1 = "B-city", 2 = "I-city" }\n'
    (example,) = train(tmp_path, head, fields)
    assert example.bio["parts"] == ("O", "B-city", "I-city")
    with pytest.raises(UserError, match="line 1: 'parts' has 2, for which names has no name"):
        train(tmp_path, head, fields.replace(', 2 = "I-city"', ', 3 = "I-city"'))
    with pytest.raises(UserError, match="'parts' must be a list of labels, found .0, 1, 2.. For numbers, names"):
        train(tmp_path, head, PARTS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (CITY | {"parts": ["O"]}, "t.jsonl, line 1: 'parts' has 1 labels for 3 words"),
        (CITY | {"tokens": ["to", "New York"]}, "line 1: 'tokens' has 'New York' as word 2 of 2, which has a space"),
        (CITY | {"tokens": "to New York"}, "line 1, column 'tokens': not JSON"),
        (CITY | {"tokens": 3}, "line 1: 'tokens' must be a list of words, found 3"),
    ],
)
def test_wrong_words(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    fields = PARTS.replace('labels_from = "train"', 'labels = ["city"]')
    with pytest.raises(UserError, match=message):
        train(tmp_path, 'tokens_column = "tokens"\n[files]\ntrain = "t.jsonl"', fields)


@pytest.mark.parametrize("labels", ['labels = ["city"]', 'labels_from = "train"'])
@pytest.mark.parametrize(
    ("head", "field", "column"),
    [
        ('tokens_column = "tokens"\n', PARTS, "tokens"),
        ("", PARTS, "parts"),
        ("", PARTS + 'tags = "spans"\n', "parts"),
    ],
)
def test_a_cell_that_is_no_list_has_one_place(tmp_path: Path, head: str, field: str, column: str, labels: str) -> None:
    cells = {"tokens": '["to"]', "parts": '["city"]'} | {column: "[to"}
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "to"} | cells))
    with pytest.raises(UserError) as caught:
        train(tmp_path, f'{head}[files]\ntrain = "t.jsonl"', field.replace('labels_from = "train"', labels))
    assert str(caught.value).startswith(f"{tmp_path}/t.jsonl, line 1, column {column!r}: not JSON")


def test_a_list_without_words_is_no_text(tmp_path: Path) -> None:
    fields = PARTS.replace('labels_from = "train"', 'labels = ["city"]')
    head = 'tokens_column = "tokens"\n[files]\ntrain = '
    (tmp_path / "t.jsonl").write_text('{"tokens": [], "parts": []}\n' + json.dumps(CITY))
    (tmp_path / "t.csv").write_text('tokens,parts\n[],[]\n"[""to"", ""Rome""]",O B-city\n')
    for name, line in (("t.jsonl", 1), ("t.csv", 2)):
        with pytest.raises(UserError, match=f"{name}, line {line}: 'tokens' is empty. Fill them in"):
            train(tmp_path, f'{head}"{name}"', fields)
        (example,) = train(tmp_path, f'missing = "skip"\n{head}"{name}"', fields)
        assert example.text.startswith("to")


@pytest.mark.parametrize(
    ("labels", "tags", "every", "advice"),
    [
        ('labels = ["city"]', ["O O", "O"], "Other", r"column\?$"),
        ('names = { O = "Other", 1 = "Other", 2 = "city" }', ["1 O", "1 1 O"], "Other", "do its names give each tag"),
        ('labels = ["city"]', ["city city", "city"], "city", r"column\?$"),
        ('labels = ["city"]', ["B-city B-city", "B-city"], "city", r"column\?$"),
    ],
)
def test_words_of_one_label_are_nothing_to_learn(
    tmp_path: Path, labels: str, tags: list[str], every: str, advice: str
) -> None:
    rows = [{"text": " ".join("w" * len(own.split())), "parts": own.split()} for own in tags]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields, head = PARTS.replace('labels_from = "train"', labels), '[files]\n{} = "t.jsonl"'
    with pytest.raises(
        UserError, match=rf"every word has the label '{every}' in 'parts', so there is nothing.*{advice}"
    ):
        train(tmp_path, head.format("train"), fields)
    spec = read_custom_spec(task(tmp_path, head.format("test"), fields))
    assert len(read_custom(spec, "test")) == 2, "in another split that is no mistake"


def test_where_entities_of_one_label_begin_can_be_learned(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "New York Rome", "parts": ["B-city", "I-city", "B-city"]}\n')
    assert len(
        train(tmp_path, '[files]\ntrain = "t.jsonl"', PARTS.replace('labels_from = "train"', 'labels = ["city"]'))
    )


def test_a_list_in_a_text_column_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(CITY))
    with pytest.raises(UserError, match="'tokens' must be a string, .* If it has a list of words, write tokens_column"):
        train(tmp_path, 'text_column = "tokens"\n[files]\ntrain = "t.jsonl"', PARTS)
    with pytest.raises(UserError, match="give either tokens_column .* or text_column"):
        train(tmp_path, 'text_column = "a"\ntokens_column = "tokens"\n[files]\ntrain = "t.jsonl"', PARTS)


@pytest.mark.parametrize("cell", ["['to', 'Rome']", '["to", "Rome"]'])
def test_nor_is_a_list_in_a_cell_the_text_of_labelled_words(tmp_path: Path, cell: str) -> None:
    """Words with brackets and quotes would be learned: there are as many of them as labels."""
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("tokens", "parts"), (cell, "O city"), ("[to] Rome", "O city")])
    fields, files = PARTS.replace('labels_from = "train"', 'labels = ["city"]'), '[files]\ntrain = "t.csv"'
    with pytest.raises(UserError, match=r"t.csv, line 2: 'tokens' must be a string, found .*write tokens_column"):
        train(tmp_path, f'text_column = "tokens"\n{files}', fields)
    (tmp_path / "t.csv").write_text('tokens,parts\n[to] Rome,O city\n"[""to"", Rome",O city\n')
    assert [e.text for e in train(tmp_path, f'text_column = "tokens"\n{files}', fields)] == ["[to] Rome", '["to", Rome']


def test_spans_are_not_of_lists_of_words(tmp_path: Path) -> None:
    """Their offsets might count words or characters."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": ["to", "Rome"], "parts": [[1, 2, "city"]]}))
    fields = PARTS.replace('labels_from = "train"', 'labels = ["city"]') + 'tags = "spans"\n'
    with pytest.raises(UserError, match='tags = "spans" is for texts, .* lists of words, in .tokens.'):
        train(tmp_path, 'tokens_column = "tokens"\n[files]\ntrain = "t.jsonl"', fields)


CONLL = "-DOCSTART- X O\n\nto TO O\nNew NNP B-city\nYork NNP I-city\n\nok UH O\n"


def test_conll(tmp_path: Path) -> None:
    for name, head in (("t.conll", ""), ("t.txt", 'format = "conll"\n'), ("t.conll", 'tokens_column = "tokens"\n')):
        (tmp_path / name).write_text(CONLL)
        examples = train(tmp_path, f'{head}[files]\ntrain = "{name}"', PARTS + 'column = "tags"\n')
        assert [(example.id, example.text) for example in examples] == [
            ("t/train/5", "to New York"),
            ("t/train/7", "ok"),
        ]
        assert examples[0].bio["parts"] == ("O", "B-city", "I-city")
    named = 'conll_columns = ["word", "pos", "parts"]\n[files]\ntrain = "t.conll"'
    assert train(tmp_path, named, PARTS)[0].labels["parts"] == ("Other", "city", "city")
    both = PARTS + PARTS.replace('"parts"', '"pos"') + 'tags = "types"\n'
    assert train(tmp_path, named, both)[0].labels["pos"] == ("TO", "NNP", "NNP")
    for head, message in (
        (named, "no column 'queue'. Known: word, pos, parts"),
        (named.replace('"pos", ', ""), "t.conll, line 3: 3 columns, but 2 are expected: word, parts"),
        ('text_column = "x"\n[files]\ntrain = "t.conll"', "text_column is for texts, and CoNLL files have words"),
        (
            'conll_columns = ["a"]\n[files]\ntrain = "t.csv"',
            "conll_columns is for .conll and .conllu files; .files. has",
        ),
        ('conll_columns = []\n[files]\ntrain = "t.conll"', "conll_columns is empty. Name every column"),
        ('[files]\ntrain = "t.txt"', 'must end in one of .csv, .* format = "conll"'),
        ('format = "conl"\n[files]\ntrain = "t.txt"', "unknown format 'conl'. Did you mean 'conll'"),
    ):
        (tmp_path / "t.csv").write_text("text,queue\na,b\n")
        with pytest.raises(UserError, match=message):
            train(tmp_path, head)


def test_conll_u(tmp_path: Path) -> None:
    (tmp_path / "t.conllu").write_text("# x\n1\tI\ti\tPRON" + "\t_" * 6 + "\n2\tgo\tgo\tVERB" + "\t_" * 6 + "\n")
    fields = PARTS.replace("parts", "upos") + 'tags = "types"\n'
    (example,) = train(tmp_path, '[files]\ntrain = "t.conllu"', fields)
    assert (example.text, example.labels["upos"]) == ("I go", ("PRON", "VERB"))


# ------------------------------------------------------------------------------------------------------------ spans


def test_spans(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head, fields = '[files]\ntrain = "t.jsonl"', PARTS + 'tags = "spans"\n'
    empty = {"text": "none here", "parts": []}
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (SPANS, empty)))
    with caplog.at_level("INFO", "data"):
        first, second = train(tmp_path, head, fields)
    assert first.labels["parts"] == ("Other", "city", "city", "Other") and set(second.bio["parts"]) == {"O"}
    assert first.bio["parts"] == ("O", "B-city", "I-city", "O")
    assert "1 of 1 spans end beside punctuation" in caplog.text
    (tmp_path / "t.csv").write_text('text,parts\n"to New York, ok","[[3, 11, ""city""]]"\n')
    assert train(tmp_path, head.replace("jsonl", "csv"), fields)[0].bio == first.bio
    with pytest.raises(UserError, match="line 1: 'parts' must be a list of labels, .* write tags = \"spans\""):
        train(tmp_path, head, PARTS)
    for wrong, message in (
        ([[3, 99, "city"]], "t.jsonl, line 1: 'parts' has the span 3 to 99 .'city'., which is out of range"),
        ([[3, 6, "city"], [3, 11, "city"]], "t.jsonl, line 1: 'parts' has spans that overlap: 'New'"),
        ([{"begin": 3}], "t.jsonl, line 1: 'parts' has a span without"),
    ):
        (tmp_path / "t.jsonl").write_text(json.dumps(SPANS | {"parts": wrong}))
        with pytest.raises(UserError, match=message):
            train(tmp_path, head, fields)
    (tmp_path / "t.jsonl").write_text(json.dumps(SPANS))
    with pytest.raises(UserError, match="'parts' is 'city', which is not one of its labels. Did you mean 'citi'"):
        train(tmp_path, head, fields.replace('labels_from = "train"', 'labels = ["citi"]'))
    with pytest.raises(UserError, match="'names' is for codes"):
        train(tmp_path, head, fields.replace('labels_from = "train"', 'names = { 0 = "city" }'))


@pytest.mark.parametrize(
    ("column", "what"), [("text", "row 2: 'text' holds"), ("queue", r"number 1: label 'a\\udcff' holds")]
)
def test_bytes_that_are_not_utf8(tmp_path: Path, column: str, what: str) -> None:
    """Parquet may have them in place of a text: they are no half of a character."""
    values = {"text": [b"x", b"y", b"z"], "queue": [b"a", b"b", b"a"]}
    values[column][1] = b"a\xff"
    pq.write_table(pa.table(values), tmp_path / "train.parquet")
    with pytest.raises(
        UserError, match=f"{what} half a character .an unpaired surrogate., or bytes that are not UTF-8"
    ):
        train(tmp_path, '[files]\ntrain = "train.parquet"')
