"""Damaged and malicious training checkpoints and exports, through the programs that read them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

from checkpoints_tools.checksums import CHECKSUMS, find_damage, write_checksums
from checkpoints_tools.inspect import main as inspect_main
from data.errors import UserError
from eval.weights import fingerprint, hash_weights
from tests.launching import ROOT, TICKETS, call_main
from train.checkpointing import checkpoint, tensors

TOKENIZER = ROOT / "tests" / "old_files" / "llama"
DATA, RNG = "__0_0.distcp", "rng_00000.pt"


class Programs:
    """The programs, called in this process on one run of 4 steps with checkpoints of steps 2 and 4."""

    def __init__(self, patch: pytest.MonkeyPatch, output: Path) -> None:
        self.patch, self.output = patch, output
        self.common = ["--model", "llama_debug", "--task", TICKETS, "--device", "cpu", "--cache_dir", output / "cache"]

    def train(self, *more: object) -> None:
        options = ["--init", "random", "--checkpoint", TOKENIZER, "--output", self.output, "--steps", 4, "--batch_size"]
        options += [4, "--row_length", 1024, "--save_every", 2, "--keep", 2, "--precision", "fp32"]
        call_main(self.patch, "train.py", *self.common, *options, *more)

    def score(self, folder: Path) -> None:
        options = ["--checkpoint", folder, "--output", self.output / "scored", "--limit", 2, "--max_new_tokens", 3]
        call_main(self.patch, "eval.py", *self.common, *options)

    @property
    def steps(self) -> list[Path]:
        return checkpoint.steps_in(self.output / "checkpoints")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        run = Programs(patch, tmp_path_factory.mktemp("finished") / "run")
        run.train()
    return run.output


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    yield Programs(monkeypatch, Path(shutil.copytree(finished, tmp_path / "run")))


def flip(path: Path, n: int, value: int = 0x40) -> None:
    content = bytearray(path.read_bytes())
    for k in range(n):
        content[len(content) * (2 * k + 1) // (2 * n)] ^= value
    path.write_bytes(content)


def zero(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])


def same_export(first: Path, second: Path) -> bool:
    return (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


# --- damage -----------------------------------------------------------------------------------------------------------


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bits": (lambda p: flip(p / DATA, 10), f"{DATA}, bytes"),
    "a zeroed block": (lambda p: zero(p / DATA), f"{DATA}, bytes"),
    "empty random states": (lambda p: (p / RNG).write_bytes(b""), f"{RNG} has 0 bytes, not"),
    "random states cut off": (lambda p: (p / RNG).write_bytes((p / RNG).read_bytes()[:-9]), f"{RNG} has"),
    "other random states": (lambda p: flip(p / RNG, 1), f"{RNG}, bytes"),
    "metadata": (lambda p: flip(p / ".metadata", 1), ".metadata, bytes"),
    "options": (lambda p: flip(p / "run.json", 1, 1), "run.json, bytes"),
    "task": (lambda p: flip(p / "task.json", 1, 1), "task.json, bytes"),
    "prompt": (lambda p: (p / "prompt.json").unlink(), "prompt.json is missing"),
    "checksums": (lambda p: flip(p / CHECKSUMS, 1, 1), "checksums.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_resumed_run_takes_the_newest_checkpoint_without_damage(damage: str, run: Programs, finished, capsys) -> None:
    older, newest = run.steps
    change, message = DAMAGE[damage]
    change(newest)
    left = {path.name: path.read_bytes() for path in newest.iterdir()}
    seen: list[dict[str, bytes]] = []
    real = tensors.load_model

    def load_model(folder: Path, model: torch.nn.Module) -> None:
        seen.append({path.name: path.read_bytes() for path in newest.iterdir()})
        assert folder == older
        real(folder, model)

    run.patch.setattr(tensors, "load_model", load_model)
    shutil.rmtree(run.output / "export")
    run.train("--resume")
    said = "".join(capsys.readouterr())
    assert seen == [left], "nothing of the damaged checkpoint was deleted"
    assert "note: checkpoint" in said and newest.name in said and message in said
    assert "resuming after step 2 from" in said and f"{older} agrees with its checksums" in said
    assert same_export(run.output / "export", finished / "export"), "as if nothing had happened"


def test_a_damaged_checkpoint_is_not_counted_among_those_to_keep(run: Programs) -> None:
    """A newer one would otherwise be the one of ``--keep 1``, and every whole one be deleted."""
    older, newest = run.steps
    damaged = newest.rename(newest.with_name("step_000009"))
    flip(damaged / DATA, 1)
    run.train("--resume", "--keep", 1)
    assert run.steps == [newest, damaged]
    run.train("--resume")


def test_if_all_are_damaged_the_run_does_not_start(run: Programs) -> None:
    for folder in run.steps:
        flip(folder / DATA, 1)
    with pytest.raises(UserError, match="none of the checkpoints in .* is complete and undamaged"):
        run.train("--resume")


def test_a_checkpoint_without_checksums_resumes_as_before(run: Programs, finished: Path, capsys) -> None:
    for folder in run.steps:
        (folder / CHECKSUMS).unlink()
    shutil.rmtree(run.output / "export")
    run.train("--resume")
    said = "".join(capsys.readouterr())
    assert "step_000004 has no checksums (older code wrote it)" in said
    assert same_export(run.output / "export", finished / "export")
    older, newest = run.steps
    (newest / RNG).write_bytes(b"")
    run.train("--resume")
    said = "".join(capsys.readouterr())
    assert f"{RNG} is empty" in said and "resuming after step 2" in said


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d not in ("other random states",)])
def test_a_damaged_checkpoint_is_not_scored(damage: str, run: Programs) -> None:
    change, message = DAMAGE[damage]
    change(run.steps[-1])
    with pytest.raises(UserError, match=message):
        run.score(run.steps[-1])
    assert not (run.output / "scored").exists()


def swap_tokens(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def swap_weights(folder: Path) -> None:
    """Exchange two matrices of the same shape by their places in the header, which stays as long as it was."""
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    a, b = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv")
    header[a], header[b] = header[b], header[a]
    text = json.dumps(header, separators=(",", ":")).encode()
    (folder / "model.safetensors").write_bytes(content[:8] + text.ljust(length) + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: flip(p / "model.safetensors", 10), "model.safetensors, bytes"),
        (lambda p: zero(p / "model.safetensors"), "model.safetensors, bytes"),
        (swap_weights, "model.safetensors, bytes"),
        (swap_tokens, "tokenizer.json"),
        (lambda p: flip(p / "config.json", 1, 1), "config.json, bytes"),
        (lambda p: flip(p / "prompt.json", 1, 1), "prompt.json, bytes"),
        (lambda p: (p / "generation_config.json").unlink(), "generation_config.json is missing"),
    ],
)
def test_a_damaged_export_is_not_scored_until_somebody_says_that_it_is_meant(change, message, run: Programs) -> None:
    export = run.output / "export"
    change(export)
    with pytest.raises(UserError, match=f"{message}.*If you changed it on purpose.*inspect {export} --checksums write"):
        run.score(export)
    if message.startswith("model"):
        write_checksums(export)  # as inspect does
        run.score(export)


def test_every_file_of_an_export_is_covered_but_the_model_card(run: Programs) -> None:
    export, names = run.output / "export", []
    (export / "README.md").write_text("edited")
    for path in sorted(export.iterdir()):
        content = path.read_bytes()
        assert find_damage(export) == []
        if path.name not in ("README.md", CHECKSUMS):
            flip(path, 1)
            assert [text.split(",")[0] for text in find_damage(export)] == [path.name]
            path.write_bytes(content)
            names.append(path.name)
    assert {"config.json", "tokenizer.json", "task.json", "prompt.json", "training.json"} <= set(names)


def test_the_way_on_and_a_full_check_are_in_inspect(run: Programs, capsys) -> None:
    export = run.output / "export"
    assert inspect_main([str(export), "--checksums", "check"]) == 0
    assert "as they were written" in capsys.readouterr().out
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 777}))
    flip(export / "model.safetensors", 1)
    assert inspect_main([str(export), "--checksums", "check"]) == 2
    error = capsys.readouterr().err
    assert "config.json has" in error and "model.safetensors, bytes" in error, "all of it is named"
    assert inspect_main([str(export)]) == 2
    assert inspect_main([str(export), "--checksums", "write"]) == 0
    assert "777" in capsys.readouterr().out
    assert inspect_main([str(run.steps[0]), "--checksums", "check"]) == 0
    (export / CHECKSUMS).unlink()
    assert inspect_main([str(export), "--checksums", "check"]) == 2
    assert "has no checksums.json" in capsys.readouterr().err
    for what in ("check", "write"):
        assert inspect_main([str(run.output), "--checksums", what]) == 2
    assert "neither a Hugging Face folder nor a training checkpoint" in capsys.readouterr().err
    assert not (run.output / CHECKSUMS).exists()


def test_the_hash_of_weights_covers_every_byte(run: Programs, monkeypatch) -> None:
    export = run.output / "export"
    before = hash_weights(export), fingerprint(export)
    copy = Path(shutil.copytree(export, run.output / "copy"))
    assert (hash_weights(copy), fingerprint(copy)) == before
    flip(copy / "model.safetensors", 1)
    write_checksums(copy)
    assert hash_weights(copy) != before[0] and fingerprint(copy) != before[1]
    (copy / CHECKSUMS).unlink()
    assert hash_weights(copy) not in before, "of the file's blocks, as before there were checksums"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": {}}, "model_config: dim is missing"),
        ({"identity": {"model_config": 7}}, "identity.model_config.* must be an object"),
        (
            {"model_config": {"ffn_dim": 2**20}},
            r"wrong shape: layers.0.ffn.w1.weight .* says \[1048576, ",
        ),
        ({"model_config": {"n_layers": 10**9}}, "model_config: n_layers"),
        ({"model_config": {"vocab_size": "x"}}, "vocab_size must be a whole number; it is 'x'"),
        ({"config": {"checkpoint": None}}, "does not say which checkpoint the run started from"),
        ({"config": {"max_length": "x"}}, "config: max_length must be"),
        ({"labels": [1]}, "labels must be an object"),
        ({"world_size": 2.5}, "world_size must be a whole number"),
        ({"world_size": 9}, "rng_00001.pt is missing"),
    ],
)
def test_what_run_json_says_is_checked(changes: dict[str, Any], message: str, run: Programs) -> None:
    folder = run.steps[-1]
    record = json.loads((folder / "run.json").read_text())
    if "model_config" in changes:
        record["identity"]["model_config"] |= changes["model_config"]
    elif "config" in changes:
        record["config"] |= changes["config"]
    else:
        record |= changes
    (folder / "run.json").write_text(json.dumps(record))
    write_checksums(folder)
    with pytest.raises(UserError, match=message):
        run.score(folder)


# --- code -------------------------------------------------------------------------------------------------------------


class Touch:
    """A pickle that makes a file when it is loaded as pickles usually are."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def in_metadata(folder: Path, code: Touch) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(code))


def in_a_value(folder: Path, code: Touch) -> None:
    found = pickle.loads((folder / ".metadata").read_bytes())
    data = folder / DATA
    begin = data.stat().st_size
    with data.open("ab") as file:
        torch.save(code, file)
    index = MetadataIndex("optim.param_groups.0.lr")
    assert index in found.storage_data
    found.storage_data[index] = _StorageInfo(DATA, begin, data.stat().st_size - begin)
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def in_random_states(folder: Path, code: Touch) -> None:
    torch.save({"python": code, "numpy": 0, "torch": 0, "cuda": None}, folder / RNG)


@pytest.mark.parametrize("checksums", ["of the attacker", "none"])
@pytest.mark.parametrize("place", [in_metadata, in_a_value, in_random_states])
def test_no_program_runs_code_from_a_checkpoint(place, checksums: str, run: Programs, tmp_path, capsys) -> None:
    marker, newest = tmp_path / "ran", run.steps[-1]
    place(newest, Touch(marker))
    write_checksums(newest)
    if checksums == "none":
        (newest / CHECKSUMS).unlink()
    refused = "it names posix.mknod, which could run code; refused"
    messages = []
    for program in (lambda: run.score(newest), lambda: inspect_main([str(newest)]), lambda: run.train("--resume")):
        error = ""
        try:
            program()
        except UserError as found:
            error = str(found)
        messages.append("".join([error, *capsys.readouterr()]))
    assert not marker.exists(), "nothing ran"
    scored, inspected, resumed = messages
    assert refused in resumed
    if place is in_metadata or (place is in_random_states and checksums == "none"):
        assert "resuming after step 2" in resumed, "from the older checkpoint"
    if place is in_metadata:
        assert refused in scored and refused in inspected
    else:  # scoring needs neither the optimizer's values nor the random states
        assert "training checkpoint" in inspected
