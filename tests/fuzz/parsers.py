"""The parsers under test: for each a valid sample, the files of it to mutate, and the product's way to read it.

The samples are those of ``tests/old_files`` where there is one. They have no checksums: a checksum would refuse nearly
every mutated file before its parser sees it.

Readers call what the programs call, so that a wrong value that the parser lets pass is found where it is used. This is
the only file here that names functions of the product.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer

from checkpoints_tools.convert import convert, open_source
from checkpoints_tools.inspect import inspect
from checkpoints_tools.key_maps import LLAMA_GGUF, to_theirs
from data.decoder.templates import pick_template
from data.decoder.tokenizer import load_tokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.lenient import read_leniently
from data.source import load_examples
from data.task_file import TASK_FILE, save_task
from data.tasks import get_task
from eval.combine import combine
from eval.predict.classifier import Classifier
from eval.predict.config import load_config as load_predict_config
from eval.predict.inputs import open_input
from eval.report import compare
from eval.resolve import load_config as load_eval_config
from tests.data.conftest import write_tiny_sentencepiece
from tests.fuzz.runner import OUTPUT, ROOT, Parser
from train.checkpointing.checkpoint import newest_complete
from train.resolve import load_config as load_train_config

OLD = ROOT / "tests" / "old_files"
SAMPLE = ROOT / "data" / "sample"
TEXT = "wake me up at nine am on friday, <|end|> 12345  \n\t é日本"
WORDS = "wake me up at nine am on friday".split()


def copy(source: Path, target: Path, *names: str) -> Path:
    """A copy of a folder, or of some of its files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names or [path.name for path in source.iterdir() if path.is_file()]:
        shutil.copyfile(source / name, target / name)
    return target


# --- checkpoints ------------------------------------------------------------------------------------------------------


def write_decoder(folder: Path) -> None:
    """A fine-tuned decoder for a task of a user's own, with its prompt of two examples and its task."""
    save_task(get_task(OLD / "data" / "tickets" / "tickets.toml"), copy(OLD / "tickets" / "export", folder))


def write_both(folder: Path) -> None:
    write_decoder(folder / "decoder")
    copy(OLD / "joint" / "export", folder / "encoder")


def write_shards(folder: Path) -> None:
    """The decoder in shards, with their index."""
    write_decoder(folder / "whole")
    convert(folder / "whole", folder / "decoder", shard_bytes=20_000)
    shutil.rmtree(folder / "whole")


def write_bin(folder: Path) -> None:
    write_both(folder)
    for model in (folder / "decoder", folder / "encoder"):
        torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
        (model / "model.safetensors").unlink()


def write_meta(folder: Path) -> None:
    copy(OLD / "meta", folder / "meta")


def write_run(folder: Path) -> None:
    """Training checkpoints of a decoder and an encoder, whose tokenizers are where their runs started."""
    for name in ("tickets", "joint"):
        step = copy(OLD / name / "checkpoints" / "step_000094", folder / name / "step_000094")
        state = json.loads((step / "run.json").read_text())
        state["config"]["checkpoint"] = str(ROOT / state["config"]["checkpoint"])
        (step / "run.json").write_text(json.dumps(state))
    save_task(get_task(OLD / "data" / "tickets" / "tickets.toml"), folder / "tickets" / "step_000094")


def write_gguf(folder: Path) -> None:
    """The Llama of ``tests/old_files`` as llama.cpp stores one, but for the order of query and key rows."""
    source = open_source(OLD / "llama")
    config = source.config
    spec = json.loads((OLD / "llama" / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_eos_token_id(0)
    for name in source.tensors:
        writer.add_tensor(to_theirs(name, LLAMA_GGUF), source.read(name)[:].float().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder: Path, task: str = "") -> Classifier:
    return Classifier.load(folder, task=task, device="cpu", precision="fp32")


def read_checkpoint(file: Path) -> None:
    """As ``predict.py`` and ``inspect`` read an export."""
    inspect(file.parent)
    load(file.parent)


def read_prompt(file: Path) -> None:
    load(file.parent)(["the printer is on fire"])


def read_meta(file: Path) -> None:
    inspect(file.parent)
    load(file.parent, task=str(OLD / "data" / "tickets" / "tickets.toml"))
    convert(file.parent, file.parent.parent / OUTPUT)


def read_run(file: Path) -> None:
    """As ``--resume`` finds a checkpoint, and as ``inspect`` and ``predict.py`` read one."""
    newest_complete(file.parent.parent)
    inspect(file.parent)
    load(file.parent)


def read_gguf(file: Path) -> None:
    inspect(file)
    convert(file, file.parent / OUTPUT)
    load_tokenizer(file.parent / OUTPUT).encode(TEXT)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def write_json_tokenizer(folder: Path) -> None:
    """With an added token that is special, one that is not, and one that is a run of spaces."""
    copy(OLD / "llama", folder, "tokenizer.json")
    spec = json.loads((folder / "tokenizer.json").read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    size = len(spec["model"]["vocab"])
    spec["added_tokens"] += [plain | {"id": size + i, "content": text} for i, text in enumerate(("<tool>", "    "))]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    ids = {"0": {"content": "<|end|>", "special": True}}
    config = {"eos_token": "<|end|>", "bos_token": None, "chat_template": "{{ messages }}", "added_tokens_decoder": ids}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    (folder / "added_tokens.json").write_text('{"<|end|>": 0}')


def write_rank_file(folder: Path) -> None:
    copy(OLD / "meta", folder, "tokenizer.model")


def write_encoder_tokenizers(folder: Path) -> None:
    """A byte-level BPE as two files and as one, and a WordPiece vocabulary."""
    files = copy(OLD / "roberta", folder / "files", "vocab.json", "merges.txt")
    (files / "tokenizer_config.json").write_text('{"add_prefix_space": false, "cls_token": "<s>"}')
    bpe = ByteLevelBPETokenizer.from_file(str(files / "vocab.json"), str(files / "merges.txt"))
    bpe.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    (folder / "json").mkdir()
    bpe.save(str(folder / "json" / "tokenizer.json"))
    (folder / "bert").mkdir()
    letters = sorted(set(TEXT.lower()) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "wake"]
    (folder / "bert" / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces if piece.strip() == piece))


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


# --- data -------------------------------------------------------------------------------------------------------------


def write_tarball(path: Path, members: dict[str, bytes]) -> None:
    """The same bytes every time: a seed must give the same input on every machine."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(file.getvalue(), mtime=0))


def write_newsgroups(folder: Path) -> None:
    root = SAMPLE / "20news-bydate"
    posts = sorted((root / "20news-bydate-train").glob("*/*"))[::8]
    write_tarball(folder / "20news-bydate.tar.gz", {str(post.relative_to(root)): post.read_bytes() for post in posts})


def write_massive(folder: Path) -> None:
    lines = b"".join((SAMPLE / "massive" / "en-US.jsonl").read_bytes().splitlines(keepends=True)[:40])
    (folder / "en-US.jsonl").write_bytes(lines)
    write_tarball(folder / "amazon-massive-dataset-1.1.tar.gz", {"1.1/data/en-US.jsonl": lines})


TASK = """
name = "mail"
document_name = "Mail"
instruction = "Sort it."
text_column = "text"
id_column = "id"
[files]
train = "train.jsonl"
dev = "dev.csv"
test = "test.tsv"
[[fields]]
name = "queue"
type = "class"
labels_from = "train"
[[fields]]
name = "parts"
type = "token"
labels = ["product", "date"]
tags = "iob2"
answer = "spans"
"""
ROWS = [
    {"id": "1", "text": "my lamp broke", "queue": "returns", "parts": ["O", "B-product", "O"]},
    {"id": "2", "text": "where is the desk from friday", "queue": "sales", "parts": ["O"] * 3 + ["B-product", "O", "B-date"]},
    {"id": "3", "text": "é日本", "queue": "sales", "parts": ["O"]},
]  # fmt: skip


def write_tables(folder: Path) -> None:
    """The same rows in every format."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, delimiter in (("dev.csv", ","), ("test.tsv", "\t")):
        rows = [list(ROWS[0]), *([*list(row.values())[:3], " ".join(row["parts"])] for row in ROWS)]
        (folder / name).write_text("".join(delimiter.join(row) + "\n" for row in rows))
    (folder / "texts.txt").write_text("".join(str(row["text"]) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")


def write_custom(folder: Path) -> None:
    write_tables(folder)
    (folder / "task.toml").write_text(TASK)


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


# --- options, results, answers ----------------------------------------------------------------------------------------


def write_options(folder: Path) -> None:
    copy(OLD / "tickets", folder / "train", "config.toml")
    (folder / "eval").mkdir()
    (folder / "eval" / "eval.toml").write_text(
        'model = "llama"\ncheckpoint = "x"\ntask = "20ng_joint"\nlimit = 5\nwording = "clean"\ntp = 1\n'
    )
    (folder / "predict").mkdir()
    (folder / "predict" / "predict.toml").write_text(
        'checkpoint = "x"\ninput = "a.csv"\noutput = "b.csv"\ntext_column = "text"\nrow_length = 100\n'
    )


OPTIONS = {"train": load_train_config, "eval": load_eval_config, "predict": load_predict_config}


def read_options(file: Path) -> None:
    OPTIONS[file.parent.name](["--config", str(file)])


def write_scored(folder: Path) -> None:
    """Scored runs of two tasks over the same examples: their answers can be compared and combined."""
    for name in ("intent", "slots"):
        copy(OLD / "scored" / name, folder / name)


def read_scored(file: Path) -> None:
    intent, slots = file.parent.parent / "intent", file.parent.parent / "slots"
    out = file.parent.parent / OUTPUT
    compare([intent, slots], winner=file.parent, markdown_file=out / "compared.md")
    combine(intent, slots, out / "dual")


ANSWERS = {
    "massive_intent": "alarm_set",
    "massive_slots": json.dumps(["Other"] * 4 + ["time", "time", "Other", "date"]),
    "massive_joint": json.dumps({"intent": "alarm_set", "slots": ["Other"] * 4 + ["time", "time", "Other", "date"]}),
    "20ng_joint": json.dumps({"root": "sci", "group": "sci.med"}),
}


def write_answers(folder: Path) -> None:
    """Answers, and answers in a code fence."""
    for name, answer in ANSWERS.items():
        (folder / f"{name}{'.json' if answer[0] in '{[' else '.txt'}").write_text(answer)
        (folder / f"{name}.fenced.txt").write_text(f"Here it is:\n```json\n{answer}\n```\n")


def answer_files() -> Iterator[str]:
    for name, answer in ANSWERS.items():
        yield f"{name}{'.json' if answer[0] in '{[' else '.txt'}"
        yield f"{name}.fenced.txt"


def read_answer(file: Path) -> None:
    text = file.read_text("utf-8", "replace")
    name = file.name.split(".")[0]
    for slot_answer in ("list", "bio", "spans") if "slots" in name or name == "massive_joint" else (None,):
        task = get_task(name, slot_answer=slot_answer)
        read_leniently(task, text, WORDS, task.read(text, WORDS))


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("config.json", write_both, ("decoder/config.json", "decoder/generation_config.json", "encoder/config.json"), read_checkpoint),
        Parser("tokenizer.json", write_json_tokenizer, ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), read_decoder_tokenizer),
        Parser("results.json", write_scored, ("intent/results.json", "slots/results.json"), read_scored),
        Parser("prompt.json", write_decoder, ("prompt.json",), read_prompt),
        Parser("run.json", write_run, ("tickets/step_000094/run.json", "joint/step_000094/run.json"), read_run),
        Parser("pth", write_meta, ("meta/consolidated.00.pth",), read_meta),
        Parser("gguf", write_gguf, ("model.gguf",), read_gguf),
        Parser("safetensors", write_both, ("decoder/model.safetensors", "encoder/model.safetensors"), read_checkpoint),
        Parser("predictions.jsonl", write_scored, ("intent/predictions.jsonl", "slots/predictions.jsonl"), read_scored),
        Parser("safetensors_index", write_shards, ("decoder/model.safetensors.index.json",), read_checkpoint),
        Parser("params.json", write_meta, ("meta/params.json",), read_meta),
        Parser("bin", write_bin, ("decoder/pytorch_model.bin", "encoder/pytorch_model.bin"), read_checkpoint),
        Parser("task.json", write_decoder, (TASK_FILE,), read_prompt),
        Parser("encoder_tokenizer", write_encoder_tokenizers, ("files/vocab.json", "files/merges.txt", "files/tokenizer_config.json", "json/tokenizer.json", "bert/vocab.txt"), read_encoder_tokenizer),
        Parser("sentencepiece", write_tiny_sentencepiece, ("tokenizer.model",), read_decoder_tokenizer),
        Parser("rank_file", write_rank_file, ("tokenizer.model",), read_decoder_tokenizer),
        Parser("20ng", write_newsgroups, ("20news-bydate.tar.gz",), read_newsgroups),
        Parser("massive", write_massive, ("en-US.jsonl", "amazon-massive-dataset-1.1.tar.gz"), read_massive),
        Parser("custom_task", write_custom, ("task.toml", "task.toml", "train.jsonl", "dev.csv", "test.tsv"), read_custom),
        Parser("config.toml", write_options, ("train/config.toml", "eval/eval.toml", "predict/predict.toml"), read_options),
        Parser("answers", write_answers, tuple(answer_files()), read_answer),
        Parser("predict_input", write_tables, ("train.jsonl", "dev.csv", "test.tsv", "texts.txt", "rows.parquet"), read_input),
        Parser("training_checkpoint", write_run, ("tickets/step_000094/.metadata", "tickets/step_000094/__0_0.distcp", "joint/step_000094/.metadata", "joint/step_000094/rng_00000.pt"), read_run),
    )
}  # fmt: skip
"""By name."""
