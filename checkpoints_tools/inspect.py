"""Show a checkpoint's format, config, tensors and sizes. Reads only metadata, so it is fast for any size.

    python -m checkpoints_tools.inspect PATH [--all] [--checksums check|write]

PATH is anything that `checkpoints_tools.convert` reads, or our own training checkpoint
(``RUN/checkpoints/step_000123``). Without ``--all`` the layers whose tensors equal layer 0's are counted, not listed.
The exit status is 1 if tensors do not fit the config; they are named at the end.

With ``--checksums check`` every byte of a folder is compared with its ``checksums.json``. ``--checksums write`` writes
that file for the folder as it is now: for one that was changed on purpose, or that another program wrote.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from checkpoints_tools.checksums import (
    CHECKSUMS,
    check_small_files,
    damaged,
    find_damage,
    read_checksums,
    write_checksums,
)
from checkpoints_tools.convert import open_source
from checkpoints_tools.formats import METADATA
from checkpoints_tools.source import TensorInfo, expected_shapes, find_problems
from data.command_line import cli
from data.errors import UserError
from data.files.documents import permitted
from data.files.paths import parsed_paths
from data.terminal import literal, open_streams, say, show, status_of


@dataclass
class InspectArgs:
    """Show a checkpoint's format, config and tensors."""

    path: Annotated[Path, tyro.conf.Positional]
    """Checkpoint file or folder."""
    all: bool = False
    """List the tensors of every layer."""
    checksums: Literal["check", "write"] | None = None
    """'check': compare every byte of the folder with its checksums.json. 'write': write that file anew, for a folder
    that was changed on purpose."""


def read_run_checkpoint(folder: Path) -> dict[str, TensorInfo]:
    """Tensors of a training checkpoint (torch.distributed.checkpoint): parameters and optimizer states."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # it and the next take a second

    from checkpoints_tools.sharded import read_metadata

    entries = read_metadata(folder).state_dict_metadata
    return {
        name: TensorInfo(tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def tensor_table(tensors: dict[str, TensorInfo], every_layer: bool) -> Table:
    """Shape, dtype and size of each tensor. Tensors like layer 0's are listed only with ``every_layer``."""
    table = Table("tensor", "layers", "shape", "dtype", "elements")
    repeats: dict[str, int] = {}
    for name, info in tensors.items():
        first = re.sub(r"\blayers\.\d+\.", "layers.0.", name)
        if first != name and tensors.get(first) == info:
            repeats[first] = repeats.get(first, 0) + 1
    for name, info in sorted(tensors.items(), key=lambda item: _by_number(item[0])):
        first = re.sub(r"\blayers\.\d+\.", "layers.0.", name)
        if first != name and tensors.get(first) == info and not every_layer:
            continue
        times = str(repeats[name] + 1) if name in repeats and not every_layer else ""
        table.add_row(literal(name), times, str(list(info.shape)), info.dtype, f"{math.prod(info.shape):,}")
    return table


def _by_number(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def inspect(path: Path, every_layer: bool = False) -> bool:
    """Print a checkpoint's description; False if tensors do not fit the config.

    Raises:
        UserError: ``path`` does not exist, or has no known format.
    """
    if (path / METADATA).is_file():
        check_small_files(path)
        tensors = read_run_checkpoint(path)
        say(f"training checkpoint {path}")
        show(tensor_table(tensors, every_layer))
        return True
    source = open_source(path)
    say(f"{source.format} {source.path}")
    config = Table("config", "value", title="under our names")
    for field in dataclasses.fields(source.config):
        config.add_row(field.name, literal(str(getattr(source.config, field.name))))
    for name, value in source.token_ids.items():
        config.add_row(literal(name), literal(str(value)))
    show(config)
    show(tensor_table(source.tensors, every_layer))
    count = sum(math.prod(shape) for shape in expected_shapes(source.config).values())
    say(f"{count:,} parameters; unpacked as {str(source.dtype).removeprefix('torch.')}")
    problems = find_problems(source, expected_shapes(source.config))
    for problem in problems:
        say(problem)
    if not problems:
        say("every tensor fits the config")
    return not problems


def use_checksums(folder: Path, what: Literal["check", "write"]) -> None:
    """Compare a folder with its checksums, or write them anew.

    Raises:
        UserError: it is another kind of folder, or has no checksums to compare with; or files differ, all are named.
    """
    if not any((folder / name).is_file() for name in ("config.json", METADATA)):
        raise UserError(f"--checksums: {folder} is neither a Hugging Face folder nor a training checkpoint.")
    start = time.perf_counter()
    if what == "write":
        write_checksums(folder)
        say(f"wrote {folder / CHECKSUMS} for {len(read_checksums(folder))} files")
        return
    sums = read_checksums(folder)
    if not sums:
        raise UserError(f"--checksums check: {folder} has no {CHECKSUMS}. To write one: --checksums write.")
    if found := find_damage(folder):
        raise damaged(folder, found)
    seconds, n_bytes = time.perf_counter() - start, sum(file.bytes for file in sums.values())
    say(f"{len(sums)} files, {n_bytes:,} bytes: as they were written ({seconds:.1f} s)")


def main(argv: list[str] | None = None) -> int:
    open_streams()
    args = cli(InspectArgs, argv, prog="python -m checkpoints_tools.inspect")
    try:
        with permitted():
            args = parsed_paths(args)
            if args.checksums is not None:
                use_checksums(args.path, args.checksums)
            fits = inspect(args.path, args.all)
    except UserError as error:
        say(f"error: {error}", "stderr")
        return error.status
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(status_of(main()))
