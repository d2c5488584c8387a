"""The speed benchmarks on a tiny random checkpoint: they run, both sides do the same work, and a difference is seen."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import (
    against_transformers,
    batch_flips,
    decode_speed,
    gpu,
    label_probabilities,
    low_precision,
    optimizer_update,
    step_time,
)
from benchmarks.common import command_line, draw_examples, find_gguf, in_turn, load_ours, reference_greedy
from data.decoder.prompts import build_prompt
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import Text
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from data.tasks import get_task
from eval.decoder.decode import greedy_decode
from eval.results import Prediction

transformers = pytest.importorskip("transformers")
VOCAB = 500


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama in a Hugging Face folder, with a tokenizer trained on the prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [build_prompt(get_task(name), "chatml") for name in ("massive_intent", "massive_joint")]
    texts = [piece.text for prompt in prompts for piece in prompt.prefix if isinstance(piece, Text)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=80,
        vocab_size=VOCAB,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def massive_samples(checkpoint: Path, n: int, **kwargs: object) -> SampleSet:
    task = get_task("massive_intent")
    examples = draw_examples(task, "test", "sample", n, seed=0)
    tokenizer = load_tokenizer(checkpoint)
    return prepare(examples, task, build_prompt(task, "chatml"), tokenizer, 8192, **kwargs)


def test_weights_and_logits_equal_and_a_difference_is_seen(checkpoint: Path, reference: torch.nn.Module) -> None:
    model, samples = load_ours(checkpoint), massive_samples(checkpoint, 3)
    n_values, apart = against_transformers.compare_weights(model, reference)
    assert n_values == sum(p.numel() for p in model.parameters()) and apart == 0.0
    gaps = against_transformers.compare_logits("intent", model, reference, samples)
    assert max(gap.largest for gap in gaps) < 1e-3
    assert all(gap.same_argmax == gap.n_positions > 0 for gap in gaps[:2])

    with torch.no_grad():
        model.layers[1].attention.wq.weight[0] += 0.5
    assert against_transformers.compare_weights(model, reference)[1] == pytest.approx(0.5)
    broken = against_transformers.compare_logits("intent", model, reference, samples)
    assert all(gap.largest > 1e-2 for gap in broken[:2])


def test_greedy_comparison_sees_equal_and_different_output(checkpoint: Path, reference: torch.nn.Module) -> None:
    model, tokenizer = load_ours(checkpoint), load_tokenizer(checkpoint)
    samples = massive_samples(checkpoint, 5, with_labels=False, max_new_tokens=6)
    args = against_transformers.Args(max_new_tokens=6)
    text, different = against_transformers.compare_greedy(model, reference, tokenizer, samples, {1}, args)
    assert different == 0 and "5 of 5" in text

    with torch.no_grad():
        model.norm.weight[:5] *= -3
    text, different = against_transformers.compare_greedy(model, reference, tokenizer, samples, {1}, args)
    assert different > 0 and f"{5 - different} of 5" in text
    assert text.count("they part at token") == different


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("share", [False, True])
def test_reference_decoder_pads_stops_and_reuses_as_ours_does(
    checkpoint: Path, reference: torch.nn.Module, batch_size: int, share: bool
) -> None:
    samples = massive_samples(checkpoint, 5, with_labels=False, max_new_tokens=6)
    prefix, bodies = samples.prefix.tolist(), [samples.body(i).tolist() for i in range(5)]
    assert len({len(body) for body in bodies}) > 1  # something is padded
    model = load_ours(checkpoint)
    free = greedy_decode(model, prefix, bodies, 6, set())
    stops = {free[0].tokens[3], free[1].tokens[0]}  # so that some stop early, one of them at once
    ours = greedy_decode(model, prefix, bodies, 6, stops)
    assert ours[1].stopped and not ours[1].tokens and len({len(answer.tokens) for answer in ours}) > 1
    prompts = [prefix + body for body in bodies]
    n_shared = len(prefix) if share else 0
    assert reference_greedy(reference, prompts, 6, stops, batch_size=batch_size, n_shared=n_shared) == ours


@pytest.mark.slow
def test_gpu_measures_a_case_in_its_own_process(checkpoint: Path, tmp_path: Path) -> None:
    """On the CPU, with a small model."""
    options = gpu.Options(checkpoint, "sample", cases=("short", "transformers"), model="llama_debug", steps=4)
    records = {case: gpu.in_a_process(options, case) for case in options.cases}
    for case, record in records.items():
        assert len(record["seconds"]) == 4 and min(record["seconds"]) > 0, case
        assert record["losses"][0] == pytest.approx(math.log(VOCAB), rel=0.5)
    assert records["short"]["examples"] == records["transformers"]["examples"] == [8] * 4
    assert len(records["short"]["planned"]) == 4
    table = gpu.report(records | {"paper": {"case": "paper", "failed": "no end after 3 s"}})
    assert "| short: " in table and "no end after 3 s" in table


def test_optimizer_update(tmp_path: Path) -> None:
    output = tmp_path / "update.md"
    optimizer_update.main(optimizer_update.Options(rounds=2, output=output), ["--rounds", "2"])
    lines = [line for line in output.read_text().splitlines() if line.startswith("| adamw_sr_")]
    assert {line.split(",")[0] for line in lines} == {"| adamw_sr_bf16", "| adamw_sr_8bit"}
    assert all(re.search(r"\| \d+\.\d \| \d\.\d{3} to \d\.\d{3} \|", line) for line in lines)


def test_step_time(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, list[str]]] = []
    train_step = step_time.train_step

    def record(model, optimizer, step, loss_of):
        steps.append((step.n_tokens, sorted(step.sample_ids)))
        return train_step(model, optimizer, step, loss_of)

    monkeypatch.setattr(step_time, "train_step", record)
    output = tmp_path / "step_time.md"
    argv = f"--checkpoint {checkpoint} --data sample --task massive_intent --sizes 2 3".split()
    assert step_time.main([*argv, "--steps", "1", "--output", str(output)]) == 0
    assert len(steps) == 12  # warm-up, 2 samples, 3 samples; four variants each
    for at in (0, 4, 8):
        assert len({tuple(ids) for _, ids in steps[at : at + 4]}) == 1  # the same samples in all
    assert steps[8][0] < steps[9][0] and steps[8][0] < steps[10][0] == steps[11][0]
    text = output.read_text()
    assert float(text.partition("differ by at most ")[2].split(". ")[0]) < 1e-4
    assert text.count("one sample a row |") == 4 and "Not measured on a GPU" in text
    assert str(tmp_path) not in text and str(checkpoint) not in text


def test_decode_speed(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "decode_speed.md"
    argv = f"--checkpoint {checkpoint} --data sample --utterances 5 --batch_size 2 --max_new_tokens 4 --rounds 1"
    assert decode_speed.main([*argv.split(), "--output", str(output)]) == 0
    text = output.read_text()
    assert text.count("| 5 of 5 |") == 4  # all four emit the same


def test_label_probabilities(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels.md"
    argv = f"--checkpoint {checkpoint} --data sample --tasks massive_intent --examples 3 --rounds 1"
    assert label_probabilities.main([*argv.split(), "--output", str(output)]) == 0
    text = output.read_text()
    assert "| massive_intent | 60 |" in text and all(f"| {answer} |" in text for answer in ("list", "bio", "spans"))


@pytest.mark.slow
def test_batch_flips(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "batch_flips.md"
    options = batch_flips.Options(
        checkpoint,
        model="llama",
        task="massive_intent",
        limit=3,
        batch_tokens=(64,),
        precisions=("fp32",),
        output=output,
    )
    batch_flips.run(options, [])
    rows = [row.split(" | ") for row in output.read_text().splitlines() if row.startswith("| fp32")]
    assert [row[1] for row in rows] == ["one at a time", "64 tokens"]
    assert rows[1][2:5] == ["0", "0.000%", "0"]  # fp32


def test_batch_flips_counts_what_differs() -> None:
    def answer(id: str, raw: str, intent: str | None, stopped: bool = True) -> Prediction:
        return Prediction(id, {"intent": "a"}, raw, {"intent": intent}, stopped=stopped, n_new_tokens=3)

    alone = [answer("1", "a", "a"), answer("2", "b", "b"), answer("3", "c ", "c"), answer("4", "dd", None)]
    batched = [answer("1", "a", "a"), answer("2", "a", "a"), answer("3", "c", "c"), answer("4", "dd", None, False)]
    assert batch_flips.compare(alone, alone) == batch_flips.Comparison(n_text=0, n_parsed=0, n_tokens=12)
    assert batch_flips.compare(alone, batched) == batch_flips.Comparison(n_text=3, n_parsed=1, n_tokens=12)


@pytest.mark.slow
def test_low_precision(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "low_precision.md"
    argv = f"--checkpoint {checkpoint} --data sample --steps 6 --n_held_out 4 --every 3 --work {tmp_path / 'work'}"
    for _ in range(2):  # the second time from what the first one kept
        assert low_precision.main([*argv.split(), "--output", str(output)]) == 0
    rows = {
        row.split(" | ")[0]: row.split(" | ")[1:] for row in output.read_text().splitlines() if row.startswith("| ")
    }
    ratio = {name: float(row[5]) for name, row in rows.items() if name.startswith(("| fp32", "| bf16"))}
    assert list(ratio) == [f"| {name}" for name in low_precision.VARIANTS] and ratio["| fp32"] == 1.0
    assert ratio["| bf16, to nearest"] < 0.5 < ratio["| bf16, stochastic"], "at 1e-6 most weights round back"
    along = {name: float(row[6]) for name, row in rows.items() if name in ratio}
    assert along["| bf16, stochastic"] == pytest.approx(1.0, abs=0.2)
    assert output.with_suffix(".png").stat().st_size > 10_000


def test_low_precision_compares_changes() -> None:
    reference = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0])}
    change = {"a": torch.tensor([6.0, 0.0]), "b": torch.tensor([5.0, 0.0])}
    norm, along, cosine, unchanged = low_precision.compare(change, reference)
    assert norm == pytest.approx(61**0.5) and along == pytest.approx(18 / 25) and unchanged == 0.5
    assert cosine == pytest.approx(18 / 5 / 61**0.5)


def test_mistakes_are_said_without_a_traceback(checkpoint: Path, tmp_path: Path, capsys) -> None:
    argv = f"--checkpoint {checkpoint} --data sample --utterances 1000000 --output {tmp_path / 'x.md'}".split()
    assert decode_speed.main(argv) == 2
    assert "1000000 examples are needed" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file"):
        find_gguf(tmp_path / "none.gguf")


def test_the_command_names_no_folder_of_the_machine() -> None:
    argv = ["--data=/home/me/massive", "--checkpoint", "../x/smollm2", "--sizes", "8"]
    expected = "python -m benchmarks.step_time --data=PATH/TO/massive --checkpoint PATH/TO/smollm2 --sizes 8"
    assert command_line("step_time", argv) == expected


def test_variants_are_timed_in_turn() -> None:
    order: list[tuple[str, int]] = []
    timings = in_turn({name: lambda n, name=name: order.append((name, n)) for name in "ab"}, range(1, 3))
    assert order == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: (len(t.wall), len(t.cpu)) for name, t in timings.items()} == {"a": (2, 2), "b": (2, 2)}
