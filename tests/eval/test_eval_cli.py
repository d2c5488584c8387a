"""eval.py as a user meets it: options, the stored prompt, mistakes, and whole runs as processes of their own."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_tools.checksums import write_checksums
from data.decoder.fewshot import PromptSpec
from data.errors import UserError
from data.source import load_examples
from data.task_file import save_task
from data.tasks import TASKS, get_task
from eval.config import EvalConfig
from eval.lengths import warn_of_length
from eval.resolve import load_config
from eval.results import read_predictions, read_results
from eval.score import request_lengths
from eval.setup import open_scoring
from eval.weights import hash_weights
from tests.launching import ROOT, TICKETS


def plan(checkpoint, **options):
    options = {"model": "llama_debug", "data": "sample", **options}
    return open_scoring(EvalConfig(checkpoint=checkpoint, **options))


def fine_tuned(checkpoint, folder, task="massive_intent", k=2):
    """A copy of the checkpoint as fine-tuning leaves it: with its prompt."""
    shutil.copytree(checkpoint, folder)
    shots = load_examples(TASKS[task], "train", "sample")[:k]
    shots = [dataclasses.replace(shot, bio={}) for shot in shots]  # the record leaves the brackets out
    spec = PromptSpec(task, "plain", shots=tuple(shots), seed=3, row_length=1900)
    spec.save(folder)
    return folder, spec


def run_eval(*arguments, ranks=0, cwd=ROOT):
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.run(
        [*start, str(ROOT / "eval.py"), *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300
    )


# --- options ----------------------------------------------------------------------------------------------------------


def test_all_problems_are_reported_together():
    with pytest.raises(UserError) as error:
        load_config("--model llama_debgu --task massive_intents --shots -1 --limit 0 --winner x".split())
    message = str(error.value)
    for part in ("llama_debug", "massive_intent", "shots = -1", "limit = 0", "--winner is for"):
        assert part in message
    with pytest.raises(UserError, match="^unknown model 'gpt4o'. Did you mean 'gpt-4o'[^\n]*$"):
        load_config("--model gpt4o --task massive_joint".split())


def test_mistyped_options_are_reported_with_the_rest():
    with pytest.raises(UserError) as error:
        load_config("--modle llama_debug --shots two --split tset --limit 0 stray --tp".split())
    assert str(error.value).startswith("8 problems:")
    for part in (
        "unknown option --modle. Did you mean '--model'?",
        "--shots = 'two': expected a whole number.",
        "--split = 'tset': expected train | dev | test.",
        "'stray' is not an option",
        "--tp needs a value: a whole number.",
        "limit = 0: must be at least 1",
        "no --model given",
        "no --checkpoint given",
    ):
        assert part in str(error.value), part


def test_a_toml_file_lies_below_the_command_line(tmp_path):
    file = tmp_path / "eval.toml"
    file.write_text('model = "llama_debug"\ncheckpoint = "x"\nshots = 2\nlist_labels = false\nbatch_tokens = 9\n')
    config = load_config(["--config", str(file), "--shots", "3"])
    assert (config.model, config.checkpoint, config.shots) == ("llama_debug", Path("x"), 3)
    assert config.list_labels is False and config.batch_tokens == 9
    file.write_text('combine = ["a", "b"]\n')
    assert load_config(["--config", str(file)]).combine == (Path("a"), Path("b"))
    file.write_text('shots = "2"\nlimt = 1\ncombine = ["a"]\n[data]\nsplit = "test"\n')
    with pytest.raises(UserError) as error:
        load_config(["--config", str(file), "--model", "llama_debug"])
    for part in (
        'shots = "2": expected a whole number',
        "unknown key 'limt'. Did you mean 'limit'?",
        'combine = ["a"]: expected a path and a path',
        "unknown section [data]",
    ):
        assert f"{file}: {part}" in str(error.value), part


def test_labels_are_listed_as_in_fine_tuning_unless_an_option_says_otherwise():
    base = ["--model", "llama_debug", "--checkpoint", "x"]
    assert load_config(base).list_labels is None
    for written, wanted in (("--list_labels", True), ("--list_labels off", False), ("--no_list_labels", False)):
        assert load_config([*base, *written.split()]).list_labels is wanted


def test_finished_runs_take_no_scoring_options():
    with pytest.raises(UserError, match="--combine reads finished runs; it takes no --task"):
        load_config("--combine a b --task massive_joint".split())
    with pytest.raises(UserError, match="--compare reads finished runs; it takes no --shots"):
        load_config("--compare a b c --shots 5".split())
    with pytest.raises(UserError, match=r"^2 problems:\n  - --combine = 'a': expected .*\n  - .* takes no --model.$"):
        load_config("--combine a --model smollm2_135m".split())
    assert load_config("--compare a b c --winner b".split()).compare == (Path("a"), Path("b"), Path("c"))
    assert load_config("--combine a b --output c".split()).combine == (Path("a"), Path("b"))


def test_who_reads_finished_runs_is_not_asked_for_a_model(tmp_path):
    """Also where the option that says so is refused."""
    file = tmp_path / "eval.toml"
    file.write_text('combine = ["a"]\n')
    for words, problem in {
        "--compare": "--compare needs a value: a path and more.",
        "--combine ONE": "--combine = 'ONE': expected a path and a path.",
        "--winner runs/e1": "--winner is for --compare.",
        "--winner-figure": "--winner_figure needs a value: text.",
        "--markdown=table.md": "--markdown is for --compare.",
        f"--config {file}": f'{file}: combine = ["a"]: expected a path and a path.',
    }.items():
        with pytest.raises(UserError, match=f"^{re.escape(problem)}$"):
            load_config(words.split())
    file.write_text("compare = []\n")
    for words in (f"--config {file}", "--combine None"):
        with pytest.raises(UserError, match="no --model given"):
            load_config(words.split())


# --- prompt, task and examples ----------------------------------------------------------------------------------------


def test_a_checkpoint_as_it_came_gets_the_models_prompt(tiny_checkpoint):
    found = plan(tiny_checkpoint, task="massive_intent", shots=2, seed=1)
    assert not found.fine_tuned and found.prompt.template == "plain" and len(found.prompt.shots) == 2
    train = {example.id for example in load_examples(TASKS["massive_intent"], "train", "sample")}
    assert {shot.id for shot in found.prompt.shots} <= train
    assert found.output == Path("runs/eval/checkpoint-massive_intent-2shot")
    assert plan(tiny_checkpoint, task="massive_intent", shots=2, seed=1).prompt == found.prompt
    with pytest.raises(UserError, match="no --task given"):
        plan(tiny_checkpoint)


def test_a_fine_tuned_checkpoint_brings_its_prompt(tiny_checkpoint, tmp_path):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "run" / "export")
    found = plan(folder)
    assert found.fine_tuned and found.prompt == spec and found.task.name == "massive_intent"
    assert found.name == "run-export, 2-shot"
    assert plan(folder, task="massive_intent", shots=2).prompt == spec


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shots": 0}, "--shots 0, but the checkpoint was fine-tuned with shots 2"),
        ({"task": "massive_joint"}, "--task massive_joint, but .* task massive_intent"),
        ({"template": "chatml"}, "--template chatml, but .* template plain"),
        ({"wording": "paper"}, "--wording paper, but .* wording clean"),
        ({"shots_choice": "random"}, "--shots_choice random, but .* shots_choice balanced"),
        ({"shots_seed": 4}, "--shots_seed 4, but .* shots_seed 3"),
        ({"row_length": 512}, "--row_length 512, but .* row_length 1900"),
    ],
)
def test_contradicting_the_stored_prompt_is_an_error_unless_asked_for(tiny_checkpoint, tmp_path, options, message):
    folder, _ = fine_tuned(tiny_checkpoint, tmp_path / "export")
    with pytest.raises(UserError, match=message) as error:
        plan(folder, **options)
    assert "--new_prompt" in str(error.value)
    if "template" not in options:  # this tokenizer has no ChatML tokens
        asked = plan(folder, **{"task": "massive_intent", **options}, new_prompt=True)
        assert not asked.fine_tuned and len(asked.prompt.shots) == 0


def test_slots_are_read_as_the_checkpoint_was_trained_to_write_them(tiny_checkpoint, tmp_path):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "export", "massive_joint")
    spans = TASKS["massive_joint"].with_slot_answer("spans")
    assert plan(folder).task == TASKS["massive_joint"]  # from before there were spans: no task.json
    with pytest.raises(UserError, match="--slot_answer spans, but .* slot_answer list"):
        plan(folder, slot_answer="spans")
    asked = plan(folder, task="massive_joint", slot_answer="spans", new_prompt=True)
    assert asked.task == spans and "label: words" in str(asked.prompt.build(spans).prefix)
    save_task(spans, folder)
    spec.signed(spans).save(folder)
    assert plan(folder).task == plan(folder, task="massive_joint", slot_answer="spans").task == spans
    with pytest.raises(UserError, match="--slot_answer list, but .* slot_answer spans"):
        plan(folder, slot_answer="list")
    save_task(TASKS["massive_joint"], folder)
    with pytest.raises(UserError, match="no longer gives the prompt"):
        plan(folder)
    with pytest.raises(
        UserError, match="slot_answer and slot_tags are for tasks with one label per word; task 20ng_7 has none"
    ):
        load_config("--model llama_debug --checkpoint x --task 20ng_7 --slot_answer spans".split())


def test_tags_are_read_as_the_checkpoint_was_trained_to_write_them(tiny_checkpoint, tmp_path):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "export", "massive_joint")
    with pytest.raises(UserError, match="--slot_tags bio, but .* slot_tags types"):
        plan(folder, slot_tags="bio")
    tags = get_task("massive_joint", slot_tags="bio")
    save_task(tags, folder)
    spec.signed(tags).save(folder)
    assert plan(folder).task == plan(folder, slot_tags="bio", slot_answer="list").task == tags
    with pytest.raises(UserError, match="--slot_tags types, but .* slot_tags bio"):
        plan(folder, slot_tags="types")


def test_the_shots_and_the_wording_of_a_new_prompt(tiny_checkpoint):
    ids = tuple(example.id for example in load_examples(TASKS["20ng_7"], "train", "sample")[3:5])
    found = plan(tiny_checkpoint, task="20ng_7", shots_choice="ids", shot_ids=ids, wording="paper").prompt
    assert tuple(shot.id for shot in found.shots) == ids and (found.shots_choice, found.wording) == ("ids", "paper")
    assert "Bellow are some examples" in str(found.build().prefix)
    own, drawn = (plan(tiny_checkpoint, task="20ng_7", shots=3, shots_seed=seed).prompt for seed in (5, 6))
    assert own.seed == 5 and own.shots != drawn.shots
    assert own.shots == plan(tiny_checkpoint, task="20ng_7", shots=3, seed=5).prompt.shots
    with pytest.raises(UserError) as error:
        load_config("--model llama_debug --checkpoint x --task massive_joint --slot_answer spans --wording paper "
                    "--shot_ids a b".split())  # fmt: skip
    for part in ("wording paper: the paper's listings ask for a list", "shot_ids is for --shots_choice ids"):
        assert part in str(error.value)


def test_inputs_longer_than_the_model_was_trained_for_are_counted(tiny_checkpoint, tmp_path, caplog):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 550}))
    write_checksums(folder)
    options = {"model": "llama", "task": "20ng_7", "cache_dir": tmp_path / "cache"}
    setup = plan(folder, row_length=1500, **options)
    lengths = request_lengths(setup.job)
    n = sum(lengths.prefix + body + answer > 550 for body, answer in zip(lengths.bodies, lengths.limits, strict=True))
    assert 0 < n < len(lengths.bodies)
    warn_of_length(setup)
    wanted = f"row_length 1500 exceeds the 550 tokens the model was trained for; {n} of {len(lengths.bodies)} inputs"
    assert wanted in caplog.text
    setup = plan(folder, row_length=550, **options)
    caplog.clear()
    warn_of_length(setup)
    assert not caplog.text
    setup = plan(folder, row_length=1500, max_new_tokens=2, **options | {"task": "massive_intent"})
    lengths = request_lengths(setup.job)
    assert lengths.prefix + max(lengths.bodies) + max(lengths.limits) <= 550 < setup.max_length
    warn_of_length(setup)
    assert "exceeds" not in caplog.text, "a warning of none"
    words = f"--model llama --checkpoint {folder} --task 20ng_7 --data sample --limit 30 --max_new_tokens 2".split()
    done = run_eval(*words, "--row_length", "1500", "--device", "cpu", "--output", tmp_path / "out")
    assert "row_length 1500 exceeds the 550 tokens" in done.stdout, done.stderr


def test_documents_are_cut_as_in_fine_tuning(tiny_checkpoint, tmp_path):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "export")
    assert plan(folder).max_length == plan(folder, row_length=1900).max_length == 1900
    asked = plan(folder, task="massive_intent", row_length=512, new_prompt=True)
    assert asked.max_length == 512 and asked.prompt.row_length is None
    record = spec.record()
    del record["row_length"]  # as it was written before it held this
    (folder / "prompt.json").write_text(json.dumps(record))
    assert plan(folder).max_length == 2048 and plan(folder, row_length=512).max_length == 512


def test_a_prompt_that_the_task_no_longer_gives(tiny_checkpoint, tmp_path):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "export")
    signed = spec.signed(TASKS["massive_intent"])
    signed.save(folder)
    assert plan(folder).prompt == signed
    dataclasses.replace(signed, fingerprint="0" * 32).save(folder)
    with pytest.raises(UserError, match="no longer gives the prompt.*--new_prompt"):
        plan(folder)
    assert not plan(folder, task="massive_intent", new_prompt=True).fine_tuned


def test_examples_shown_in_the_prompt_are_not_scored(tiny_checkpoint, tmp_path):
    folder, spec = fine_tuned(tiny_checkpoint, tmp_path / "export")
    everything = load_examples(TASKS["massive_intent"], "train", "sample")
    scored = plan(folder, split="train").examples
    assert len(scored) == len(everything) - 2
    assert not {e.id for e in scored} & {s.id for s in spec.shots}


def test_limit_draws_by_seed(tiny_checkpoint):
    def ids(seed, limit=5):
        return [e.id for e in plan(tiny_checkpoint, task="20ng_20", limit=limit, seed=seed).examples]

    assert ids(0) == ids(0) != ids(1)
    assert len(ids(0)) == 5
    assert ids(0, limit=10_000) == [e.id for e in load_examples(TASKS["20ng_20"], "test", "sample")]


def test_a_users_own_task(tiny_checkpoint):
    found = plan(tiny_checkpoint, task=str(TICKETS), data=None)
    assert found.task.name == "tickets" and found.examples


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_a_mistake_is_a_message_and_status_2(tmp_path):
    done = run_eval("--model", "llama_debug", "--checkpoint", tmp_path / "nowhere", "--task", "massive_intent")
    assert done.returncode == 2
    assert "no checkpoint folder" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def settled(folder):
    """What is to be the same however many ranks scored: all of results.json but times, and how many they were."""
    found = dataclasses.asdict(read_results(folder))
    own = {name: found["settings"].pop(name) for name in ("ranks", "tp", "threads")}
    for name in ("seconds", "seconds_per_example", "computed_tokens"):  # the prefix is computed once a replica
        assert found["cost"].pop(name) > 0
    return found, (own["ranks"], own["tp"])


def test_several_ranks_write_what_one_process_writes(divisible_checkpoint, tmp_path):
    """All from another folder than the repository: one model a rank, and two replicas split over two ranks each; then
    the runs in one table."""
    common = ["--model", "llama", "--checkpoint", divisible_checkpoint, "--task", TICKETS, "--shots", 1]
    common += ["--row_length", 1500, "--max_new_tokens", 5, "--cache_dir", tmp_path / "cache", "--device", "cpu"]
    common += ["--precision", "fp32", "--name", "tiny"]
    runs = {"alone": (0, []), "ranks": (2, []), "split": (4, ["--tp", 2])}
    for name, (ranks, more) in runs.items():
        done = run_eval(*common, *more, "--output", tmp_path / name, ranks=ranks, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("read leniently") == 1 and "urgency" in done.stdout, "rank 0 alone speaks"

    predictions = read_predictions(tmp_path / "alone")
    assert len(predictions) > 2 and len({p.raw for p in predictions}) > 1
    assert predictions == read_predictions(tmp_path / "ranks") == read_predictions(tmp_path / "split")
    (one, a), (two, b), (three, c) = (settled(tmp_path / name) for name in runs)
    assert one == two == three and (a, b, c) == ((1, 1), (2, 1), (4, 2))
    assert one["weights"] == hash_weights(divisible_checkpoint) and one["predictions"]
    assert one["versions"]["torch"] and one["prompt"]["shots"][0]["text"]

    table = run_eval("--compare", tmp_path / "alone", tmp_path / "ranks", "--winner", tmp_path / "alone", cwd=tmp_path)
    assert table.returncode == 1, "equal is not better"
    assert "tiny" in table.stdout and "does not beat" in table.stdout


def test_ranks_that_do_not_divide(tiny_checkpoint, tmp_path):
    common = ["--checkpoint", tiny_checkpoint, "--task", "massive_intent", "--data", "sample"]
    done = run_eval("--model", "llama_debug", *common, "--tp", 8)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "a machine has 1 rank(s), which 8 does not divide. Start torchrun with --nproc_per_node 8" in done.stderr
    with pytest.raises(UserError, match="--tp 2: 3 key/value heads and 100 hidden units do not divide.*that do: 1"):
        plan(tiny_checkpoint, task="massive_intent", tp=2)
    with pytest.raises(UserError, match="tp = 0: must be at least 1"):
        load_config("--model llama_debug --checkpoint x --task massive_intent --tp 0".split())
