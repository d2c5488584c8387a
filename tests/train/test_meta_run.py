"""A checkpoint in Meta's format, taken by train.py and eval.py as it is: trained, resumed, exported, scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from eval.config import EvalConfig
from eval.setup import ScoringSetup, build_model, open_scoring
from tests.launching import TICKETS
from tests.meta_reference import meta_logits, random_weights, write_meta_folder, write_rank_file
from train.parallel.distributed import World
from train.resolve import load_config
from train.setup import open_run
from train.trainer import Trainer


def plan(checkpoint: Path, **options: object) -> ScoringSetup:
    return open_scoring(EvalConfig(model="llama", checkpoint=checkpoint, task=str(TICKETS), **options))


def test_trained_resumed_exported_and_scored(world: World, tmp_path: Path) -> None:
    weights = random_weights(vocab=512)
    folder = write_meta_folder(tmp_path / "meta", weights, 2)
    write_rank_file(tmp_path)  # above the weights, as in Meta's download of Llama 2
    run = tmp_path / "run"
    args = [
        "--model", "llama", "--checkpoint", str(folder), "--task", str(TICKETS), "--output", str(run), "--steps", "2",
        "--cache_dir", str(tmp_path / "cache"), "--batch_size", "2", "--row_length", "4096", "--lr", "1e-3",
        "--device", "cpu", "--precision", "fp32", "--export_dtype", "fp32",
    ]  # fmt: skip
    config = load_config(args)
    Trainer(config, open_run(config), world).run()
    again = load_config([*args, "--resume"])
    assert open_run(again).resume_from == run / "checkpoints" / "step_000002"

    # As it came: the logits of Meta's own algorithm.
    before = plan(folder)
    tokens = torch.tensor([before.tokenizer.encode("the printer on floor two is broken again")])
    found = build_model(before, "fp32", torch.device("cpu"))(tokens)
    torch.testing.assert_close(found, meta_logits(weights, tokens), atol=2e-5, rtol=1e-5)
    assert before.prompt.template == "llama3" and not before.fine_tuned

    # After training: checkpoint and export are the same model, and another than before; transformers reads the export.
    of_run, of_export = plan(run / "checkpoints" / "step_000002"), plan(run / "export")
    assert of_run.weights.base == folder and of_run.fine_tuned
    after = build_model(of_run, "fp32", torch.device("cpu"))(tokens)
    assert (after - found).abs().max() > 0.1
    assert torch.equal(build_model(of_export, "fp32", torch.device("cpu"))(tokens), after)
    theirs = AutoModelForCausalLM.from_pretrained(run / "export", dtype=torch.float32)
    torch.testing.assert_close(theirs(tokens).logits, after, atol=2e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(run / "export").encode("two", add_special_tokens=False) == [116, 119, 111]
    assert load_tokenizer(run / "export").encode("naïve 日本") == before.tokenizer.encode("naïve 日本")


def test_bad_folders_are_said_before_anything_starts(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", random_weights(vocab=512), 2)
    write_rank_file(folder)
    with pytest.raises(UserError, match="'llama' architecture.*--model bert"):
        open_scoring(EvalConfig(model="bert", checkpoint=folder, task="massive_intent"))
    with pytest.raises(UserError, match=r"another model than --model llama3_8b: dim: 64 \(expected 4096\)"):
        open_scoring(EvalConfig(model="llama3_8b", checkpoint=folder, task=str(TICKETS)))
    args = ["--model", "llama", "--checkpoint", str(folder), "--task", str(TICKETS), "--output", str(tmp_path / "run")]
    (folder / "consolidated.00.pth").unlink()
    for attempt in (lambda: plan(folder), lambda: open_run(load_config(args))):
        with pytest.raises(UserError, match="consolidated.00.pth missing"):
            attempt()
