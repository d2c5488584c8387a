"""A Llama with heads: its states are transformers', and a document of a packed row is answered as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaModel

from checkpoints_tools.llama_heads import without_heads
from model.encoder import Head
from model.llama_heads import HeadedLlama
from tests.reference import ours_from, reference
from tests.train.tiny_run import TIED, TINY

HEADS = (Head("topic", "class", 7), Head("slots", "token", 5), Head("marks", "multi", 4))
WORDS = ((2, 5), (), (3, 4, 11))  # of each document, where its words begin
# A frame, the tokens of three documents in it, and the places that the mean is of: one has no text, in both.
FRAMED = [
    ((1, 0, 0), (9, 1, 14), ([*range(1, 9)], [], [*range(1, 14)])),
    ((1, 3, 2), (8, 6, 14), ([1, 5], [], [1, 2, 3, 4, 8, 9, 10, 11])),
]


def models(config, frame=(1, 0, 0)) -> tuple[LlamaModel, HeadedLlama]:
    """transformers' blocks, and ours with the same weights and random heads."""
    theirs = reference(config)
    headed = HeadedLlama(replace(without_heads(config), heads=HEADS, frame=frame))
    headed.init_weights(torch.Generator().manual_seed(0))
    assert not any(head.out.bias.any() for head in headed.heads.values())
    state = {name: tensor for name, tensor in ours_from(theirs, config).state_dict().items() if name != "head.weight"}
    missing, unexpected = headed.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("heads.") for name in missing)
    for head in headed.heads.values():
        torch.nn.init.normal_(head.out.bias)
    return theirs.model, headed.eval()


def packed(lengths=(9, 1, 14)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Two rows: the first two documents with padding between and behind, then the last one."""
    torch.manual_seed(1)
    tokens, positions, doc_ids = torch.randint(0, TINY.vocab_size, (2, 16)), torch.zeros(2, 16), torch.zeros(2, 16)
    doc_ids[:] = -1
    for row, at, doc, n in zip((0, 0, 1), (0, 9, 0), (1, 2, 1), lengths, strict=True):
        doc_ids[row, at : at + n], positions[row, at : at + n] = doc, torch.arange(n).float()
    starts = torch.tensor([0, 9, 16])
    words = torch.tensor([start + word for start, own in zip((0, 9, 16), WORDS, strict=True) for word in own])
    return tokens, positions.long(), doc_ids.int(), {"topic": starts, "slots": words, "marks": starts}


@pytest.mark.parametrize(("frame", "lengths", "readings"), FRAMED)
@pytest.mark.parametrize("config", [TINY, TIED])
@torch.no_grad()
def test_heads_read_the_states_of_transformers(config, frame, lengths, readings) -> None:
    theirs, ours = models(config, frame)
    tokens, positions, doc_ids, index = packed(lengths)
    found = ours(tokens, positions, doc_ids, index)
    states = ours(tokens, positions, doc_ids)
    flat, at = tokens.flatten(), {"topic": 0, "slots": 0, "marks": 0}
    for start, n, read_at, words in zip((0, 9, 16), lengths, readings, WORDS, strict=True):
        states_of = theirs(input_ids=flat[None, start : start + n], output_hidden_states=True)
        alone, inner = states_of.last_hidden_state[0], states_of.hidden_states[ours.inner][0]
        torch.testing.assert_close(states.flatten(0, 1)[start : start + n], alone, atol=1e-4, rtol=1e-4)
        length = config.dim**0.5
        mean = inner[read_at].mean(0) if read_at else torch.zeros(config.dim)
        read = torch.cat([length * F.normalize(mean, dim=0), length * F.normalize(alone[-1], dim=0)])
        expected = {"topic": read[None], "slots": alone[list(words)], "marks": read[None]}
        for name, inputs in expected.items():
            logits = F.linear(inputs, ours.heads[name].out.weight, ours.heads[name].out.bias)
            own = found[name][at[name] : at[name] + len(inputs)]
            torch.testing.assert_close(own, logits, atol=1e-4, rtol=1e-4)
            at[name] += len(inputs)
    assert {name: len(logits) for name, logits in found.items()} == at == {"topic": 3, "slots": 5, "marks": 3}
    assert found["topic"].std() > 0.1, "answers that differ, so that their equality means something"


@torch.no_grad()
def test_other_documents_of_a_row_change_nothing() -> None:
    _, ours = models(TINY)
    tokens, positions, doc_ids, index = packed()
    before = ours(tokens, positions, doc_ids, index)
    tokens[0, :9] = (tokens[0, :9] + 1) % TINY.vocab_size
    after = ours(tokens, positions, doc_ids, index)
    assert not torch.allclose(before["topic"][0], after["topic"][0], atol=1e-3)
    assert torch.equal(before["topic"][1:], after["topic"][1:]) and torch.equal(before["slots"][2:], after["slots"][2:])


def test_a_batch_without_documents() -> None:
    """What a rank computes to keep step with the others; its gradients are zeros, not missing."""
    _, ours = models(TINY)
    none = {head.name: torch.zeros(0, dtype=torch.int64) for head in HEADS}
    found = ours(torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, 16, dtype=torch.int64), torch.ones(1, 16), none)
    assert {name: tuple(x.shape) for name, x in found.items()} == {"topic": (0, 7), "slots": (0, 5), "marks": (0, 4)}
    sum(x.sum() for x in found.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


def test_heads_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="same name"):
        HeadedLlama(replace(without_heads(TINY), heads=(Head("a.b", "class", 2), Head("a_b", "class", 2))))
