"""Our encoder against transformers' RoBERTa and BERT, packed against alone, and its dropout; in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, RobertaConfig, RobertaModel

import model.attention
from model.encoder import ROBERTA_BASE, ROBERTA_DEBUG, ROBERTA_LARGE, Encoder, EncoderConfig, Head
from tests.encoder_reference import PAD, our_name, ours_from, reference, scaled_down

# What the checkpoints of Devlin et al. (2019) have; there is no preset for them, they come with their config.json.
BERT_BASE = EncoderConfig(
    family="bert",
    dim=768,
    n_layers=12,
    n_heads=12,
    ffn_dim=3072,
    vocab_size=30_522,
    max_position=512,
    position_offset=0,
    n_token_types=2,
    norm_eps=1e-12,
)
PRESETS = {
    "base": ROBERTA_BASE,
    "large": ROBERTA_LARGE,
    "debug": ROBERTA_DEBUG,
    "bert": BERT_BASE,
    "large_eps": replace(BERT_BASE, norm_eps=0.3),  # the real ones are too small to show in a result
}
TOPIC, SLOTS = Head("topic", "class", 7), Head("slots", "token", 5)
# The last: "dense" concerns class heads alone.
HEADS = {"none": (None, "linear"), "linear": (TOPIC, "linear"), "dense": (TOPIC, "dense"), "mean": (TOPIC, "mean"),
         "token": (SLOTS, "dense")}  # fmt: skip

# Two packed rows of three documents and one, with padding; one document is as long as the position table of 24 allows.
LENGTHS = [[5, 24, 9], [17]]
T = 44


def packed(config: EncoderConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and doc_ids, each [2, T]; document d of row b is where doc_ids[b] == d + 1."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((len(LENGTHS), T), PAD[config.family])
    positions, doc_ids = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    for b, lengths in enumerate(LENGTHS):
        at = 0
        for doc, length in enumerate(lengths, start=1):
            tokens[b, at : at + length] = torch.randint(2, config.vocab_size, (length,), generator=generator)
            positions[b, at : at + length] = torch.arange(length)
            doc_ids[b, at : at + length] = doc
            at += length
    return tokens, positions, doc_ids


def documents(doc_ids: Tensor) -> list[Tensor]:
    """Flat places [length] of every document of the batch."""
    flat = (doc_ids + 100 * torch.arange(len(doc_ids))[:, None]).where(doc_ids > 0, -1).flatten()
    return [(flat == doc).nonzero()[:, 0] for doc in flat.unique() if doc >= 0]


def places(config: EncoderConfig, doc_ids: Tensor) -> dict[str, Tensor]:
    """First tokens for class fields; every second token, as if words had two sub-words, for token fields."""
    docs = documents(doc_ids)
    index = {"class": torch.stack([d[0] for d in docs]), "token": torch.cat([d[1:-1:2] for d in docs])}
    return {head.name: index[head.kind] for head in config.heads}


@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("preset", PRESETS)
def test_packed_rows_equal_transformers_on_each_document(
    preset: str, head: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits (or hidden states) and every gradient."""
    monkeypatch.setattr(model.attention, "ENCODER_CHUNK_CPU", chunk)
    field, style = HEADS[head]
    config = scaled_down(PRESETS[preset], *([field] if field else []), head=style)
    hf = reference(config)
    ours = ours_from(hf, config)
    tokens, positions, doc_ids = packed(config)
    docs = documents(doc_ids)
    assert len(docs) == 4 and (doc_ids == -1).any()

    alone = [hf(tokens.flatten()[doc][None], output_hidden_states=True) for doc in docs]
    if field is None:
        outputs = ours(tokens, positions, doc_ids).flatten(0, 1)[torch.cat(docs)]
        expected = torch.cat([out.last_hidden_state[0] for out in alone])
    else:
        outputs = ours(tokens, positions, doc_ids, places(config, doc_ids))[field.name]
        if field.kind == "token":
            expected = torch.cat([out.logits[0, 1:-1:2] for out in alone])
        elif style == "mean":  # the embedding of sentence-transformers, but for its length
            means = torch.stack([out.hidden_states[-1][0].mean(0) for out in alone])
            expected = hf.classifier(torch.nn.functional.normalize(means, dim=1) * config.dim**0.5)
        else:
            expected = torch.stack([out.logits[0] if out.logits.ndim == 2 else out.logits[0, 0] for out in alone])
    assert expected.std() > 0.1  # not a model whose outputs are all alike
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)

    weight = torch.randn_like(outputs)
    (expected * weight).sum().backward()
    (outputs * weight).sum().backward()
    theirs = {our_name(n, field.key if field else ""): p.grad for n, p in hf.named_parameters()}
    mine = {n: p.grad for n, p in ours.named_parameters()}
    assert theirs.keys() == mine.keys()
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(mine[name], gradient, atol=1e-5 * max(1.0, scale), rtol=1e-4, msg=name)


@pytest.mark.parametrize("style", ["linear", "dense", "mean"])
@pytest.mark.parametrize("preset", ["base", "bert"])
def test_several_heads_equal_models_of_one_each(preset: str, style: str) -> None:
    coarse = Head("coarse", "class", 3)
    config = scaled_down(PRESETS[preset], TOPIC, SLOTS, coarse, head=style)
    joint = Encoder(config)
    joint.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in joint.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    joint.eval()
    batch = packed(config)
    index = places(config, batch[2])
    together = joint(*batch, index)
    assert list(together) == ["topic", "slots", "coarse"]
    for head in config.heads:
        single = Encoder(replace(config, heads=(head,)))
        assert (single.pooler is not None) == (preset == "bert" and style == "dense" and head.kind == "class")
        shared = {name: tensor for name, tensor in joint.state_dict().items() if name in single.state_dict()}
        single.load_state_dict(shared)
        alone = single.eval()(*batch, {head.name: index[head.name]})[head.name]
        assert alone.shape == (len(index[head.name]), head.n_labels)
        assert torch.equal(alone, together[head.name])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("chunk", [7, 256])
def test_changing_a_neighbour_changes_nothing(chunk: int, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with dropout on, whose pattern (for one seed) depends on a token's place alone."""
    monkeypatch.setattr(model.attention, "ENCODER_CHUNK_CPU", chunk)
    net = random_model(scaled_down(ROBERTA_BASE)).train(training)
    tokens, positions, doc_ids = packed(net.config)
    changed = tokens.clone()
    changed[0, 5:29] = 2 + (changed[0, 5:29] - 1) % 95  # document 2 of row 0
    outputs = []
    for t in (tokens, changed):
        torch.manual_seed(5)
        outputs.append(net(t, positions, doc_ids))
    same = torch.ones_like(doc_ids, dtype=torch.bool)
    same[0, 5:29] = False
    assert torch.equal(outputs[0][same], outputs[1][same])  # bit for bit
    assert not torch.isclose(outputs[0][~same], outputs[1][~same]).all(dim=-1).any()

    # And no gradient comes from it either, though attention's backward pass goes over whole chunks.
    embedded = net.embed(tokens, positions).detach().requires_grad_()
    x = embedded
    for layer in net.layers:
        x = layer(x, model.attention.build_bidirectional_mask(doc_ids))
    x[0, 29:38].square().sum().backward()  # document 3
    seen = embedded.grad.abs().sum(dim=-1) > 0  # [B, T]
    assert seen[0, 29:38].all() and seen.sum() == 9


def random_model(config: EncoderConfig) -> Encoder:
    net = Encoder(config)
    net.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return net.eval()


def test_dropout_is_on_in_training_only_and_where_the_config_says() -> None:
    both = scaled_down(ROBERTA_DEBUG, TOPIC, SLOTS, head="dense")
    batch = packed(both)
    index = places(both, batch[2])
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0}
    for rates in ({"dropout": 0.3}, {"attention_dropout": 0.3}, {}):
        net = random_model(replace(both, **(no_dropout | rates)))
        off = net(*batch, index)
        assert torch.equal(off["topic"], net(*batch, index)["topic"]), "off in eval"
        net.train()
        one, two = net(*batch, index), net(*batch, index)
        for field in off:
            assert torch.equal(one[field], two[field]) == (not rates)
            if not rates:
                torch.testing.assert_close(one[field], off[field], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", ["dense", "token"])
@pytest.mark.parametrize("preset", ["base", "bert"])
def test_dropout_equals_transformers_draw_for_draw(preset: str, head: str) -> None:
    """In training, from one seed: the same tensors in the same order lose the same elements."""
    field, style = HEADS[head]
    config = replace(scaled_down(PRESETS[preset], field, head=style), dropout=0.25, attention_dropout=0.5)
    hf = reference(config)
    ours = ours_from(hf, config)
    tokens = torch.randint(2, config.vocab_size, (3, 12))
    positions = torch.arange(12).expand(3, 12)
    index = {field.name: torch.tensor([0, 12, 24]) if field.kind == "class" else torch.arange(36)}
    torch.manual_seed(6)
    expected = hf.train()(tokens).logits.flatten(0, -2)
    torch.manual_seed(6)
    logits = ours.train()(tokens, positions, torch.ones_like(tokens), index)[field.name]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.isclose(logits, hf.eval()(tokens).logits.flatten(0, -2)).all(dim=-1).any()


def test_twin_documents_draw_their_own_dropout() -> None:
    net = random_model(scaled_down(ROBERTA_DEBUG))
    tokens = torch.randint(2, 97, (1, 6)).repeat(1, 2)
    positions = torch.arange(6).repeat(2)[None]
    doc_ids = torch.tensor([[1] * 6 + [2] * 6])
    out = net(tokens, positions, doc_ids)[0]
    torch.testing.assert_close(out[:6], out[6:], atol=1e-6, rtol=1e-5)
    out = net.train()(tokens, positions, doc_ids)[0]
    assert not torch.isclose(out[:6], out[6:]).all(dim=-1).any()


def test_presets_have_the_real_checkpoints_sizes() -> None:
    """As transformers counts them, by the shapes that the checkpoints' own config.json give."""
    shapes = {
        "base": (ROBERTA_BASE, {}),
        "large": (
            ROBERTA_LARGE,
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        ),
    }
    for name, (config, shape) in shapes.items():
        with torch.device("meta"):
            ours = Encoder(config)
            theirs = RobertaModel(
                RobertaConfig(
                    vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, **shape
                ),
                add_pooling_layer=False,
            )
        mine = {n: p.shape for n, p in ours.named_parameters()}
        assert mine == {our_name(n, ""): p.shape for n, p in theirs.named_parameters()}, name
        assert ours.layers[0].attention.head_dim == 64
    # The published counts, without the pooler that RoBERTa's checkpoints carry untrained.
    assert sum(p.numel() for p in Encoder(ROBERTA_DEBUG).parameters()) < 100_000
    counts = [sum(p.numel() for p in _on_meta(c).parameters()) for c in (ROBERTA_BASE, ROBERTA_LARGE)]
    assert counts == [124_645_632 - 768 * 769, 355_359_744 - 1024 * 1025]
    assert BertConfig().layer_norm_eps == BERT_BASE.norm_eps and BertConfig().vocab_size == BERT_BASE.vocab_size


def _on_meta(config: EncoderConfig) -> Encoder:
    with torch.device("meta"):
        return Encoder(config)


@pytest.mark.parametrize("preset", ["debug", "bert"])
def test_init_weights_fills_everything_after_to_empty(preset: str) -> None:
    config = scaled_down(PRESETS[preset], TOPIC, SLOTS, head="dense")
    net = _on_meta(config).to_empty(device="cpu")
    assert not list(net.buffers())
    for parameter in net.parameters():
        parameter.data.fill_(float("nan"))
    net.init_weights(torch.Generator().manual_seed(1))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert 0.01 < parameter.std() < 0.03, name
    again = Encoder(config)
    again.init_weights(torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_no_places_give_no_logits_and_zero_gradients() -> None:
    """A rank without work runs a dummy: every parameter needs a gradient, and it must be zero."""
    net = random_model(scaled_down(BERT_BASE, TOPIC, SLOTS, head="dense")).train()
    tokens = torch.zeros(1, 4, dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long)
    logits = net(tokens, tokens, torch.tensor([[1, -1, -1, -1]]), {"topic": none, "slots": none})
    assert logits["topic"].shape == (0, 7) and logits["slots"].shape == (0, 5)
    sum(x.sum() for x in logits.values()).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in net.parameters())


def test_a_document_beyond_the_position_table_is_our_bug() -> None:
    net = random_model(scaled_down(ROBERTA_DEBUG))
    tokens = torch.full((1, 25), 3)
    with pytest.raises(AssertionError, match="a document of 25 tokens; the limit is 24"):
        net(tokens, torch.arange(25)[None], torch.ones_like(tokens))


def test_every_head_needs_its_places() -> None:
    net = random_model(scaled_down(ROBERTA_DEBUG, TOPIC, SLOTS))
    batch = packed(net.config)
    with pytest.raises(AssertionError, match=r"indices for \['topic'\], but the heads are \['slots', 'topic'\]"):
        net(*batch, {"topic": torch.tensor([0])})


def test_fields_may_be_called_what_modules_cannot() -> None:
    heads = [Head(name, "class", 2) for name in ("type", "part.of", "label", "training", "two words")]
    net = random_model(scaled_down(ROBERTA_DEBUG, *heads))
    assert list(net.heads) == ["type_", "part_of", "label", "training_", "two words"]
    batch = packed(net.config)
    assert list(net(*batch, places(net.config, batch[2]))) == [head.name for head in heads]
    assert net.get_parameter("heads.type_.out.weight").shape[0] == 2
    with pytest.raises(AssertionError, match="two heads have the same name"):
        Encoder(scaled_down(ROBERTA_DEBUG, Head("a.b", "class", 2), Head("a_b", "class", 2)))
