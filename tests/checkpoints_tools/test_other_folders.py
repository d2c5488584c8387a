"""A path that is no checkpoint folder: the message says what it is, and advises no download into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints_tools.convert import convert, open_source
from checkpoints_tools.folder import check_folder
from checkpoints_tools.load import open_checkpoint
from checkpoints_tools.registry import get_model_spec
from checkpoints_tools.tokenizer_files import copy_tokenizer
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from eval.weights import find_weights


def make(folder: Path, *names: str, **contents: object) -> Path:
    """A folder with empty files, and JSON files named ``adapter_config=``, ..."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def lora(folder: Path) -> Path:
    about = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    return make(folder, "adapter_model.safetensors", "tokenizer.json", adapter_config=about)


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "adapter": (lora, r"an adapter \(LORA\) for some/base, not a model. Merge the two"),
    "damaged adapter": (
        lambda p: make(p, "adapter_config.json"),
        r"an adapter \(LoRA\) for its base model, not a model",
    ),
    "adapter of a trainer": (
        lambda p: make(lora(p), config={"model_type": "llama", "vocab_size": 9}),
        "an adapter .* for some/base",
    ),
    "hub cache of one repository": (
        lambda p: make(p, "refs/main", "snapshots/0123abcd/config.json", "snapshots/0123abcd/model.safetensors"),
        "a cache folder of huggingface_hub. Name a checkpoint in it: .*/snapshots/0123abcd",
    ),
    "hub cache": (
        lambda p: make(p, "models--a--b/snapshots/1/config.json", "models--c--d/snapshots/2/config.json"),
        "huggingface_hub. Name a checkpoint in it: .*/models--a--b/snapshots/1, .*/models--c--d/snapshots/2",
    ),
    "home of the hub": (
        lambda p: make(p, "hub/models--a--b/snapshots/1/README.md"),
        "a cache folder of huggingface_hub, and no snapshot in it has a config.json",
    ),
    "trainer's output": (
        lambda p: make(p, "checkpoint-500/config.json", "checkpoint-900/config.json", "trainer_state.json"),
        "Name one in it: .*/checkpoint-500, .*/checkpoint-900",
    ),
    "sentence-transformers": (
        lambda p: make(make(p, "0_Transformer/config.json", "modules.json") / "1_Pooling", "x", config={"a": 1}).parent,
        "Name one in it: [^,]*/0_Transformer.$",
    ),
    "training checkpoint": (
        lambda p: make(p, ".metadata", "__0_0.distcp"),
        "a training checkpoint .*the run's export",
    ),
    "ONNX": (lambda p: make(p, "model.onnx"), "holds a model in ONNX format"),
    "TensorFlow": (lambda p: make(p, "tf_model.h5"), "holds TensorFlow weights"),
    "diffusers": (lambda p: make(p, "model_index.json"), "holds a model of diffusers"),
    "tokenizer": (lambda p: make(p, "tokenizer.json", "tokenizer_config.json"), "holds a tokenizer, and neither"),
    "any folder": (lambda p: make(p, "notes.txt", "a/b.txt"), "has no config.json.*it holds a, notes.txt"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_folder_is(kind, tmp_path):
    write, message = KINDS[kind]
    folder = write(tmp_path / "x")
    for use in (
        lambda: open_checkpoint(find_weights(folder).path, get_model_spec("llama")),  # eval.py and predict.py
        lambda: open_checkpoint(folder, get_model_spec("llama3_8b")),  # train.py
    ):
        with pytest.raises(UserError, match=message) as error:
            use()
        assert "hf download" not in str(error.value) and len(str(error.value).splitlines()) == 1
    if kind not in ("any folder", "adapter of a trainer"):
        with pytest.raises(UserError, match=message):
            open_source(folder)


def test_an_adapter_beside_a_models_weights(tmp_path, hf_folder):
    """transformers would add it to them; a merge that was saved into the same folder looks the same."""
    folder, _ = hf_folder()
    lora(folder)
    message = (
        r"holds an adapter \(LORA\) for some/base, beside a model's weights.*Merge the two .*merge_and_unload.*"
        r"move adapter_config.json and adapter_model.\* elsewhere\.$"
    )
    for use in (open_checkpoint, open_source, lambda folder: convert(folder, tmp_path / "out")):
        with pytest.raises(UserError, match=message):
            use(folder)
    assert not (tmp_path / "out").exists()
    for path in folder.glob("adapter_*"):
        path.unlink()
    open_checkpoint(folder)


def test_links_that_lead_nowhere(tmp_path, hf_folder):
    """A snapshot of the hub's cache links to files in another folder of it."""
    folder, _ = hf_folder()
    cache, copied = tmp_path / "models--a--b", tmp_path / "copied"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    folder.rename(cache / "snapshots" / "0123")
    for path in (cache / "snapshots" / "0123").iterdir():
        path.rename(cache / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    shutil.copytree(cache / "snapshots" / "0123", copied, symlinks=True)

    def link(name: str) -> str:
        return rf"{name} \(a link to ../../blobs/{name}, which does not exist\)"

    advice = r"[^()]*copy the folder again, with `cp -rL`\."
    open_checkpoint(cache / "snapshots" / "0123")
    with pytest.raises(UserError, match=f"has no config.json.*; it holds {link('config.json')}, .*\\){advice}\n"):
        open_checkpoint(copied)
    with pytest.raises(UserError, match=f"No tokenizer in .*; found: .*{link('tokenizer.json')}, .*\\){advice} A "):
        load_tokenizer(copied)
    with pytest.raises(UserError, match=f"has no tokenizer .* Found: .*{link('tokenizer.json')}, .*\\){advice}$"):
        copy_tokenizer(copied, tmp_path)
    (copied / "config.json").unlink()
    shutil.copy(cache / "blobs" / "config.json", copied)
    with pytest.raises(UserError, match=f"weight files are missing: {link('model.safetensors')}{advice}\n"):
        open_source(copied)
    (cache / "blobs").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"no snapshot in it has a config.json; .*0123 holds .*{link('config.json')}"):
        open_checkpoint(cache)
    (tmp_path / "gone").symlink_to("nowhere")
    for use in (open_checkpoint, open_source):
        with pytest.raises(UserError, match="gone is a link to nowhere, which does not exist.?$"):
            use(tmp_path / "gone")


def test_a_run_folder(tmp_path):
    folder = make(tmp_path / "run", "export/config.json", "best/config.json", "checkpoints/step_000005/.metadata")
    with pytest.raises(UserError, match="Name one in it: .*/run/best, .*/run/export"):
        check_folder(folder)


def test_a_file(tmp_path, hf_folder):
    folder, _ = hf_folder()
    with pytest.raises(UserError, match=f"model.safetensors is a file, not a folder; name the checkpoint's.* {folder}"):
        check_folder(folder / "model.safetensors")
    (tmp_path / "x").write_bytes(b"GGUF....")
    with pytest.raises(UserError, match=r"x is a GGUF file; convert it first: .*checkpoints_tools.convert"):
        check_folder(tmp_path / "x")


@pytest.mark.parametrize("name", ["Some-Org/Model-360M.v2", "https://huggingface.co/Some-Org/Model-360M.v2/tree/main"])
def test_the_name_of_a_repository(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (lambda: check_folder(name, get_model_spec("llama3_8b")), lambda: open_source(Path(name))):
        with pytest.raises(UserError) as error:
            use()
        assert "hf download Some-Org/Model-360M.v2 --local-dir checkpoints/Model-360M.v2" in str(error.value)
        assert "meta-llama" not in str(error.value)


def test_a_download_is_advised_into_a_new_or_an_empty_folder(tmp_path, monkeypatch, hf_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    preset = get_model_spec("llama3_8b")
    for name in ("checkpoints/llama3_8b", "empty", str(tmp_path / "new")):
        with pytest.raises(UserError, match=f"To download .*meta-llama/Meta-Llama-3-8B-Instruct .*--local-dir {name}"):
            check_folder(name, preset)
    with pytest.raises(UserError, match="To download, for example"):
        check_folder("checkpoints/mine", get_model_spec("llama"))
    (tmp_path / "run" / "empty" / "export").mkdir(parents=True)
    with pytest.raises(UserError, match="run/empty/export is empty.\nA training writes a folder of this name"):
        check_folder("run/empty/export", preset)
    with pytest.raises(UserError, match="hf download org/step_1b"):  # a repository's name
        check_folder("org/step_1b", preset)
    for name in ("export", "best", "checkpoints/step_00000010"):
        with pytest.raises(UserError, match=f"no checkpoint folder run/{name}.*\nA training writes a folder") as error:
            check_folder(f"run/{name}", preset)
        assert "hf download" not in str(error.value)
    folder, _ = hf_folder()
    (folder / "model.safetensors").unlink()  # into a checkpoint that is not whole: from where it came
    with pytest.raises(UserError, match="hf download REPOSITORY --local-dir"):
        check_folder(folder, get_model_spec("llama"))
    with pytest.raises(UserError, match="hf download meta-llama/Meta-Llama-3-8B-Instruct"):
        check_folder(folder, preset)


def test_a_misspelt_name_beside_what_a_run_wrote_is_not_to_be_downloaded(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path / "exprt")
    beside = f"Checkpoints beside it: {tmp_path / 'export'}."
    assert (
        str(error.value)
        == f"no checkpoint folder {tmp_path / 'exprt'}. {beside}\nA run wrote one of these: is the name misspelt?"
    )
