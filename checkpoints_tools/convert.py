"""Convert a checkpoint of any known format into a folder that ``train.py --checkpoint`` reads.

    python -m checkpoints_tools.convert SRC DST [--dtype keep|fp32|bf16|fp16] [--tokenizer PATH] [--shard_gb 5]

SRC is recognized by its content, never by its own name. It is one of:

- a Hugging Face folder (config.json and safetensors),
- a folder in Meta's format (params.json and consolidated.NN.pth),
- a GGUF file of any name, or a folder with exactly one ``*.gguf`` in it (such as an installed Python package).

DST becomes a Hugging Face folder: config.json, sharded safetensors, tokenizer files, generation_config.json. Of a run's
export it gets the files of the run too (task, prompt, temperatures, ...), wherever the tokenizer is from. Nothing is
overwritten, and DST appears only when it is complete.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.carried import carry_over
from checkpoints_tools.file_hashes import weights_of
from checkpoints_tools.folder import open_hf
from checkpoints_tools.formats import CALIBRATION_FILE, GGUF_NAMES, OF_A_RUN, is_gguf, is_meta_folder
from checkpoints_tools.gguf_file import open_gguf
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.json_files import write_json
from checkpoints_tools.load import check_fits_preset, preset_of
from checkpoints_tools.meta_pth import open_meta
from checkpoints_tools.meta_tokenizer import complete_tokenizer
from checkpoints_tools.other_folders import describe
from checkpoints_tools.progress import ByteProgress
from checkpoints_tools.registry import get_model_spec
from checkpoints_tools.source import Source, check_source, check_tied, expected_shapes
from checkpoints_tools.tokenizer_files import copy_tokenizer
from checkpoints_tools.writer import ShardWriter, refuse_non_empty, require_finite, staged_folder
from data.command_line import cli
from data.commands import command, ours
from data.errors import UserError
from data.files.documents import permitted, read_json
from data.files.paths import parsed_paths
from data.terminal import open_streams, say, show_logs, status_of

SAMPLE_TASK = "data/sample/tickets/tickets.toml"


@dataclass
class ConvertArgs:
    """Convert a checkpoint (Hugging Face folder, Meta folder, GGUF) into a folder for train.py."""

    src: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to read; its format is recognized by content."""
    dst: Annotated[Path, tyro.conf.Positional]
    """Folder to write; must be empty or not exist."""
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"
    """Dtype to store. 'keep' changes no value: a tensor is stored in the checkpoint's dtype, or in its own if that
    would round it. A quantized GGUF is unpacked to fp32."""
    tokenizer: Path | None = None
    """File or folder to take the tokenizer from, instead of SRC."""
    shard_gb: float = 5.0
    """Largest size of one safetensors file, in units of 10^9 bytes."""


def open_source(path: Path, own_tokenizer: bool = True) -> Source:
    """Recognize a checkpoint by its content and open it; only metadata is read.

    Args:
        path: file or folder.
        own_tokenizer: whether the checkpoint's own tokenizer will be written.

    Raises:
        UserError: ``path`` does not exist, or has no known format.
    """
    if not path.exists():
        raise UserError(describe(path) or f"no such file or folder: {path}")
    if path.is_file():
        if is_gguf(path):
            return open_gguf(path, own_tokenizer)
        if path.name == "config.json" or path.suffix in (".safetensors", ".pth"):
            raise UserError(f"{path} is one file of a checkpoint; name its folder: {path.parent}")
        raise UserError(f"{path} is not a GGUF file; for a Hugging Face or Meta checkpoint name the folder")
    if is_meta_folder(path):
        return open_meta(path)
    weights = any(any(path.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    # Folders of GGUF files on the hub have a config.json, too.
    if weights or ((path / "config.json").is_file() and not any(path.glob(GGUF_NAMES))):
        return open_hf(path)
    found = sorted(file for file in path.rglob(GGUF_NAMES) if file.is_file())
    if len(found) == 1:
        return open_gguf(found[0], own_tokenizer)
    if found:
        raise UserError(f"{path} contains {len(found)} GGUF files; name one: {', '.join(map(str, found[:10]))}")
    what = describe(path)
    if what is not None:
        raise UserError(f"{what}.")
    raise UserError(
        f"{path} is none of: a Hugging Face folder (config.json, *.safetensors), a folder in Meta's format "
        "(params.json, consolidated.NN.pth), a folder with one GGUF file (*.gguf) in it"
    )


def convert(
    src: Path, dst: Path, dtype: str = "keep", tokenizer: Path | None = None, shard_bytes: int = 5_000_000_000
) -> Source:
    """Convert ``src`` into the folder ``dst`` and return the opened ``src``. Holds at most one shard and one tensor.

    Raises:
        UserError: see `open_source`; or tensors do not fit the config, or hold values that ``dtype`` cannot store; or
            ``dst`` is not empty; or the tokenizer cannot be read, or has more tokens than the model.
    """
    refuse_non_empty(dst)
    source = open_source(src, own_tokenizer=tokenizer is None)
    architecture = architecture_of(source.config)
    if architecture.write_config is None:
        raise UserError(
            f"{src} holds a model of the {source.config.family!r} architecture, which needs no conversion: "
            "train.py --checkpoint reads it as it is"
        )
    check_source(source)
    check_tied(source)
    to, cast = (source.dtype, _kept) if dtype == "keep" else (DTYPES[dtype], torch.Tensor.to)
    with staged_folder(dst) as folder:
        architecture.write_config(folder, source.config, to, source.token_ids)
        carry_over(source.carried, folder, source.config.vocab_size, trained=False)
        if tokenizer is None:
            source.write_tokenizer(folder)
        else:
            copy_tokenizer(tokenizer, folder)
        place = tokenizer or source.path
        origin = place if place.is_file() else place / "tokenizer.model"
        complete_tokenizer(folder, source.config.max_position, origin=origin)
        _check_tokenizer(folder, source.config, place)
        writer = ShardWriter(folder, shard_bytes)
        sizes = {name: math.prod(shape) * to.itemsize for name, shape in expected_shapes(source.config).items()}
        with ByteProgress("converting", sum(sizes.values()), show=True) as progress:
            for name, size in sizes.items():
                theirs = architecture.to_theirs(name, source.config)
                stored = cast(source.read(name)[:], to)
                require_finite(theirs, stored, partial(_read, source, name))
                writer.add(theirs, stored)
                progress.advance(size)
        writer.close()
        _copy_run_files(source.path, folder, dtype == "keep")
    return source


def _check_tokenizer(folder: Path, config: ModelConfig, origin: Path) -> None:
    """Check that the tokenizer in the new ``folder`` can be read and fits the model; messages name its ``origin``."""
    spec = get_model_spec(config.family)
    try:
        check_fits_preset(config, spec.architecture.load_tokenizer(folder), spec, folder)
    except UserError as error:
        what = re.sub(rf"{re.escape(str(folder))}(/|: )?", "", str(error))
        raise UserError(
            f"the tokenizer of {origin} cannot be used: {what}\nTo take it from elsewhere: --tokenizer PATH"
        ) from None


def _copy_run_files(source: Path, folder: Path, same_values: bool) -> None:
    """Copy what an export says of its run, beside the new weights; temperatures only if they are for their values."""
    for file in (source / name for name in OF_A_RUN if (source / name).is_file()):
        if file.name != CALIBRATION_FILE:
            shutil.copyfile(file, folder / file.name)
        elif same_values and (found := read_json(file)).get("weights") == weights_of(source):
            write_json(folder / file.name, found | {"weights": weights_of(folder)})
        else:
            say(f"note: {file} is left out, as it is for other weights. Fit it anew: eval.py --calibrate.")


def _kept(values: torch.Tensor, common: torch.dtype) -> torch.Tensor:
    """The tensor in the common dtype, or as it is if that would change a value: norms are often stored in fp32."""
    stored = values.to(common)
    return stored if (stored == values).all() else values


def _read(source: Source, name: str) -> torch.Tensor:
    return source.read(name)[:]


def _stopped(signum: int, _: object) -> None:
    """SIGTERM, which schedulers and `timeout` send, ends a conversion as Ctrl-C does: nothing half-written stays."""
    raise KeyboardInterrupt(signum)


def main(argv: list[str] | None = None) -> int:
    open_streams()
    show_logs()
    args = cli(ConvertArgs, argv, prog="python -m checkpoints_tools.convert")
    start = time.perf_counter()
    signal.signal(signal.SIGTERM, _stopped)
    try:
        args = parsed_paths(args)
        if not 1e-9 <= args.shard_gb < math.inf:
            raise UserError(f"--shard_gb is {args.shard_gb}; it must be a byte (1e-9) at least, and finite")
        with permitted():
            source = convert(args.src, args.dst, args.dtype, args.tokenizer, int(args.shard_gb * 1e9))
    except UserError as error:
        say(f"error: {error}", "stderr")
        return error.status
    except KeyboardInterrupt as stop:
        say(f"stopped; {args.dst} was not made.", "stderr")
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    count = sum(torch.Size(shape).numel() for shape in expected_shapes(source.config).values())
    seconds = time.perf_counter() - start
    say(f"{source.format} {source.path} -> {args.dst}: {count / 1e6:,.1f} M parameters, {seconds:.1f} s")
    options = {"model": preset_of(source.config), "checkpoint": args.dst, "task": ours(SAMPLE_TASK)}
    options["output"] = Path("runs") / args.dst.resolve().name
    say(f"To fine-tune it, here on a sample task:\n  {command('train.py', options)}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main()))
