"""Show a checkpoint's format, config, tensors and sizes. Reads only metadata, so it is fast for any size.

    python -m checkpoints_tools.inspect PATH [--all]

PATH is anything that `checkpoints_tools.convert` reads, or our own training checkpoint
(``RUN/checkpoints/step_000123``). Without ``--all`` the layers whose tensors equal layer 0's are counted, not listed.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from checkpoints_tools.convert import open_source
from checkpoints_tools.source import TensorInfo, expected_shapes, find_problems
from data.errors import UserError
from data.terminal import literal, open_streams, say, show


@dataclass
class InspectArgs:
    """Show a checkpoint's format, config and tensors."""

    path: Annotated[Path, tyro.conf.Positional]
    """Checkpoint file or folder."""
    all: bool = False
    """List the tensors of every layer."""


def read_run_checkpoint(folder: Path) -> dict[str, TensorInfo]:
    """Tensors of a training checkpoint (torch.distributed.checkpoint): parameters and optimizer states."""
    try:
        entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # a pickle: anything can be wrong with it
        raise UserError(f"{folder / '.metadata'} cannot be read ({error!r}): incomplete training checkpoint") from None
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


def inspect(path: Path, every_layer: bool = False) -> None:
    """Print a checkpoint's description.

    Raises:
        UserError: ``path`` does not exist, or has no known format.
    """
    if (path / ".metadata").is_file():
        tensors = read_run_checkpoint(path)
        say(f"training checkpoint {path}")
        show(tensor_table(tensors, every_layer))
        return
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


def main(argv: list[str] | None = None) -> int:
    open_streams()
    args = tyro.cli(InspectArgs, args=argv, prog="python -m checkpoints_tools.inspect", use_underscores=True)
    try:
        inspect(args.path, args.all)
    except UserError as error:
        say(f"error: {error}", "stderr")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
