"""Checks of the options about models that a server answers for, and of those that such a model does not take."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from checkpoints_tools.registry import ApiModel, model_names
from data.tasks import TASKS
from eval.config import WEIGHTS_ONLY, ApiOptions, EvalConfig
from train import options

# Options about asking. --dump_requests and --answers ask nothing.
ASKING = ("base_url", "key_env", "concurrency", "attempts", "timeout", "max_cost", "yes")
LONGEST_TIMEOUT = 1_000_000  # seconds; what the operating system waits for has a limit not far above


def api_problems(config: EvalConfig, spec: ApiModel) -> list[str]:
    """Problems in the options of a model that a server answers for."""
    problems = [
        f"--{name} is for models whose weights are loaded here; a server answers for {spec.name}. Omit it."
        for name in WEIGHTS_ONLY
        if getattr(config, name) != getattr(EvalConfig(), name)
    ]
    if not config.task:
        problems.append(f"no --task given. Known: {', '.join(TASKS)}, or a TOML file.")
    api = config.api
    offline = "dump_requests" if api.dump_requests is not None else "answers" if api.answers is not None else ""
    if offline:
        problems += [f"--{offline} asks nothing; it takes no --{name}." for name in ASKING if _given(api, name)]
    if api.answers is not None and api.prices is not None:
        problems.append("--answers asks nothing, and what its answers have cost is not known; it takes no --prices.")
    if api.dump_requests is not None and api.answers is not None:
        problems.append("--dump_requests and --answers: give one of the two.")
    if api.allow_missing and api.answers is None:
        problems.append("--allow_missing is for --answers.")
    if not spec.base_url and not api.api_model:
        problems.append(f"--model {spec.name} needs --api_model, the model's name at the server.")
    if not spec.base_url and not api.base_url and not offline:
        problems.append(f"--model {spec.name} needs --base_url, such as http://localhost:8080/v1.")
    if api.base_url:
        problems += _url_problems(api.base_url)
    if api.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api.key_env):
        # Not repeated here: it may be the key itself.
        problems.append("key_env must be the name of an environment variable. Never give a key on the command line.")
    for name, bound in {"concurrency": 1, "attempts": 1}.items():
        if getattr(api, name) < bound:
            problems.append(f"{name} = {getattr(api, name)}: must be at least {bound}.")
    for name in ("timeout", "max_cost"):
        value = getattr(api, name)
        if value is not None and not value > 0:
            problems.append(f"{name} = {value}: must be above 0.")
    if api.timeout > LONGEST_TIMEOUT:
        problems.append(f"timeout = {api.timeout}: must be at most {LONGEST_TIMEOUT:,} seconds.")
    return problems


def misplaced(config: EvalConfig) -> list[str]:
    """The same options given for a model whose weights are loaded here."""
    closed = ", ".join(name for name in model_names(api=True) if name not in model_names())
    names = [name for name in options.flatten(config) if hasattr(config.api, name) and _given(config.api, name)]
    return [f"--{name} is for models that a server answers for ({closed}). Omit it." for name in names]


def _given(api: ApiOptions, name: str) -> bool:
    return getattr(api, name) != getattr(ApiOptions(), name)


def _url_problems(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return ["base_url is not a URL. It looks like http://localhost:8080/v1."]
    if parts.username or parts.password or parts.query or parts.fragment:  # not repeated: it may be a key
        return ["base_url must have no user, password or query. Keys are read from the environment (--key_env)."]
    if not url.isprintable() or url != url.strip():
        return [f"base_url = {url!r}: must have no control characters, nor spaces at its ends."]
    if parts.scheme not in ("http", "https") or not host:
        return [f"base_url = {url}: must begin with http:// or https:// and a host, such as http://localhost:8080/v1."]
    try:
        host.encode("idna")  # as the connection will; it refuses empty and long parts
    except UnicodeError:
        return [
            f"base_url = {url}: {host!r} is no host name: a part of it is empty, too long or has strange characters."
        ]
    if parts.path.rstrip("/").endswith("/chat/completions"):
        return [f"base_url = {url}: give the URL before /chat/completions."]
    return []
