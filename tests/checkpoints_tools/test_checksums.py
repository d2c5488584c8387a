"""Checksums: every byte is covered, damage is named by file and place, and what changed on purpose has a way on."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from checkpoints_tools import checksums
from checkpoints_tools.checksums import (
    CHECKSUMS,
    CHUNK,
    Damaged,
    Summing,
    check_small_files,
    checked_file,
    find_damage,
    read_checksums,
    replace_file,
    sums_of,
    write_checksums,
)
from checkpoints_tools.convert import convert
from checkpoints_tools.folder import open_tensors
from checkpoints_tools.load import open_checkpoint
from checkpoints_tools.safetensors_header import read_places
from data.errors import UserError

BIG = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / BIG).write_bytes(os.urandom(3 * CHUNK + 5))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / ".gitattributes").write_text("x")
    write_checksums(tmp_path)
    return tmp_path


def flip(path: Path, *places: int) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1
    path.write_bytes(content)


def test_every_file_but_cards_and_hidden_ones_has_the_hashes_of_its_chunks(folder: Path) -> None:
    found = read_checksums(folder)
    assert sorted(found) == ["config.json", "empty.txt", BIG]
    content = (folder / BIG).read_bytes()
    parts = [content[i : i + CHUNK] for i in range(0, len(content), CHUNK)]
    assert len(parts) == 4 and found[BIG].chunks == "".join(map(xxhash.xxh3_64_hexdigest, parts))
    assert find_damage(folder) == []


@pytest.mark.parametrize("size", [1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2**25])
def test_sums_do_not_depend_on_how_the_bytes_arrive(size: int, folder: Path) -> None:
    content, summing = (folder / BIG).read_bytes() * 2, Summing()
    (folder / BIG).write_bytes(content)
    n = max(size, 1000)
    for i in range(0, len(content), n):
        summing.update(content[i : i + n])
    assert summing.sums() == sums_of(folder / BIG)


def test_damage_is_named_by_file_and_bytes(folder: Path) -> None:
    flip(folder / BIG, 0, CHUNK + 7, 3 * CHUNK + 4)
    expected = f"{BIG}, bytes 0 to 8,388,607, 12,582,912 to 12,582,916"
    assert find_damage(folder) == [expected]
    file = checked_file(folder / BIG)
    assert file is not None
    file.check(2 * CHUNK, 3 * CHUNK)  # what is read is as it was
    with pytest.raises(Damaged, match="bytes 4,194,304 to 8,388,607. .* If you changed it on purpose.*inspect"):
        file.check(2 * CHUNK - 1, 2 * CHUNK + 1)
    check_small_files(folder)  # the weights are checked when they are read


def test_every_single_bit_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content := os.urandom(16))
    write_checksums(tmp_path)
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "config.json").write_bytes(changed)
        assert find_damage(tmp_path) == ["config.json, bytes 0 to 15"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "config.json").write_text("[]"), "config.json, bytes 0 to 1"),
        (lambda p: (p / "config.json").write_text("{ }"), "config.json has 3 bytes, not 2"),
        (lambda p: (p / "config.json").unlink(), "config.json is missing"),
        (lambda p: (p / "empty.txt").write_text("x"), "empty.txt has 1 bytes, not 0"),
    ],
)
def test_small_files_are_checked_together(change, message: str, folder: Path) -> None:
    check_small_files(folder)
    change(folder)
    assert find_damage(folder) == [message]
    with pytest.raises(Damaged, match=message):
        check_small_files(folder)
    write_checksums(folder)  # the way on that the message names
    check_small_files(folder)
    assert find_damage(folder) == []


@pytest.mark.parametrize("n_parts", [1, 2, 3, 5, 50])
def test_ranks_share_the_work_and_together_check_everything(n_parts: int, folder: Path, monkeypatch) -> None:
    flip(folder / BIG, 1, 3 * CHUNK)
    (folder / "empty.txt").write_text("x")
    checked: list[tuple[str, int]] = []
    real = checksums.CheckedFile.bad_chunks

    def bad_chunks(self, chunks):
        chunks = list(chunks)
        checked.extend((self.path.name, n) for n in chunks)
        return real(self, chunks)

    monkeypatch.setattr(checksums.CheckedFile, "bad_chunks", bad_chunks)
    found = [text for part in range(n_parts) for text in find_damage(folder, part, n_parts)]
    assert sorted(checked) == sorted([("config.json", 0), ("empty.txt", 0), *((BIG, n) for n in range(4))])
    assert "empty.txt has 1 bytes, not 0" in found and any("bytes 0 to 4,194,303" in text for text in found)


def test_a_chunk_is_checked_once(folder: Path) -> None:
    file = checked_file(folder / BIG)
    assert file is not None
    file.check()
    (folder / BIG).unlink()
    file.check()


def test_known_checksums_are_taken_over_and_absent_files_remain(folder: Path) -> None:
    of_another_rank = sums_of(folder / BIG)
    (folder / BIG).unlink()
    write_checksums(folder, {BIG: of_another_rank})
    assert read_checksums(folder)[BIG] == of_another_rank and find_damage(folder) == [f"{BIG} is missing"]


def test_the_document_checks_itself(folder: Path) -> None:
    path = folder / CHECKSUMS
    text = path.read_text()
    for old, new in (('"bytes": 2', '"bytes": 3'), ("config.json", "config.jso"), ("config.json", "../config.json")):
        path.write_text(text.replace(old, new))
        with pytest.raises(Damaged, match="checksums.json itself is damaged or was changed"):
            read_checksums(folder)
    document = json.loads(text)
    for key, value in (("format", 2), ("hash", "md5"), ("chunk_bytes", 5), ("files", {"a": {"bytes": -1}})):
        path.write_text(json.dumps(document | {key: value}))
        with pytest.raises(UserError, match=f"checksums.json: {key}"):
            read_checksums(folder)


def test_a_slice_is_checked_by_the_chunks_of_its_rows(tmp_path: Path) -> None:
    rows, width = 3 * CHUNK // 4096, 1024  # three chunks, moved a little by the header
    tensor = torch.randn(rows, width)
    save_file({"a": tensor, "b": torch.ones(7), "scalar": torch.tensor(2.0)}, tmp_path / BIG)
    write_checksums(tmp_path)
    size = (tmp_path / BIG).stat().st_size
    flip(tmp_path / BIG, size - 100)
    third = rows // 3
    read = open_tensors(tmp_path / BIG)
    places, data = read_places(tmp_path / BIG)
    first = places["a"].data_offsets[0] + data
    good = (size - 100) // CHUNK * CHUNK  # up to here nothing is damaged
    last_good_row = (good - first) // (4 * width)
    assert torch.equal(read("a")[0:third], tensor[:third])
    assert torch.equal(read("a")[10:last_good_row, 5:9], tensor[10:last_good_row, 5:9])
    for where in (slice(None), slice(last_good_row, rows), (slice(last_good_row, rows), slice(0, 1))):
        with pytest.raises(Damaged, match=f"{BIG}, bytes {good:,} to {size - 1:,}"):
            read("a")[where]
    assert read("a")[5:5].shape == (0, width), "nothing is read, so nothing is checked"


def test_the_header_is_checked_before_it_is_believed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 4), "b": torch.zeros(4, 4)}, tmp_path / BIG)
    write_checksums(tmp_path)
    content = (tmp_path / BIG).read_bytes()
    (tmp_path / BIG).write_bytes(content.replace(b'"a"', b'"c"').replace(b'"b"', b'"a"').replace(b'"c"', b'"b"'))
    with pytest.raises(Damaged, match=f"{BIG}, bytes 0 to"):
        open_tensors(tmp_path / BIG)


def test_exports_and_conversions_have_checksums(hf_folder, helpers, tmp_path: Path) -> None:
    folder, _ = hf_folder(shard_size="100KB")
    convert(folder, tmp_path / "converted", shard_bytes=60_000)
    names = {path.name for path in (tmp_path / "converted").iterdir()}
    found = read_checksums(tmp_path / "converted")
    assert set(found) == names - {CHECKSUMS} and len([n for n in names if n.endswith(".safetensors")]) > 2
    assert find_damage(tmp_path / "converted") == []
    open_checkpoint(tmp_path / "converted")
    flip(tmp_path / "converted" / "config.json", 5)
    with pytest.raises(Damaged, match="config.json, bytes"):
        convert(tmp_path / "converted", tmp_path / "again")


def test_a_pytorch_file_is_checked_when_it_is_opened(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(CHUNK)}, tmp_path / "pytorch_model.bin")
    write_checksums(tmp_path)
    assert open_tensors(tmp_path / "pytorch_model.bin")("a")[0:2].tolist() == [1, 1]
    flip(tmp_path / "pytorch_model.bin", 2 * CHUNK)
    with pytest.raises(Damaged, match="pytorch_model.bin, bytes 8,388,608 to"):
        open_tensors(tmp_path / "pytorch_model.bin")


def test_a_block_that_the_disk_cannot_read_is_damage(folder: Path, monkeypatch) -> None:
    file = checked_file(folder / BIG)
    assert file is not None

    class Disk(io.FileIO):
        def seek(self, place: int, whence: int = 0) -> int:
            if place == CHUNK:
                raise OSError(5, "Input/output error")
            return super().seek(place, whence)

    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: Disk(str(self)))
    assert file.bad_chunks(range(4)) == [1]


def test_a_folder_without_checksums_is_not_checked(folder: Path) -> None:
    (folder / CHECKSUMS).unlink()
    flip(folder / BIG, 0)
    check_small_files(folder)
    assert find_damage(folder) == [] and checked_file(folder / BIG) is None


@pytest.mark.parametrize("kills_at", range(5))
def test_a_file_is_replaced_without_a_moment_of_damage(kills_at: int, folder: Path, monkeypatch) -> None:
    """Killed before, between and after its writes, the first time and when the file is there."""
    replace_file(folder, "new.json", "1")
    times = (folder / CHECKSUMS).stat().st_mtime_ns
    real, calls = checksums.write_text, []

    def write_text(path: Path, text: str) -> None:
        if len(calls) == kills_at:
            raise KeyboardInterrupt
        calls.append(path.name)
        real(path, text)

    monkeypatch.setattr(checksums, "write_text", write_text)
    with suppress(KeyboardInterrupt):
        replace_file(folder, "new.json", "2" * 9)
    assert find_damage(folder) == [] and (folder / "new.json").read_text() == ("1" if kills_at < 2 else "2" * 9)
    assert ("new.json" in read_checksums(folder)) == (kills_at not in (1, 2))
    assert (folder / CHECKSUMS).stat().st_mtime_ns == times
    if kills_at > 2:
        assert calls == [CHECKSUMS, "new.json", CHECKSUMS]
        (folder / "new.json").write_text("3")
        assert find_damage(folder)
    monkeypatch.undo()
    (folder / CHECKSUMS).unlink()
    replace_file(folder, "new.json", "4")
    assert not (folder / CHECKSUMS).exists(), "a folder that is not checked stays one"
