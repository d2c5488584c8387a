"""A study file becomes cells with options, and what is wrong with it is said, all at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.errors import UserError
from eval.study.cells import Cell
from eval.study.file import read_study, words
from eval.study.plan import check_options
from tests.launching import ROOT

TUNED = '[[cells]]\nmodels = ["llama_debug"]\ntasks = ["massive_intent"]\n'


def read(folder: Path, text: str):
    file = folder / "trial.toml"
    file.write_text(text, encoding="utf-8")
    return read_study(file)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        read(folder, text)
    return str(error.value)


def test_cells_are_the_product_of_the_lists_in_their_order(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        '[[cells]]\nmodels = ["llama_debug", "llama3_8b"]\ntasks = ["20ng_20", "20ng_7"]\nshots = [5, 0]\n'
        "tuned = [false, true]\nseeds = [3, 4]\n",
    )
    assert study.name == "trial" and study.optim == "adamw"
    cells = [own.cell for own in study.cells]
    assert len(cells) == 2 * 2 * (3 * 2 + 1)  # untuned without examples: one seed
    assert cells[:3] == [
        Cell("llama_debug", "20ng_20", 5, False, 3),
        Cell("llama_debug", "20ng_7", 5, False, 3),
        Cell("llama_debug", "20ng_20", 5, False, 4),
    ]
    assert [c.seed for c in cells if not c.tuned and c.shots == 0] == [3, 3, 3, 3]
    assert cells[0].name == "llama_debug-20ng_20-5shot-untuned-seed3"
    assert len({c.name for c in cells}) == len(cells)


def test_the_later_table_decides_about_an_option(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        """
        ranks = 8
        [train]
        a = "file"
        b = "file"
        c = "file"
        d = "file"
        e = "file"
        [tasks.massive_intent]
        data = "sample"
        train = { b = "task", c = "task", d = "task", e = "task" }
        [models.mine]
        model = "llama"
        checkpoint = "here"
        ranks = 2
        train = { c = "model", d = "model", e = "model" }
        [variants.v]
        train = { d = "variant", e = "variant" }
        [[cells]]
        models = ["mine"]
        tasks = ["massive_intent"]
        variant = "v"
        train = { e = "cells" }
        eval = { limit = 3 }
        """,
    )
    (own,) = study.cells
    assert own.train == {"a": "file", "b": "task", "c": "model", "d": "variant", "e": "cells"}
    assert own.eval == {"limit": 3}
    assert (own.spec.name, own.checkpoint, own.data, own.ranks) == ("llama", "here", "sample", 2)
    assert own.cell.name.endswith("seed0-v")


def test_options_become_words() -> None:
    assert words({"a": 1, "b": True, "c": False, "d": ["x", "y"]}) == "--a 1 --b on --c off --d x y".split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TUNED.replace("debug", "debut"), "unknown model 'llama_debut'. Did you mean 'llama_debug'?"),
        (TUNED.replace("intent", "intend"), "unknown task 'massive_intend'. Did you mean 'massive_intent'?"),
        (TUNED + 'variant = "spans"\n', "unknown variant 'spans'"),
        (TUNED + TUNED, "cell llama_debug-massive_intent-0shot-tuned-seed0 is there twice, in [[cells]] 1 and 2"),
        (TUNED + "seeds = [1, 1]\n", "is there twice. Remove one"),
        ('optim = "auto"\n' + TUNED, "auto could choose another one for each model"),
        ('optim = "adam"\n' + TUNED, "optim = 'adam': unknown."),
        ('gpu = "a100"\n' + TUNED, "gpu = 'a100': unknown. Did you mean 'a100-80g'?"),
        (TUNED + 'train = { optim = "adamw" }\n', "all cells have the same"),
        ('[eval]\noutput = "x"\n' + TUNED, "eval = { output = ... }: the study sets it itself"),
        (TUNED.replace("llama_debug", "roberta_base") + "shots = [5]\n", "has no prompt for examples"),
        (TUNED.replace("llama_debug", "roberta_base") + "tuned = [false]\n", "has heads, which must be trained"),
        (TUNED.replace("llama_debug", "gpt-4o"), "behind an API and is not fine-tuned here"),
        (TUNED + "shot = [5]\n", "[[cells]] 1: unknown key 'shot'. Did you mean 'shots'?"),
        (TUNED + 'variants = ["slow"]\n', "[[cells]] 1: unknown key 'variants'. Did you mean 'variant'? Known: "),
        (TUNED + TUNED.replace("models", "model"), "[[cells]] 2: unknown key 'model'. Did you mean 'models'?"),
        ('option = "adamw"\n' + TUNED, "trial.toml: unknown key 'option'. Did you mean 'optim'?"),
        ("[variant.slow]\n" + TUNED, "trial.toml: unknown key 'variant'. Did you mean 'variants'?"),
        ("[models.llama_debug]\nrank = 2\n" + TUNED, "[models.llama_debug]: unknown key 'rank'. Did you mean 'ranks'?"),
        ('[tasks.own]\nfile = "a"\n' + TUNED, "[tasks.own]: unknown key 'file'. Known: train, eval, task, data."),
        ("[variants.v]\ntrial = {}\n" + TUNED, "[variants.v]: unknown key 'trial'. Did you mean 'train'?"),
        ("models = 3\ncells = 4\n", "models must be an object; it is 3"),
        ("cells = [4]\n", "cells[0] must be an object; it is 4"),
        (
            "[variants.v]\n" + TUNED,
            "[variants.v]: no [[cells]] block names it, so nothing would run with it. Name it in "
            'a block, as variant = "v", or remove',
        ),
        ("[models.llama3_8b]\n" + TUNED, "[models.llama3_8b]: no [[cells]] block names it"),
        (
            "[tasks.20ng_7]\n" + TUNED,
            "[tasks.20ng_7]: no [[cells]] block names it, so nothing would run with it. Name "
            "it in the tasks of a block, or remove",
        ),
        (TUNED + 'shots = ["5"]\n', "shots"),
        (TUNED + "shots = [-1]\n", "shots"),
        (TUNED + "seeds = []\n", "seeds"),
        ('name = "x"\n', "cells"),
        ('name = "../x"\n' + TUNED, "write them without slashes"),
        ('name = ".."\n' + TUNED, "write them without slashes"),
        ('[variants."a/b"]\n' + TUNED + 'variant = "a/b"\n', "write them without slashes"),
        (
            "".join(f'[models.{name}]\nmodel = "llama_debug"\n' for name in ("a", "a-b"))
            + "".join(f'[tasks.{name}]\ntask = "massive_intent"\n' for name in ("b-c", "c"))
            + '[[cells]]\nmodels = ["a"]\ntasks = ["b-c"]\n[[cells]]\nmodels = ["a-b"]\ntasks = ["c"]\n',
            "[[cells]] 2: model 'a-b' on task 'c' would have the folder of model 'a' on task 'b-c'",
        ),
        (
            TUNED + "tuned = [false]\n" + TUNED + "tuned = [false]\nseeds = [1]\n",
            "is there twice, in [[cells]] 1 and 2",
        ),
        ('[models.own]\nmodel = "nothing"\n' + TUNED, "[models.own]: unknown model 'nothing'"),
        ('[models.llama2_7b]\nmodel = "llama"\n' + TUNED, "llama2_7b is a model of its own. Give 'llama' a"),
        ('[models.own]\nmodel = "llama"\nconvert = "a.gguf"\n' + TUNED, "convert needs checkpoint"),
        (
            "".join(
                f'[models.{name}]\nmodel = "llama"\ncheckpoint = "{folder}"\nconvert = "{name}.gguf"\n'
                for name, folder in (("one", "made"), ("two", "./made/"))
            )
            + TUNED,
            "[models.two]: checkpoint './made/' would be converted from 'two.gguf', and in [models.one] from 'one.",
        ),
        ("[tasks.own]\n" + TUNED, "[tasks.own]: needs task"),
        (
            '[tasks.massive_intent]\ntask = "own.toml"\n' + TUNED,
            "massive_intent is a task of the paper. Give 'own.toml' a",
        ),
        ("[[cells]\n", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    message = refused(tmp_path, text)
    assert said in message and "trial.toml" in message, message


def test_models_may_share_what_a_checkpoint_is_converted_from(tmp_path: Path) -> None:
    same = 'model = "llama"\ncheckpoint = "made"\n'
    text = f'[models.one]\nconvert = "a.gguf"\n{same}[models.two]\nconvert = "./a.gguf"\n{same}[models.three]\n{same}'
    cells = TUNED.replace('"llama_debug"', '"one", "two", "three"')
    assert [own.convert for own in read(tmp_path, text + cells).cells] == ["a.gguf", "./a.gguf", ""]


def test_all_unknown_keys_are_said_together(tmp_path: Path) -> None:
    message = refused(tmp_path, "name_ = 1\n[variants.v]\nx = 1\n" + TUNED + "y = 1\nz = 1\n")
    assert [line.split("unknown key ")[1][:3] for line in message.splitlines()] == ["'na", "'x'", "'y'", "'z'"]


def test_a_misspelt_name_is_said_once(tmp_path: Path) -> None:
    """Not also of the table that it means."""
    own = '[models.own]\nmodel = "llama"\n[tasks.mine]\ntask = "mine.toml"\n[variants.slow]\n'
    cells = '[[cells]]\nmodels = ["owm"]\ntasks = ["mina"]\nvariant = "slwo"\n'
    right = '[[cells]]\nmodels = ["llama_debug"]\ntasks = ["massive_intent"]\n'
    lines = refused(tmp_path, own + cells + right).splitlines()
    assert len(lines) == 3 and all("unknown" in line and "Did you mean" in line for line in lines)


def test_a_table_that_cannot_be_named_is_said_once(tmp_path: Path) -> None:
    lines = refused(tmp_path, "[models.lama3_8b]\n[tasks.mine]\n" + TUNED).splitlines()
    assert len(lines) == 2 and not any("no [[cells]] block" in line for line in lines), lines


@pytest.mark.parametrize("where", ["docs/studies.md", "eval/study/file.py"])
def test_the_examples_in_texts_are_study_files(where: str, tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / where).read_text(encoding="utf-8"), re.DOTALL)
    study = read(tmp_path, text)
    variants = {own.cell.variant for own in study.cells}
    assert variants == {"", "slow"} and {own.train["lr"] for own in study.cells if own.cell.variant} == {1e-5}
    check_options(study, tmp_path / "out")


def test_a_task_of_the_paper_may_be_named_again(tmp_path: Path) -> None:
    (own,) = read(tmp_path, '[tasks.massive_intent]\ntask = "massive_intent"\n' + TUNED).cells
    assert own.task == own.cell.task == "massive_intent"


def test_known_names_are_listed_once(tmp_path: Path) -> None:
    """The file has options for a built-in model and a built-in task."""
    own = "[models.llama_debug]\n[tasks.massive_intent]\n"
    message = refused(tmp_path, own + TUNED.replace("debug", "debut").replace("intent", "intend"))
    assert message.count("llama_debug") == 2 and message.count("massive_intent") == 2, message  # meant, known


def test_all_problems_are_said_together(tmp_path: Path) -> None:
    message = refused(tmp_path, 'optim = "auto"\n' + TUNED.replace("debug", "debut").replace("intent", "intend"))
    assert all(said in message for said in ("optim", "unknown model", "unknown task"))
