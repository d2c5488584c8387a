"""``config.json`` of a Llama folder ⇄ our `LlamaConfig`, and ``generation_config.json``.

Reading reports all contradictions together. Writing produces the keys that transformers 4 and 5 and vLLM all read
(``rope_theta`` and ``rope_scaling`` at the top level, ``torch_dtype``). Reading accepts these and what transformers 5
writes (``rope_parameters``, ``dtype``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.json_files import write_json
from checkpoints_tools.writer import TrainedOn
from data.decoder.fewshot import PromptSpec
from data.decoder.templates import TEMPLATES, encode_pieces
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from model.llama import LlamaConfig, RopeScaling


def parse_llama_config(raw: dict[str, Any], where: str = "config.json") -> LlamaConfig:
    """Turn the contents of a ``config.json`` into a `LlamaConfig`; see `read_config`.

    Raises:
        UserError: something that a Llama does not have, or contradictory numbers (all in one message).
    """
    problems = _architecture_problems(raw)
    if problems:  # do not check the numbers of another architecture
        raise UserError(f"{where} is not a model we can run:\n" + "\n".join(f"  - {p}" for p in problems))

    def number(key: str, default: int | None = None) -> int:
        value = raw.get(key, default)
        if value is None and key in raw:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{key} is {value!r}; it must be a positive integer")
            return 1
        return value

    dim = number("hidden_size")
    n_heads = number("num_attention_heads")
    n_kv_heads = number("num_key_value_heads", default=n_heads)
    if dim % n_heads:
        problems.append(f"hidden_size {dim} is not a multiple of num_attention_heads {n_heads}")
    if n_heads % n_kv_heads:
        problems.append(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
    head_dim = number("head_dim", default=max(dim // n_heads, 1))
    if head_dim % 2:
        problems.append(f"head_dim {head_dim} is odd; rotary embeddings rotate pairs of dimensions")
    norm_eps = raw.get("rms_norm_eps", 1e-6)
    if not isinstance(norm_eps, int | float) or not 0 < norm_eps < 1:
        problems.append(f"rms_norm_eps is {norm_eps!r}; it must be a small positive number such as 1e-5")
    rope_theta, rope_scaling = _read_rope(raw, problems)
    values = dict(
        dim=dim,
        n_layers=number("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=number("intermediate_size"),
        vocab_size=number("vocab_size"),
        norm_eps=norm_eps,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_position=number("max_position_embeddings", default=2048),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )
    if problems:
        raise UserError(f"{where} contradicts itself:\n" + "\n".join(f"  - {p}" for p in problems))
    return LlamaConfig(**values)


def _architecture_problems(raw: dict[str, Any]) -> list[str]:
    problems = []
    names = raw.get("architectures") or []
    if any(name != "LlamaForCausalLM" for name in names):
        return [f"architectures {names}; for model_type 'llama' this code runs LlamaForCausalLM only"]
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {raw['hidden_act']!r}; Llama's feed-forward uses 'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            problems.append(f"{key} is true; Llama has no biases")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        problems.append(f"the weights are quantized ({method}); full fine-tuning needs the unquantized checkpoint")
    return problems


def _read_rope(raw: dict[str, Any], problems: list[str]) -> tuple[float, RopeScaling | None]:
    """θ and scaling, from transformers 4's keys or transformers 5's; contradictions are added to ``problems``."""
    new = raw.get("rope_parameters") or {}
    old = raw.get("rope_scaling") or {}
    thetas = {float(x) for x in (raw.get("rope_theta"), new.get("rope_theta"), old.get("rope_theta")) if x is not None}
    if len(thetas) > 1:
        problems.append(f"rope_theta has two values: {sorted(thetas)}")
    theta = max(thetas, default=10_000.0)
    if theta <= 1:
        problems.append(f"rope_theta is {theta}; it must be above 1 (10000 in Llama 2, 500000 in Llama 3)")
    parts = old or new
    kind = parts.get("rope_type", parts.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        problems.append(f"rope scaling of type {kind!r}; known: 'default', 'llama3'")
        return theta, None
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    bad = [key for key in keys if not isinstance(parts.get(key), int | float) or parts[key] <= 0]
    if bad:
        found = {key: parts.get(key) for key in bad}
        problems.append(f"rope scaling of type 'llama3' needs positive numbers for {keys}; found {found}")
        return theta, None
    if parts["high_freq_factor"] <= parts["low_freq_factor"]:
        problems.append(
            f"rope scaling: high_freq_factor {parts['high_freq_factor']} must be above "
            f"low_freq_factor {parts['low_freq_factor']}"
        )
        return theta, None
    return theta, RopeScaling(
        factor=float(parts["factor"]),
        low_freq_factor=float(parts["low_freq_factor"]),
        high_freq_factor=float(parts["high_freq_factor"]),
        original_max_position=int(parts["original_max_position_embeddings"]),
    )


def to_hf_llama_config(
    config: LlamaConfig, dtype: torch.dtype, token_ids: dict[str, int | list[int]] | None = None
) -> dict[str, Any]:
    """Contents of a ``config.json`` for this config, readable by transformers 4 and 5 and by vLLM."""
    rope = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if rope is None
        else {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **(token_ids or {}),
    }


def write_llama_config(
    folder: Path,
    config: LlamaConfig,
    dtype: torch.dtype,
    token_ids: dict[str, int | list[int]] | None = None,
) -> None:
    """Write ``config.json`` and ``generation_config.json`` (the ids that begin and end a text) into a folder."""
    write_json(folder / "config.json", to_hf_llama_config(config, dtype, token_ids))
    write_json(folder / "generation_config.json", {"do_sample": False, **(token_ids or {})})


def write_llama_export(
    folder: Path, config: LlamaConfig, dtype: torch.dtype, tokenizer: Tokenizer, trained_on: TrainedOn
) -> None:
    """Write an export's config and tokenizer; `export_hf` writes weights and ``prompt.json``."""
    write_llama_config(folder, config, dtype, token_ids(tokenizer, trained_on.prompt_spec))
    tokenizer.save(folder)


def token_ids(tokenizer: Tokenizer, prompt_spec: PromptSpec | None) -> dict[str, int | list[int]]:
    """Token ids for ``generation_config.json``: the one that begins a text, and all that end an answer."""
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if prompt_spec is not None:
        ends += encode_pieces(TEMPLATES[prompt_spec.template].end, tokenizer)[:1]
    ends = list(dict.fromkeys(ends))
    found: dict[str, int | list[int]] = {}
    if tokenizer.bos_id is not None:
        found["bos_token_id"] = tokenizer.bos_id
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return found
