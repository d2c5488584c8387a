"""Arrow files, folders that `datasets` saved, and the names of classes in both and in Parquet."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from data.errors import UserError
from data.readers.columnar import BATCH_ROWS
from data.readers.records import Record
from data.readers.tables import open_table

NAMES = ["O", "B-city", "I-city"]
FEATURES = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=["no", "yes"]),
        "tags": datasets.List(ClassLabel(names=NAMES)),
        "spans": datasets.List({"start": Value("int32"), "end": Value("int32"), "label": ClassLabel(names=["city"])}),
        "n": Value("int32"),
    }
)
ROWS: list[dict[str, Any]] = [
    {"text": "to New York", "label": 1, "tags": [0, 1, 2], "spans": [{"start": 3, "end": 11, "label": 0}], "n": 1},
    {"text": "é", "label": -1, "tags": [], "spans": [], "n": 0},
    {"text": "x", "label": None, "tags": None, "spans": None, "n": None},
]
NAMED = [
    {
        "text": "to New York",
        "label": "yes",
        "tags": ["O", "B-city", "I-city"],
        "spans": [{"start": 3, "end": 11, "label": "city"}],
        "n": 1,
    },
    {"text": "é", "label": None, "tags": [], "spans": [], "n": 0},
    {"text": "x", "label": None, "tags": None, "spans": None, "n": None},
]


@pytest.fixture
def saved() -> Dataset:
    return Dataset.from_list(ROWS, features=FEATURES)


def records(path: Path) -> list[Record]:
    with open_table(path, "parquet" if path.suffix == ".parquet" else "arrow") as table:
        return list(table.records)


def values(path: Path) -> list[dict[str, Any]]:
    found = records(path)
    assert not [record.error for record in found if record.error]
    return [record.values for record in found]


def write_arrow(path: Path, table: pa.Table, stream: bool = True, **options: Any) -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=1000)
    return path


# ---------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_arrow_files(tmp_path: Path, stream: bool, compression: str | None) -> None:
    n = BATCH_ROWS * 5 + 1
    table = pa.table({"text": [f"text {i}" for i in range(n)], "n": range(n)})
    path = write_arrow(tmp_path / "t.arrow", table, stream, compression=compression)
    found = records(path)
    assert found[-1] == Record(f"{path}, row {n}", n, {"text": f"text {n - 1}", "n": n - 1})
    assert [record.line for record in found] == list(range(1, n + 1))


def test_categories_and_feather(tmp_path: Path) -> None:
    table = pa.table({"queue": pa.array(["a", "b", None, "a"]).dictionary_encode(), "n": [0.5, None, 1.0, 2.0]})
    feather.write_feather(table, tmp_path / "t.arrow")
    assert [row["queue"] for row in values(tmp_path / "t.arrow")] == ["a", "b", None, "a"]


def test_an_arrow_file_without_rows(tmp_path: Path) -> None:
    for stream in (True, False):
        assert records(write_arrow(tmp_path / "t.arrow", pa.table({"a": pa.array([], pa.string())}), stream)) == []


def test_what_datasets_writes_has_the_names_of_classes(tmp_path: Path, saved: Dataset) -> None:
    saved.to_parquet(tmp_path / "t.parquet")
    assert values(tmp_path / "t.parquet") == NAMED
    saved.save_to_disk(tmp_path / "saved")
    assert values(tmp_path / "saved") == NAMED
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert values(file) == NAMED


def test_old_sequences(tmp_path: Path) -> None:
    """`Sequence` of a struct is a struct of lists; old files have that in their description too."""
    table = pa.table({"spans": [{"start": [1, 2], "label": [0, 1]}], "tags": [[1, 0]], "deep": [[{"x": 1}]]})
    names = {"names": ["a", "b"], "_type": "ClassLabel"}
    spans = {"feature": {"start": {"dtype": "int32", "_type": "Value"}, "label": names}, "_type": "Sequence"}
    features = {"spans": spans, "tags": {"feature": names, "length": -1, "_type": "Sequence"}, "deep": [{"x": names}]}
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(told), tmp_path / "t.parquet")
    (row,) = values(tmp_path / "t.parquet")
    assert row == {"spans": {"start": [1, 2], "label": ["a", "b"]}, "tags": ["b", "a"], "deep": [{"x": "b"}]}


def test_folders_of_datasets_however_they_were_made(tmp_path: Path, saved: Dataset) -> None:
    many = Dataset.from_dict({"n": list(range(3000))})
    many.shuffle(seed=1).filter(lambda row: row["n"] % 2 == 0).save_to_disk(tmp_path / "shards", num_shards=3)
    found = records(tmp_path / "shards")
    assert sorted(record.values["n"] for record in found) == list(range(0, 3000, 2))
    assert [record.values["n"] for record in found] == list(datasets.load_from_disk(tmp_path / "shards")["n"])
    assert [record.line for record in found] == list(range(1, 1501)) and found[-1].where.endswith("shards, row 1500")
    with open_table(tmp_path / "shards", "arrow") as table:
        seen = [table.progress() for _ in table.records]
    assert seen == sorted(seen) and seen[750] == pytest.approx(0.5, abs=0.1) and seen[-1] == 1.0


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_folder_with_splits_names_them(tmp_path: Path, saved: Dataset) -> None:
    DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "both")
    assert values(tmp_path / "both" / "train") == NAMED
    with pytest.raises(UserError, match="both: it has the splits train, test. Name one of these folders in it"):
        records(tmp_path / "both")


def test_a_folder_that_is_not_whole(tmp_path: Path, saved: Dataset) -> None:
    with pytest.raises(UserError, match="not one that save_to_disk of `datasets` wrote: it has no state.json"):
        records(tmp_path)
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    state = json.loads((tmp_path / "saved/state.json").read_text())
    first, second = (tmp_path / "saved" / file["filename"] for file in state["_data_files"])
    second.unlink()
    with pytest.raises(UserError, match=f"{second.name} is missing. The folder is incomplete"):
        records(tmp_path / "saved")
    write_arrow(second, pa.table({"other": [1]}))
    with pytest.raises(UserError, match=f"{second.name}: its columns are not those of .*{first.name}"):
        records(tmp_path / "saved")
    for content, message in (
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "'../x.arrow' must be in the same folder"),
        ('{"_data_files": []}', "it names no files"),
        ('{"_data_files": 3}', "_data_files must be a list; it is 3"),
        ("{}", "_data_files is missing"),
        ('{"_data', "not JSON"),
    ):
        (tmp_path / "saved/state.json").write_text(content)
        with pytest.raises(UserError, match=f"state.json: .*{message}"):
            records(tmp_path / "saved")


@pytest.mark.parametrize("stream", [True, False])
def test_a_file_that_is_cut_at_any_place(tmp_path: Path, stream: bool) -> None:
    """A stream also between two batches, where nothing but its missing end tells."""
    table = pa.table({"text": [f"text {i}" for i in range(3000)]})
    content = write_arrow(tmp_path / "t.arrow", table, stream).read_bytes()
    cuts = {0, 1, 7, len(content) // 2, len(content) - 1, len(content) - 8}
    if stream:
        batch_ends = [i for i in range(8, len(content), 8) if content[i : i + 4] == b"\xff\xff\xff\xff"]
        assert len(batch_ends) >= 4  # schema, three batches, the end
        cuts |= set(batch_ends)
    for cut in sorted(cuts):
        (tmp_path / "t.arrow").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"t\.arrow: (not Arrow, damaged or )?incomplete.*\.$"):
            records(tmp_path / "t.arrow")


def test_offsets_that_point_elsewhere_are_found(tmp_path: Path) -> None:
    """Arrow would read there, and the process could die."""
    content = write_arrow(tmp_path / "t.arrow", pa.table({"text": ["abc", "de"]})).read_bytes()
    offsets = struct.pack("<3i", 0, 3, 5)
    assert content.count(offsets) == 1
    (tmp_path / "t.arrow").write_bytes(content.replace(offsets, struct.pack("<3i", 0, 2**30, 5)))
    with pytest.raises(UserError, match=r"t\.arrow: damaged \(.*\)\.$"):
        records(tmp_path / "t.arrow")


def test_other_files_are_not_arrow(tmp_path: Path) -> None:
    for content in (b"text,queue\na,b\n", b"PAR1" * 10, b"ARROW1\0\0" + b"x" * 50, random.Random(0).randbytes(1000)):
        (tmp_path / "t.arrow").write_bytes(content)
        with pytest.raises(UserError, match=r"t\.arrow: not Arrow, damaged or incomplete \(.*\)\.$"):
            records(tmp_path / "t.arrow")


def test_a_class_without_a_name(tmp_path: Path, saved: Dataset) -> None:
    """The rows beside it are read."""
    metadata = saved.data.schema.metadata
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 2, 0]}).replace_schema_metadata(metadata)
    path = write_arrow(tmp_path / "t.arrow", table)
    found = records(path)
    assert [record.values.get("label") for record in found] == ["yes", None, "no"]
    assert found[1].error == f"{path}, row 2: cannot be read (class 2 of a ClassLabel with 2 names)."


# Arrow does not look into text, and Python has no date after the year 9999.
BAD = {
    "text": pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"]).buffers()),
    "date": pa.array([2**31 - 1, 0], pa.date32()),
}


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow", "file.arrow", "saved"])
@pytest.mark.parametrize("kind", BAD)
def test_columns_that_are_not_wanted_are_not_read(tmp_path: Path, name: str, kind: str) -> None:
    """Nor are those whose names begin alike."""
    table = pa.table({"a.b": [1, 2], "bad": BAD[kind], "a": ["x", "y"], "struct": [{"a": 1}, {"a": 2}]})
    path = tmp_path / name
    if name == "t.parquet":
        pq.write_table(table, path)
    elif name == "saved":
        path.mkdir()
        write_arrow(path / "data.arrow", table)
        (path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    else:
        write_arrow(path, table, stream=name == "stream.arrow")
    format = "parquet" if name == "t.parquet" else "arrow"
    for wanted in (["a"], ["a", "struct", "none"], ["struct", "a.b"]):
        with open_table(path, format, wanted=wanted) as opened:
            assert opened.columns == ("a.b", "bad", "a", "struct"), "messages name all"
            found = list(opened.records)
        rows = table.select([column for column in opened.columns if column in wanted]).to_pylist()
        assert [record.values for record in found] == rows and not any(record.error for record in found)
    with open_table(path, format) as opened, pytest.raises(UserError, match="cannot be read|damaged"):
        raise UserError(next(opened.records).error)


def test_of_parquet_no_other_columns_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "image": [b"x" * 1000, b"y" * 1000]}), path)
    place = pq.read_metadata(path).row_group(0).column(1).dictionary_page_offset
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes(50) + content[place + 50 :])
    with open_table(path, "parquet", wanted=["text"]) as opened:
        assert [record.values for record in opened.records] == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(UserError, match="damaged"):
        records(path)


@pytest.mark.parametrize("told", [b"{}", b'{"info": 3}', b'{"info": {"features": {"a": {"_type": "ClassLabel"}}}}'])
def test_a_description_of_columns_that_says_nothing(tmp_path: Path, told: bytes) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({b"huggingface": told})
    assert values(write_arrow(tmp_path / "t.arrow", table)) == [{"a": 1}]


def test_a_column_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "t.arrow", pa.table({"the_name": [1]}))
    path.write_bytes(path.read_bytes().replace(b"the_name", b"the_\xf3\xff\xff\xff"))
    with pytest.raises(UserError, match=r"t\.arrow: damaged: a column's name is not UTF-8"):
        records(path)


def test_a_description_of_columns_that_is_damaged(tmp_path: Path) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({b"huggingface": b'{"info'})
    with pytest.raises(UserError, match=r"t\.arrow, the description of its columns \(huggingface\): not JSON"):
        records(write_arrow(tmp_path / "t.arrow", table))


def test_a_table_without_columns(tmp_path: Path) -> None:
    """Its number of rows would be whatever it claims."""
    with pytest.raises(UserError, match=r"t\.arrow: it has no columns"):
        records(write_arrow(tmp_path / "t.arrow", pa.table({"a": [1, 2]}).select([])))


def test_large_rows_are_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.readers.columnar.BATCH_BYTES", 1000)
    taken: list[int] = []
    table = pa.table({"text": ["x" * 400] * 10})
    from data.readers import columnar

    real = columnar.Rows._values
    monkeypatch.setattr(columnar.Rows, "_values", lambda self, batch: taken.append(batch.num_rows) or real(self, batch))
    assert len(values(write_arrow(tmp_path / "t.arrow", table))) == 10
    assert max(taken) <= 2
