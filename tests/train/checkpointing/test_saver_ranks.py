"""Saves of two ranks: each writes its own, replicas share the work, and what fails on one stops both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints_tools.checksums import CHUNK
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("saved")
    run_ranks(Path(__file__).parent / "saving_run.py", out, n_ranks=2)
    return json.loads((out / "saved.json").read_text())


SMALL = 300_000  # headers, step counters, names


def test_each_rank_copies_and_writes_its_own_shards(saved: dict) -> None:
    found = saved["sharded"]
    assert sum(found["shards"]) == found["whole"], "each element is on one rank"
    for file, copy, shard in zip(found["files"], found["copies"], found["shards"], strict=True):
        assert shard <= copy <= shard + 1000 and shard <= file <= shard + SMALL < found["whole"]
    assert found["real"] <= found["expected"] <= found["real"] + 700_000


def test_replicas_share_the_writing(saved: dict) -> None:
    found = saved["replicated"]
    assert found["shards"] == [found["whole"]] * 2, "both ranks hold everything"
    assert found["whole"] <= sum(found["files"]) <= found["whole"] + 2 * SMALL, "but it is written once"
    assert min(found["files"]) > found["whole"] / 4, "by both"


def test_one_ranks_failure_is_said_by_both(saved: dict) -> None:
    (message, step, names), (other, other_step, _) = saved["one_fails"]
    assert message == other and step == other_step and 4 <= step < 300, "they stop together"
    assert "rank 1: [Errno 28] No space left on device" in message and "rank 0" not in message
    assert "step_000002" in message and names == ["step_000002"]


def test_too_little_space_is_reported_by_both(saved: dict) -> None:
    first, second = saved["too_little_space"]
    assert first == second and "not enough disk space for the checkpoint of step 2" in first
    assert "1.0 kB are free" in first


def test_a_run_folder_that_is_not_shared_is_refused(saved: dict) -> None:
    for message in saved["not_shared"]:
        assert message.startswith("UserError") and "rank(s) 1 do not see a file that rank 0 has written" in message


def test_damage_in_one_ranks_file_is_found_and_said_by_both(saved: dict) -> None:
    found = saved["damaged"]
    assert found["whole"] == [None, None], "the checksums that the ranks wrote are those of the files"
    assert found["listed"] == sorted([*found["written"], "checksums.json"]), "every file has them"
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "rng_00001.pt", "run.json"} <= set(found["written"])
    chunk = found["bytes"] // 2 // CHUNK * CHUNK
    place = f"__1_0.distcp, bytes {chunk:,} to {min(chunk + CHUNK, found['bytes']) - 1:,}"
    assert found["found"] == [place, place]
    assert found["complete"] == [True, True], "which the file's size does not show"
    first, second = found["said"]
    assert first == second and f"is not what was written: {place}" in first


def test_an_export_holds_one_file_and_one_tensor(saved: dict) -> None:
    """In MB: tensors of 16, files of 48, a model of 384 over two ranks."""
    found = saved["export"]
    assert found["n_files"] == 8 and found["whole"] > 300e6
    tensor, writer, other = found["tensor"], *found["rises"]
    print(f"rank 0 rose by {writer / 1e6:.0f} MB, rank 1 by {other / 1e6:.0f} MB")
    assert 3 * tensor <= writer <= 3 * tensor + 2.5 * tensor, "a file, and the tensor that is being gathered"
    assert tensor <= other <= 2.5 * tensor
