"""Say what a path is that is no checkpoint folder, and what to name or do instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from checkpoints_tools.formats import EXPORTS, METADATA, is_gguf, is_meta_folder
from data.errors import UserError
from data.files.documents import read_json
from data.files.listing import files_found, link_of

SHOWN = 8  # paths named in a message
ADAPTER = "adapter_config.json"
# Files of other programs, by pattern -> what a folder with them holds.
FOREIGN = {
    "model_index.json": "a model of diffusers",
    "*.onnx": "a model in ONNX format",
    "tf_model*.h5": "TensorFlow weights",
    "flax_model*.msgpack": "Flax weights",
    "*.npz": "NumPy arrays",
    "lit_model.pth": "a LitGPT checkpoint",
}


class _Adapter(Struct):
    """What an adapter's config says of it."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None


class _Config(Struct):
    """What a model's ``config.json`` always has."""

    model_type: str | None = None


def describe(path: Path) -> str | None:
    """What a path is that is no checkpoint folder; None if it is nothing known: missing, empty, or any other folder."""
    if link := link_of(path):
        return f"{path} is {link}"
    if path.is_file():
        return _describe_file(path)
    if not path.is_dir():
        return _describe_name(path)
    for describe_folder in (describe_adapter, _hub_cache, _training_checkpoint, _inside, _foreign, _tokenizer):
        found = describe_folder(path)
        if found is not None:
            return found
    return None


def _describe_file(path: Path) -> str:
    if is_gguf(path):
        return f"{path} is a GGUF file; convert it first: python -m checkpoints_tools.convert {path} NEW_FOLDER"
    is_part = any((path.parent / name).is_file() for name in ("config.json", "params.json"))
    return f"{path} is a file, not a folder" + (f"; name the checkpoint's folder: {path.parent}" if is_part else "")


def is_of_a_run(path: Path) -> bool:
    """Whether a path has the name of a folder that a training writes."""
    return path.name in EXPORTS or path.parent.name == "checkpoints" and path.name.startswith("step_")


def _describe_name(path: Path) -> str | None:
    """For a path that does not exist but may name a repository."""
    url = re.fullmatch(r"https?:/+(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)(/.*)?", str(path))
    if url is None and (path.parent.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path))):
        return None
    if url is None and (path.parent.name in ("checkpoints", "runs") or is_of_a_run(path)):  # this code's own folders
        return None
    repo = url[1] if url is not None else str(path)
    to = Path("checkpoints") / repo.partition("/")[2]
    return (
        f"there is no folder {path}. If it names a repository on the Hugging Face Hub, download that first: "
        f"hf download {repo} --local-dir {to}, then name {to}"
    )


def describe_adapter(folder: Path, beside: bool = False) -> str | None:
    """For the folder of a LoRA (or another adapter of peft); None for any other.

    Args:
        beside: the folder has the weights of a model as well.
    """
    if not (folder / ADAPTER).is_file() and not any(folder.glob("adapter_model.*")):
        return None
    try:
        about = read_json(folder / ADAPTER, _Adapter) if (folder / ADAPTER).is_file() else _Adapter()
    except UserError:
        about = _Adapter()
    kind, base = about.peft_type or "LoRA", about.base_model_name_or_path or "its base model"
    what, else_ = "not a model", ""
    if beside:  # transformers would add the adapter to the weights
        what = "beside a model's weights, which are not the fine-tuned model without it"
        else_ = f". If they are merged already, or wanted without it, move {ADAPTER} and adapter_model.* elsewhere"
    return (
        f"{folder} holds an adapter ({kind}) for {base}, {what}. Merge the two and name the folder of the result: "
        f"AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload().save_pretrained(FOLDER) with peft{else_}"
    )


def _hub_cache(folder: Path) -> str | None:
    repositories = sorted(folder.glob("models--*")) or sorted((folder / "hub").glob("models--*"))
    if (folder / "snapshots").is_dir():
        repositories = [folder]
    if not repositories:
        return None
    configs = [path for repo in repositories for path in sorted(repo.glob("snapshots/*/config.json"))]
    snapshots = [path.parent for path in configs if path.is_file()]  # Python 3.13 lists broken links too
    if not snapshots:
        inside = [path for repo in repositories for path in sorted(repo.glob("snapshots/*/"))]
        found = f"; {inside[0]} holds {files_found(inside[0])}" if inside else ""
        return f"{folder} is a cache folder of huggingface_hub, and no snapshot in it has a config.json{found}"
    return f"{folder} is a cache folder of huggingface_hub. Name a checkpoint in it: {_listed(snapshots)}"


def _training_checkpoint(folder: Path) -> str | None:
    if not (folder / METADATA).is_file():
        return None
    return (
        f"{folder} is a training checkpoint (torch.distributed.checkpoint). A run continues from it with --resume, and "
        "eval.py scores it. Otherwise name the run's export"
    )


def _inside(folder: Path) -> str | None:
    inside = (path.relative_to(folder) for pattern in ("*/", "*/*/") for path in folder.glob(pattern))
    visible = [folder / path for path in inside if not path.parts[0].startswith(".")]
    meta = [path for path in visible if is_meta_folder(path)]
    if len(meta) == 1:
        return f"{folder} is not a checkpoint folder; {meta[0]} in it is one, in Meta's format: name that"
    found = sorted(path for path in visible if path in meta or _is_model(path / "config.json"))
    return f"{folder} is not a checkpoint folder. Name one in it: {_listed(found)}" if found else None


def _is_model(config: Path) -> bool:
    """Whether a ``config.json`` is a model's; sentence-transformers also writes some of its pooling."""
    try:
        return config.is_file() and read_json(config, _Config).model_type is not None
    except UserError:
        return True  # whoever opens it says what is wrong


def _foreign(folder: Path) -> str | None:
    for pattern, what in FOREIGN.items():
        if any(folder.glob(pattern)):
            return f"{folder} holds {what}; this code reads PyTorch weights: config.json with *.safetensors"
    return None


def _tokenizer(folder: Path) -> str | None:
    names = {path.name for path in folder.iterdir()}
    has_weights = any(name.endswith((".safetensors", ".bin", ".pth", ".pt")) for name in names)
    if not has_weights and names & {"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"}:
        return f"{folder} holds a tokenizer, and neither a config.json nor weights"
    return None


def _listed(paths: Iterable[Path]) -> str:
    paths = list(paths)
    return ", ".join(map(str, paths[:SHOWN])) + (f", and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
