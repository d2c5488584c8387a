"""Sharded models: each rank reads its slice, and what is gathered again is what transformers loads, bit for bit.

This file is also the program that the ranks run (see the end).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from checkpoints_tools.export import export_hf
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import load_pretrained
from checkpoints_tools.slices import local_slice
from checkpoints_tools.writer import ShardWriter, staged_folder
from data.decoder.fewshot import PromptSpec
from data.decoder.tokenizer import load_tokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from model.encoder import ROBERTA_DEBUG, Encoder, Head
from model.llama import Llama
from tests.ranks import run_ranks
from train.parallel.distributed import leave_group

# None of its widths divides by three, and neither do its numbers of labels.
ENCODER = replace(
    ROBERTA_DEBUG, dim=40, n_heads=4, ffn_dim=50, heads=(Head("topic", "class", 7), Head("slots", "token", 5))
)
# On three ranks: 301 rows of the vocabulary and 100 of the key/value heads do not divide, and of a feed-forward
# width of 4 the third rank holds nothing.
SHAPE = dict(intermediate_size=4, vocab_size=301, num_attention_heads=5, num_key_value_heads=5, hidden_size=50)


@pytest.fixture(scope="module")
def ranks(helpers, tmp_path_factory) -> tuple[Path, str]:
    """Everything that needs several processes, in one start of them: the folder they worked in, what they printed."""
    from tests.encoder_reference import reference  # not in the ranks, as transformers is slow to import
    from tests.encoder_tokenizers import write_roberta

    folder = tmp_path_factory.mktemp("ranks")
    for name, tied in (("untied", False), ("tied", True), ("bad", False)):
        model = helpers.random_hf_model(tie_word_embeddings=tied, **SHAPE)
        helpers.save(model, folder / name, "1GB" if name == "bad" else "60KB")
    hf = reference(replace(ENCODER, heads=()))
    hf.save_pretrained(folder / "encoder")
    write_roberta(folder, ["some words"], 290)["json"].joinpath("tokenizer.json").rename(
        folder / "encoder" / "tokenizer.json"
    )
    damaged = folder / "bad" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    return folder, "\n".join(run_ranks(__file__, folder, n_ranks=3))


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_fsdp_load_and_export(ranks, helpers, name):
    from transformers import AutoModelForCausalLM  # not in the ranks, who import this file too

    folder, _ = ranks
    reference = helpers.random_hf_model(tie_word_embeddings=name == "tied", **SHAPE)
    exported = AutoModelForCausalLM.from_pretrained(folder / f"{name}-out", dtype="auto")
    tokens = helpers.tokens()
    assert torch.equal(helpers.hf(exported, tokens), helpers.hf(reference, tokens))
    assert len(list((folder / f"{name}-out").glob("*.safetensors"))) > 1
    assert (folder / f"{name}-out" / "prompt.json").is_file()
    assert not list(folder.glob(".*partial*"))


def test_an_encoder_is_the_same_on_any_number_of_ranks(ranks):
    """Fresh heads included; and its export holds what was loaded."""
    folder, _ = ranks
    alone, exported = Encoder(ENCODER), Encoder(ENCODER)
    load_pretrained(alone, folder / "encoder", seed=3)
    load_pretrained(exported, folder / "encoder-out")
    assert read_config(folder / "encoder-out") == ENCODER
    for (name, a), b in zip(alone.named_parameters(), exported.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_other_placements(ranks):
    assert ranks[1].count("placements ok") == 3


def test_a_bad_folder_fails_on_every_rank(ranks):
    """Were one rank to raise alone, the others would wait for it."""
    assert ranks[1].count("bad ok") == 3


def test_an_infinite_weight_fails_on_every_rank(ranks):
    assert ranks[1].count("infinite ok") == 3


# --- the ranks --------------------------------------------------------------------------------------------------------


def check_bad(folder: Path, mesh: DeviceMesh) -> None:
    model = Llama(read_config(folder))
    with pytest.raises(UserError, match="truncated"):
        load_pretrained(model, folder)


def check_placements(folder: Path, mesh: DeviceMesh) -> None:
    """Tensor parallelism's: by rows, by columns, replicated."""
    model = Llama(read_config(folder))
    load_pretrained(model, folder)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    places = {"attention.wo": [Shard(1)], "ffn.w2": [Shard(1)], "norm": [Replicate()]}
    for name, p in list(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        place = next((v for k, v in places.items() if k in name), [Shard(0)])
        module.weight = torch.nn.Parameter(distribute_tensor(torch.zeros_like(p), mesh, place))
    load_pretrained(model, folder)
    for name, p in model.named_parameters():
        local, where = local_slice(p)
        assert torch.equal(local, whole[name][where]), name
        assert torch.equal(p.full_tensor(), whole[name]), name


def check_fsdp(folder: Path, mesh: DeviceMesh) -> None:
    config = read_config(folder)
    with torch.device("meta"):
        model = Llama(config)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    model.to_empty(device="cpu").init_weights()
    load_pretrained(model, folder)
    sizes = {name: p.to_local().shape[0] for name, p in model.named_parameters() if isinstance(p, DTensor)}
    assert len(sizes) == len(list(model.parameters()))
    rank = dist.get_rank()
    assert sizes["embed.weight"] == (101, 101, 99)[rank]
    assert sizes["layers.0.ffn.w1.weight"] == (2, 2, 0)[rank]
    with torch.no_grad():
        model(torch.arange(8)[None])  # leaves the root's parameters gathered, in bf16
    out = folder.with_name(f"{folder.name}-out")
    tokenizer = load_tokenizer(folder)
    export_hf(model, config, tokenizer, out, None, PromptSpec("20ng_7", "plain"), shard_bytes=60_000)
    assert (out / "config.json").is_file()  # complete when any rank returns
    with pytest.raises(UserError, match="not empty"):
        export_hf(model, config, tokenizer, out)


def check_infinite(folder: Path, mesh: DeviceMesh) -> None:
    """Only rank 1 has the value that fp16 cannot store, and other ranks have none of that row."""
    with torch.device("meta"):
        model = Llama(read_config(folder))
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu").init_weights()
    load_pretrained(model, folder)
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.embed.weight.to_local()[0, 0] = 1e5
    with pytest.raises(UserError, match="model.embed_tokens.weight holds a value of size 100,000"):
        export_hf(model, model.config, load_tokenizer(folder), folder.with_name("infinite"), torch.float16)
    assert not folder.with_name("infinite").exists()


def check_encoder(folder: Path, mesh: DeviceMesh) -> None:
    with torch.device("meta"):
        model = Encoder(ENCODER)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu").init_weights()
    load_pretrained(model, folder, seed=3)
    labels = {"topic": list("abcdefg"), "slots": list("abcde")}
    export_hf(
        model,
        ENCODER,
        load_encoder_tokenizer(folder),
        folder.with_name("encoder-out"),
        None,
        labels=labels,
        shard_bytes=60_000,
    )


def rank_main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    check_bad(folder / "bad", mesh)
    print("bad ok")
    check_placements(folder / "untied", mesh)
    print("placements ok")
    check_fsdp(folder / "untied", mesh)
    check_fsdp(folder / "tied", mesh)
    check_infinite(folder / "untied", mesh)
    print("infinite ok")
    check_encoder(folder / "encoder", mesh)
    leave_group()


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))


def test_a_disk_that_fills_up_is_said_and_nothing_stays(small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"could not be written: .*No space left on device.*Free disk space"):
        with staged_folder(small_disk / "export") as staging:
            writer = ShardWriter(staging, shard_bytes=10_000_000)
            for n in range(4):
                writer.add(f"layers.{n}.w", torch.ones(2_500_000))
            writer.close()
    assert not list(small_disk.iterdir())
