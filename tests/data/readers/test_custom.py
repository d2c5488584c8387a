"""A user's own task: the TOML file, its CSV and JSON-lines files, and what can be wrong with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NoReturn

import pytest

from data.errors import UserError
from data.example import Example
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import load_custom, read_custom
from data.readers.custom_fields import CustomField
from data.source import load_examples
from data.tasks import get_task

HEAD = 'name = "tickets"\ndocument_name = "Ticket"\ninstruction = "Sort it."\n'
FILES = '[files]\ntrain = "train.csv"\ntest = "test.jsonl"\n'
QUEUE = '[[fields]]\nname = "queue"\ntype = "class"\nlabels = ["billing", "sales"]\n'
PARTS = '[[fields]]\nname = "parts"\ntype = "token"\ncolumn = "tags"\nlabels = ["product", "date"]\n'

TRAIN = 'text,queue,tags\n"Pay ""now"", please",billing,Other date Other\nbuy\u00a0boat,sales,O B-product\n'
TEST = [
    {"text": "red car car today", "queue": "sales", "tags": ["B-product", "I-product", "B-product", "date"]},
    {"text": "a", "queue": "billing", "tags": ["Other"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEST), encoding="utf-8")
    (tmp_path / "task.toml").write_text(HEAD + FILES + QUEUE + PARTS, encoding="utf-8")
    return tmp_path


def test_the_spec(folder: Path) -> None:
    spec = read_custom_spec(folder / "task.toml")
    assert (spec.name, spec.document_name, spec.instruction) == ("tickets", "Ticket", "Sort it.")
    assert spec.fields == (
        CustomField("queue", "class", ("billing", "sales"), "queue"),
        CustomField("parts", "token", ("product", "date"), "tags", "Other"),
    )
    assert spec.files == {"train": (folder / "train.csv",), "test": (folder / "test.jsonl",)}
    assert (spec.text_column, spec.id_column) == ("text", None)


def test_csv(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = read_custom(read_custom_spec(folder / "task.toml"), "train")
    assert [example.id for example in examples] == ["tickets/train/2", "tickets/train/3"]
    assert examples[0].text == 'Pay "now", please'
    assert examples[0].labels == {"queue": "billing", "parts": ("Other", "date", "Other")}
    assert examples[0].bio == {"parts": ("O", "B-date", "O")}
    assert examples[1].words == ["buy", "boat"]  # str.split parts at a no-break space too
    assert examples[1].labels["parts"] == ("Other", "product")
    assert "skipped" not in caplog.text


def test_jsonl(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "data"):
        examples = load_custom(read_custom_spec(folder / "task.toml"), "test")
    assert examples[0].labels == {"queue": "sales", "parts": ("product", "product", "product", "date")}
    assert examples[0].bio == {"parts": ("B-product", "I-product", "B-product", "B-date")}
    assert "tickets test: 2 examples" in caplog.text


def test_through_the_task(folder: Path) -> None:
    task = get_task(folder / "task.toml")
    examples = load_examples(task, "train")
    answer = json.loads(task.write(examples[0].labels, examples[0].words))
    assert answer == {"task1": "billing", "task2": [f"date: {examples[0].words[1]}"]}
    with pytest.raises(UserError, match="would be ignored"):
        load_examples(task, "train", "sample")


def test_a_name_that_is_taken(folder: Path) -> None:
    (folder / "task.toml").write_text(HEAD.replace("tickets", "20ng_7") + FILES + QUEUE)
    with pytest.raises(UserError, match="task.toml: name '20ng_7' is the name of a built-in task"):
        get_task(folder / "task.toml")


def test_bare_equal_neighbours_are_one_entity(folder: Path) -> None:
    (folder / "test.jsonl").write_text('{"text": "a b c", "queue": "sales", "tags": "date date product"}\n')
    (example,) = read_custom(read_custom_spec(folder / "task.toml"), "test")
    assert example.bio["parts"] == ("B-date", "I-date", "B-product")


def test_a_label_that_looks_like_a_tag(folder: Path) -> None:
    (folder / "task.toml").write_text(HEAD + FILES + PARTS.replace('"product"', '"B-52"'))
    (folder / "test.jsonl").write_text('{"text": "a b c", "tags": ["B-52", "B-52", "B-date"]}\n')
    (example,) = read_custom(read_custom_spec(folder / "task.toml"), "test")
    assert example.labels["parts"] == ("B-52", "B-52", "date")
    assert example.bio["parts"] == ("B-B-52", "I-B-52", "B-date")


def collected(folder: Path, tags: list[list[str]], extra: str = "") -> list[Example]:
    """The examples of a token field whose labels are collected from these."""
    parts = PARTS.replace('labels = ["product", "date"]', 'labels_from = "test"') + extra
    (folder / "task.toml").write_text(HEAD + FILES + parts)
    rows = [{"text": " ".join("w" * len(own)), "tags": own} for own in tags]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_custom(read_custom_spec(folder / "task.toml"), "test")


TWO_SONGS = ("B-song", "I-song", "I-song", "B-song", "O", "B-date")


@pytest.mark.parametrize("extra", ["", "{scheme}"])
@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob1", "I-song I-song I-song B-song O I-date"),
        ("iob2", "B-song I-song I-song B-song O B-date"),
        ("iobes", "B-song I-song E-song S-song O S-date"),
        ("bilou", "B-song I-song L-song U-song O U-date"),
    ],
)
def test_schemes_of_tags(folder: Path, scheme: str, tags: str, extra: str) -> None:
    (example,) = collected(folder, [tags.split()], extra and f'tags = "{scheme}"\n')
    assert example.bio["parts"] == TWO_SONGS
    assert example.labels["parts"] == ("song", "song", "song", "song", "Other", "date")
    # With listed labels too: a closed entity is not continued.
    (folder / "task.toml").write_text(HEAD + FILES + PARTS.replace('"product"', '"song"'))
    assert read_custom(read_custom_spec(folder / "task.toml"), "test")[0].bio["parts"] == TWO_SONGS


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("B-cell T-cell Other", "'B-cell', which may be a tag of 'cell' or a type by itself: .*'T-cell'"),
        ("B-cell Other", 'no type has tags with two letters. Say how .* tags = "types"'),
        ("E-mail S-bahn O", "of 'mail' there is only E"),
        ("B-city I-city S-date O", "of 'city' there is only B, I"),
        ("B-city E-city L-date O", "B, E, L are not the letters of one scheme"),
    ],
)
def test_labels_that_may_be_types_or_tags_are_not_guessed(folder: Path, tags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        collected(folder, [tags.split()])
    (example,) = collected(folder, [tags.split()], 'tags = "types"\n')
    assert example.labels["parts"] == tuple("Other" if tag == "O" else tag for tag in tags.split())


@pytest.mark.parametrize(
    ("text", "field", "column", "key"),
    [
        ('text_column = "queue"', QUEUE, "queue", "text_column"),
        ("", QUEUE + 'column = "text"\n', "text", "text_column"),
        ("", '[[fields]]\nname = "text"\ntype = "class"\nlabels_from = "train"\n', "text", "text_column"),
        ('text = "{queue}: {text}"', QUEUE, "queue", "text"),
        ('text = "{text}: {queue}"', PARTS + QUEUE, "queue", "text"),
        ('tokens_column = "tags"', PARTS, "tags", "tokens_column"),
        ('text_column = "tags"', PARTS + 'tags = "spans"\n', "tags", "text_column"),
        ("", '[[fields]]\nname = "all"\ntype = "multi"\ncolumns = { a = "tags", b = "text" }\n', "text", "text_column"),
    ],
)
def test_labels_that_are_in_the_text(folder: Path, text: str, field: str, column: str, key: str) -> None:
    (folder / "task.toml").write_text(f"{HEAD}{text}\n{FILES}{field}")
    with pytest.raises(UserError) as caught:
        read_custom_spec(folder / "task.toml")
    number = field.count("[[fields]]")
    what = f"the column {column!r} has its labels and is also in {key}, so the model would read its answer. Name the"
    assert str(caught.value).startswith(f"{folder / 'task.toml'}, [[fields]] number {number}: {what} column of the")


def test_two_fields_may_have_one_column(folder: Path) -> None:
    both = 'text = "{text}: {tags}"\n' + FILES + QUEUE + QUEUE.replace("queue", "second") + 'column = "queue"\n'
    (folder / "task.toml").write_text(HEAD + both)
    assert [field.column for field in read_custom_spec(folder / "task.toml").fields] == ["queue", "queue"]


def test_a_field_named_like_no_column_of_predict(folder: Path) -> None:
    """The words of a token field have no probabilities, so there is no column parts_next."""
    (folder / "task.toml").write_text(
        HEAD + FILES + PARTS + QUEUE.replace('"queue"', '"parts_next"\ncolumn = "queue"', 1)
    )
    spec = read_custom_spec(folder / "task.toml")
    assert [field.name for field in spec.fields] == ["parts", "parts_next"]


def test_letters_without_types(folder: Path) -> None:
    """Keyphrases and aspects often have the tags B, I and O, which are no types."""
    tags = ["O", "B", "I", "B"]
    with pytest.raises(UserError, match="'tags' has B, I, the letters of tags without types.* I = \"I-part\" }"):
        collected(folder, [tags])
    with pytest.raises(UserError, match="'tags' has 'B', which is not a tag of tags = \"iob2\".* B = \"B-part\""):
        collected(folder, [tags], 'tags = "iob2"\n')
    (example,) = collected(folder, [tags], 'tags = "types"\n')
    assert example.labels["parts"] == ("Other", "B", "I", "B")
    named = PARTS.replace('labels = ["product", "date"]', 'names = { O = "O", B = "B-part", I = "I-part" }')
    (folder / "task.toml").write_text(HEAD + FILES + named)
    (example,) = read_custom(read_custom_spec(folder / "task.toml"), "test")
    assert example.bio["parts"] == ("O", "B-part", "I-part", "B-part")


def test_tags_of_words_that_stand_alone_are_read_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (example,) = collected(folder, [["B-color", "O", "B-size"]])
    assert example.labels["parts"] == ("color", "Other", "size")
    assert "'B-color' is read as a tag of 'color'. If it is a type, set tags" in caplog.text


def test_listed_labels_that_may_be_tags(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = PARTS.replace('"product", "date"', '"cell", "B-cell"')
    (folder / "test.jsonl").write_text('{"text": "a b", "tags": ["B-cell", "Other"]}\n')
    (folder / "task.toml").write_text(HEAD + FILES + parts)
    with pytest.raises(UserError, match="line 1: 'tags' is 'B-cell', which is a label, and a tag of the label 'cell'"):
        read_custom(read_custom_spec(folder / "task.toml"), "test")
    for tags, kind in (("types", "B-cell"), ("iob2", "cell")):
        (folder / "task.toml").write_text(HEAD + FILES + parts + f'tags = "{tags}"\n')
        assert read_custom(read_custom_spec(folder / "task.toml"), "test")[0].labels["parts"] == (kind, "Other")
    (folder / "test.jsonl").write_text('{"text": "a b", "tags": ["cell", "Other"]}\n')
    with pytest.raises(UserError, match="'tags' is 'cell', which is not a tag of tags = \"iob2\""):
        read_custom(read_custom_spec(folder / "task.toml"), "test")
    (folder / "task.toml").write_text(HEAD + FILES + PARTS)
    (folder / "test.jsonl").write_text('{"text": "a b", "tags": ["B-date", "product"]}\n')
    read_custom(read_custom_spec(folder / "task.toml"), "test")
    assert "both bare types ('product') and tags ('B-date', read as 'date')" in caplog.text


def test_letters_of_another_alphabet_are_shown_by_number(folder: Path) -> None:
    (folder / "test.jsonl").write_text(json.dumps({"text": "a", "queue": "s\u0430les", "tags": ["O"]}))
    with pytest.raises(UserError, match=r"It looks like 'sales', but is 's\\u0430les' instead of 'sales'"):
        read_custom(read_custom_spec(folder / "task.toml"), "test")
    header = "text,queue\u200b,tags\na,sales,O\n"
    (folder / "train.csv").write_text(header, encoding="utf-8")
    with pytest.raises(UserError, match=r"no column 'queue'. It looks like .*'queue\\u200b'"):
        read_custom(read_custom_spec(folder / "task.toml"), "train")


def test_labels_collected_ids_tabs_and_a_byte_order_mark(folder: Path) -> None:
    toml = HEAD + 'text_column = "body"\nid_column = "key"\n[files]\ntrain = "train.tsv"\n'
    toml += QUEUE.replace('labels = ["billing", "sales"]', 'labels_from = "train"')
    toml += PARTS.replace('labels = ["product", "date"]', 'labels_from = "train"')
    (folder / "task.toml").write_text(toml)
    (folder / "train.tsv").write_text(
        "\ufeffkey\tbody\tqueue\ttags\nx1\ta b\tz\tB-when O\n\nx2\tc, d\t7\tOther B-what\n", encoding="utf-8"
    )
    spec = read_custom_spec(folder / "task.toml")
    assert [field.labels for field in spec.fields] == [("7", "z"), ("what", "when")]
    examples = read_custom(spec, "train")
    assert [(example.id, example.text) for example in examples] == [
        ("tickets/train/x1", "a b"),
        ("tickets/train/x2", "c, d"),
    ]


@pytest.mark.parametrize(
    ("quoting", "texts"), [("", ['"a', 'b"', 'c "d"']), ("tsv_quoting = true\n", ["a\tbilling\nb", 'c "d"'])]
)
def test_quotation_marks_in_tsv(folder: Path, quoting: str, texts: list[str]) -> None:
    labels = QUEUE.replace('labels = ["billing", "sales"]', 'labels_from = "train"')
    (folder / "task.toml").write_text(quoting + HEAD + '[files]\ntrain = "train.tsv"\n' + labels)
    (folder / "train.tsv").write_text('text\tqueue\n"a\tbilling\nb"\tsales\nc "d"\tbilling\n')
    examples = read_custom(read_custom_spec(folder / "task.toml"), "train")
    assert [example.text for example in examples] == texts


def test_numbers_as_labels(folder: Path) -> None:
    (folder / "task.toml").write_text(HEAD + FILES + QUEUE.replace('"billing", "sales"', '"0", "1"'))
    (folder / "test.jsonl").write_text('{"text": "a", "queue": 1}\n')
    assert read_custom(read_custom_spec(folder / "task.toml"), "test")[0].labels == {"queue": "1"}


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("name = tickets", "not TOML .*line 1"),
        (FILES + QUEUE, "name is missing"),
        ('name = "a/b"\n' + FILES + QUEUE, "name 'a/b': use only letters"),
        ('nmae = "x"\n' + HEAD + FILES + QUEUE, "unknown key 'nmae'. Did you mean 'name'"),
        ("text_column = 3\n" + HEAD + FILES + QUEUE, "text_column must be a text or null; it is 3"),
        ('text_column = " "\n' + HEAD + FILES + QUEUE, "text_column is empty"),
        ("fields = 3\n" + HEAD + FILES, "fields must be a list; it is 3"),
        ("fields = [3]\n" + HEAD + FILES, r"fields\[0\] must be an object; it is 3"),
        (HEAD + "[files]\ntrain = 3\n" + QUEUE, "files.* must be a text"),
        (HEAD + FILES + QUEUE + "x = " + "[" * 500 + "]" * 500, "nested more than 64 levels deep"),
        (HEAD + FILES + QUEUE + "x = " + "9" * 5000, "more than 64 digits"),
        (HEAD + QUEUE, r"a \[files\] table is needed"),
        (HEAD + FILES + 'valid = "test.jsonl"\n' + QUEUE, r"\[files\]: unknown key 'valid'"),
        (HEAD + FILES.replace("train.csv", "train.xlsx") + QUEUE, "'train.xlsx' must end in one of .csv"),
        (HEAD + FILES.replace("train.csv", "trian.csv") + QUEUE, "no train file at .*trian.csv"),
        (
            "class_weights = 1\n" + HEAD + FILES + QUEUE,
            "task.toml: class_weights is no key .* --class_weights balanced",
        ),
        (HEAD + FILES + QUEUE + "class_weights = 1\n", "number 1: class_weights is no key of a task, but an option of"),
        (
            HEAD + FILES + QUEUE + "[class_weights]\nsales = 2\n",
            "class_weights is no key of a task, but an option of tr",
        ),
        (HEAD + FILES, r"at least one \[\[fields\]\]"),
        (HEAD + FILES + QUEUE[1:].replace("]]", "]"), r"\[fields\] is one table, .*: write \[\[fields\]\] above each"),
        (
            HEAD + FILES + QUEUE.replace('type = "class"', ""),
            r"number 1: type is missing. Write type = \"class\" .one lab",
        ),
        (HEAD + FILES + QUEUE.replace('name = "queue"', ""), "number 1: name is missing. Write what the model answers"),
        (HEAD + FILES + QUEUE.replace("type", "typ"), "number 1: unknown key 'typ'. Did you mean 'type'"),
        ('tsv_quoting = "yes"\n' + HEAD + FILES + QUEUE, "tsv_quoting must be true or false; it is 'yes'"),
        ("tsv_quoting = true\n" + HEAD + FILES + QUEUE, "tsv_quoting is for .tsv files"),
        (HEAD + FILES + QUEUE + QUEUE, "two fields are named 'queue'"),
        (HEAD + FILES + QUEUE.replace("queue", "error"), "cannot be named 'error': predict.py .* column = \"error\""),
        (HEAD + FILES + QUEUE + QUEUE.replace("queue", "queue_next"), "cannot be named 'queue_next'"),
        (HEAD + FILES + 'missing = "skip"\n' + QUEUE, r"\[files\]: missing belongs at the file's beginning, above the"),
        (HEAD + FILES + "tsv_quoting = true\n" + QUEUE, r"\[files\]: tsv_quoting belongs at the file's beginning"),
        (HEAD + FILES + QUEUE + 'text_column = "x"\n', r"\[\[fields\]\] number 1: text_column belongs at the file's"),
        (HEAD + FILES + QUEUE + "[fields.split]\ntest = 0.2\n", r"\[\[fields\]\] number 1: unknown key 'split'"),
        (HEAD + FILES + "dev = 0.2\n" + QUEUE, r"files has names of files, so dev must be a text.* in \[split\]"),
        (HEAD + FILES + QUEUE + 'colunm = "x"\n', r"\[\[fields\]\] number 1: unknown key 'colunm'.*'column'"),
        (HEAD + FILES + QUEUE.replace('"class"', '"clas"'), "unknown type 'clas'. Did you mean 'class'"),
        (HEAD + FILES + QUEUE + 'other = "x"\n', "'other' is for fields of type \"token\""),
        (HEAD + FILES + QUEUE + 'labels_from = "train"\n', "either labels .* or labels_from"),
        (HEAD + FILES + '[[fields]]\nname = "q"\ntype = "class"\n', "either labels .* or labels_from"),
        (
            HEAD + FILES + QUEUE.replace('labels = ["billing", "sales"]', 'labels_from = "dev"'),
            "'dev' is not a split in",
        ),
        (HEAD + FILES + QUEUE.replace('"sales"', "3"), r"fields\[0\].labels\[1\] must be a text; it is 3"),
        (HEAD + FILES + QUEUE.replace('"sales"', '"sales "'), "label 'sales ' is empty, has spaces"),
        (HEAD + FILES + QUEUE.replace('"sales"', '"billing"'), "label 'billing' is listed more than once"),
        (
            HEAD + FILES + QUEUE.replace(', "sales"', ""),
            "needs at least 2 labels, found only 'billing', so there is nothing to",
        ),
        (HEAD + FILES + PARTS.replace('"date"', '"Other"'), "'Other' is the label of words without one"),
        (HEAD + FILES + PARTS + 'answer = "span"\n', "unknown answer 'span'. Did you mean 'spans'"),
        (HEAD + FILES + QUEUE + 'answer = "list"\n', "'answer' is for fields of type \"token\""),
        (HEAD + FILES + PARTS.replace('"date"', '"product: b"'), "label 'product: b' could be read as 'product' and"),
    ],
)
def test_a_wrong_task_file(folder: Path, toml: str, message: str) -> None:
    (folder / "task.toml").write_text(toml)
    with pytest.raises(UserError, match=message):
        read_custom_spec(folder / "task.toml")


def test_how_words_are_answered(folder: Path) -> None:
    for line, answer in (("", "spans"), ('answer = "spans"\n', "spans"), ('answer = "list"\n', "list")):
        (folder / "task.toml").write_text(HEAD + FILES + PARTS + line)
        assert read_custom_spec(folder / "task.toml").fields[0].answer == answer
    # A list has no colons to be misread.
    labels = PARTS.replace('"date"', '"product: b"')
    (folder / "task.toml").write_text(HEAD + FILES + labels + 'answer = "list"\n')
    assert read_custom_spec(folder / "task.toml").fields[0].labels == ("product", "product: b")


def test_a_missing_or_unreadable_task_file(folder: Path) -> None:
    with pytest.raises(UserError, match="no task file at .*tsak.toml. Did you mean '.*/task.toml'"):
        read_custom_spec(folder / "tsak.toml")
    with pytest.raises(UserError, match="no task file at .*task.toml.$"):
        read_custom_spec(folder / "nowhere" / "task.toml")
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        read_custom_spec(folder)
    (folder / "task.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(UserError, match="task.toml, line 1: not UTF-8 .* iconv -f windows-1252 -t utf-8 task.toml >"):
        read_custom_spec(folder / "task.toml")


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        ("train", b"text,queue,tags\na,billing,O\ncaf\xe9,sales,O\n", r"train.csv, line 3: not UTF-8 \(byte 0xe9\)"),
        ("train", b"text,queue,tags\na,billing,O\na,billing\n", "train.csv, line 3: 2 cells, but .* 3 columns"),
        ("train", b'text,queue,tags\n"a"b,billing,O\n', "train.csv, line 2: not CSV"),
        ("train", b'text,queue,tags\n"a,billing,O\n', "train.csv, line 2: not CSV"),
        ("train", b"text,queu,tags\na,billing,O\n", "train.csv: no column 'queue'. Did you mean 'queu'"),
        ("train", b"text,text,tags\na,billing,O\n", "line 1: column 'text' is in the header twice"),
        ("train", b"text,queue,tags\na,bill,O\n", "line 2: 'queue' is 'bill', which is not .* Did you mean 'billing'"),
        ("train", b"text,queue,tags\na,,O\n", "line 2: 'queue' is empty. Fill them in.$"),  # nothing is left
        ("train", b"text,queue,tags\na,,O\nb,sales,O\n", "line 2: 'queue' is empty. Fill them in, or write missing"),
        ("train", b'text,queue,tags\n"a\nb",sales,O\n', "line 3: 'tags' has 1 labels for 2 words"),
        ("train", b"text,queue,tags\na,sales,B-dat\n", "line 2: 'tags' is 'dat', which is not .* Did you mean 'date'"),
        ("train", b"text,queue,tags\na,sales,B-\n", "line 2: 'tags' is '', which is not one of its labels"),
        ("train", b"text,queue,tags\na,sales,[x\n", "line 2, column 'tags': not JSON"),
        ("train", b"", "no examples in it"),
        ("train", b"text,queue,tags\n", "no examples in it"),
        ("test", b'\n{"text": "a"', "test.jsonl, line 2: not JSON"),
        pytest.param("test", b"[" * 200_000, "test.jsonl, line 1: nested more than 64 levels", id="deep"),
        pytest.param("test", b"9" * 5000, "test.jsonl, line 1: a number with more than 64 digits", id="long number"),
        pytest.param("train", b"text,queue,tags\na,sales," + b"[" * 200_000, "line 2, column .*nested", id="deep cell"),
        ("test", b"3\n", "test.jsonl, line 1: the document must be an object; it is 3"),
        ("test", b'{"text": 3, "queue": "sales", "tags": []}\n', "line 1: 'text' must be a string, found 3"),
        ("test", b'{"text": "\\ud800", "queue": "sales", "tags": []}\n', "line 1: 'text' holds half a character"),
        ("test", b'{"text": "a", "queue": [1], "tags": ["O"]}\n', r"line 1: 'queue' must be a label, found \[1\]"),
        ("test", b'{"text": "a", "queue": [], "tags": []}\n', 'found .* type = "multi", .* a word type = "token"'),
        ("test", b'{"text": "a", "queue": [[0, 1, "x"]], "tags": []}\n', 'write type = "token" and tags = "spans"'),
        ("test", b'{"text": "a", "queue": {"start": [0]}, "tags": []}\n', 'write type = "token" and tags = "spans"'),
        ("test", b'{"text": "a", "queue": "sales", "tags": [1]}\n', "line 1: 'tags' must be a list of labels"),
    ],
)
def test_a_broken_line_is_named(folder: Path, split: str, content: bytes, message: str) -> None:
    (folder / {"train": "train.csv", "test": "test.jsonl"}[split]).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_custom(read_custom_spec(folder / "task.toml"), split)


@pytest.mark.parametrize(("key", "what"), [
    ("text", "'text' must be a string"), ("queue", "'queue' must be a label"),
    ("tags", "'tags' must be a list of labels"), ("id", "'id' must be an id, a text or a number;"),
])  # fmt: skip
def test_a_long_value_is_shortened_in_the_message(folder: Path, key: str, what: str) -> None:
    (folder / "task.toml").write_text(HEAD + 'id_column = "id"\n' + FILES + QUEUE + PARTS)
    value = {"id": 1, "text": "a", "queue": "sales", "tags": ["O"]} | {key: [[12345]] * 100_000}
    (folder / "test.jsonl").write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        read_custom(read_custom_spec(folder / "task.toml"), "test")
    shown = json.dumps(value[key])[:60]
    assert f"{what}{' ' if key == 'id' else ', '}found {shown}...." in str(caught.value)


def test_a_long_text(folder: Path) -> None:
    text = "word " * 40_000
    (folder / "task.toml").write_text(HEAD + FILES + QUEUE)
    (folder / "train.csv").write_text(f"text,queue\n{text},sales\na,billing\n")
    (example, _) = read_custom(read_custom_spec(folder / "task.toml"), "train")
    assert len(example.text) == 200_000 and example.text == text


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), IsADirectoryError(21, "Is a directory")])
def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    spec = read_custom_spec(folder / "task.toml")

    def refuse(path: Path, mode: str) -> NoReturn:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=f"cannot read .*test.jsonl: {error.strerror}"):
        read_custom(spec, "test")


def test_an_id_used_twice(folder: Path) -> None:
    (folder / "task.toml").write_text('id_column = "queue"\n' + HEAD + FILES + QUEUE)
    (folder / "train.csv").write_text("text,queue\na,sales\nb,sales\n")
    with pytest.raises(UserError, match="line 3: id 'sales' was already used in .*train.csv, line 2; ids must"):
        read_custom(read_custom_spec(folder / "task.toml"), "train")


def test_a_split_without_a_file(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no dev file; \[files\] has only train, test. .*--holdout"):
        read_custom(read_custom_spec(folder / "task.toml"), "dev")
