"""The parsers under test: for each a valid sample, the files of it to damage, and the product's way to read it.

Readers call what the programs call, so that a wrong value that the parser lets pass is found where it is used. After a
change of the product's functions, this file (and `samples.py`, for how samples are made) is what has to follow.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from checkpoints_tools.checksums import check_small_files, find_damage
from checkpoints_tools.convert import convert
from checkpoints_tools.formats import CALIBRATION_FILE
from checkpoints_tools.inspect import inspect
from data.decoder.templates import pick_template
from data.decoder.tokenizer import load_tokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.lenient import read_leniently
from data.readers.tables import open_table
from data.source import load_examples
from data.task_file import TASK_FILE
from data.tasks import get_task
from eval.combine import combine
from eval.predict.classifier import Classifier
from eval.predict.config import load_config as load_predict_config
from eval.predict.inputs import open_input
from eval.report import compare
from eval.resolve import load_config as load_eval_config
from tests.decoder_tokenizers import write_tiny_sentencepiece
from tests.fuzz import samples
from tests.fuzz.runner import OUTPUT, Parser
from tests.launching import TICKETS
from train.checkpointing.checkpoint import load_rng, newest_complete, read_state
from train.parallel.mesh import MeshShape
from train.resolve import load_config as load_train_config

TEXT = samples.TEXT
WORDS = samples.WORDS
OPTIONS = {"train": load_train_config, "eval": load_eval_config, "predict": load_predict_config}


def load(folder: Path, task: str = "") -> Classifier:
    return Classifier.load(folder, task=task, device="cpu", precision="fp32")


def read_sums(file: Path) -> None:
    """As every program compares a folder with its checksums."""
    check_small_files(file.parent)
    find_damage(file.parent)


def read_checkpoint(file: Path) -> None:
    """As ``predict.py`` and ``inspect`` read an export."""
    inspect(file.parent)
    load(file.parent)


def read_prompt(file: Path) -> None:
    load(file.parent)(["the printer is on fire"])


def read_meta(file: Path) -> None:
    inspect(file.parent)
    load(file.parent, task=str(TICKETS))
    convert(file.parent, file.parent.parent / OUTPUT)


def read_run(file: Path) -> None:
    """As ``--resume`` finds a checkpoint, and as ``inspect`` and ``predict.py`` read one."""
    newest_complete(file.parent.parent)
    inspect(file.parent)
    load(file.parent)
    if file.name.startswith("rng_"):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            load_rng(file.parent, read_state(file.parent), MeshShape(shard=1).describe())
        finally:
            dist.destroy_process_group()


def read_gguf(file: Path) -> None:
    inspect(file)
    convert(file, file.parent / OUTPUT)
    load_tokenizer(file.parent / OUTPUT).encode(TEXT)


def read_decoder_tokenizer(file: Path) -> None:
    tokenizer = load_tokenizer(file.parent)
    pick_template("auto", tokenizer, "plain")
    ids = tokenizer.encode(TEXT)
    tokenizer.decode([*ids, 0, tokenizer.vocab_size - 1, tokenizer.vocab_size])
    tokenizer.save(file.parent / OUTPUT)


def read_encoder_tokenizer(file: Path) -> None:
    tokenizer = load_encoder_tokenizer(file.parent)
    tokenizer.encode(TEXT)
    tokenizer.encode_words(WORDS)
    tokenizer.save(file.parent.parent / OUTPUT, 48)


def read_newsgroups(file: Path) -> None:
    load_examples("20ng", "train", file)


def read_massive(file: Path) -> None:
    load_examples("massive", "train", file)


def read_custom(file: Path) -> None:
    task = get_task(file.parent / "task.toml")
    for split in ("train", "dev", "test"):
        load_examples(task, split)


def read_input(file: Path) -> None:
    with open_input(file) as table:
        for _ in table.rows:
            pass


def read_saved(file: Path) -> None:
    with open_table(file.parent, "arrow") as table:
        for _ in table.records:
            pass


def read_options(file: Path) -> None:
    OPTIONS[file.parent.name](["--config", str(file)])


def read_scored(file: Path) -> None:
    intent, slots = file.parent.parent / "intent", file.parent.parent / "slots"
    out = file.parent.parent / OUTPUT
    compare([intent, slots], markdown_file=out / "compared.md")
    combine(intent, slots, out / "dual")
    compare([file.parent, out / "dual"], winner=file.parent)


def read_answer(file: Path) -> None:
    text = file.read_text("utf-8", "replace")
    name = file.name.split(".")[0]
    for slot_answer in ("list", "bio", "spans") if "slots" in name or name == "massive_joint" else (None,):
        task = get_task(name, slot_answer=slot_answer)
        read_leniently(task, text, WORDS, task.read(text, WORDS))


BOTH = ("decoder", "encoder")
RUNS = {name: f"{name}/{samples.STEP}" for name in ("tickets", "joint")}

PARSERS = {
    parser.name: parser
    for parser in (
        Parser(
            "config.json",
            samples.write_both,
            ("decoder/config.json", "decoder/generation_config.json", "encoder/config.json"),
            read_checkpoint,
        ),
        Parser(
            "tokenizer.json",
            samples.write_json_tokenizer,
            ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
            read_decoder_tokenizer,
        ),
        Parser("results.json", samples.write_scored, ("intent/results.json", "slots/results.json"), read_scored),
        Parser(
            "predictions.jsonl",
            samples.write_scored,
            ("intent/predictions.jsonl", "slots/predictions.jsonl"),
            read_scored,
        ),
        Parser("prompt.json", samples.write_decoder, ("prompt.json",), read_prompt),
        Parser("task.json", samples.write_decoder, (TASK_FILE,), read_prompt),
        Parser("calibration.json", samples.write_calibrated, (CALIBRATION_FILE,), read_prompt),
        Parser("run.json", samples.write_run, tuple(f"{run}/run.json" for run in RUNS.values()), read_run),
        Parser(
            "training_checkpoint",
            samples.write_run,
            (
                *(f"{run}/.metadata" for run in RUNS.values()),
                f"{RUNS['tickets']}/__0_0.distcp",
                f"{RUNS['joint']}/rng_00000.pt",
            ),
            read_run,
        ),
        Parser("pth", samples.write_meta, ("meta/consolidated.00.pth",), read_meta),
        Parser("params.json", samples.write_meta, ("meta/params.json",), read_meta),
        Parser("gguf", samples.write_gguf, ("model.gguf",), read_gguf),
        Parser(
            "safetensors", samples.write_both, tuple(f"{model}/model.safetensors" for model in BOTH), read_checkpoint
        ),
        Parser("safetensors_index", samples.write_shards, ("decoder/model.safetensors.index.json",), read_checkpoint),
        Parser("checksums.json", samples.write_with_checksums, ("checksums.json",), read_sums),
        Parser("bin", samples.write_bin, tuple(f"{model}/pytorch_model.bin" for model in BOTH), read_checkpoint),
        Parser(
            "encoder_tokenizer",
            samples.write_encoder_tokenizers,
            (
                "files/vocab.json",
                "files/merges.txt",
                "files/tokenizer_config.json",
                "json/tokenizer.json",
                "bert/vocab.txt",
            ),
            read_encoder_tokenizer,
        ),
        Parser("sentencepiece", write_tiny_sentencepiece, ("tokenizer.model",), read_decoder_tokenizer),
        Parser("rank_file", samples.write_rank_file, ("tokenizer.model",), read_decoder_tokenizer),
        Parser("20ng", samples.write_newsgroups, ("20news-bydate.tar.gz",), read_newsgroups),
        Parser("massive", samples.write_massive, ("en-US.jsonl", "amazon-massive-dataset-1.1.tar.gz"), read_massive),
        Parser("custom_task", samples.write_custom, ("task.toml", "train.jsonl", "dev.csv", "test.tsv"), read_custom),
        Parser(
            "predict_input",
            samples.write_tables,
            (
                "train.jsonl",
                "dev.csv",
                "test.tsv",
                "texts.txt",
                "rows.parquet",
                "stream.arrow",
                "file.arrow",
                "list.json",
                "object.json",
                "words.conll",
                "words.conllu",
            ),
            read_input,
        ),
        Parser("saved_dataset", samples.write_saved, ("state.json", "data-0.arrow"), read_saved),
        Parser("config.toml", samples.write_options, tuple(f"{name}/config.toml" for name in OPTIONS), read_options),
        Parser("answers", samples.write_answers, samples.ANSWER_FILES, read_answer),
    )
}
"""By name; `predict_input`, `saved_dataset` and `training_checkpoint` are beyond the 21 with published figures."""
