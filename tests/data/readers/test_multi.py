"""Multi fields in a user's tables: lists, separators, columns of 0 and 1, and what can be wrong with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from data.source import load_examples
from data.tasks import MultiField, get_task

HEAD = 'name = "mail"\n[files]\ntest = "{}"\n[[fields]]\nname = "topics"\ntype = "multi"\n'
LABELS = 'labels = ["billing", "refund", "caf\u00e9"]\n'


def labels_of(folder: Path, keys: str, table: str, name: str = "table.csv") -> list[tuple[str, ...]]:
    (folder / name).write_text(table, encoding="utf-8")
    (folder / "task.toml").write_text(HEAD.format(name) + keys, encoding="utf-8")
    examples = read_custom(read_custom_spec(folder / "task.toml"), "test")
    return [example.label_set("topics") for example in examples]


def rows(*cells: object) -> str:
    return "".join(json.dumps({"text": "a text", "topics": cell}) + "\n" for cell in cells)


@pytest.mark.parametrize(
    ("separator", "cell", "labels"),
    [
        ("|", "refund|billing", ("billing", "refund")),
        ("|", " refund | billing |", ("billing", "refund")),
        ("|", "refund|refund", ("refund",)),
        ("|", "refund", ("refund",)),
        ("|", "cafe\u0301", ("café",)),
        ("|", "", ()),
        ("|", " ", ()),
        (";", "billing;café", ("billing", "café")),
        (" ", "billing  refund", ("billing", "refund")),
        (", ", '"refund, billing"', ("billing", "refund")),
        (None, '"[""refund"", ""billing""]"', ("billing", "refund")),
        (None, "\"['refund', 'refund']\"", ("refund",)),
        (None, "\"['refund' , 'billing', ]\"", ("billing", "refund")),
        (None, "[]", ()),
        (None, "", ()),
    ],
)
def test_cells_of_csv(tmp_path: Path, separator: str | None, cell: str, labels: tuple[str, ...]) -> None:
    keys = LABELS + (f'separator = "{separator}"\n' if separator else "")
    assert labels_of(tmp_path, keys, f"text,topics\na text,{cell}\n") == [labels]


def test_cells_of_json_lines(tmp_path: Path) -> None:
    table = rows(["refund", "billing"], [], "", '["café"]', ["refund", "refund"])
    expected = [("billing", "refund"), (), (), ("café",), ("refund",)]
    assert labels_of(tmp_path, LABELS, table, "table.jsonl") == expected
    both = rows("refund|billing", ["café"])
    assert labels_of(tmp_path, LABELS + 'separator = "|"\n', both, "table.jsonl") == [("billing", "refund"), ("café",)]


def test_choices_of_label_studio(tmp_path: Path) -> None:
    """One label is a text, also one with a comma in it; several are an object."""
    cells = ("refund", {"choices": ["refund", "billing"]}, " café ", ["billing"], "", {"choices": []})
    expected = [("refund",), ("billing", "refund"), ("café",), ("billing",), (), ()]
    assert labels_of(tmp_path, LABELS + "choices = true\n", rows(*cells), "table.jsonl") == expected
    texts = [cell if isinstance(cell, str) else json.dumps(cell) for cell in cells]
    assert labels_of(tmp_path, LABELS + "choices = true\n", rows(*texts), "table.jsonl") == expected
    collected = 'labels_from = "test"\nchoices = true\n'
    assert labels_of(tmp_path, collected, rows("a, b", {"choices": ["c"]}), "table.jsonl") == [("a, b",), ("c",)]
    for other in ({"choice": "refund"}, {"choices": ["refund"], "x": 1}):
        with pytest.raises(UserError, match=re.escape(f"must be a list of labels, found {json.dumps(other)}")):
            labels_of(tmp_path, LABELS + "choices = true\n", rows(other), "table.jsonl")


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    assert labels_of(tmp_path, 'labels = ["1", "2"]\n', rows([2, "1"]), "table.jsonl") == [("1", "2")]


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        ('["billing", "refund", "café"]', "billing,café,refund"),
        ('{billing = "is_b", refund = "is_r", "café" = "c"}', "is_b,c,is_r"),
    ],
)
def test_a_column_for_each_label(tmp_path: Path, columns: str, header: str) -> None:
    table = f"text,{header}\na,1,0,1\nb,0,0,0\nc,false,True,TRUE\nd,0.0,1.0, 0 \n"
    found = labels_of(tmp_path, f"columns = {columns}\n", table)
    assert found == [("billing", "refund"), (), ("refund", "café"), ("café",)]
    spec = read_custom_spec(tmp_path / "task.toml")
    assert spec.fields[0].labels == ("billing", "refund", "café")
    flags = json.dumps({"text": "a"} | dict(zip(header.split(","), (True, 0, 1), strict=True)))
    assert labels_of(tmp_path, f"columns = {columns}\n", flags, "table.jsonl") == [("billing", "refund")]


def test_labels_are_collected(tmp_path: Path) -> None:
    keys = 'labels_from = "test"\nseparator = "|"\n'
    assert labels_of(tmp_path, keys, "text,topics\na,b|a\nb,\nc,c\n") == [("a", "b"), (), ("c",)]
    task = get_task(tmp_path / "task.toml")
    assert task.fields == (MultiField("topics", ("a", "b", "c"), "|"),)
    assert [example.labels for example in load_examples(task, "test")][1] == {"topics": ()}


@pytest.mark.parametrize("cell", ["a\nb|c", "a\rb"])
def test_a_collected_label_with_a_line_break(tmp_path: Path, cell: str) -> None:
    with pytest.raises(
        UserError, match=r"table.jsonl, line 2: 'topics' has the label 'a\\[nr]b', which is empty or has"
    ):
        labels_of(tmp_path, 'labels_from = "test"\nseparator = "|"\n', rows("a", cell), "table.jsonl")


def test_one_label_is_enough(tmp_path: Path) -> None:
    assert labels_of(tmp_path, 'labels = ["spam"]\nseparator = "|"\n', "text,topics\na,spam\nb,\n") == [("spam",), ()]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (LABELS + 'separator = "f"\n', "label 'refund' has the separator 'f' in it"),
        ('names = { a = "x|y", b = "z" }\nseparator = "|"\n', r"label 'x\|y' has the separator '\|' in it"),
        (LABELS + 'separator = ""\n', "separator is empty"),
        (LABELS + 'other = "x"\n', "'other' is for fields of type \"token\" only"),
        (LABELS + 'answer = "list"\n', "'answer' is for fields of type \"token\" only"),
        (LABELS + 'tags = "bio"\n', "'tags' is for fields of type \"token\" only"),
        (LABELS + 'choices = true\nseparator = "|"\n', "choices is for texts and lists; omit it, or separator"),
        ('choices = true\ncolumns = ["a"]\n', "choices is for texts and lists; omit it, or columns"),
        (LABELS + 'columns = ["a"]\n', "columns says which labels there are; omit labels and labels_from"),
        ('labels_from = "test"\ncolumns = ["a"]\n', "columns says which labels there are; omit labels"),
        ('columns = ["a"]\nseparator = "|"\n', "columns has a column for each label; omit separator"),
        ('columns = ["a"]\ncolumn = "b"\n', "columns has a column for each label; omit column"),
        ("columns = []\n", "columns is empty"),
        ('columns = ["a", "a"]\n', "columns: 'a' is there twice"),
        ('columns = {a = "x", b = "x"}\n', "columns: 'x' is there twice"),
        ("columns = 3\n", "columns must be"),
        ("", "give either labels"),
        ("labels = []\n", "needs at least 1 label"),
        ('labels = ["a", "a"]\n', "label 'a' is listed more than once"),
    ],
)
def test_wrong_keys(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        labels_of(tmp_path, keys, "text,topics,a\nx,,0\n")
    assert "task.toml" in str(error.value)


@pytest.mark.parametrize("kind", ["class", "token"])
def test_keys_of_multi_fields_alone(tmp_path: Path, kind: str) -> None:
    for key in ('separator = "|"', 'columns = ["a"]', "choices = true"):
        (tmp_path / "table.csv").write_text("text,topics\na,x\n")
        head = HEAD.replace('"multi"', f'"{kind}"')
        (tmp_path / "task.toml").write_text(head.format("table.csv") + 'labels = ["x", "y"]\n' + key)
        with pytest.raises(UserError, match=f"'{key.split()[0]}' is for fields of type \"multi\" only"):
            read_custom_spec(tmp_path / "task.toml")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "line 2: 'topics' is null. Fill them in, or write missing = \"skip\""),
        (3, "must be a list of labels, found 3"),
        (True, "must be a list of labels, found true"),
        ({"refund": 1}, r'must be a list of labels, found {"refund": 1}'),
        ("refund", 'must be a list of labels, found "refund".* separator = "|"'),
        ("refund;billing", 'must be a list of labels, found "refund;billing".* separator = ";"'),
        ("[refund, billing]", "must be a list of labels"),
        ("['refund' 'billing']", r"no comma between texts, .*\"\['refund' 'billing'\]\". .* JSON"),
        ("['refund'\n 'billing']", "no comma between texts"),
        ('["refund" "billing"]', "no comma between texts"),
        ("['re' r'fund']", "no comma between texts"),
        ("['re' 'fund', 'billing']", "no comma between texts"),
        ("[b'refund']", "'topics' must be a label, found b'refund'"),
        ("[{1}]", "'topics' must be a label, found {1}"),
        (["refund", None], "'topics' must be a label, found null"),
        (["refund", ["billing"]], "'topics' must be a label, found"),
        ([[0, 6, "refund"]], r'must be a label, found \[0, 6, "refund"\]. If .* type = "token" and tags = "spans"'),
        (["refund", ""], "'topics' has '', which is not one of its labels"),
        (["refunds"], "'topics' has 'refunds', which is not one of its labels. Did you mean 'refund'"),
        (["refund;billing"], "It is labels of the set with ';' between them: set separator = \";\""),
    ],
)
def test_wrong_cells(tmp_path: Path, cell: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        labels_of(tmp_path, LABELS, rows(["refund"], cell), "table.jsonl")
    assert "line 2" in str(error.value) and "\n" not in str(error.value)


def test_another_separator_is_recognized(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2: .*with ';' between them: set separator = \";\""):
        labels_of(tmp_path, LABELS + 'separator = "|"\n', "text,topics\na,refund;billing\n")


def test_codes_have_names_and_gaps_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = 'separator = ","\nnames = {1 = "billing", 2 = "refund", 3 = "refund"}\n'
    assert labels_of(tmp_path, keys, 'text,topics\na,"3,1"\nb,\n') == [("billing", "refund"), ()]
    with pytest.raises(UserError, match="'topics' has '4', which is not one of its codes"):
        labels_of(tmp_path, keys, "text,topics\na,4\n")
    skipping = HEAD.replace('name = "mail"', 'name = "mail"\nmissing = "skip"')
    (tmp_path / "table.jsonl").write_text(rows(["refund"], None, []) + '{"text": "no topics"}\n', encoding="utf-8")
    (tmp_path / "task.toml").write_text(skipping.format("table.jsonl") + LABELS, encoding="utf-8")
    examples = read_custom(read_custom_spec(tmp_path / "task.toml"), "test")
    assert [example.label_set("topics") for example in examples] == [("refund",), ()]
    assert "mail test: 2 of 4 records have no value in a column and are skipped: 2 in 'topics'." in caplog.text


def test_the_same_labels_everywhere_are_nothing_to_learn(tmp_path: Path) -> None:
    for cell, every in (("refund|billing", "'billing', 'refund'"), ("", "none")):
        table = f"text,topics\na,{cell}\nb,{cell}\n"
        assert len(labels_of(tmp_path, LABELS + 'separator = "|"\n', table)) == 2, "in another split that is no mistake"
        task = tmp_path / "task.toml"
        task.write_text(task.read_text(encoding="utf-8").replace("test =", "train ="), encoding="utf-8")
        with pytest.raises(UserError, match=rf"every example has the same labels of 'topics' \({every}\)"):
            read_custom(read_custom_spec(task), "train")


@pytest.mark.parametrize("cell", ["2", "yes", "refund"])
def test_wrong_flags(tmp_path: Path, cell: str) -> None:
    message = rf"line 3: 'refund' must be 0 or 1 \(or false or true\), found \"{cell}\""
    with pytest.raises(UserError, match=message):
        labels_of(tmp_path, 'columns = ["billing", "refund"]\n', f"text,billing,refund\na,0,1\nb,1,{cell}\n")
    with pytest.raises(UserError, match=r"'refund' is empty. Fill them in"):
        labels_of(tmp_path, 'columns = ["billing", "refund"]\n', "text,billing,refund\na,0,1\nb,1,\n")
    with pytest.raises(UserError, match=r"no column 'refund'.*Texts without labels are for predict.py"):
        labels_of(tmp_path, 'columns = ["billing", "refund"]\n', "text,billing\na,0\n")


def test_no_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"table.csv: no column 'topics'.*Texts without labels are for predict.py"):
        labels_of(tmp_path, LABELS, "text,topic\na,x\n")


def test_lists_of_parquet_and_of_saved_data_sets(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [["refund", "billing"], [], ["café"]]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "topics": cells}), tmp_path / "table.parquet")
    (tmp_path / "task.toml").write_text(HEAD.format("table.parquet") + LABELS, encoding="utf-8")
    expected = [("billing", "refund"), (), ("café",)]
    examples = read_custom(read_custom_spec(tmp_path / "task.toml"), "test")
    assert [example.label_set("topics") for example in examples] == expected

    names = datasets.ClassLabel(names=["café", "billing", "refund"])  # stored as numbers
    features = datasets.Features({"text": datasets.Value("string"), "topics": datasets.Sequence(names)})
    saved = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "topics": cells}, features=features)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "saved")
    head = HEAD.replace('[files]\ntest = "{}"', 'dataset = "saved"')
    (tmp_path / "task.toml").write_text(head + LABELS, encoding="utf-8")
    examples = read_custom(read_custom_spec(tmp_path / "task.toml"), "test")
    assert [example.label_set("topics") for example in examples] == expected
