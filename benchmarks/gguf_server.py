"""Serve a GGUF file through llama.cpp's OpenAI-style server, on one thread: for benchmarks and tests.

    python -m benchmarks.gguf_server FILE --slots 2

prints the base URL when it is ready, and serves until it is ended. It needs the package ``xllamacpp``. Prompts are not
reused: with llama.cpp's ``cache_prompt`` an answer at temperature 0 depends on the requests before it.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import tyro

from data.command_line import cli


@dataclass
class Options:
    file: tyro.conf.Positional[Path]
    """The GGUF."""
    slots: int = 1
    """Requests that are answered at a time."""
    context: int = 8192
    """Tokens of each, prompt and answer together."""
    port: int = 0
    """Port of this machine; 0: one that is free."""


def main() -> None:
    options = cli(Options, prog="python -m benchmarks.gguf_server")
    try:
        import xllamacpp
    except ImportError:
        sys.exit("the package xllamacpp is not installed. pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = str(options.file), {options.file.stem}
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port = options.port
    params.cache_prompt = False
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
