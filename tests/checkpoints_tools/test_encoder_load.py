"""RoBERTa and BERT folders as transformers saves them give its numbers; heads that are not there start fresh."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from checkpoints_tools.architectures import ARCHITECTURES
from checkpoints_tools.convert import convert
from checkpoints_tools.encoder_config import parse_encoder_config, to_hf_encoder_config
from checkpoints_tools.folder import check_folder
from checkpoints_tools.heads import UNNAMED
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.inspect import inspect
from checkpoints_tools.json_files import write_json
from checkpoints_tools.load import check_fits_preset, load_pretrained, open_checkpoint
from checkpoints_tools.registry import get_model_spec
from data.errors import UserError
from data.files.documents import read_json
from data.tasks import ClassField, Task
from model.encoder import ROBERTA_DEBUG, Encoder, EncoderConfig, Head
from tests.encoder_reference import CLASSES, our_name, reference, scaled_down

ROBERTA = scaled_down(ROBERTA_DEBUG)
BERT = replace(ROBERTA, family="bert", position_offset=0, n_token_types=2, norm_eps=1e-12)
FAMILIES = {"roberta": ROBERTA, "bert": BERT}
TOPIC, SLOTS = Head("topic", "class", 7), Head("slots", "token", 5)


def build(config: EncoderConfig, seed: int = 0) -> Encoder:
    """As training does: on the meta device, then materialized."""
    with torch.device("meta"):
        model = Encoder(config)
    model.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(100 + seed))
    return model.eval()


def loaded(folder: Path, config: EncoderConfig, seed: int = 0) -> Encoder:
    model = build(config, seed)
    load_pretrained(model, folder, seed=seed)
    return model


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def same_encoder(model: Encoder, hf: PreTrainedModel) -> bool:
    """Whether every tensor below the heads is the reference's, bit for bit."""
    base = getattr(hf, hf.base_model_prefix, hf)
    theirs = {our_name(name, ""): tensor for name, tensor in base.state_dict().items()}
    ours = {n: p for n, p in model.state_dict().items() if not n.startswith("heads.")}
    assert len(ours) > 30
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture
def bare(tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    hf = reference(ROBERTA)
    return saved(hf, tmp_path / "bare"), hf


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_encoder_equals_transformers(family, tmp_path):
    config = FAMILIES[family]
    hf = reference(config)
    folder = saved(hf, tmp_path)
    assert read_config(folder) == config
    model = loaded(folder, config)
    tokens = torch.randint(2, 97, (3, 20))
    ids = torch.arange(3)[:, None].expand(3, 20)
    with torch.no_grad():
        ours = model(tokens, torch.arange(20).expand(3, 20), ids)
        torch.testing.assert_close(ours, hf(tokens).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert same_encoder(model, hf)


@pytest.mark.parametrize(("kind", "head"), [("class", "dense"), ("token", "linear")])
@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuned_heads_are_read(family, kind, head, tmp_path):
    config = replace(FAMILIES[family], heads=(Head("mood", kind, 4),), head=head)
    hf = reference(config)
    folder = saved(hf, tmp_path)
    assert read_config(folder) == replace(config, heads=(Head(UNNAMED, kind, 4),))
    model = loaded(folder, config)  # the only head of its kind: it is the task's field
    tokens = torch.randint(2, 97, (1, 20))
    index = {"mood": torch.tensor([0]) if kind == "class" else torch.arange(20)}
    with torch.no_grad():
        ours = model(tokens, torch.arange(20)[None], torch.zeros(1, 20, dtype=torch.int64), index)["mood"]
        torch.testing.assert_close(ours, hf(tokens).logits.view_as(ours), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "name", "gone"),
    [
        ("roberta", "RobertaForMaskedLM", "lm_head"),
        ("bert", "BertForMaskedLM", "cls.predictions"),
        ("bert", "BertForPreTraining", "bert.pooler.dense"),
        ("roberta", "RobertaModel", "pooler.dense"),
    ],
)
def test_pretraining_heads_are_left_and_ours_start_fresh(family, name, gone, tmp_path, caplog):
    config = replace(FAMILIES[family], heads=(TOPIC, SLOTS))
    torch.manual_seed(0)
    hf = getattr(transformers, name)(reference(FAMILIES[family]).config)
    folder = saved(hf, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    prefix = "" if name.endswith("Model") else f"{family}."
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(24)[None]  # as older versions stored it
    save_file(tensors, path)
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.INFO):
        model = loaded(folder, config)
    said = [m for m in caplog.messages if m.startswith("not read")]
    assert len(said) == 1 and gone in said[0] and "position_ids" in said[0]
    fresh = [m for m in caplog.messages if m.startswith("fresh")]
    assert len(fresh) == 1 and "heads.topic.out.weight" in fresh[0] and "heads.slots.out.bias" in fresh[0]
    assert same_encoder(model, hf)
    assert torch.equal(torch.random.get_rng_state(), state)
    head = model.heads["topic"].out
    assert 0.01 < head.weight.std() < 0.03 and not head.bias.any()
    again, other = loaded(folder, config), loaded(folder, config, seed=1)
    assert torch.equal(again.heads["topic"].out.weight, head.weight)
    assert not torch.equal(other.heads["topic"].out.weight, head.weight)


@pytest.mark.parametrize(
    ("family", "name", "shared"),
    [
        ("roberta", "RobertaForMaskedLM", "lm_head.decoder.weight"),
        ("bert", "BertForMaskedLM", "cls.predictions.decoder.weight"),
    ],
)
def test_an_embedding_that_is_stored_under_its_heads_name(family, name, shared, tmp_path):
    config = replace(FAMILIES[family], heads=(TOPIC,))
    torch.manual_seed(0)
    hf = getattr(transformers, name)(reference(FAMILIES[family]).config)
    path = saved(hf, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors.pop(f"{family}.embeddings.word_embeddings.weight")
    save_file(tensors | {shared: embedding}, path)
    assert same_encoder(loaded(tmp_path, config), hf)
    save_file(tensors, path)
    with pytest.raises(UserError, match="missing: embed.tokens.weight"):
        loaded(tmp_path, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_on_every_name_is_said(family, tmp_path):
    config = replace(FAMILIES[family], heads=(Head("mood", "class", 4),), head="dense")
    path = saved(reference(config), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(UserError, match=rf"\(1 problem\):\n  - {len(tensors)} names have '_orig_mod.' in front"):
        loaded(tmp_path, config)


def test_berts_pooler_is_read_where_it_is_used_and_fresh_where_it_was_not_saved(tmp_path, caplog):
    config = replace(BERT, heads=(TOPIC,), head="dense")
    hf = transformers.BertModel(reference(BERT).config)
    model = loaded(saved(hf, tmp_path / "with"), config)
    assert torch.equal(model.pooler.weight, hf.pooler.dense.weight)
    with caplog.at_level(logging.INFO):
        model = loaded(saved(reference(BERT), tmp_path / "without"), config)
    assert "pooler.weight" in caplog.text and 0.01 < model.pooler.weight.std() < 0.03


def test_tensorflows_names(tmp_path):
    hf = reference(BERT)
    path = saved(hf, tmp_path) / "model.safetensors"
    renamed = {
        f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in load_file(path).items()
    }
    assert any(name.endswith("gamma") for name in renamed)
    save_file(renamed, path)
    assert same_encoder(loaded(tmp_path, BERT), hf)


@pytest.mark.parametrize("ending", ["archive", "legacy", "sharded", "sharded, no index"])
def test_pytorch_files(ending, tmp_path, bare):
    folder, hf = bare
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"none of the weights")
    if ending.startswith("sharded"):
        where = {name: f"pytorch_model-0000{1 + k % 2}-of-00002.bin" for k, name in enumerate(tensors)}
        for file in set(where.values()):
            torch.save({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
        if ending == "sharded":  # else the files' numbers alone say that all are there
            index = {"metadata": {}, "weight_map": where}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        archive = ending == "archive"
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    assert same_encoder(loaded(folder, ROBERTA), hf)
    if ending.startswith("sharded"):
        (folder / "pytorch_model-00002-of-00002.bin").unlink()
        with pytest.raises(UserError, match="1 of its 2 weight files are missing: pytorch_model-00002-of-00002.bin"):
            check_folder(folder)


def test_damaged_and_dangerous_pytorch_files(bare):
    folder, hf = bare
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    for archive in (True, False):
        torch.save(hf.state_dict(), path, _use_new_zipfile_serialization=archive)
        for keep in (0.999, 0.5, 0.01):
            whole = path.read_bytes()
            path.write_bytes(whole[: int(keep * len(whole))])
            with pytest.raises(UserError, match="pytorch_model.bin.*(truncated|damaged)"):
                check_folder(folder)
            path.write_bytes(whole)
    for content, word in ((b"", "empty"), (b"version https://git-lfs", "git lfs pull"), (b"x" * 100, "damaged")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=word):
            check_folder(folder)
    torch.save({"code": print}, path)
    with pytest.raises(UserError, match="more than tensors"):
        check_folder(folder)
    torch.save([torch.ones(1)], path)
    with pytest.raises(UserError, match="no dict of tensors"):
        check_folder(folder)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "word"), [(9, "More"), (3, "Fewer")])
def test_another_number_of_labels(n, word, tmp_path):
    config = replace(ROBERTA, heads=(Head("mood", "class", 4),), head="dense")
    folder = saved(reference(config), tmp_path)
    with pytest.raises(UserError, match=f"{word} labels than the head was trained for: {n}, the head has 4"):
        loaded(folder, replace(config, heads=(Head("mood", "class", n),)))
    with pytest.raises(UserError, match="--head dense"):
        loaded(folder, replace(config, head="linear"))


def test_a_head_of_another_kind_is_left(tmp_path, caplog):
    config = replace(ROBERTA, heads=(Head("mood", "class", 4),), head="dense")
    folder = saved(reference(config), tmp_path)
    with caplog.at_level(logging.INFO):
        loaded(folder, replace(config, heads=(SLOTS,)))
    assert "classifier.out_proj" in caplog.text and "heads.slots.out.weight" in caplog.text


def test_other_architectures_and_sizes(tmp_path, bare, hf_folder, helpers):
    folder, _ = bare
    llama, _ = hf_folder()
    bert = saved(reference(BERT), tmp_path / "bert")
    with pytest.raises(UserError, match="architecture: llama"):
        loaded(llama, ROBERTA)
    with pytest.raises(UserError, match="architecture: bert"):
        loaded(bert, ROBERTA)
    with pytest.raises(UserError, match="dim: 24 .expected 32"):
        loaded(folder, replace(ROBERTA, dim=32, n_heads=4))
    with pytest.raises(UserError, match="max_position: 24 .expected 512"):
        loaded(folder, replace(ROBERTA, max_position=512))
    with pytest.raises(UserError, match="'roberta' architecture, .* train.py --checkpoint reads it"):
        convert(folder, tmp_path / "converted")
    inspect(folder)
    with pytest.raises(UserError, match="--model roberta takes any"):
        check_fits_preset(read_config(folder), None, get_model_spec("llama3_8b"), folder, allow_mismatch=True)
    with pytest.raises(UserError, match="--model bert takes any"):
        check_fits_preset(read_config(bert), None, get_model_spec("roberta"), bert)
    with pytest.raises(UserError, match="n_layers: 2 .expected 24"):
        check_fits_preset(read_config(folder), None, get_model_spec("roberta_large"), folder)


def test_missing_and_unexpected_tensors_are_named_and_a_truncated_file_is_refused(bare):
    folder, _ = bare
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.7.attention.self.query.weight"] = torch.ones(2, 2)
    tensors["classifier.weight"] = torch.ones(2, 2)
    del tensors["embeddings.LayerNorm.bias"]
    tensors["embeddings.position_embeddings.weight"] = torch.ones(20, 24)
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        loaded(folder, ROBERTA)
    for part in (
        "missing: embed.norm.bias",
        "unexpected: layers.7.attention.wq.weight",
        "unexpected: classifier.weight",
        "embed.positions.weight is [20, 24], the config says [26, 24]",
    ):
        assert part in str(error.value)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        loaded(folder, ROBERTA)
    with pytest.raises(UserError, match="To download, for example: hf download google-bert"):
        check_folder(folder / "nowhere", get_model_spec("bert"))


TWICE = {"name": "a", "kind": "class", "labels": ["x"]}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"architectures": ["RobertaForQuestionAnswering"]}, "RobertaForQuestionAnswering"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"is_causal": True}, "is_causal"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"num_attention_heads": 5}, "24 is not a multiple of num_attention_heads 5"),
        ({"max_position_embeddings": 2}, "no document fits"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob must be a number, below 1; it is 1"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number; it is 'many'"),
        ({"heads": {"head": "linear"}}, "heads.fields is missing"),
        ({"heads": {"head": "round", "fields": []}}, "heads.head: Invalid enum value 'round'"),
        ({"heads": {"head": "linear", "fields": [3]}}, r"heads.fields\[0\] must be an object; it is 3"),
        ({"heads": {"head": "linear", "fields": [TWICE, TWICE]}}, "two fields of one name"),
        ({"architectures": 0.5}, "architectures must be a list; it is 0.5"),
        ({"architectures": ["RobertaForTokenClassification"], "id2label": {"1": "a"}}, "numbers from 0 to 0"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be a whole number, at most"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be a whole number, at most 1,000"),
        ({"architectures": ["RobertaForSequenceClassification"], "problem_type": "regression"}, "regression"),
    ],
)
def test_each_contradiction(changes, part, bare):
    raw = read_json(bare[0] / "config.json")
    with pytest.raises(UserError, match=part):
        parse_encoder_config({**raw, **changes})
    assert parse_encoder_config(raw) == ROBERTA


def test_a_config_of_another_size_is_refused_before_memory_is_allocated(bare):
    folder, _ = bare
    raw = read_json(folder / "config.json") | {"vocab_size": 2**24, "hidden_size": 2**20, "num_attention_heads": 2}
    write_json(folder / "config.json", raw)
    with pytest.raises(UserError, match=r"wrong shape: embed.tokens.weight is .* the config says .16777216, 1048576."):
        open_checkpoint(folder)


def test_contradictions_are_reported_together(bare):
    raw = read_json(bare[0] / "config.json")
    with pytest.raises(UserError) as error:
        parse_encoder_config({**raw, "num_attention_heads": 5, "layer_norm_eps": 0, "intermediate_size": None}, "here")
    for part in (
        "here",
        "num_attention_heads 5",
        "layer_norm_eps must be a number, above 0",
        "intermediate_size must be",
    ):
        assert part in str(error.value)


def test_the_real_checkpoint(minilm_folder, caplog):
    config = replace(read_config(minilm_folder), heads=(TOPIC, SLOTS))
    assert (config.family, config.dim, config.n_layers, config.max_position) == ("bert", 384, 6, 512)
    with caplog.at_level(logging.INFO):
        model = loaded(minilm_folder, config)
    assert CLASSES["bert"][1].__name__ == "BertModel"
    assert same_encoder(model, CLASSES["bert"][1].from_pretrained(minilm_folder))


COLOURS = Task("colours", "custom", (ClassField("shade", ("red", "green", "blue")),))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["red", "green", "blue"], None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (["green", "red", "blue"], "their order differs"),
        (["red", "green", "violet"], "only one of the two has violet, blue"),
    ],
)
def test_training_goes_on_only_from_a_head_that_numbers_the_labels_as_the_task(labels, problem, tmp_path):
    config = replace(BERT, heads=(Head("shade", "class", 3),))
    write_json(tmp_path / "config.json", to_hf_encoder_config(config, torch.float32, {"shade": labels}))

    def with_task():
        return ARCHITECTURES["bert"].with_task(read_config(tmp_path), COLOURS, config.head, tmp_path)

    if problem is None:
        assert with_task().heads == config.heads
        return
    with pytest.raises(UserError, match=f"field 'shade' are not those of task colours: {problem}") as error:
        with_task()
    assert ", ".join(labels) in str(error.value) and "before fine-tuning" in str(error.value)


def test_a_head_for_entirely_other_labels_is_taken_by_number_and_the_log_says_so(tmp_path, caplog):
    config = replace(BERT, heads=(Head(UNNAMED, "class", 3),), head="dense")
    raw = to_hf_encoder_config(config, torch.float32, {UNNAMED: ["sad", "glad", "neither"]})
    del raw["heads"]  # as others write it
    write_json(tmp_path / "config.json", raw)
    assert ARCHITECTURES["bert"].with_task(read_config(tmp_path), COLOURS, "dense", tmp_path).heads[0].name == "shade"
    assert "is for other labels (sad, glad, neither, ...)" in caplog.text
