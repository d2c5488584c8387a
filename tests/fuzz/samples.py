"""Valid samples for the parsers, which the fuzzer then damages. Always the same bytes: a seed must give one input.

Most are files of ``tests/old_files``. These have no checksums: a checksum would refuse nearly every damaged file before
its parser sees it.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer

from checkpoints_tools.checksums import CHECKSUMS, write_checksums
from checkpoints_tools.convert import convert, open_source
from checkpoints_tools.key_maps import LLAMA_GGUF, to_theirs
from data.decoder.fewshot import PromptSpec
from data.task_file import read_task, save_task, task_hash
from data.tasks import get_task
from eval.results import read_predictions, read_results
from eval.results import write_run as write_results
from eval.stored_calibration import Calibration, FieldCalibration, hash_prompt
from tests.launching import ROOT, TICKETS

OLD = ROOT / "tests" / "old_files"
SAMPLE = ROOT / "data" / "sample"
TEXT = "wake me up at nine am on friday, <|end|> 12345  \n\t é日本"
WORDS = "wake me up at nine am on friday".split()
STEP = "step_000094"


def copy(source: Path, target: Path, *names: str) -> Path:
    """A copy of a folder, or of some of its files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names or [path.name for path in source.iterdir() if path.is_file()]:
        shutil.copyfile(source / name, target / name)
    return target


# --- checkpoints ------------------------------------------------------------------------------------------------------


def write_decoder(folder: Path) -> None:
    """A fine-tuned decoder for a task of a user's own, with its prompt of two examples and its task."""
    save_task(get_task(TICKETS), copy(OLD / "tickets" / "export", folder))


def write_with_checksums(folder: Path) -> None:
    write_decoder(folder)
    write_checksums(folder)


def write_both(folder: Path) -> None:
    write_decoder(folder / "decoder")
    copy(OLD / "joint" / "export", folder / "encoder")


def write_shards(folder: Path) -> None:
    """The decoder in shards, with their index."""
    write_decoder(folder / "whole")
    convert(folder / "whole", folder / "decoder", shard_bytes=20_000)
    (folder / "decoder" / CHECKSUMS).unlink()  # which would refuse a damaged index before it is read
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
        step = copy(OLD / name / "checkpoints" / STEP, folder / name / STEP)
        state = json.loads((step / "run.json").read_text())
        state["config"]["checkpoint"] = str(ROOT / state["config"]["checkpoint"])
        (step / "run.json").write_text(json.dumps(state))
    save_task(get_task(TICKETS), folder / "tickets" / STEP)


def write_gguf(folder: Path) -> None:
    """The Llama of ``tests/old_files`` as llama.cpp stores one, but for the order of query and key rows."""
    source = open_source(OLD / "llama")
    config = source.config
    spec = json.loads((OLD / "llama" / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    writer = GGUFWriter(folder / "model.gguf", "llama")
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
[[fields]]
name = "topics"
type = "multi"
labels = ["late", "broken"]
separator = "|"
"""
ROWS = [
    {"id": "1", "text": "my lamp broke", "queue": "returns", "parts": ["O", "B-product", "O"],
     "topics": "broken|late"},
    {"id": "2", "text": "the desk from friday", "queue": "sales", "parts": ["O", "B-product", "O", "B-date"],
     "topics": "late"},
    {"id": "3", "text": "é日本", "queue": "sales", "parts": ["O"], "topics": ""},
]  # fmt: skip


def write_tables(folder: Path) -> None:
    """The same rows in every format."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, delimiter in (("dev.csv", ","), ("test.tsv", "\t")):
        rows = [list(ROWS[0]), *([*list(row.values())[:3], " ".join(row["parts"]), row["topics"]] for row in ROWS)]
        (folder / name).write_text("".join(delimiter.join(row) + "\n" for row in rows))
    (folder / "texts.txt").write_text("".join(str(row["text"]) + "\n" for row in ROWS))
    pq.write_table(arrow_table(), folder / "rows.parquet")
    write_arrow(folder / "stream.arrow", pa.ipc.new_stream)
    write_arrow(folder / "file.arrow", pa.ipc.new_file)
    (folder / "list.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "object.json").write_text(json.dumps({"version": 1.5, "data": ROWS}))
    sentences = [list(zip(str(row["text"]).split(), row["parts"], strict=True)) for row in ROWS]
    lines = ["".join(f"{word}\tX\t{tag}\n" for word, tag in sentence) for sentence in sentences]
    (folder / "words.conll").write_text("-DOCSTART- X O\n\n# id 1\n" + "\n".join(lines))
    rest = "\t_" * 7
    universal = ["".join(f"{i}\t{word}\t{tag}{rest}\n" for i, (word, tag) in enumerate(s, 1)) for s in sentences]
    (folder / "words.conllu").write_text("# sent_id = 1\n" + "\n# text = x\n".join(universal))


def arrow_table() -> pa.Table:
    """The rows, with the numbers of two columns named as `datasets` does it."""
    names = {"_type": "ClassLabel", "names": ["returns", "sales"]}
    features = {"class": names, "classes": {"_type": "List", "feature": names}}
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = [row | {"class": i % 2, "classes": [0, 1]} for i, row in enumerate(ROWS)]
    return pa.Table.from_pylist(rows).replace_schema_metadata(told)


def write_arrow(path: Path, new_writer: Callable[..., Any]) -> None:
    table = arrow_table()
    with new_writer(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=2)


def write_saved(folder: Path) -> None:
    """As `datasets` saves it, in two files."""
    names = ["data-0.arrow", "data-1.arrow"]
    for name in names:
        write_arrow(folder / name, pa.ipc.new_stream)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def write_custom(folder: Path) -> None:
    write_tables(folder)
    (folder / "task.toml").write_text(TASK)


# --- options, results, answers ----------------------------------------------------------------------------------------


OPTIONS = {
    "eval": 'model = "llama"\ncheckpoint = "x"\ntask = "20ng_joint"\nlimit = 5\nwording = "clean"\ntp = 1\n',
    "predict": 'checkpoint = "x"\ninput = "a.csv"\noutput = "b.csv"\ntext_column = "text"\nrow_length = 100\n',
}


def write_options(folder: Path) -> None:
    """A ``config.toml`` for each program."""
    copy(OLD / "tickets", folder / "train", "config.toml")
    for name, text in OPTIONS.items():
        (folder / name).mkdir()
        (folder / name / "config.toml").write_text(text)


def write_scored(folder: Path) -> None:
    """Scored runs of two tasks over the same examples: their answers can be compared and combined."""
    for name in ("intent", "slots"):
        copy(OLD / "scored" / name, folder / name)
    results, predictions = read_results(folder / "intent"), read_predictions(folder / "intent")
    labels = sorted({*(str(prediction.gold["intent"]) for prediction in predictions), "another"})
    for prediction in predictions:  # as newer ones
        prediction.top = {"intent": [[labels[0], 0.7], [labels[1], 0.2]]}
        prediction.log_probs = {"intent": [-0.5, *(-float(i) for i in range(1, len(labels)))]}
    results.labels, results.settings = {"intent": labels}, results.settings | {"temperature": {"intent": 1.5}}
    write_results(folder / "intent", results, predictions)


def write_calibrated(folder: Path) -> None:
    """An export with a calibration."""
    write_decoder(folder)
    task = read_task(folder)
    assert task is not None
    made = {"task": task_hash(task), "prompt": hash_prompt(PromptSpec.load(folder).build(task))}
    fields = {field.name: FieldCalibration(1.5, 0.2, 0.1) for field in task.fields}
    Calibration(1, fields, 9, "dev", "", **made).save(folder)


ANSWERS = {
    "massive_intent": "alarm_set",
    "massive_slots": json.dumps(["Other"] * 4 + ["time", "time", "Other", "date"]),
    "massive_joint": json.dumps({"intent": "alarm_set", "slots": ["Other"] * 4 + ["time", "time", "Other", "date"]}),
    "20ng_joint": json.dumps({"root": "sci", "group": "sci.med"}),
}


# The answer alone, and in a code fence after a sentence.
ANSWER_FILES = tuple(f"{name}{ending}" for name in ANSWERS for ending in (".answer", ".fenced"))


def write_answers(folder: Path) -> None:
    for name, answer in ANSWERS.items():
        (folder / f"{name}.answer").write_text(answer)
        (folder / f"{name}.fenced").write_text(f"Here it is:\n```json\n{answer}\n```\n")
