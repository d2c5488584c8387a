"""``config.json`` of a Hugging Face Llama folder ⇄ our `LlamaConfig`, and ``generation_config.json``.

`read_config` reads encoders' too; what is particular to them is in `checkpoints_tools.encoder_config`.

Reading collects every contradiction and reports them together. Writing produces the keys that transformers 4 and 5
and vLLM all read (``rope_theta`` and ``rope_scaling`` at the top level, ``torch_dtype``); reading takes these and
what transformers 5 writes itself (``rope_parameters``, ``dtype``).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.encoder_config import FAMILIES, parse_encoder_config
from data.errors import UserError
from model.encoder import EncoderConfig
from model.llama import LlamaConfig, RopeScaling

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; UserError when it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): it is damaged, or the download stopped halfway") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found


def read_config(folder: Path | str) -> LlamaConfig | EncoderConfig:
    """Read and validate ``config.json`` of a folder: a Llama, a RoBERTa or a BERT.

    Raises:
        UserError: no such file, another architecture, or numbers that contradict each other (all in one message).
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {folder}: not a checkpoint folder, or only half downloaded")
    raw = read_json(path)
    parse = parse_encoder_config if raw.get("model_type") in FAMILIES else parse_config
    return parse(raw, where=str(path))


def parse_config(raw: dict[str, Any], where: str = "config.json") -> LlamaConfig:
    """Turn the contents of a ``config.json`` into a `LlamaConfig`; see `read_config`."""
    problems = _architecture_problems(raw)
    if problems:  # the numbers of another architecture mean nothing to us
        raise UserError(f"{where} is not a model we can run:\n" + "\n".join(f"  - {p}" for p in problems))

    def number(key: str, default: int | None = None) -> int:
        value = raw.get(key, default)
        if value is None and key in raw:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{key} is {value!r}; it must be a positive whole number")
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
        problems.append(f"head_dim {head_dim} is odd; rotary embeddings turn pairs of dimensions")
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
    kind, names = raw.get("model_type"), raw.get("architectures") or []
    if kind != "llama" or any(name != "LlamaForCausalLM" for name in names):
        problems.append(
            f"model_type is {kind!r} and architectures {names}; this code runs 'llama' / LlamaForCausalLM and the "
            f"encoders {', '.join(map(repr, FAMILIES))}"
        )
        return problems
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
    """θ and scaling, from transformers 4's keys or transformers 5's; contradictions go to ``problems``."""
    new = raw.get("rope_parameters") or {}
    old = raw.get("rope_scaling") or {}
    thetas = {float(x) for x in (raw.get("rope_theta"), new.get("rope_theta"), old.get("rope_theta")) if x is not None}
    if len(thetas) > 1:
        problems.append(f"two values of rope_theta: {sorted(thetas)}")
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


def read_dtype(folder: Path | str) -> torch.dtype | None:
    """The dtype that ``config.json`` says the weights were saved in; None when it does not say."""
    raw = read_json(Path(folder) / "config.json")
    return DTYPES.get(str(raw.get("torch_dtype") or raw.get("dtype") or "").removeprefix("torch."))


def read_token_ids(folder: Path | str) -> dict[str, int | list[int]]:
    """``bos_token_id``, ``eos_token_id`` (one or several) and ``pad_token_id`` as far as the folder states them.

    ``generation_config.json`` wins over ``config.json``: Llama 3 Instruct lists its end-of-turn token only there.
    """
    found: dict[str, int | list[int]] = {}
    for name in ("config.json", "generation_config.json"):
        path = Path(folder) / name
        if path.is_file():
            raw = read_json(path)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if raw.get(key) is not None:
                    found[key] = raw[key]
    return found


def to_hf_config(
    config: LlamaConfig, dtype: torch.dtype, token_ids: dict[str, int | list[int]] | None = None
) -> dict[str, Any]:
    """Contents of a ``config.json`` for these weights, readable by transformers 4 and 5 and by vLLM."""
    rope = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_width,
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


def write_config(
    folder: Path,
    config: LlamaConfig,
    dtype: torch.dtype,
    token_ids: dict[str, int | list[int]] | None = None,
) -> None:
    """Write ``config.json`` and ``generation_config.json`` (which ids begin and end a text) into a folder."""
    write_json(folder / "config.json", to_hf_config(config, dtype, token_ids))
    write_json(folder / "generation_config.json", {"do_sample": False, **(token_ids or {})})


def write_json(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def family_of(config: LlamaConfig | EncoderConfig) -> str:
    """Which architecture a config is of: "llama", "roberta" or "bert"."""
    return "llama" if isinstance(config, LlamaConfig) else config.family


def differences(
    found: LlamaConfig | EncoderConfig, expected: LlamaConfig | EncoderConfig, ignore: tuple[str, ...] = ()
) -> list[str]:
    """Where two configs differ, one line a field: ``"n_kv_heads: 8 (expected 32)"``. None equals the default width.

    Of two architectures only that is said: their numbers mean different things.
    """
    if family_of(found) != family_of(expected):
        return [f"architecture: {family_of(found)} (expected {family_of(expected)})"]
    pairs = []
    for field in dataclasses.fields(found):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "head_dim":
            a, b = found.head_width, expected.head_width
        if a != b and field.name not in ignore:
            pairs.append(f"{field.name}: {a} (expected {b})")
    return pairs
