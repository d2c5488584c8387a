"""The study file: a TOML file that says which cells a study has, and with which options they run.

```toml
optim = "adamw"                       # one optimizer for all cells
[train]                               # options of train.py for all cells; [eval]: of eval.py
save_every = 100
[models.minilm]                       # a model of one's own, or options of a preset
model = "bert"
checkpoint = "checkpoints/minilm"
[tasks.massive_intent]
eval = { limit = 1000 }
[variants.slow]                       # options under a name, for rows of their own
train = { lr = 1e-5 }
[[cells]]                             # all combinations of what the lists have
models = ["minilm"]
tasks = ["massive_intent", "massive_slots"]
seeds = [0, 1, 2]
[[cells]]                             # once more, with the options of a variant
models = ["minilm"]
tasks = ["massive_intent", "massive_slots"]
seeds = [0, 1, 2]
variant = "slow"
```

A model, task or variant that no block names is an error, since the study would lack its rows.

Of two tables with the same option the later one in this list decides: the file's, the task's, the model's, the
variant's, the cells'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from checkpoints_tools.registry import MODELS, ApiModel, ModelSpec
from data.errors import UserError, nearest
from data.files.documents import parse_toml, read_bytes, shaped
from data.files.paths import expand
from data.readers.encoding import decode_utf8
from data.tasks import TASKS
from eval.study.cells import Cell
from train.optim.formats import OPTIMIZERS
from train.planning.hardware import GPUS

Options = dict[str, str | int | float | bool | list[str]]
Whole = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
# What the study itself gives to every command.
SET_BY_STUDY = {
    "train": ("model", "checkpoint", "task", "data", "shots", "seed", "optim", "output", "resume", "config", "plan"),
    "eval": ("model", "checkpoint", "task", "data", "shots", "output", "config", "name", "plan", "combine", "compare"),
}
WHERE = {"optim": 'write optim = "..." at the top of the file: all cells have the same'}


class _Given(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    train: Options = {}
    eval: Options = {}


class _Model(_Given, forbid_unknown_fields=True, kw_only=True):
    model: str = ""
    checkpoint: str = ""
    convert: str = ""
    ranks: Count | None = None


class _Task(_Given, forbid_unknown_fields=True, kw_only=True):
    task: str = ""
    data: str = ""


class _Cells(_Given, forbid_unknown_fields=True, kw_only=True):
    models: Annotated[list[str], msgspec.Meta(min_length=1)]
    tasks: Annotated[list[str], msgspec.Meta(min_length=1)]
    shots: Annotated[list[Whole], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [0])
    tuned: Annotated[list[bool], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [True])
    seeds: Annotated[list[Whole], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [0])
    variant: str = ""


class _File(_Given, forbid_unknown_fields=True, kw_only=True):
    cells: Annotated[list[_Cells], msgspec.Meta(min_length=1)]
    name: str = ""
    optim: str = "adamw"
    ranks: Count = 1
    gpu: str = ""
    dollars_per_gpu_hour: Annotated[float, msgspec.Meta(ge=0)] | None = None
    keep: Literal["exports", "results"] = "exports"
    models: dict[str, _Model] = {}
    tasks: dict[str, _Task] = {}
    variants: dict[str, _Given] = {}


@dataclass(frozen=True)
class StudyCell:
    """A cell and how it is run.

    Attributes:
        spec: the model's entry in the registry.
        checkpoint: where its weights are before fine-tuning; empty for models behind an API.
        convert: what that folder is converted from if it does not exist; empty: it must exist.
        task: value of ``--task``; data: value of ``--data``, or empty.
        ranks: processes of torchrun; 1: without it.
        train, eval: further options of the two programs, by name.
    """

    cell: Cell
    spec: ModelSpec | ApiModel
    checkpoint: str
    convert: str
    task: str
    data: str
    ranks: int
    train: Options
    eval: Options


@dataclass(frozen=True)
class Study:
    """A study file's content.

    Attributes:
        gpu: name of a GPU type, for estimates of time; empty: estimates come from finished cells alone.
        keep: what is kept of a finished cell: its exported model, or its results alone.
    """

    name: str
    path: Path
    optim: str
    gpu: str
    dollars_per_gpu_hour: float | None
    keep: Literal["exports", "results"]
    cells: list[StudyCell] = field(default_factory=list)


def read_study(path: Path) -> Study:
    """Read a study file and lay out its cells, in the file's order.

    Raises:
        UserError: names all keys that are unknown; if all are known, everything else that is wrong with the file:
            unknown models, tasks and variants, those that no cell has, cells that are there twice, options that the
            study sets itself.
    """
    document = parse_toml(decode_utf8(read_bytes(path), str(path), path.name), str(path))
    if unknown := _unknown_keys(document):
        raise UserError("\n".join(f"{path}: {text}" for text in unknown))
    file: _File = shaped(document, str(path), _File)
    problems = _problems(file)
    study = Study(
        name=file.name or path.stem,
        path=path,
        optim=file.optim,
        gpu=file.gpu,
        dollars_per_gpu_hour=file.dollars_per_gpu_hour,
        keep=file.keep,
    )
    seen: dict[Cell, int] = {}
    named: dict[str, Cell] = {}
    for number, block in enumerate(file.cells, start=1):
        problems += [f"[[cells]] {number}: {text}" for text in _problems_of_block(block, file)]
        for cell in _expanded(block):
            same = cell if cell.tuned or cell.shots else replace(cell, seed=0)
            if same in seen:
                where = "" if seen[same] == number else f", in [[cells]] {seen[same]} and {number}"
                problems.append(f"cell {cell.name} is there twice{where}. Remove one, or give one of them a variant.")
            elif cell.name in named:
                problems.append(
                    f"[[cells]] {number}: model {cell.model!r} on task {cell.task!r} would have the folder of model "
                    f"{named[cell.name].model!r} on task {named[cell.name].task!r}, {cell.name}. Rename one of them."
                )
            seen.setdefault(same, number)
            named.setdefault(cell.name, cell)
            if not problems:
                study.cells.append(_with_options(cell, block, file))
    if problems:
        raise UserError("\n".join(f"{path}: {text}" for text in dict.fromkeys(problems)))
    return study


def _expanded(block: _Cells) -> list[Cell]:
    """The cells of a block: a model's rows together, a row's tasks together.

    Without fine-tuning and few-shot examples a seed changes nothing: such cells have the first seed only.
    """
    return [
        Cell(model, task, shots, tuned, seed, block.variant)
        for model in block.models
        for tuned in block.tuned
        for shots in block.shots
        for seed in (block.seeds if tuned or shots else block.seeds[:1])
        for task in block.tasks
    ]


def _tables(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, type[_Given]]]:
    """The tables of a file that have keys of ours, each with its name and its shape; they may be of another type."""
    yield "", document, _File
    for kind, shape in (("models", _Model), ("tasks", _Task), ("variants", _Given)):
        named = document.get(kind)
        for name, table in named.items() if isinstance(named, dict) else ():
            yield f"[{kind}.{name}]", table, shape
    blocks = document.get("cells")
    for number, block in enumerate(blocks if isinstance(blocks, list) else (), start=1):
        yield f"[[cells]] {number}", block, _Cells


def _unknown_keys(document: Mapping[str, Any]) -> list[str]:
    """A line for each key that no table of its kind has. Options, in train and eval, are checked later."""
    found = []
    for where, table, shape in _tables(document):
        known = shape.__struct_fields__
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                found.append(f"{where}{': ' if where else ''}unknown key {key!r}.{nearest(key, known)}")
    return found


def _unused(file: _File) -> list[str]:
    """A line for each model, task and variant that no block names. A name that a block misspells is said there."""
    found = []
    for kind, own, presets, used, how in (
        ("models", file.models, MODELS, {n for block in file.cells for n in block.models}, "in the models of a block"),
        ("tasks", file.tasks, TASKS, {n for block in file.cells for n in block.tasks}, "in the tasks of a block"),
        ("variants", file.variants, ("",), {block.variant for block in file.cells}, 'in a block, as variant = "{}"'),
    ):
        if all(name in own or name in presets for name in used):
            found += [
                f"[{kind}.{name}]: no [[cells]] block names it, so nothing would run with it. Name it "
                f"{how.format(name)}, or remove the table."
                for name in own
                if name not in used
            ]
    return found


def _problems(file: _File) -> list[str]:
    """What is wrong outside of the cells."""
    found = []
    if file.optim not in OPTIMIZERS:
        auto = " auto could choose another one for each model." if file.optim == "auto" else ""
        found.append(f"optim = {file.optim!r}:{auto or ' unknown.'}{nearest(file.optim, OPTIMIZERS)}")
    if file.gpu and file.gpu not in GPUS:
        found.append(f"gpu = {file.gpu!r}: unknown.{nearest(file.gpu, GPUS)}")
    names = (file.name or "study", *file.models, *file.tasks, *file.variants)
    if any(name in ("", "..") or Path(name).name != name for name in names):
        found.append(
            "name, and the names of models, tasks and variants, become names of folders: write them without slashes."
        )
    for name, model in file.models.items():
        if (model.model or name) not in MODELS:
            found.append(
                f"[models.{name}]: unknown model {model.model or name!r}.{nearest(model.model or name, MODELS)}"
            )
        if model.model not in ("", name) and name in MODELS:  # its figures would stand in the other model's row
            found.append(f"[models.{name}]: {name} is a model of its own. Give {model.model!r} another name.")
        if model.convert and not model.checkpoint:
            found.append(f"[models.{name}]: convert needs checkpoint, the folder that the converted model gets.")
    converted: dict[Path, tuple[Path, str]] = {}  # by folder, what becomes it, and the model that says so
    for name, model in file.models.items():
        if model.convert and model.checkpoint:
            folder, source = expanded(model.checkpoint).resolve(), Path(model.convert)
            other, first = converted.setdefault(folder, (source, name))
            if source != other:
                found.append(
                    f"[models.{name}]: checkpoint {model.checkpoint!r} would be converted from {model.convert!r}, and "
                    f"in [models.{first}] from {file.models[first].convert!r}; both rows would show the same model. "
                    "Give one of them another checkpoint."
                )
    for name, task in file.tasks.items():
        if not task.task and name not in TASKS:
            found.append(f"[tasks.{name}]: needs task, the TOML file of your task.{nearest(name, TASKS)}")
        if task.task not in ("", name) and name in TASKS:  # its results would be of another task than the cell
            found.append(f"[tasks.{name}]: {name} is a task of the paper. Give {task.task!r} another name.")
    if not found:  # a table whose name is wrong cannot be named
        found += _unused(file)
    tables: dict[str, _Given] = {"": file}
    tables |= {f"models.{name}": given for name, given in file.models.items()}
    tables |= {f"tasks.{name}": given for name, given in file.tasks.items()}
    tables |= {f"variants.{name}": given for name, given in file.variants.items()}
    for table, given in tables.items():
        found += _options_set_by_study(given, f"[{table}] " if table else "")
    return found


def _options_set_by_study(given: _Given, where: str) -> list[str]:
    return [
        f"{where}{program} = {{ {name} = ... }}: {WHERE.get(name, 'the study sets it itself')}. Remove it."
        for program in ("train", "eval")
        for name in getattr(given, program)
        if name.replace("-", "_") in SET_BY_STUDY[program]
    ]


def _problems_of_block(block: _Cells, file: _File) -> list[str]:
    found = _options_set_by_study(block, "")
    if block.variant and block.variant not in file.variants:
        found.append(f"unknown variant {block.variant!r}.{nearest(block.variant, file.variants)}")
    for task in block.tasks:
        if task not in TASKS and task not in file.tasks:
            found.append(f"unknown task {task!r}.{nearest(task, [*TASKS, *file.tasks])}")
    for name in block.models:
        preset = file.models[name].model or name if name in file.models else name
        if preset not in MODELS:
            if name not in file.models:  # said there
                found.append(f"unknown model {name!r}.{nearest(name, [*MODELS, *file.models])}")
            continue
        kind = MODELS[preset].kind
        if kind == "api" and any(block.tuned):
            found.append(f"model {name} is behind an API and is not fine-tuned here: write tuned = [false].")
        if kind == "encoder" and not all(block.tuned):
            found.append(f"model {name} has heads, which must be trained: write tuned = [true].")
        if kind == "encoder" and any(block.shots):
            found.append(f"model {name} has heads and has no prompt for examples: write shots = [0].")
    return found


def _with_options(cell: Cell, block: _Cells, file: _File) -> StudyCell:
    model, task = file.models.get(cell.model, _Model()), file.tasks.get(cell.task, _Task())
    variant = file.variants.get(cell.variant, _Given())
    layers: list[_Given] = [file, task, model, variant, block]
    spec = MODELS[model.model or cell.model]
    default = spec.default_checkpoint if isinstance(spec, ModelSpec) else None
    return StudyCell(
        cell,
        spec,
        checkpoint=model.checkpoint or (str(default) if default is not None else ""),
        convert=model.convert,
        task=task.task or cell.task,
        data=task.data,
        ranks=1 if spec.kind == "api" else model.ranks or file.ranks,
        train=_merged([layer.train for layer in layers]),
        eval=_merged([layer.eval for layer in layers]),
    )


def _merged(layers: list[Options]) -> Options:
    return {name.replace("-", "_"): value for layer in layers for name, value in layer.items()}


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            found += [f"--{name}", "on" if value else "off"]
        else:
            found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return found


def expanded(path: str) -> Path:
    """A path of the file, with its variables' values."""
    return Path(expand(path))
