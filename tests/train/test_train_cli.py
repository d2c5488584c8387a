"""``train.py`` as people start it: end to end, interrupted for real, and wrong in every way that can be checked."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.commands import python
from data.errors import UserError
from tests.launching import ROOT, TICKETS, command, environment, pretend
from train.parallel.distributed import World
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer

TRAIN = ROOT / "train.py"
Launch = Callable[..., subprocess.CompletedProcess]


def run_here(args: list[str], world: World) -> None:
    """What ``train.py`` does, in this process: it saves the seconds that importing PyTorch takes."""
    config = load_config(args)
    Trainer(config, open_run(config), world).run()


def log_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_from_one_command(launch: Launch, train_args: list[str], tmp_path: Path) -> None:
    from checkpoints_tools.folder import check_folder
    from data.decoder.fewshot import PromptSpec
    from data.source import load_examples
    from data.tasks import get_task

    run = tmp_path / "run"
    done = launch(TRAIN, *train_args, "--shots", 2, "--holdout", 0.25, "--eval_every", 3, "--save_every", 2)
    assert done.returncode == 0, done.stderr
    assert "row_length = 1024" in done.stdout, "the resolved configuration is printed"
    assert "step 6/6" in done.stdout and "held-out, step 3:" in done.stdout
    assert "row_length = 1024" in (run / "config.toml").read_text()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_000004", "step_000006"]
    lines = log_lines(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line.get("event") == "score"] == [3, 6]

    for name in ("export", "best"):
        check_folder(run / name)
        assert json.loads((run / name / "task.json").read_text())["fields"][1]["labels"] == ["low", "high"]
        card = (run / name / "README.md").read_text()
        for part in (
            "| queue | text | 4: `billing`, ",
            "held out",
            "| queue accuracy |",
            "Beginning of <<Ticket>>\n{text}\n",
        ):
            assert part in card
        assert str(tmp_path) not in card
    assert json.loads((run / "best" / "best.json").read_text())["step"] in (3, 6)
    shots = PromptSpec.load(run / "export").shots
    assert len(shots) == 2 and PromptSpec.load(run).shots == shots and PromptSpec.load(run).row_length == 1024
    # Neither the few-shot examples nor the held-out ones were trained on: an epoch is what is left.
    n_train = len(load_examples(get_task(TICKETS), "train")) - 2 - round(0.25 * 22)
    assert lines[0]["epoch"] == pytest.approx(4 / n_train, abs=1e-4)


def test_started_again_in_the_same_folder_is_refused_unless_resumed(
    world: World, train_args: list[str], tmp_path: Path
) -> None:
    args = [*train_args, "--steps", "2"]
    run_here(args, world)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="holds a run already"):
        run_here(args, world)
    with pytest.raises(UserError, match="lr: the checkpoint has 0.001, this run has 1e-05"):
        run_here([*args, "--lr", "1e-5", "--resume"], world)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*")), "nothing was touched"
    run_here([*args, "--resume"], world)


def test_what_a_checkpoint_says_and_we_do_not_use_is_in_the_export(
    world: World, train_args: list[str], tmp_path: Path
) -> None:
    """From one run's export to the next one's, through pretrained weights."""
    run_here([*train_args, "--steps", "1"], world)
    base = tmp_path / "base"
    (tmp_path / "run" / "export").rename(base)
    config = json.loads((base / "config.json").read_text())
    generation = json.loads((base / "generation_config.json").read_text())
    # An ordinary user edits these two: the checksums of the folder no longer hold.
    (base / "checksums.json").unlink(missing_ok=True)
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": 7, "pretraining_tp": 2, "dtype": "float16"}))
    (base / "generation_config.json").write_text(json.dumps(generation | {"max_length": 99, "temperature": 0.6}))
    start = [*train_args, "--checkpoint", str(base), "--init", "pretrained", "--steps", "1"]
    run_here([*start, "--output", str(tmp_path / "second")], world)
    export = tmp_path / "second" / "export"
    again = json.loads((export / "config.json").read_text())
    assert (again["pad_token_id"], again["pretraining_tp"]) == (7, 2)
    assert again["torch_dtype"] == config["torch_dtype"], "the export's own, not the checkpoint's"
    again = json.loads((export / "generation_config.json").read_text())
    assert again["max_length"] == 99 and "temperature" not in again, "trained to answer with the most probable token"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_bf16_weights_are_exported_exactly(dtype: str, world: World, train_args: list[str], tmp_path: Path) -> None:
    from checkpoints_tools.key_maps import LLAMA_HF, to_theirs

    args = [*train_args, "--optim", "adamw_sr_8bit", "--offload_states", "on", "--steps", "2", "--export_dtype", dtype]
    config = load_config(args)
    trainer = Trainer(config, open_run(config), world)
    start = {name: p.full_tensor().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and not torch.equal(parameter.full_tensor(), start[name])
        stored = exported[to_theirs(name, LLAMA_HF)]
        assert stored.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        assert torch.equal(stored.float(), parameter.full_tensor().float()), name


def test_nothing_to_resume_is_an_error(train_args: list[str]) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in .*run/checkpoints"):
        open_run(load_config([*train_args, "--resume"]))


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_interrupted_and_resumed_equals_uninterrupted(
    ranks: int, number: signal.Signals, world: World, launch: Launch, train_args: list[str], tmp_path: Path
) -> None:
    args = [*train_args, "--steps", "24", "--activation_checkpointing", "selective"]
    if ranks == 1:
        run_here([*args, "--output", str(tmp_path / "straight")], world)
    else:
        straight = launch(TRAIN, *args, "--output", tmp_path / "straight", ranks=ranks)
        assert straight.returncode == 0, straight.stderr

    run = tmp_path / "run"
    process = subprocess.Popen(
        command(TRAIN, *args, ranks=ranks), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not ((run / "log.jsonl").exists() and '"step": 3' in (run / "log.jsonl").read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    stopped = log_lines(run)[-1]
    assert stopped["event"] == "interrupted" and 3 <= stopped["step"] < 24, output
    assert f"{number.name}: finishing this step" in output and "--resume" in output
    assert ("--shutdown-timeout" in output) == (ranks == 2)
    start = f"{python()} -m torch.distributed.run --standalone --nproc_per_node 2" if ranks == 2 else python()
    assert f"To continue:\n  {start} {TRAIN} --model" in output and "--resume auto\n" in output
    assert f"{run / 'resume.sh'} has this command" in output and start in (run / "resume.sh").read_text()
    if ranks == 1:
        assert process.returncode == 128 + number and "Traceback" not in output
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step_{stopped['step']:06d}"]

    resumed = launch(TRAIN, *args, "--resume", ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step {stopped['step']}" in resumed.stdout
    steps = [line["step"] for line in log_lines(run) if "loss" in line]
    assert steps == list(range(1, 25)), "the log goes on where it ended"
    a, b = (load_file(folder / "export" / "model.safetensors") for folder in (tmp_path / "straight", run))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    losses = [[line["loss"] for line in log_lines(f) if "loss" in line] for f in (tmp_path / "straight", run)]
    assert losses[0] == losses[1]


def test_a_checkpoint_resumes_on_another_number_of_ranks(
    world: World, launch: Launch, caplog: pytest.LogCaptureFixture, train_args: list[str], tmp_path: Path
) -> None:
    args = [*train_args, "--eps", "1e-4", "--precision", "fp32"]  # bf16 rounds by more than the tolerance
    run_here([*args, "--output", str(tmp_path / "straight")], world)
    first = launch(TRAIN, *args, "--save_every", 3, "--keep", 9, ranks=2)
    assert first.returncode == 0, first.stderr
    newest = tmp_path / "run" / "checkpoints" / "step_000006"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with caplog.at_level("INFO"):
        run_here([*args, "--resume"], world)
    assert "resuming after step 3" in caplog.text and "on a mesh of shard 2, this run has shard 1" in caplog.text
    a, b = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("straight", "run"))
    assert all((a[name] - b[name]).abs().max() < 1e-4 for name in a)


@pytest.mark.parametrize("ranks", [1, 2])
def test_mistakes_are_said_once_and_without_a_traceback(ranks: int, launch: Launch) -> None:
    done = launch(TRAIN, "--model", "lama3_8b", "--task", "massive_intnt", "--stepz", 3, ranks=ranks)
    for part in ("'lama3_8b'. Did you mean 'llama3_8b'?", "Did you mean 'massive_intent'?", "'--steps'?"):
        assert done.stderr.count(part) == 1, done.stderr
    if ranks == 1:
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    nowhere, nothing = str(tmp_path / "nowhere"), str(tmp_path / "nothing")
    args = ["--model", "llama3_8b", "--checkpoint", nowhere, "--task", "massive_intent", "--data", nothing]
    with pytest.raises(UserError) as error:
        open_run(load_config([*args, "--output", str(ROOT / "train.py"), "--device", "cpu"]))
    for part in (nowhere, "hf download meta-llama/Meta-Llama-3-8B-Instruct", nothing, "that is a file"):
        assert part in str(error.value), part


def test_a_checkpoint_of_another_shape_is_refused(world, tmp_path: Path, tiny_tokenizer: Path) -> None:
    from checkpoints_tools.export import export_hf
    from data.decoder.tokenizer import load_tokenizer
    from model.llama import Llama
    from tests.train.tiny_run import TINY

    model = Llama(TINY)
    model.init_weights()
    export_hf(model, TINY, load_tokenizer(tiny_tokenizer), tmp_path / "model")
    args = ["--model", "llama_debug", "--checkpoint", str(tmp_path / "model"), "--task", str(TICKETS), "--output",
            str(tmp_path / "run"), "--device", "cpu"]  # fmt: skip
    with pytest.raises(UserError, match=r"dim: 30 \(expected 48\).*--allow_mismatch"):
        open_run(load_config(args))
    with pytest.raises(UserError, match="the tokenizer has .* tokens, the model's embedding only 301"):
        open_run(load_config([*args, "--allow_mismatch"]))


def test_not_a_number_exits_with_status_3(launch: Launch, train_args: list[str]) -> None:
    # A weight decay of 1e30 overflows fp32 in two steps.
    done = launch(TRAIN, *train_args, "--lr", "0.999", "--clip", "0", "--weight_decay", "1e30")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "No update was made" in done.stderr and "tickets/train/" in done.stderr and "Traceback" not in done.stderr


def test_fewer_samples_than_ranks(train_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    with pytest.raises(UserError, match="Fewer samples than ranks: 1 samples for 2 ranks"):
        open_run(load_config([*train_args, "--limit", "1"]))


def test_a_row_shorter_than_the_prompt(train_args: list[str]) -> None:
    with pytest.raises(UserError, match="--row_length"):
        open_run(load_config([*train_args, "--row_length", "40"]))


def test_documents_are_cut_at_scoring_hardly_earlier_than_in_training(
    launch: Launch, train_args: list[str], tmp_path: Path
) -> None:
    """A list of all labels is much longer than any answer that the model learns; here it would not fit the row."""
    from eval.config import EvalConfig
    from eval.decoder.score import BUDGET_MARGIN, answer_budgets, prepare_requests
    from eval.setup import open_scoring

    labels = [f"matter number {i} of the many" for i in range(40)]
    rows = [f'"{"please " * (5 + 20 * (i % 2))}",{labels[i % 40]}' for i in range(24)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,matters", *rows]))
    (tmp_path / "many.toml").write_text(
        'name = "many"\n[files]\ntrain = "rows.csv"\ntest = "rows.csv"\n'
        f'[[fields]]\nname = "matters"\ntype = "multi"\nseparator = "|"\nlabels = {json.dumps(labels)}\n'
    )
    options = {"--task": str(tmp_path / "many.toml"), "--row_length": "430", "--steps": "2"}
    args = [options.get(before, arg) for before, arg in zip(["", *train_args], train_args, strict=False)]
    done = launch(TRAIN, *args, "--list_labels", "off", "--holdout", "0.25", "--eval_every", "1")
    assert done.returncode == 0, done.stderr
    prompt = json.loads((tmp_path / "run" / "export" / "prompt.json").read_text())
    setup = open_scoring(
        EvalConfig(model="llama", checkpoint=tmp_path / "run" / "export", task=options["--task"], device="cpu")
    )
    job = setup.job_of(setup.examples, None)
    assert min(n for n, _ in answer_budgets(job.task, job.tokenizer, job.examples)) > 430
    assert job.answer_tokens == prompt["answer_tokens"] < 60
    requests = prepare_requests(job)
    assert set(requests.reserved) == {job.answer_tokens + BUDGET_MARGIN} and not requests.samples.truncated.any()
    assert min(requests.limits) >= job.answer_tokens, "and no answer is cut that the model learned"


def test_shots_longer_than_the_row(train_args: list[str]) -> None:
    open_run(load_config([*train_args, "--row_length", "400"]))
    with pytest.raises(UserError, match="--shots"):
        open_run(load_config([*train_args, "--row_length", "400", "--shots", "12"]))


def test_samples_longer_than_the_model_was_trained_for_are_warned_of_once(
    train_args: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long_rows = [*train_args, "--row_length", "4096"]
    open_run(load_config(long_rows))
    assert "exceeds" not in caplog.text, "a warning of none"
    task = Path(shutil.copytree(TICKETS.parent, tmp_path / "task")) / TICKETS.name
    with (task.parent / "train.csv").open("a") as file:
        file.write(f"{'please ' * 3000},billing,high\n")
    open_run(load_config([*long_rows, "--task", str(task)]))
    assert caplog.text.count("exceeds the 2048 tokens the model was trained for; 1 of 25 samples are longer") == 1


def test_divided_by_seed(train_args: list[str]) -> None:
    def parts(*more: str) -> tuple[set[str], set[str], set[str]]:
        setup = open_run(load_config([*train_args, "--shots", "3", "--holdout", "0.25", "--eval_every", "1", *more]))
        shots = {shot.id for shot in setup.prompt_spec.shots}
        return set(setup.samples.ids), {e.id for e in setup.held_out}, shots

    train, held, shots = parts()
    assert (len(train), len(held), len(shots)) == (16, 5, 3)
    assert not (train & held or train & shots or held & shots)
    assert parts() == (train, held, shots) and parts("--seed", "1") != (train, held, shots)


def test_one_ranks_failure_ends_all(launch: Launch, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "from train.parallel.distributed import run_guarded, start\n"
        "def main():\n"
        "    world = start(torch.device('cpu'))\n"
        "    dist.barrier()\n"
        "    if world.rank == 1:\n"
        "        raise RuntimeError('the disk of rank 1 is full')\n"
        "    dist.barrier()\n"
        "run_guarded(main)\n"
    )
    begun = time.monotonic()
    done = launch(script, ranks=2)
    assert done.returncode != 0 and time.monotonic() - begun < 120
    assert done.stderr.count("RuntimeError: the disk of rank 1 is full") == 1 and "[rank 1]" in done.stderr
    assert "Connection closed by peer" not in done.stderr, "the cause is said, not its consequences"


def test_a_file_without_permission_is_no_traceback() -> None:
    source = (
        "from train.parallel.distributed import run_guarded\n"
        "def main():\n"
        "    raise PermissionError(13, 'Permission denied', '/data/run.json')\n"
        "run_guarded(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: /data/run.json: Permission denied.\n")


def test_plain_python_needs_no_port(train_args: list[str]) -> None:
    """Two single-process runs at once do not meet."""
    source = (
        "import torch, torch.distributed as dist\n"
        "from train.parallel.distributed import start\n"
        "world = start(torch.device('cpu'))\n"
        "assert (world.rank, world.size, world.mesh.size()) == (0, 1, 1)\n"
        "input()\n"
        "dist.destroy_process_group()\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, env=environment(), stdin=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    time.sleep(0.5)
    for process in both:
        process.communicate("\n", timeout=120)
        assert process.returncode == 0
