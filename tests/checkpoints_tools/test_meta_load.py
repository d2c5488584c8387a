"""Meta's folders straight into sharded models: each rank gets what a conversion would have given it, and no more.

This file is also the program that the ranks run (see the end).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.placement_types import _StridedShard

from checkpoints_tools.load import load_pretrained, open_checkpoint
from checkpoints_tools.registry import get_model_spec
from checkpoints_tools.slices import local_slice
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from model.llama import Llama
from tests.meta_reference import random_weights, write_meta_folder, write_rank_file
from tests.ranks import run_ranks
from train.parallel.distributed import leave_group
from train.parallel.tensor_parallel import apply_tensor_parallel


@pytest.mark.parametrize(("n_parts", "embedding_dim"), [(1, 0), (2, 1), (8, 0)])
def test_any_slice_is_that_slice_of_the_whole(tmp_path, n_parts, embedding_dim):
    source = open_checkpoint(write_meta_folder(tmp_path / "meta", random_weights(), n_parts, embedding_dim))
    draw = random.Random(0)
    for name, info in source.tensors.items():
        whole = source.read(name)[:]
        assert tuple(whole.shape) == info.shape
        for _ in range(20):
            ends = [sorted(draw.choices(range(n + 1), k=2)) for n in info.shape]
            where = tuple(slice(*end) for end in ends)
            assert torch.equal(source.read(name)[where], whole[where]), (name, where)


def test_what_one_part_holds_in_order_is_not_copied(tmp_path):
    """And of the rest, no more than the slice."""
    source = open_checkpoint(write_meta_folder(tmp_path / "meta", random_weights(), 2))
    half = source.tensors["layers.0.ffn.w1.weight"].shape[0] // 2
    wanted = source.read("layers.0.ffn.w1.weight")
    assert wanted[half : half + 8].data_ptr() == wanted.parts[1].data_ptr()
    for piece in (wanted[half - 4 : half + 4], source.read("layers.0.attention.wq.weight")[0:8]):
        assert piece.untyped_storage().nbytes() == piece.numel() * piece.element_size()


# --- what opens a folder ----------------------------------------------------------------------------------------------


def test_tokenizer_may_lie_above(tmp_path):
    """As in Meta's own download of Llama 2."""
    folder = write_meta_folder(tmp_path / "llama", random_weights())
    write_rank_file(tmp_path)
    assert tokenizer_folder(folder) == tmp_path
    assert load_tokenizer(tokenizer_folder(folder)).special["<|eot_id|>"] == 256 + 9
    write_rank_file(folder)
    assert tokenizer_folder(folder) == folder
    # Of a Hugging Face folder it lies inside or is missing.
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").unlink()
    assert tokenizer_folder(folder) == folder


def test_a_folder_around_metas_names_it(tmp_path):
    write_meta_folder(tmp_path / "original", random_weights())
    with pytest.raises(UserError, match=f"{tmp_path}/original in it is one, in Meta's format"):
        open_checkpoint(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint folder .*nowhere"):
        open_checkpoint(tmp_path / "nowhere", get_model_spec("llama3_8b"))
    folder = write_meta_folder(tmp_path / "meta", random_weights(), 2, n_layers=3)
    with pytest.raises(UserError, match=r"9 problems.*\n.*missing: layers.2.attention_norm.weight \[64\]"):
        open_checkpoint(folder)
    (folder / "params.json").unlink()
    with pytest.raises(UserError, match="no params.json"):
        open_checkpoint(folder)
    write_meta_folder(tmp_path / "other", random_weights())
    with pytest.raises(UserError, match=f"Checkpoints beside it: {tmp_path / 'other'}"):
        open_checkpoint(tmp_path / "nowhere")


def test_parts_that_cut_through_heads(tmp_path):
    """16 query heads divide over 8 parts, the 4 key heads do not: their rows could not be put in order part by part."""
    weights = random_weights()
    for i in range(2):
        for name in ("wk", "wv"):
            weights[f"layers.{i}.attention.{name}.weight"] = torch.randn(16, 64)
    folder = write_meta_folder(tmp_path / "meta", weights, 8, n_kv_heads=4)
    with pytest.raises(UserError, match=r"8 parts split heads of width 4.*layers.0.attention.wk"):
        open_checkpoint(folder)


def test_integers_are_refused(tmp_path):
    weights = random_weights()
    weights["norm.weight"] = weights["norm.weight"].to(torch.int8)
    with pytest.raises(UserError, match="stores weights as int8"):
        open_checkpoint(write_meta_folder(tmp_path / "meta", weights))


def test_another_model_is_refused(tmp_path):
    folder = write_meta_folder(tmp_path / "meta", random_weights())
    other = write_meta_folder(tmp_path / "other", random_weights(), rope_theta=600.0)  # the shapes are the same
    model = Llama(open_checkpoint(folder).config)
    with pytest.raises(UserError, match=r"rope_theta: 600.0 \(expected 500.0\)"):
        load_pretrained(model, other)


# --- sharded models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(helpers, tmp_path_factory) -> str:
    """What four ranks print; one start of them for all that needs several processes."""
    folder = tmp_path_factory.mktemp("ranks")
    write_meta_folder(folder / "rows", random_weights(), 8, 0)
    write_meta_folder(folder / "columns", random_weights(), 2, 1)
    helpers.save(helpers.random_hf_model(tie_word_embeddings=True), folder / "tied")
    tensors = load_file(folder / "tied" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][300, 0] += 1
    save_file(tensors, folder / "tied" / "model.safetensors")
    return "\n".join(run_ranks(__file__, folder, n_ranks=4))


@pytest.mark.parametrize("mesh", ["fsdp", "hybrid", "fsdp x tp", "tp"])
@pytest.mark.parametrize("folder", ["rows", "columns"])
def test_every_mesh_gets_the_same_weights(ranks, mesh, folder):
    assert ranks.count(f"{folder}, {mesh}: ok") == 4


def test_a_tied_head_is_compared_by_the_rank_that_holds_the_rows(ranks):
    """No rank compares the whole: the one with the last rows sees that the last row differs."""
    assert ranks.count("tied rows ok") == 3 and ranks.count("tied rows differ") == 1


# --- the ranks --------------------------------------------------------------------------------------------------------

MESHES = {
    "fsdp": ((4,), ("shard",)),
    "hybrid": ((2, 2), ("replicate", "shard")),
    "fsdp x tp": ((2, 2), ("shard", "tensor")),
    "tp": ((4,), ("tensor",)),
}


def sharded(folder: Path, mesh: DeviceMesh) -> Llama:
    with torch.device("meta"):
        model = Llama(open_checkpoint(folder).config)
    names = mesh.mesh_dim_names
    if "tensor" in names:
        apply_tensor_parallel(model, mesh["tensor"])
    data = tuple(name for name in names if name != "tensor")
    if data:
        for block in model.layers:
            fully_shard(block, mesh=mesh[data])
        fully_shard(model, mesh=mesh[data])
    model.to_empty(device="cpu")
    return model


def check_mesh(folder: Path, mesh: DeviceMesh) -> None:
    whole = Llama(open_checkpoint(folder).config)
    load_pretrained(whole, folder)
    model = sharded(folder, mesh)
    with torch.no_grad():
        for p in model.parameters():
            (p.to_local() if hasattr(p, "to_local") else p).fill_(float("nan"))
    load_pretrained(model, folder)
    strided = 0
    for (name, p), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        if not hasattr(p, "full_tensor"):  # tensor parallelism alone leaves embedding and norms whole
            assert torch.equal(p, expected), name
            continue
        strided += any(isinstance(placement, _StridedShard) for placement in p.placements)
        local, where = local_slice(p)
        assert torch.equal(local, expected[where]), name
        assert torch.equal(p.full_tensor(), expected), name  # PyTorch agrees on which slice is whose
    assert (strided > 0) == (mesh.mesh_dim_names == ("shard", "tensor"))


def check_tied(folder: Path, mesh: DeviceMesh) -> str:
    model = sharded(folder, mesh)
    try:
        load_pretrained(model, folder)
    except UserError as error:
        assert "ties the head" in str(error)
        return "differ"
    return "ok"


def rank_main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for name, (shape, names) in MESHES.items():
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for split_by in ("rows", "columns"):
            check_mesh(folder / split_by, mesh)
            print(f"{split_by}, {name}: ok")
    print("tied rows", check_tied(folder / "tied", init_device_mesh("cpu", (4,), mesh_dim_names=("shard",))))
    dist.barrier()
    leave_group()


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
