"""Tiny Hugging Face checkpoints, written by transformers itself and never by our exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from checkpoints_tools.load import load_pretrained, open_checkpoint
from model.llama import Llama

# Nothing divides anything by accident: 6 heads of 8 on width 48, 3 key/value heads, odd vocabulary.
TINY = dict(
    hidden_size=48,
    intermediate_size=100,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    vocab_size=301,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=500.0,
    bos_token_id=256,
    eos_token_id=257,
)
LLAMA3_SCALING = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and two special tokens."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


def random_hf_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama with weights large enough that every part of it shows in the logits."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(HFConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if name.endswith("norm.weight") else 0.15 * torch.randn_like(p))
    return model


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., tuple[Path, LlamaForCausalLM]]:
    """``hf_folder(shard_size=..., **config)`` → a folder that transformers saved, and the model in it."""

    def make(
        shard_size: str = "1GB", name: str = "hf", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> tuple[Path, LlamaForCausalLM]:
        model = random_hf_model(**changes).to(dtype)
        return save_folder(model, tmp_path / name, shard_size), model

    return make


def save_folder(model: LlamaForCausalLM, folder: Path, shard_size: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load_ours(folder: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """Our model from a folder, the way training builds it: on the meta device, then filled."""
    with torch.device("meta"):
        model = Llama(open_checkpoint(folder).config)
    model.to(dtype).to_empty(device="cpu").init_weights()
    load_pretrained(model, folder)
    return model.eval()


def some_tokens(vocab_size: int = 301) -> Tensor:
    """[2, 90] token ids: longer than the original context of `LLAMA3_SCALING`."""
    return torch.randint(vocab_size, (2, 90), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def hf_logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    return model(tokens).logits


@torch.no_grad()
def our_logits(model: Llama, tokens: Tensor) -> Tensor:
    return model(tokens)


@pytest.fixture(scope="session")
def helpers() -> Any:
    """This file's functions, for test modules (which cannot import a conftest)."""

    class Helpers:
        load = staticmethod(load_ours)
        tokens = staticmethod(some_tokens)
        hf = staticmethod(hf_logits)
        ours = staticmethod(our_logits)
        random_hf_model = staticmethod(random_hf_model)
        tokenizer = staticmethod(tiny_tokenizer)
        save = staticmethod(save_folder)
        scaling = LLAMA3_SCALING
        tiny = TINY

    return Helpers
