"""An exported encoder is the same model to transformers, as far as it has a class for it, and to our own loader."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers import AutoTokenizer as HFTokenizer

from checkpoints_tools.carried import Carried
from checkpoints_tools.encoder_config import parse_encoder_config
from checkpoints_tools.export import export_hf
from checkpoints_tools.heads import UNNAMED, read_head_labels, read_max_length
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import check_fits_preset, load_pretrained
from checkpoints_tools.registry import get_model_spec
from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.files.documents import read_json
from model.encoder import ROBERTA_DEBUG, Encoder, EncoderConfig, Head
from tests.encoder_tokenizers import write_bert, write_roberta
from train.loss import label_loss

ROBERTA = replace(ROBERTA_DEBUG, max_position=40)
FAMILIES = {
    "roberta": ROBERTA,
    "bert": replace(ROBERTA, family="bert", position_offset=0, n_token_types=2, norm_eps=1e-12),
}
CLASS, TOKEN, OTHER = Head("topic", "class", 7), Head("slots", "token", 5), Head("items.type", "class", 3)
MULTI = Head("marks", "multi", 4)
HEADS = [(CLASS,), (TOKEN,), (MULTI,), (CLASS, TOKEN, MULTI), (OTHER, CLASS), ()]
LABELS = {
    "topic": [f"t{i}" for i in range(7)],
    "slots": ["O", "B-a", "I-a", "B-b", "I-b"],
    "items.type": ["x", "y", "z"],
    "marks": ["m", "n", "o", "p"],
}
ROOT = Path(__file__).parents[2]
TEXTS = ["wake me up at nine tomorrow", "what is the weather in Paris"] * 5
MAX_LENGTH = 9  # of positions for 40
WORDS = ["wake", "me", "up"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, EncoderTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "bert").mkdir()
    return {
        "roberta": load_encoder_tokenizer(write_roberta(folder, TEXTS, 280)["json"]),
        "bert": load_encoder_tokenizer(write_bert(folder / "bert", TEXTS, 280)),
    }


def random_model(config: EncoderConfig) -> Encoder:
    torch.manual_seed(5)
    model = Encoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def exported(
    family: str, head: str, heads: tuple[Head, ...], tokenizers: dict[str, EncoderTokenizer], folder: Path
) -> tuple[Encoder, EncoderConfig]:
    tokenizer = tokenizers[family]
    config = replace(FAMILIES[family], head=head, heads=heads, vocab_size=tokenizer.vocab_size + 3)
    model = random_model(config)
    export_hf(model, config, tokenizer, folder, labels=LABELS, max_length=MAX_LENGTH)
    return model, config


@torch.no_grad()
def ours(model: Encoder, tokens: torch.Tensor, field: str | None) -> torch.Tensor:
    """Hidden states, or a field's logits for a batch of equally long documents, as transformers shapes them."""
    B, T = tokens.shape
    positions, docs = torch.arange(T).expand(B, T), torch.arange(B)[:, None].expand(B, T)
    if field is None:
        return model(tokens, positions, docs)
    index = {h.name: torch.arange(B) * T if h.of_documents else torch.arange(B * T) for h in model.config.heads}
    found = model(tokens, positions, docs, index)[field]
    return found if found.shape[0] == B else found.view(B, T, -1)


def some_tokens(config: EncoderConfig) -> torch.Tensor:
    return torch.randint(4, config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2))


def test_what_the_checkpoint_says_beyond_is_carried_over(tokenizers, tmp_path):
    config = replace(FAMILIES["roberta"], heads=(CLASS,), vocab_size=tokenizers["roberta"].vocab_size)
    carried = Carried({"summary_type": "first", "use_cache": False, "num_labels": 9, "model_type": "other"})
    folder = tmp_path / "out"
    export_hf(random_model(config), config, tokenizers["roberta"], folder, labels=LABELS, max_length=9, carried=carried)
    stored = json.loads((folder / "config.json").read_text())
    assert (stored["summary_type"], stored["use_cache"]) == ("first", False)
    assert "num_labels" not in stored and stored["model_type"] == "roberta"


@pytest.mark.parametrize("head", ["linear", "dense"])
@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "-".join(head.kind for head in heads))
@pytest.mark.parametrize("family", FAMILIES)
def test_our_loader_reads_an_export_back(family, heads, head, tokenizers, tmp_path):
    model, config = exported(family, head, heads, tokenizers, tmp_path / "out")
    stored = read_config(tmp_path / "out")
    assert stored.heads == heads
    assert stored == (config if heads else replace(config, head="linear"))
    assert read_head_labels(tmp_path / "out" / "config.json") == {h.name: LABELS[h.name] for h in heads}
    again = random_model(replace(config, heads=heads))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_pretrained(again, tmp_path / "out")
    expected = dict(model.named_parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert load_encoder_tokenizer(tmp_path / "out").encode_words(WORDS) == tokenizers[family].encode_words(WORDS)


@pytest.mark.parametrize(
    ("heads", "head", "auto", "suffix"),
    [
        ((CLASS,), "dense", AutoModelForSequenceClassification, "ForSequenceClassification"),
        ((MULTI,), "dense", AutoModelForSequenceClassification, "ForSequenceClassification"),
        ((TOKEN,), "linear", AutoModelForTokenClassification, "ForTokenClassification"),
        ((TOKEN,), "dense", AutoModelForTokenClassification, "ForTokenClassification"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_logits(family, heads, head, auto, suffix, tokenizers, tmp_path):
    model, config = exported(family, head, heads, tokenizers, tmp_path / "out")
    theirs, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert type(theirs).__name__.endswith(suffix)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = some_tokens(config)
    with torch.no_grad():
        logits = theirs.eval()(tokens).logits
    torch.testing.assert_close(ours(model, tokens, heads[0].name), logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1
    labels = LABELS[heads[0].name]
    assert theirs.config.id2label == dict(enumerate(labels)) and theirs.config.label2id[labels[1]] == 1
    if heads == (MULTI,):  # its loss is the mean over the labels, ours their sum
        targets = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
        loss = theirs(tokens, labels=targets.float()).loss
        torch.testing.assert_close(label_loss(ours(model, tokens, "marks"), targets, 3), 4 * loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multi_head_that_transformers_saved(family, tokenizers, tmp_path):
    """Its config has no ``heads``: ``problem_type`` says of which kind the head is."""
    model, config = exported(family, "dense", (MULTI,), tokenizers, tmp_path / "ours")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    raw = read_json(file)
    assert raw.pop("heads") and raw["problem_type"] == "multi_label_classification"
    file.write_text(json.dumps(raw))
    stored = read_config(tmp_path / "theirs")
    assert stored.heads == (Head(UNNAMED, "multi", 4),)
    again = random_model(config)
    load_pretrained(again, tmp_path / "theirs")
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name
    for problem, kind in (("single_label_classification", "class"), (None, "class")):
        assert parse_encoder_config(raw | {"problem_type": problem}).heads[0].kind == kind
    with pytest.raises(UserError, match="problem_type is 'regression'"):
        parse_encoder_config(raw | {"problem_type": "regression"})
    with pytest.raises(UserError, match="problem_type is 'multi_label_classification'.*for words exactly one"):
        parse_encoder_config(raw | {"architectures": [raw["architectures"][0].replace("Sequence", "Token")]})


@pytest.mark.parametrize(
    ("heads", "head"), [((CLASS, TOKEN), "linear"), ((CLASS,), "linear"), ((CLASS, TOKEN), "dense")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_heads_stand_by_name_beside_the_encoder(family, heads, head, tokenizers, tmp_path):
    """Both "linear" and joint models: transformers loads the encoder, the heads are easily applied by hand."""
    model, config = exported(family, head, heads, tokenizers, tmp_path / "out")
    options = {"add_pooling_layer": False, "attn_implementation": "eager"}
    theirs, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(name.startswith(("heads.", "pooler.")) for name in report["unexpected_keys"])
    tokens = some_tokens(config)
    with torch.no_grad():
        hidden = theirs.eval()(tokens).last_hidden_state
    torch.testing.assert_close(ours(model, tokens, None), hidden, atol=1e-5, rtol=1e-5)
    if head == "linear":
        stored = load_file(tmp_path / "out" / "model.safetensors")
        logits = hidden[:, 0] @ stored["heads.topic.out.weight"].T + stored["heads.topic.out.bias"]
        torch.testing.assert_close(ours(model, tokens, "topic"), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mean", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_guides_lines_apply_the_heads(family, head, tokenizers, tmp_path):
    """What PORTING.md says of heads that transformers has no class for, run as it is written."""
    model, config = exported(family, head, (CLASS, TOKEN), tokenizers, tmp_path)
    guide = (ROOT / "checkpoints_tools/PORTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import safetensors.*?)```", guide, re.DOTALL)
    code = code.replace("heads.intent.", f"heads.{CLASS.name}.").replace("heads.slots.", f"heads.{TOKEN.name}.")
    if head == "mean":
        (mean,) = re.findall(r"# --head mean: (.*) for hidden\[:, 0\]", code)
        code = code.replace("= hidden[:, 0]", f"= {mean}")
    found = {"FOLDER": str(tmp_path), "inputs": {"input_ids": some_tokens(config)}}
    with torch.no_grad():
        exec(code, found)
    assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    assert_close(ours(model, some_tokens(config), TOKEN.name), found["slots"])
    if head != "dense":
        assert_close(ours(model, some_tokens(config), CLASS.name), found["intent"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_document_is_stored(family, tokenizers, tmp_path):
    """Where our scoring reads it, and where transformers does."""
    exported(family, "linear", (CLASS, TOKEN), tokenizers, tmp_path / "out")
    raw = read_json(tmp_path / "out" / "config.json")
    stored = read_max_length(tmp_path / "out" / "config.json")
    assert stored == AutoConfig.from_pretrained(tmp_path / "out").heads["max_length"] == MAX_LENGTH
    theirs = HFTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.model_max_length == MAX_LENGTH
    ids = theirs(" ".join(TEXTS), truncation=True)["input_ids"]
    assert ids[1:-1] == tokenizers[family].encode(" ".join(TEXTS))[: MAX_LENGTH - 2]
    before = tokenizers[family].files.get("tokenizer_config.json", b"{}")
    after = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert after == json.loads(before) | {"model_max_length": MAX_LENGTH}
    for wrong, message in (
        (2, "heads.max_length must be a whole number, at least 3; it is 2"),
        (41, "max_length is 41; it must be an integer from 3 to 40"),
        ("many", "heads.max_length must be a whole number or null; it is 'many'"),
    ):
        raw["heads"]["max_length"] = wrong
        with pytest.raises(UserError, match=message):
            parse_encoder_config(raw)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_that_lost_the_settings_of_its_tokenizer_is_refused(family, tokenizers, tmp_path):
    """Whether capitals count may be said only there."""
    _, config = exported(family, "dense", (CLASS,), tokenizers, out := tmp_path / "out")
    spec = get_model_spec(family)
    check_fits_preset(config, load_encoder_tokenizer(out), spec, out)
    (out / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="fine-tuned here .* has no tokenizer_config.json.*Restore tokenizer_config"):
        check_fits_preset(config, load_encoder_tokenizer(out), spec, out)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_of_the_folder(family, tokenizers, tmp_path):
    _, config = exported(family, "dense", (CLASS,), tokenizers, tmp_path / "out")
    theirs = AutoConfig.from_pretrained(tmp_path / "out")
    assert theirs.pad_token_id == tokenizers[family].pad_id
    assert theirs.max_position_embeddings == 40 + config.position_offset
    assert not (tmp_path / "out" / "generation_config.json").exists()
    ids = HFTokenizer.from_pretrained(tmp_path / "out")("wake me up")["input_ids"]
    assert ids[1:-1] == tokenizers[family].encode("wake me up")
    with pytest.raises(UserError, match="not empty"):
        exported(family, "dense", (CLASS,), tokenizers, tmp_path / "out")


def test_stored_in_bf16(tokenizers, tmp_path):
    config = replace(ROBERTA, heads=(CLASS, TOKEN))
    model = random_model(config)
    export_hf(model, config, tokenizers["roberta"], tmp_path / "out", torch.bfloat16, labels=LABELS)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == "bfloat16"


def test_a_fine_tuned_model_starts_another_task(tokenizers, tmp_path, caplog):
    """Heads go by field: the shared one is kept, the other is left, the new one is fresh; sizes must agree."""
    model, config = exported("roberta", "linear", (CLASS, TOKEN), tokenizers, tmp_path / "out")
    other = replace(config, heads=(CLASS, OTHER))
    with caplog.at_level("INFO"):
        again = Encoder(other)
        load_pretrained(again, tmp_path / "out")
    assert torch.equal(again.heads["topic"].out.weight, model.heads["topic"].out.weight)
    assert "heads.slots.out" in caplog.text and "heads.items_type.out.weight" in caplog.text
    with pytest.raises(UserError, match="field 'topic': More labels than the head was trained for: 8, the head has 7"):
        load_pretrained(Encoder(replace(config, heads=(replace(CLASS, n_labels=8),))), tmp_path / "out")
    with pytest.raises(UserError, match="'topic': the head gives a label to each document, not a label to each word"):
        load_pretrained(Encoder(replace(config, heads=(replace(CLASS, kind="token"),))), tmp_path / "out")
    with pytest.raises(UserError, match="'topic': the head gives a label to each document, not any number of labels"):
        load_pretrained(Encoder(replace(config, heads=(replace(CLASS, kind="multi"),))), tmp_path / "out")


def test_labels_that_are_numbers_are_read_as_text(tmp_path: Path) -> None:
    raw = {"architectures": ["BertForSequenceClassification"], "id2label": {"1": 7, "0": "a"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert list(read_head_labels(tmp_path / "config.json").values()) == [["a", "7"]]
