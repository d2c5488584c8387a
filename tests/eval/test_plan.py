"""``eval.py --plan``: it plans the run that it stands beside, and says what it assumes and what does not fit."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from checkpoints_tools.registry import MODELS
from data.decoder.fewshot import PromptSpec
from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS
from eval.config import EvalConfig
from eval.decoder.decode import MAX_BATCH_SIZE
from eval.decoder.kv_cache import BodyPass, PrefixPass, TreePass
from eval.job import RequestLengths
from eval.plan import ScoringPlan, describe, make_plan
from eval.resolve import load_config
from eval.score import batch_sizes, score
from eval.setup import build_model, open_scoring
from model.encoder import ROBERTA_DEBUG
from tests.encoder_exports import write_encoder
from tests.launching import TICKETS
from tests.meta_reference import FFN, PARAMS, random_weights, write_meta_folder, write_rank_file

ROOT = Path(__file__).resolve().parents[2]


def plan_and_passes(checkpoint: Path, **options) -> tuple[ScoringPlan, list[dict]]:
    """The plan of one GPU, and the arguments of every forward pass of the run with the same options."""
    asked = EvalConfig(checkpoint=checkpoint, gpus=1, **{"model": "llama_debug", "data": "sample", **options})
    plan = make_plan(dataclasses.replace(asked, plan=True))
    setup = open_scoring(asked)
    assert not plan.assumed and plan.setup.config == setup.config
    assert [e.id for e in plan.setup.examples] == [e.id for e in setup.examples]
    model, calls = build_model(setup, "fp32", torch.device("cpu")), []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append({"args": args, **kwargs}), with_kwargs=True)
    result = score(model, setup.job)
    assert len(result.predictions) == len(plan.load.lengths.bodies)
    return plan, calls


def assert_planned(plan: ScoringPlan, calls: list[dict]) -> None:
    """The run's passes are those that the plan counted."""
    (batches,) = plan.batches
    prefix = [call["tokens"].numel() for call in calls if isinstance(call["cache"], PrefixPass)]
    bodies = [call["tokens"].numel() for call in calls if isinstance(call["cache"], BodyPass)]
    slots = [call["cache"].slots for call in calls if isinstance(call["cache"], BodyPass)]
    assert prefix == [plan.load.lengths.prefix]
    assert bodies == [batch.n_tokens for batch in batches] and len(bodies) > 1
    assert [s.slot_length for s in slots] == [batch.slot_length for batch in batches]
    longest = sum(batch.n_new_tokens for batch in batches)
    assert 0 < len(calls) - 1 - len(bodies) <= longest, "answers may end earlier"


@pytest.mark.parametrize(
    ("task", "batch_tokens"),
    [("massive_intent", 900), ("20ng_joint", 900), ("massive_joint", 900), ("massive_slots", 99)],
)
def test_passes_over_tries_of_labels_are_planned(tiny_checkpoint, tmp_path, task, batch_tokens):
    """Exactly those of the first field; what is fed for another one depends on the answer before it."""
    options = dict(task=task, limit=5, decode="labels", row_length=4000, cache_dir=tmp_path / "cache")
    plan, calls = plan_and_passes(tiny_checkpoint, batch_tokens=batch_tokens, **options)
    (passes,), fields = plan.batches, plan.load.lengths.tries.fields
    assert len(passes) > len(fields), "several batches"
    trees = [call for call in calls if isinstance(call["cache"], TreePass)]
    for size, call in zip(passes, trees, strict=True):
        n_tokens, n_outputs = call["tokens"].numel(), len(call["output_index"])
        assert n_outputs == (size.n_outputs or size.n_requests)
        if size.n_new_tokens:  # the beginning of an answer that is written is fed with the tokens before it
            assert size.n_tokens < n_tokens < size.n_tokens + size.n_requests * size.n_new_tokens
        else:
            assert n_tokens == pytest.approx(size.n_tokens, rel=0 if len(fields) == 1 else 0.02)
        slots = call["cache"].slots
        assert (slots.slot_length if slots is not None else 0) == size.slot_length


def test_a_drawn_sample_without_the_examples_that_the_prompt_shows(tiny_checkpoint, tmp_path):
    options = dict(task="massive_intent", split="train", shots=2, seed=3, batch_tokens=200, cache_dir=tmp_path / "c")
    options |= {"row_length": 3000, "max_new_tokens": 3}
    plan, calls = plan_and_passes(tiny_checkpoint, limit=9, **options)
    assert_planned(plan, calls)
    examples = load_examples(TASKS["massive_intent"], "train", "sample")
    ids = [e.id for e in plan.setup.examples]
    assert len(ids) == 9 and ids != [e.id for e in examples[:9]], "a sample, not the first"
    whole = make_plan(
        EvalConfig(model="llama_debug", checkpoint=tiny_checkpoint, data="sample", plan=True, gpus=1, **options)
    )
    shown = {shot.id for shot in whole.setup.prompt.shots}
    assert len(shown) == 2 and len(whole.load.lengths.bodies) == len(examples) - 2
    assert not shown & {e.id for e in whole.setup.examples}
    assert list((tmp_path / "c").iterdir()), "tokenized once for both"


def test_a_fine_tuned_checkpoint_is_planned_with_its_prompt(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "export")
    shots = tuple(dataclasses.replace(e, bio={}) for e in load_examples(TASKS["massive_intent"], "train", "sample")[:2])
    PromptSpec("massive_intent", "plain", shots=shots, row_length=1900).save(folder)
    plan, calls = plan_and_passes(folder, limit=4, batch_tokens=100, cache_dir=tmp_path / "cache")
    assert plan.setup.max_length == 1900 and plan.setup.fine_tuned
    assert_planned(plan, calls)


def test_a_folder_without_weights_is_planned_as_with_them(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "unfinished")
    options = dict(model="llama_debug", task="massive_intent", data="sample", limit=5, plan=True, gpus=1)
    whole = make_plan(EvalConfig(checkpoint=folder, **options))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    found = make_plan(EvalConfig(checkpoint=folder, **options))
    assert found.load == whole.load and not found.assumed
    with pytest.raises(UserError, match="no safetensors"):
        open_scoring(EvalConfig(checkpoint=folder, **{**options, "plan": False}))
    with pytest.raises(UserError, match=r"dim: 48 \(expected 576\)"):  # what the run would refuse
        make_plan(EvalConfig(checkpoint=folder, **{**options, "model": "smollm2_135m"}))


def test_a_folder_of_metas_is_planned_from_its_own_numbers(tmp_path):
    folder = write_meta_folder(tmp_path / "meta", random_weights(vocab=512), 2)
    write_rank_file(tmp_path)  # above the weights, as in Meta's download of Llama 2
    options = dict(model="llama", task=str(TICKETS), data=None, limit=3, row_length=2000, max_new_tokens=2)
    plan, calls = plan_and_passes(folder, **options, batch_tokens=300, cache_dir=tmp_path / "cache")
    assert (plan.setup.config.dim, plan.setup.config.ffn_dim) == (PARAMS["dim"], FFN)
    assert_planned(plan, calls)


def test_an_encoder_is_planned_with_the_length_that_it_was_trained_on(tmp_path):
    task = TASKS["massive_joint"]
    folder = write_encoder(tmp_path, task, ROBERTA_DEBUG, max_length=9)
    options = dict(model="roberta", limit=20, batch_tokens=32, cache_dir=tmp_path / "cache")
    plan, calls = plan_and_passes(folder, **options)
    assert plan.setup.max_length == 9 == max(plan.load.lengths.bodies) and plan.setup.task == task
    (rows,) = plan.batches
    assert [call["args"][0].numel() for call in calls] == [row.n_tokens for row in rows] and len(rows) > 3
    assert max(row.n_tokens for row in rows) == 32


def test_no_batch_has_more_requests_than_the_decoder_takes_together():
    lengths = RequestLengths(5, [1] * 300, [1] * 300)
    ((first, second),) = batch_sizes("decoder", lengths, 1, 10**6)
    assert (first.n_requests, second.n_requests) == (MAX_BATCH_SIZE, 300 - MAX_BATCH_SIZE)


def plan(*words: object) -> str:
    return describe(make_plan(load_config([*map(str, words), "--plan"])))


def test_70b_needs_to_be_split(tmp_path):
    words = ["--model", "llama3_70b", "--task", "20ng_joint", "--checkpoint", tmp_path, "--row_length", 16_384]
    alone = plan(*words)
    assert "It does NOT fit" in alone and "What would fit: --tp 2" in alone
    split = plan(*words, "--tp", 8)
    assert "It fits" in split and "1 replica(s), each on 8" in split
    assert "assumed" in split and "no tokenizer" in split and "never measured on a GPU" in split
    with pytest.raises(UserError, match="divide"):
        plan(*words, "--tp", 16, "--gpus", 16)
    with pytest.raises(UserError, match="--task"):
        plan("--model", "llama3_8b", "--checkpoint", tmp_path)
    with pytest.raises(UserError, match="takes its config from --checkpoint"):
        plan("--model", "llama", "--task", "20ng_joint", "--checkpoint", tmp_path)
    with pytest.raises(UserError):  # data that were named and are not there are a mistake
        plan(*words, "--data", tmp_path / "nowhere")


def test_what_is_assumed_without_a_tokenizer(tmp_path):
    """The examples are those of the run; their tokens are made up."""
    words = ["--model", "llama3_8b", "--task", "massive_intent", "--checkpoint", tmp_path, "--data", "sample"]
    found = make_plan(load_config([*map(str, words), "--limit", "7", "--shots", "2", "--split", "train", "--plan"]))
    assert len(found.load.lengths.bodies) == len(found.setup.examples) == 7
    assert (
        "the model's config is the preset's" in found.assumed[0]
        and "7, with the lengths of the training data" in found.assumed[1]
    )
    assert found.setup.config == MODELS["llama3_8b"].config and found.load.lengths.tries is None
    words[3] = "massive_joint"
    tries = make_plan(load_config([*map(str, words), "--decode", "labels", "--plan"])).load.lengths.tries
    intents, slots = tries.fields
    assert slots is None and 110 < min(intents) <= max(intents) < 1000 and tries.stores, "Llama 3 has 114 and 110"


def test_a_task_of_ones_own_that_cannot_be_read_is_not_planned(tmp_path):
    """The plan said that there is no data, and assumed some, where the run names the wrong column."""
    for file in TICKETS.parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    own = tmp_path / TICKETS.name
    own.write_text(TICKETS.read_text().replace('text_column = "text"', 'text_column = "txt"'))
    asked = EvalConfig(model="llama3_8b", checkpoint=tmp_path, task=str(own), plan=True)
    with pytest.raises(UserError, match="no column 'txt'"):
        make_plan(asked)


def test_encoders_have_plans(tmp_path):
    words = ["--model", "roberta_large", "--task", "massive_slots", "--checkpoint", tmp_path]
    text = plan(*words)
    assert "It fits" in text and "the heads that fine-tuning on massive_slots would add" in text
    assert plan(*words, "--max_length", 12).count("Longest example: 12 tokens") == 1
    assert "tokens with the tokens around it" in text and "prompt" not in text and "answer" not in text
    with pytest.raises(UserError, match="without heads"):
        plan("--model", "roberta_large", "--checkpoint", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError):
        plan(*words)


def test_the_command_prints_its_plan(tmp_path, monkeypatch, capsys):
    words = ["--model", "llama3_8b", "--task", "massive_joint", "--checkpoint", str(tmp_path), "--plan"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *words])
    runpy.run_path(str(ROOT / "eval.py"), run_name="script")["main"]()
    printed = capsys.readouterr().out
    assert "Plan for scoring llama3_8b" in printed and "It fits" in printed
    assert printed.endswith(f"eval.py --model llama3_8b --task massive_joint --checkpoint {tmp_path}\n")
    monkeypatch.setattr(sys, "argv", ["eval.py", *words, "--model", "llama3_70b"])
    with pytest.raises(SystemExit, match="1"):  # for scripts that ask before they submit
        runpy.run_path(str(ROOT / "eval.py"), run_name="script")["main"]()
    assert "It does NOT fit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
