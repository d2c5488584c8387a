"""``train.py --plan``: what it says of presets, of tasks with and without data, and what ``--optim auto`` chooses."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train.planning.plan
from checkpoints_tools.registry import MODELS, get_model_spec
from data.commands import quoted, torchrun
from data.errors import UserError
from data.loader import StepLoader
from data.packing import PADDING_DOC
from data.source import load_examples
from model.attention import allowed
from tests.launching import ROOT, TICKETS, pretend
from tests.meta_reference import random_weights, write_meta_folder, write_rank_file
from tests.train.planning.memory_by_hand import PUBLISHED, by_hand
from train.optim.formats import OPTIMIZERS
from train.parallel.mesh import MeshShape
from train.planning import report as plan_report
from train.planning.advice import Job, alternatives, check_enough, choose_optimizer, fewest_gpus
from train.planning.hardware import GIB, GPUS, usable
from train.planning.memory import Pass, Settings, count_parameters
from train.planning.plan import make_plan, pass_seconds, settle_optimizer
from train.planning.workload import RankPass, count_workload
from train.resolve import load_config
from train.setup import open_run

A100 = GPUS["a100-80g"].memory


def write_config(name: str, folder: Path) -> None:
    """The preset's published config.json, as far as it is read."""
    E, L, H, K, F, V, _ = PUBLISHED[name]
    numbers = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": E, "num_hidden_layers": L,
        "num_attention_heads": H, "num_key_value_heads": K, "intermediate_size": F, "vocab_size": V,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0 if V > 100_000 else 10_000.0, "tie_word_embeddings": False,
        "max_position_embeddings": 8192, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(numbers))


def printed(text: str, name: str) -> float:
    """A figure of the plan's table in GiB (GB in the table of host memory)."""
    found = re.search(rf"^  {re.escape(name)} +([\d.,]+)$", text, re.MULTILINE)
    assert found, f"no line '{name}' in:\n{text}"
    return float(found[1].replace(",", ""))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_printed_figures_by_hand(name, tmp_path):
    write_config(name, tmp_path)
    words = f"--model {name} --task 20ng_joint --checkpoint {tmp_path} --optim adamw --steps 20 --plan"
    plan = make_plan(load_config([*words.split(), "--batch_size", "64"]))  # several passes a step
    assert not any("preset" in text for text in plan.assumed), "the config.json was not read"
    text = plan_report.describe(plan)
    assert f"{PUBLISHED[name][-1]:,} parameters" in text
    want = by_hand(name, "adamw", 16_384, plan.work.worst.outputs, 8)
    for kind, label in {
        "weights": "weights",
        "gradients": "gradients",
        "states": "optimizer states",
        "gathered": "gathered weights",
        "head": "head's gradient",
        "block": "one block's activations and gradients",
    }.items():
        assert printed(text, label) == pytest.approx(want[kind] / GIB, abs=0.051), label
    copy = 8 * (want["weights"] + want["states"])
    assert printed(text, "copy for a save in the background") == pytest.approx(copy / 1e9, abs=0.051)
    assert ("It fits" in text) == (plan.job.memory.peak <= usable(A100))
    assert "what was measured" in text and "20 steps of 64 samples" in text


def job(optim: str = "adamw", tokens: int = 16_384, name: str = "llama3_70b", n: int = 8, **changes: object) -> Job:
    spec = MODELS[name]
    settings = Settings(OPTIMIZERS[optim], **changes)
    sizes = count_parameters(spec, spec.config)
    return Job(spec.config, sizes, MeshShape(shard=n), n, optim, settings, Pass(tokens, 168), 1, tokens)


def test_auto_takes_the_best_format_that_fits():
    names = list(OPTIMIZERS)
    assert names[0] == "adamw"
    peaks = [job().with_optim(name).memory.peak for name in names]
    assert peaks == sorted(peaks, reverse=True)
    for i, name in enumerate(names):  # a GPU just large enough for this one
        memory = next(m for m in range(int(peaks[i]), int(peaks[i] * 1.2), 2**24) if usable(m) >= peaks[i])
        chosen, why = choose_optimizer(job(), memory)
        assert chosen == name, (why, memory)
        assert all(worse in why for worse in names[:i])
    last, why = choose_optimizer(job(), 10 * GIB)
    assert last == names[-1] and "nothing fits" in why
    fp32 = dataclasses.replace(job(), settings=dataclasses.replace(job().settings, compute=torch.float32))
    assert choose_optimizer(fp32, 10 * GIB)[0] == "adamw", "bf16 weights do not go with fp32 compute"


def test_alternatives_fit_and_nothing_can_be_left_out():
    found = alternatives(job("adamw"), A100)
    assert found and not job("adamw").fits(A100)
    for choice in found:
        assert choice.job.fits(A100)
        assert choice.changes
        for left_out in choice.changes:  # with one change taken back it does not fit
            if left_out == "row_length":
                smaller = choice.job.with_rows(2 * choice.job.row_length)
                smaller = dataclasses.replace(
                    smaller, work=Pass(min(16_384, smaller.row_length), choice.job.work.outputs)
                )
            elif left_out == "optim":
                names = list(OPTIMIZERS)
                smaller = choice.job.with_optim(names[names.index(choice.job.optim) - 1])
            else:
                before = {"offload_states": False, "activation_offload": False, "activation_checkpointing": "full"}
                settings = dataclasses.replace(choice.job.settings, **{left_out: before[left_out]})
                smaller = dataclasses.replace(choice.job, settings=settings)
            assert not smaller.fits(A100), (choice.changes, left_out)


def test_too_few_gpus_is_said_with_the_number_it_takes():
    few = job("adamw", n=8)
    need = fewest_gpus(few, A100)
    assert need is not None and few.on(need).fits(A100) and not few.on(need - 8).fits(A100)
    with pytest.raises(UserError, match=f"too few GPUs.*takes {need} GPUs"):
        check_enough(few, A100, optim_was_auto=False)
    check_enough(few.on(need), A100, optim_was_auto=False)
    with pytest.raises(UserError, match=r"With everything that saves memory it takes \d+"):
        check_enough(job("adamw", n=1), A100, optim_was_auto=True)


def plan_of(*words: object) -> tuple[train.planning.plan.TrainPlan, str]:
    plan = make_plan(load_config([*map(str, words), "--plan"]))
    return plan, plan_report.describe(plan)


def test_without_tokenizer_or_data_the_plan_says_what_it_assumes(tmp_path):
    plan, text = plan_of("--model", "llama3_8b", "--task", "massive_joint", "--checkpoint", tmp_path / "none")
    assert "assumed: the model's config is the preset's" in text
    assert "no tokenizer" in text and "no data of massive" in text and "Llama 3 tokenizer" in text
    assert plan.work.truncated is None and plan.work.worst.tokens < 4096, "utterances fill no row of 16,384"
    plan, text = plan_of("--model", "llama3_8b", "--task", TICKETS, "--checkpoint", tmp_path / "none")
    assert "4 characters a token" in text
    with pytest.raises(UserError, match="--tp 3: 8 key/value heads .* do not divide"):
        plan_of("--model", "llama3_8b", "--task", "massive_joint", "--tp", 3, "--gpus", 9)
    with pytest.raises(UserError, match="takes its config from --checkpoint"):
        plan_of("--model", "llama", "--task", "massive_joint", "--checkpoint", tmp_path / "none")
    with pytest.raises(UserError):  # named data that are not there are a mistake
        plan_of("--model", "llama3_8b", "--task", "massive_joint", "--data", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "machines", "per_machine", "mesh"),
    [
        ("", 1, 8, "shard 8"),
        ("--gpus 4", 1, 4, "shard 4"),
        ("--gpus 32", 4, 8, "shard 32"),
        ("--gpus 32 --sharding hybrid", 4, 8, "replicate 4 x shard 8"),
        ("--gpus 32 --sharding hybrid --nodes 2", 4, 8, "replicate 2 x shard 16"),
        ("--gpus 8 --sharding hybrid --nodes 2", 1, 8, "replicate 2 x shard 4"),
    ],
)
def test_a_machine_has_eight_gpus_and_nodes_are_groups(options, machines, per_machine, mesh, tmp_path):
    plan, text = plan_of("--model", "llama3_8b", "--task", "massive_joint", "--checkpoint", tmp_path, *options.split())
    assert (plan.machines, plan.job.ranks_per_node, plan.job.mesh.describe()) == (machines, per_machine, mesh)
    assert f"on {machines} machine(s), {mesh}\n" in text and f"of one machine ({per_machine} ranks)" in text


def test_the_machines_that_torchrun_started_are_planned(tmp_path, monkeypatch):
    words = ["--model", "llama3_8b", "--task", "massive_joint", "--checkpoint", tmp_path, "--sharding", "hybrid"]
    pretend(monkeypatch, 2, LOCAL_WORLD_SIZE=1, GROUP_WORLD_SIZE=2)
    plan, _ = plan_of(*words)
    assert (plan.machines, plan.job.ranks_per_node, plan.job.mesh) == (2, 1, MeshShape(replicate=2))
    assert plan_of(*words, "--gpus", 16)[0].job.mesh == MeshShape(replicate=2, shard=8), "other GPUs are asked about"
    pretend(monkeypatch, 3, LOCAL_WORLD_SIZE=2, GROUP_WORLD_SIZE=2)
    with pytest.raises(UserError, match="3 ranks on 2 machines"):
        plan_of(*words)


def test_gpus_that_fill_no_machines_are_named(tmp_path):
    words = ["--model", "llama3_8b", "--task", "massive_joint", "--checkpoint", tmp_path]
    with pytest.raises(UserError, match="^--gpus 17: they do not divide evenly into 2 machines. .* multiple of 8.$"):
        plan_of(*words, "--gpus", 17)


def test_what_goes_over_the_network_goes_between_machines():
    """Copies on a half of one machine, on one of two, and on a pair of four, beside single copies."""

    def moving(replicate: int, shard: int, network: float = GPUS["a100-80g"].network) -> float:
        gpu = dataclasses.replace(GPUS["a100-80g"], network=network)
        mesh = MeshShape(replicate=replicate, shard=shard)
        return pass_seconds(dataclasses.replace(job(), mesh=mesh), gpu, RankPass(16_384, 168, 10**8))[1]

    for replicate, shard in ((1, 8), (2, 4)):
        assert moving(replicate, shard, 1.0) == moving(replicate, shard)
    for replicate, shard in ((1, 16), (2, 8), (2, 16)):
        assert moving(replicate, shard, 1.0) > 10**6 * moving(replicate, shard)
    reduced = moving(2, 8) - moving(1, 8)
    assert moving(2, 16) - moving(1, 16) == pytest.approx(reduced / 2), "a pair gathers its copy as a single one does"


def test_with_tokenizer_and_data_the_real_samples_are_counted(tiny_tokenizer, tmp_path):
    words = ["--model", "llama_debug", "--task", TICKETS, "--checkpoint", tiny_tokenizer, "--row_length", 1024]
    plan, text = plan_of(*words, "--cache_dir", tmp_path, "--gpus", 2, "--batch_size", 4, "--steps", 6)
    assert "samples" not in " ".join(plan.assumed)
    assert f"'{plan.work.longest_id}'" in text and plan.work.truncated is not None
    assert "shard 2" in text and "6 steps of 4 samples" in text
    assert plan.work.samples == 4


def test_plans_say_what_an_examples_tokens_include():
    found = {name: plan_report.what_is_counted(get_model_spec(name)) for name in ("llama", "roberta", "llama_heads")}
    around = "with the tokens around it"
    assert found == {"llama": "with its prompt", "roberta": around, "llama_heads": f"read twice, {around}"}


def test_encoders_have_plans(tmp_path):
    plan, text = plan_of("--model", "roberta_large", "--task", "massive_joint", "--checkpoint", tmp_path / "none")
    assert "It fits" in text and plan.job.optim == "adamw"
    # 24 blocks of 12 E^2 + 13 E, embeddings, and heads of 60 intents and 111 tags.
    E = 1024
    want = 24 * (12 * E * E + 13 * E) + (50_265 + 514 + 1) * E + 2 * E + (60 + 111) * (E + 1)
    assert f"{want:,} parameters" in text


def test_what_a_pass_holds_is_what_the_loader_builds(tiny_tokenizer, tmp_path):
    """Tokens, label positions and attended pairs of the plan are those of the batches that training gets."""
    config = load_config(
        f"--model llama_debug --init random --task {TICKETS} --checkpoint {tiny_tokenizer} --row_length 1024 "
        f"--batch_size 6 --steps 4 --device cpu --cache_dir {tmp_path / 'cache'} --output {tmp_path / 'run'}".split()
    )
    setup = open_run(config)
    loader: StepLoader = setup.loader
    for n in range(4):
        for rows, batch in zip(loader.plan(n).ranks[0], loader.step(n).batches, strict=True):
            assert loader.computed_tokens(rows) == batch.tokens.numel()
            assert loader.count_outputs(rows) == len(batch.target_index)
    none = count_workload(loader, setup.model_config, 0)  # --steps 0 counts a step, for the memory of one
    assert none.total_steps == none.epochs == 0 and len(none.steps) == 1
    work = count_workload(loader, setup.model_config, 4)
    for n, (passes,) in enumerate(work.steps):
        (batch,) = loader.step(n).batches
        real = batch.doc_ids != PADDING_DOC
        pairs = int((allowed(batch.doc_ids) & real[:, :, None] & real[:, None, :]).sum())
        assert passes == RankPass(batch.tokens.numel(), len(batch.target_index), pairs)
    (worst,) = loader.worst_case().batches
    assert (work.worst.tokens, work.worst.outputs) == (worst.tokens.numel(), len(worst.target_index))
    assert work.real_tokens == np.mean([loader.step(n).n_real_tokens for n in range(4)])


def settled(monkeypatch, memory: int, words: str, n: int = 8, resumed: Path | None = None):
    """`settle_optimizer` of a run on GPUs of this much memory, as far as it looks at anything."""
    config = load_config(f"--device cuda --precision bf16 {words}".split())
    spec = MODELS[config.model.model]
    samples = SimpleNamespace(label_lengths=np.array([168]))
    rows = [[0]], config.batch.row_length
    loader = SimpleNamespace(worst_rows=lambda: rows, accumulates=True, samples=samples)
    setup = SimpleNamespace(
        spec=spec,
        model_config=spec.config,
        loader=loader,
        samples=samples,
        resume_from=resumed,
    )
    world = SimpleNamespace(device=torch.device("cuda"), shape=MeshShape(shard=n), size=n)
    monkeypatch.setattr(train.planning.plan, "_smallest_gpu", lambda world: memory)
    pretend(monkeypatch, n)
    return settle_optimizer(config, setup, world)


def test_a_run_on_gpus_decides_before_anything_loads(monkeypatch):
    small = "--model llama3_8b --task 20ng_joint --device cuda"
    assert load_config(small.split()).optim.optim == "auto", "left open until the work is counted"
    assert settled(monkeypatch, A100, small).optim.optim == "adamw"
    one = settled(monkeypatch, 110 * GIB, small, n=1)
    assert one.optim.optim == "adamw_sr"
    assert re.fullmatch(
        r"chosen by --optim auto: needs [\d.]+ of [\d.]+ GiB; adamw would need [\d.]+; --optim adamw_sr pins it",
        one.optim_reason,
    )
    assert settled(monkeypatch, A100, f"{small} --optim adamw").optim_reason == ""
    with pytest.raises(UserError, match="too few GPUs"):
        settled(monkeypatch, A100, "--model llama3_70b --task 20ng_joint --optim adamw")
    assert load_config("--model llama3_8b --task 20ng_joint --device cpu".split()).optim.optim == "adamw"


def test_a_resumed_run_keeps_its_optimizer(monkeypatch, tmp_path):
    began = SimpleNamespace(config={"optim": "adamw_sr"}, optim_reason="as it was")
    monkeypatch.setattr(train.planning.plan, "read_state", lambda folder: began)
    config = settled(monkeypatch, A100, "--model llama3_8b --task 20ng_joint", resumed=tmp_path)
    assert (config.optim.optim, config.optim_reason) == ("adamw_sr", "as it was")


def test_the_command_prints_its_plan(tmp_path, monkeypatch, capsys):
    words = ["--model", "llama3_70b", "--task", "20ng_joint", "--checkpoint", str(tmp_path), "--steps", "10", "--plan"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    runpy.run_path(str(ROOT / "train.py"), run_name="script")["main"]()
    printed = capsys.readouterr().out
    assert "Plan for llama3_70b on 20ng_joint" in printed and "fit" in printed
    start = f"{' '.join(map(quoted, torchrun()))} --nproc_per_node 8 train.py --model llama3_70b --task 20ng_joint"
    assert printed.endswith(f"To start it:\n  {start} --checkpoint {tmp_path} --steps 10\n")
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "--gpus", "1"])
    with pytest.raises(SystemExit, match="1"):  # for scripts that ask before they submit
        runpy.run_path(str(ROOT / "train.py"), run_name="script")["main"]()
    assert "It does NOT fit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_a_folder_of_metas_is_planned_from_its_own_numbers(tmp_path):
    folder = write_meta_folder(tmp_path / "meta", random_weights(vocab=512), 2)
    write_rank_file(tmp_path)  # above the weights, as in Meta's download of Llama 2
    words = ["--model", "llama", "--checkpoint", folder, "--task", TICKETS, "--row_length", 4096, "--batch_size", 2]
    words += ["--shots", 1, "--holdout", 0.2, "--eval_every", 4, "--steps", 4, "--cache_dir", tmp_path / "cache"]
    plan, text = plan_of(*words, "--gpus", 1)
    setup = open_run(load_config([*map(str, words), "--device", "cpu", "--output", str(tmp_path / "run")]))
    assert not plan.assumed and plan.job.config == setup.model_config and setup.model_config.dim == 64
    assert plan.lengths.tolist() == (setup.samples.costs + len(setup.samples.prefix)).tolist()
    assert len(plan.lengths) + len(setup.held_out) + 1 == len(load_examples(setup.task, "train", None))
    assert plan.work == count_workload(setup.loader, setup.model_config, 4)
    with pytest.raises(UserError, match=r"another model than --model llama3_8b: dim: 64 \(expected 4096\)"):
        plan_of("--model", "llama3_8b", *words[2:])
    for part in folder.glob("consolidated.*"):
        part.unlink()
    with pytest.raises(UserError, match="takes its config from --checkpoint, but .* nor a checkpoint in Meta's format"):
        plan_of(*words)
    plan, text = plan_of("--model", "llama3_8b", *words[2:])
    assert "assumed: the model's config is the preset's" in text and plan.job.config == MODELS["llama3_8b"].config


def test_a_model_from_random_weights_has_the_tokenizers_vocabulary(tiny_tokenizer, tmp_path):
    words = ["--model", "llama_debug", "--init", "random", "--task", TICKETS, "--checkpoint", tiny_tokenizer]
    words += ["--row_length", 1024, "--steps", 2, "--cache_dir", tmp_path / "cache"]
    plan, _ = plan_of(*words)
    setup = open_run(load_config([*map(str, words), "--device", "cpu", "--output", str(tmp_path / "run")]))
    assert plan.job.config == setup.model_config != MODELS["llama_debug"].config and not plan.assumed


def test_a_plan_refuses_what_the_run_would_refuse(tmp_path):
    with pytest.raises(UserError, match="max_length = 600: .* positions for documents of 512"):
        plan_of("--model", "roberta_base", "--task", "massive_joint", "--data", "sample", "--max_length", 600)
    words = ["--model", "llama3_8b", "--task", TICKETS, "--checkpoint", tmp_path / "none", "--batch_size", 4]
    assert plan_of(*words, "--epochs", 1, "--warmup_steps", 5)[0].work.total_steps == 6
    with pytest.raises(UserError, match="^warmup_steps = 6 must be less than the 6 steps of the run.$"):
        plan_of(*words, "--epochs", 1, "--warmup_steps", 6)
    with pytest.raises(UserError, match="few-shot examples asked for"):
        plan_of("--model", "llama3_8b", "--task", TICKETS, "--shots", 10_000, "--checkpoint", tmp_path / "none")
