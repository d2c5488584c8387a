"""One attempt at one request, through the official ``openai`` client; and what each kind of failure means.

A failure is either worth another attempt (`TryAgain`) or a `UserError`, which ends the run. No key is in any message:
the server's texts are quoted without it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from data.errors import UserError, nearest
from data.files import limits
from data.files.documents import parse_line
from eval.api.answers import Answer
from eval.api.responses import (
    NO_CHOICES,
    clean,
    error_details,
    is_html,
    read_completion,
    refusal_in,
    seconds_to_wait,
    without_key,
)
from eval.api.setup import ApiSetup, Request

KEY_ENV = "OPENAI_API_KEY"
# What the client reads from the environment and sends to any server, keys in headers among them.
FOR_OPENAI = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS")
# What the client reads from the environment about the way to any server. It reads proxies in lower case too.
PROXIES = tuple(name for own in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY") for name in (own, own.lower()))
FILES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
NO_KEY = "none"  # the client needs one; servers without keys ignore it
CONNECT_SECONDS = 10.0
RETRIED = (408, 409, 425, 429)  # besides all from 500 on
CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")  # OpenAI, llama.cpp
_CONTEXT = re.compile(r"context (length|size|window)|maximum context", re.IGNORECASE)  # vLLM and others
_SEED = re.compile(r"\bseed\b")  # servers name it in different parts of an error

log = logging.getLogger("eval")


class TryAgain(Exception):
    """An attempt that failed for a reason that may pass.

    Attributes:
        after: seconds to wait according to the server; None: it does not say.
        lost: the server may have charged it.
        limited: a rate limit.
        empty: the answer to keep if the last attempt fails in this way too; None: the run ends then.
    """

    def __init__(
        self,
        reason: str,
        after: float | None = None,
        lost: bool = False,
        limited: bool = False,
        empty: Answer | None = None,
    ) -> None:
        super().__init__(reason)
        self.after, self.lost, self.limited, self.empty = after, lost, limited, empty


def find_key(setup: ApiSetup) -> str | None:
    """The server's key, from the environment; None: none is sent.

    OpenAI's key is sent only to OpenAI. Another server gets only the key that ``--key_env`` names.

    Raises:
        UserError: no such variable, or one that cannot be a key.
    """
    name = setup.options.api.key_env or (KEY_ENV if setup.is_own_server else None)
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"no key for {setup.host}: the environment variable {name} is not set. Set it (export {name}=...), or name "
            "another one with --key_env. Keys are read from the environment only."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the key in {name} has spaces or characters that no key has. Set it again.")
    return key


class Server:
    """A server that speaks the OpenAI chat API. It is shared by threads.

    Raises:
        UserError: the package ``openai`` is not installed.
    """

    def __init__(self, setup: ApiSetup, key: str | None) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                f"--model {setup.spec.name}: the package openai is not installed. pip install openai"
            ) from None
        for name in ("openai", "httpx", "httpx2"):  # they log each request
            logging.getLogger(name).setLevel(logging.WARNING)
        self.setup, self.key, self.openai = setup, key, openai
        self.seed: int | None = setup.options.seed
        seconds = setup.options.api.timeout
        with _hidden(() if setup.is_own_server else FOR_OPENAI):
            hooks = {"response": [_read_within_limit]}
            try:
                connections = openai.DefaultHttpxClient(event_hooks=hooks)
            except Exception as error:  # of any kind: it depends on the variable
                raise _of_environment(error) from None
            try:
                self.client = openai.OpenAI(
                    http_client=connections,
                    api_key=key or NO_KEY,
                    base_url=setup.base_url,
                    timeout=openai.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
                    max_retries=0,  # ours are in retry.py
                )
            except Exception as error:  # its own class: for URLs it has stricter rules than Python
                url = self.clean(setup.base_url)
                raise UserError(f"--base_url {url} is not a URL for the package openai: {error}") from None

    def ask(self, request: Request) -> Answer:
        """Send a request once.

        Raises:
            TryAgain, UserError: see above.
        """
        start, sent_seed = time.perf_counter(), self.seed
        body = request.body(self.setup.api_model, sent_seed)
        try:
            response = self.client.chat.completions.with_raw_response.create(**body).http_response
        except self.openai.APITimeoutError as error:
            what = f"nothing in {self.setup.options.api.timeout:g} s"
            if _is_of(error, "Connect") and (proxies := _names(PROXIES)):
                what += f" (proxies in the environment: {proxies})"
            raise TryAgain(what, lost=_reached(error)) from None
        except self.openai.APIConnectionError as error:
            what = "the connection broke" if _reached(error) else f"no connection to {self.setup.host}"
            proxies, reason = _names(PROXIES), self.clean(str(error.__cause__ or error))
            if _is_of(error, "Proxy"):
                what = f"no connection to {self.setup.host} through the proxy of {proxies or 'the system'}"
            if "CERTIFICATE_VERIFY_FAILED" in reason:  # no attempt changes that
                raise UserError(
                    f"{self.setup.base_url} has a certificate that is not trusted ({reason}). If it is your own "
                    "or your company's, name its file in the environment: export SSL_CERT_FILE=cert.pem."
                ) from None
            if proxies and not _is_of(error, "Proxy"):  # the reason is not known to be the server
                reason += f"; proxies in the environment: {proxies}"
            raise TryAgain(f"{what} ({reason})", lost=_reached(error)) from None
        except UnicodeError as error:
            own = _names([name for name in FOR_OPENAI if not os.environ.get(name, "").isascii()])
            if self.setup.is_own_server and own and isinstance(error, UnicodeEncodeError):  # of a header
                raise UserError(
                    f"{own} in the environment: a header that is sent has characters that no header can have. Correct "
                    "it, or unset the variable."
                ) from None
            # Otherwise of a host's name; that of --base_url was checked before.
            raise UserError(
                f"no connection to {self.setup.host}: a proxy, or an address to which the server redirects, is no host "
                f"name ({error}). Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and --base_url."
            ) from None
        except self.openai.APIStatusError as error:
            response = error.response
        status, text = response.status_code, without_key(response.text, self.key)
        found = self._read(text, request) if status == 200 and not is_html(text, response.headers) else status
        if isinstance(found, int):
            found = refusal_in(found, error_details(text), request.example.id) or found
        if isinstance(found, Answer):
            found = replace(found, request=request.fingerprint, seconds=round(time.perf_counter() - start, 3))
            if found.finish_reason == NO_CHOICES:
                raise TryAgain("an answer without choices", lost=True, empty=found)
            return found
        if sent_seed is not None and found in (400, 422) and _SEED.search(text):
            if self.seed is not None:
                log.info("%s takes no seed; asked without", self.setup.host)
            self.seed = None
            return self.ask(request)  # raises the error if the seed is not its reason
        self._refuse(found, response.headers, text, request)

    def _read(self, text: str, request: Request) -> Answer | int:
        """The answer in a response, or the status of the error in it."""
        try:
            record = parse_line(text, "the response", as_python=True)
        except UserError:
            raise TryAgain("an answer that breaks off or is not JSON", lost=True) from None
        if isinstance(record, dict) and record.get("error") and not record.get("choices"):  # some proxies do this
            code = str(error_details(text).get("code"))
            is_status = code.isdecimal() and len(code) < 10  # Python refuses to read thousands of digits
            return int(code) if is_status else 429 if code == "rate_limit_exceeded" else 400
        answer = read_completion(record, request.example.id)
        if answer is None:
            raise UserError(
                f"example {request.example.id}: {self.setup.base_url} does not answer as the OpenAI chat API does, but "
                f"with {self.clean(text)[:80]!r}. Check --base_url."
            )
        if answer.finish_reason == "error":  # some proxies say so of a model that failed
            raise TryAgain("an answer that ends in an error", lost=True)
        return answer

    def _refuse(self, status: int, headers: Mapping[str, str], text: str, request: Request) -> NoReturn:
        setup, error = self.setup, error_details(text)
        message = str(error.get("message") or text)
        said = self.clean(message)
        code, url = error.get("code"), setup.base_url
        key = setup.options.api.key_env or KEY_ENV
        if status == 402 or (status == 429 and "insufficient_quota" in (code, error.get("type"))):
            raise UserError(f"the account has no credit left at {setup.host} ({said}). Add some, then start again.")
        if status in RETRIED or status >= 500:
            raise TryAgain(
                f"HTTP {status} ({said})", seconds_to_wait(headers), lost=status == 504, limited=status == 429
            )
        if is_html(text, headers):
            raise UserError(
                f"{url} answers with a web page (HTTP {status}), not as an API does. Check --base_url: it is the URL "
                "before /chat/completions, and mostly ends in /v1."
            )
        if status in (401, 403):
            if self.key is None:
                raise UserError(f"{url} needs a key (HTTP {status}: {said}). Name its variable with --key_env.")
            raise UserError(f"{url} refuses the key in {key} (HTTP {status}: {said}). Check that variable.")
        if status == 404:
            raise UserError(self._not_found(said))
        if status == 413 or code in CONTEXT_CODES or error.get("type") in CONTEXT_CODES or _CONTEXT.search(message):
            raise UserError(
                f"example {request.example.id}: prompt and answer, about {request.n_tokens + request.max_tokens:,} "
                f"tokens ({setup.counter.how}), are longer than {setup.api_model} takes (HTTP {status}: {said}). Give "
                f"a --row_length below {setup.max_length:,}: documents are cut to it. Answers whose request stays the "
                "same are not asked again."
            )
        if 200 <= status < 400:
            raise UserError(
                f"example {request.example.id}: {url} does not answer with HTTP 200 and a chat completion, but with "
                f"HTTP {status}{said and f' ({said})'}. Check --base_url."
            )
        raise UserError(
            f"example {request.example.id}: {url} refuses the request (HTTP {status}: {said}). Every "
            "request has max_tokens and temperature 0; the model has to take them."
        )

    def _not_found(self, said: str) -> str:
        """What a 404 means, according to the server's list of models."""
        url, name = self.setup.base_url, self.setup.api_model
        try:
            names = [model.id for model in self.client.models.list().data if isinstance(model.id, str)]
        except Exception:  # whatever went wrong: the list is only for a hint
            names = []
        if name in names:
            return (
                f"{url} lists the model {name!r}, but has no /chat/completions for it (HTTP 404: {said}). Check "
                "--base_url, or give an --api_model that chats."
            )
        hint = nearest(name, names[:20]) if names else " Check --api_model and --base_url."
        return f"{url} has no model {name!r} (HTTP 404: {said}).{hint}"

    def clean(self, text: str) -> str:
        return clean(text, self.key)


def _read_within_limit(response: Any) -> None:
    """Read the body of a response of httpx, which has none yet; the client would read it without an end."""
    body = bytearray()
    for part in response.iter_bytes():
        body += part
        if len(body) > limits.RESPONSE_BYTES:
            response.close()
            raise TryAgain(f"a response with more than {limits.RESPONSE_BYTES:,} bytes", lost=True)
    response._content = bytes(body)  # what its own `read` would set


@contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Take variables out of the environment for a moment."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _names(variables: Sequence[str]) -> str:
    """Those that are set."""
    return ", ".join(name for name in variables if os.environ.get(name))


def _of_environment(error: Exception) -> Exception:
    """What an error in the making of connections means: mostly a variable that concerns them cannot be used.

    Their values are not repeated: a proxy's URL may have a password.
    """
    if isinstance(error, OSError):
        names = _names([name for name in FILES if not _opens(name)]) or _names(FILES)
        what, why = "a file", f"cannot be used ({error.strerror or error}). Name another one"
    elif "proxy" in str(error).lower() or type(error).__name__ == "InvalidURL":  # it has no other URLs
        names, what = _names(PROXIES), "a proxy"
        why = "has no URL that can be used. It looks like http://proxy.example:3128. Correct it"
    else:
        return error
    if not names:
        return error
    variables = "one of them" if "," in names else "it"
    said = f"{what} that {variables} names {why}"
    if isinstance(error, ImportError):
        said = "a SOCKS proxy needs the package socksio. pip install socksio; or name another proxy"
    return UserError(f"{names} in the environment: {said}, or unset the variable.")


def _opens(name: str) -> bool:
    """Whether a variable of `FILES` is unset, or its path can be opened."""
    path = os.environ.get(name)
    if not path:
        return True
    if name == "SSLKEYLOGFILE":  # it is written, and made if it is missing
        path = path if os.path.exists(path) else os.path.dirname(path) or "."
        return os.access(path, os.W_OK)
    return os.access(path, os.R_OK)


def _reached(error: Exception) -> bool:
    """Whether a connection was made before an error, so that the server may have got the request."""
    return not _is_of(error, "Connect", "Pool", "Proxy")


def _is_of(error: Exception, *kinds: str) -> bool:
    """Whether the client's error comes from a connection's error of these kinds, by its name."""
    return type(error.__cause__).__name__.startswith(kinds)
