"""Every command that the documentation shows, and its links.

Each ``bash`` block is read; each command's script must exist and its arguments must pass that script's own parser and
checks. What can run here runs: every ``--help``, and the commands on the embedded sample, with a tiny model in place
of SmolLM2. Commands that need a network, a GPU or the scripts themselves are read and planned only.
"""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import CONFIGS, DOCUMENTS, ROOT, SMOLLM2, commands_in, documented, plan, script_of

MINILM = "checkpoints/minilm"
CLOSED = ("gpt-3.5-turbo", "gpt-4", "gpt-4o", "api")


@pytest.mark.parametrize("words", documented(), ids=shlex.join)
def test_documented_commands_are_understood(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan(words, monkeypatch)


PLANNED = [words for words in documented() if "--plan" in words]


@pytest.mark.parametrize("words", PLANNED, ids=shlex.join)
def test_documented_plans_are_made(words, monkeypatch, capsys):
    """Nothing is at hand, as on the machine of somebody who is about to download 140 GB."""
    script, arguments = script_of(words)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--checkpoint", "checkpoints/nothing-there"])
    runpy.run_path(str(ROOT / script), run_name="script")["main"]()
    printed = capsys.readouterr().out
    assert re.match(r"(tickets train: 400 examples\n)?Plan for", printed)
    assert "It fits" in printed and "assumed" in printed


def test_the_reading_of_commands(monkeypatch):
    text = "x\n```bash\n# note\nA=1 B=2 torchrun --nproc_per_node 8 train.py \\\n  --task t  # why\n\n$ ./a.sh\n```\n"
    assert commands_in(text) == [["torchrun", "--nproc_per_node", "8", "train.py", "--task", "t"], ["./a.sh"]]
    assert script_of(commands_in(text)[0]) == ("train.py", ["--task", "t"])
    assert script_of(shlex.split("torchrun --standalone --nnodes=2 eval.py -x")) == ("eval.py", ["-x"])
    assert script_of(shlex.split("sbatch --nodes 4 scripts/train.slurm --tp 2")) == ("train.py", ["--tp", "2"])
    assert script_of(shlex.split("python -m data.download 20ng")) == ("-m data.download", ["20ng"])
    assert len(documented()) >= 10 and PLANNED, "the README has lost its commands"
    for wrong in ("python train.py --modle x", "python -m eval.baselines --taks x", "./no_such.sh", "what --is this"):
        with monkeypatch.context() as patch, pytest.raises((ValueError, AssertionError, ImportError)):
            patch.chdir(ROOT)
            plan(shlex.split(wrong), patch)


def test_links_lead_somewhere():
    pages = [*DOCUMENTS, "benchmarks/results/README.md"]
    broken = []
    for page in pages:
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            if not target.startswith("https://") and not (folder / target).exists():
                broken.append(f"{page}: {target}")
    assert not broken


def test_downloads_give_each_option_one_value():
    """What follows a pattern would be the name of a file to `hf download`, which then ignores the patterns."""
    from checkpoints_tools.architectures import ARCHITECTURES

    pages = [*DOCUMENTS, "checkpoints_tools/PORTING.md"]
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    advised = [f"{own.download.repo} {own.download.options}" for own in ARCHITECTURES.values()]
    written = [command for text in texts for command in re.findall(r"^hf download (.+)$", text, re.MULTILINE)]
    assert advised and len(written) > 2
    for command in advised + written:
        repository, *options = shlex.split(command, comments=True)
        assert all(word.startswith("--") for word in options[::2]), command
        assert not any(word.startswith("--") for word in options[1::2]) and len(options) % 2 == 0, command


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_the_readmes_picture_can_be_drawn(tmp_path):
    picture = tmp_path / "row.png"
    subprocess.run([sys.executable, "-m", "scripts.draw_packed_row", picture], cwd=ROOT, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- running what can run ---------------------------------------------------------------------------------------------


def on_the_sample() -> list[list[str]]:
    """The documents' training and scoring commands on data that is here, in their order."""
    found = []
    for words in documented():
        script, arguments = script_of(words)
        local = "sample" in arguments or any(a.endswith(".toml") or a.startswith("runs/tickets") for a in arguments)
        if local and "--plan" not in arguments and script in (*CONFIGS, "-m eval.baselines"):
            found.append(words)
    return found


def write_tiny_checkpoint(folder: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer

    from checkpoints_tools.export import export_hf
    from checkpoints_tools.registry import get_model_spec
    from data.decoder.prompts import build_prompt
    from data.decoder.templates import Text
    from data.decoder.tokenizer import load_tokenizer
    from data.tasks import TASKS

    prefix = build_prompt(TASKS["massive_joint"], "plain").prefix
    bpe = ByteLevelBPETokenizer()
    text = [piece.text for piece in prefix if isinstance(piece, Text)] * 2
    bpe.train_from_iterator(text, vocab_size=800, special_tokens=["<|end|>"], show_progress=False)
    source = folder.with_name("tokenizer")
    source.mkdir(parents=True)
    bpe.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    tokenizer = load_tokenizer(source)
    spec = get_model_spec("llama_debug")
    config = dataclasses.replace(spec.config, vocab_size=tokenizer.vocab_size)
    model = spec.build(config)
    torch.manual_seed(0)
    model.init_weights()
    export_hf(model, config, tokenizer, folder)


def write_small_encoder(folder: Path) -> None:
    from data.tasks import TASKS
    from model.encoder import ROBERTA_DEBUG
    from tests.encoder_exports import write_encoder

    source = folder.with_name("encoder")
    source.mkdir(parents=True)
    write_encoder(source, TASKS["massive_intent"], ROBERTA_DEBUG).rename(folder)


def in_small(words: list[str]) -> list[str]:
    """The same command with tiny models in the place of SmolLM2 and MiniLM, and little to do."""
    script, arguments = script_of(words)
    if "--compare" in arguments:
        return [sys.executable, script, *arguments]
    given = dict(zip(arguments[::2], arguments[1::2], strict=True)) if len(arguments) % 2 == 0 else {}
    assert given, f"{shlex.join(words)}: an option without a value; teach this test about it"
    if given.get("--model") in CLOSED:  # nothing is asked: these write requests and read answers
        assert {"--dump_requests", "--answers"} & set(given), shlex.join(words)
        return [sys.executable, script, *arguments]
    if script == "predict.py":
        given |= {"--max_new_tokens": "3", "--device": "cpu"}
    elif script != "-m eval.baselines":
        given["--model"] = "roberta_debug" if given["--model"] == "bert" else "llama_debug"
        given.setdefault("--checkpoint", SMOLLM2)
        given |= {"--row_length": "4096", "--cache_dir": "cache"}
    if script == "train.py":
        given.pop("--epochs", None)
        given |= {"--steps": "2", "--batch_size": "4", "--device": "cpu"}
    if script == "eval.py":
        given |= {"--limit": "4", "--max_new_tokens": "3", "--device": "cpu"}
    flat = [word for pair in given.items() for word in pair]
    start = ["-m", script[3:]] if script.startswith("-m ") else [script]
    return [sys.executable, *start, *flat]


def answer_requests(folder: Path) -> None:
    """Write the output of a batch for the requests that a command before has written."""
    lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    body = {"choices": [{"message": {"content": "alarm_set"}, "finish_reason": "stop"}]}
    answers = [{"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}} for line in lines]
    (folder / "batch_output.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def test_the_readmes_commands_on_the_sample_run_in_its_order(tmp_path):
    commands = on_the_sample()
    assert {script_of(words)[0] for words in commands} == {*CONFIGS, "-m eval.baselines"}
    write_tiny_checkpoint(tmp_path / SMOLLM2)
    write_small_encoder(tmp_path / MINILM)
    for path in ROOT.iterdir():  # the code by link, so that what the commands write stays here
        if path.suffix == ".py" or path.name in ("data", "eval", "train", "model", "checkpoints_tools"):
            (tmp_path / path.name).symlink_to(path)
    for words in commands:
        small, typed = in_small(words), "a line of one's own\n"  # for --input -
        if "--answers" in words:
            answer_requests(tmp_path / "runs")
        done = subprocess.run(small, cwd=tmp_path, input=typed, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
