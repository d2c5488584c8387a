"""What stands between the program and a server: names of hosts, proxies, certificates. None of it ends in a traceback,
and no attempt that did not reach the server counts as paid."""

from __future__ import annotations

import ssl
import sys

import pytest

from data.errors import UserError
from eval.api import client
from eval.api.setup import ApiSetup
from tests.eval.api.server import MODEL, chat, completion, error, send


@pytest.mark.parametrize("url", ["http://1.2.3.400/v1", "http://☃.net/v1", "http://h/" + "a" * 70_000])
def test_a_url_that_only_the_client_refuses(run, url):
    with pytest.raises(UserError, match="--base_url .* is not a URL for the package openai: "):
        run("--base_url", url)


def test_a_redirect_to_what_is_no_host(run, server):
    server.script.extend([completion("alarm_set"), send(307, {}, {"Location": "http://.invalid/v1"})])
    with pytest.raises(UserError, match=r"an address to which the server redirects, is no host name .*1 of 6 answers"):
        run("--concurrency", 1)
    assert len(server.bodies) == 2


ENVIRONMENT = {
    "SOCKS": ("ALL_PROXY", "socks5://me:pass-word@h:1", "a SOCKS proxy needs the package socksio. pip install socksio"),
    "lower case": ("all_proxy", "socks4://me:pass-word@h:1", "no URL that can be used"),
    "another scheme": ("HTTP_PROXY", "foo://me:pass-word@h", "no URL that can be used"),
    "no port": ("HTTPS_PROXY", "http://me:pass-word@h:port", "no URL that can be used. It looks like http://proxy"),
    "no file": ("SSL_CERT_FILE", "/nonexistent", r"a file that it names cannot be used \(No such file"),
    "no certificates": ("SSL_CERT_FILE", __file__, "a file that it names cannot be used .*no certificate"),
}


@pytest.mark.parametrize("kind", ENVIRONMENT)
def test_a_variable_that_cannot_be_used_is_named(run, server, monkeypatch, kind):
    name, value, message = ENVIRONMENT[kind]
    monkeypatch.setitem(sys.modules, "socksio", None)
    for other in (*client.PROXIES, *client.FILES):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name} in the environment: .*{message}.*, or unset the variable") as found:
        run()
    assert "pass-word" not in str(found.value) and not server.bodies


@pytest.mark.parametrize("broken, fine", [("SSL_CERT_FILE", "SSLKEYLOGFILE"), ("SSLKEYLOGFILE", "SSL_CERT_DIR")])
def test_of_several_files_only_those_that_cannot_be_used_are_named(run, monkeypatch, tmp_path, broken, fine):
    """The file of keys need not be there; its folder has to."""
    for other in client.FILES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(broken, str(tmp_path / "nowhere" / "file"))
    monkeypatch.setenv(fine, str(tmp_path if fine == "SSL_CERT_DIR" else tmp_path / "new"))
    with pytest.raises(UserError, match=f"^{broken} in the environment: a file that it names cannot be used"):
        run()


def test_several_variables_are_not_it(run, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "foo://h")
    with pytest.raises(UserError, match="^HTTP_PROXY, HTTPS_PROXY in the environment: a proxy that one of them names "):
        run()


@pytest.mark.parametrize("name", ["OPENAI_ORG_ID", "OPENAI_CUSTOM_HEADERS"])
def test_a_header_that_cannot_be_sent_is_named(run, server, monkeypatch, name):
    monkeypatch.setattr(ApiSetup, "is_own_server", True)
    monkeypatch.setenv("KEY", "sk-test-key-abcdefgh1234")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "fine")
    monkeypatch.setenv(name, "X-a: secrét")
    with pytest.raises(UserError, match=f"^{name} in the environment: a header that is sent has characters ") as found:
        run("--key_env", "KEY")
    assert "secr" not in str(found.value) and "proxy" not in str(found.value) and not server.bodies


def test_another_error_in_the_making_of_connections_stays_what_it_is(run, monkeypatch):
    def fail(**_: object) -> None:
        raise ValueError("a defect")

    for other in (*client.PROXIES, *client.FILES):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr("openai.DefaultHttpxClient", fail)
    for proxy in ("", "http://127.0.0.1:9"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(ValueError, match="a defect"):
            run()


def test_a_proxy_that_makes_no_connection_costs_nothing(run, server, monkeypatch, tmp_path):
    """The fake server is the proxy: it knows no CONNECT, and answers 501."""
    for other in (*client.PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", server.url.removesuffix("/v1"))
    message = r"no answer in 2 attempts, at last: no connection to api.invalid through the proxy of HTTPS_PROXY \(501 "
    with pytest.raises(UserError, match=message):
        run("--base_url", "https://api.invalid/v1", "--attempts", 2)
    assert not server.bodies and not (tmp_path / "out").exists(), "no attempt is kept as lost"


def test_a_proxy_that_cannot_be_reached_is_named(run, monkeypatch):
    for other in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass-word@127.0.0.1:9")
    message = r"no connection to api.invalid \(.*; proxies in the environment: HTTPS_PROXY\)\. Check the server"
    with pytest.raises(UserError, match=message) as found:
        run("--base_url", "https://api.invalid/v1", "--attempts", 1)
    assert "pass-word" not in str(found.value)


@pytest.mark.parametrize("kind, named", [("ConnectTimeout", True), ("ReadTimeout", False)])
def test_a_proxy_that_does_not_answer_is_named(run, server, monkeypatch, kind, named):
    import httpx2

    def fail(self: object, request: object) -> None:
        raise getattr(httpx2, kind)("timed out")

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", fail)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="at last: nothing in 5 s") as found:
        run("--attempts", 1)
    assert ("nothing in 5 s (proxies in the environment: HTTPS_PROXY)" in str(found.value)) == named


def test_waiting_for_a_connection_of_the_own_pool_reaches_no_server():
    import httpx2

    for kind, reached in {"PoolTimeout": False, "ConnectTimeout": False, "ReadTimeout": True}.items():
        error = Exception()
        error.__cause__ = getattr(httpx2, kind)("timed out")
        assert client._reached(error) == reached, kind


def test_a_certificate_that_is_not_trusted(run, server, monkeypatch):
    def refuse(self: ssl.SSLContext, *_: object, **__: object) -> None:
        tried.append(1)
        raise ssl.SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    tried: list[int] = []
    for other in (*client.PROXIES, *client.FILES):
        monkeypatch.delenv(other, raising=False)
    for name in ("wrap_socket", "wrap_bio"):
        monkeypatch.setattr(ssl.SSLContext, name, refuse)
    with pytest.raises(UserError, match=r"not trusted \(.*self-signed.* export SSL_CERT_FILE=cert.pem") as found:
        run("--base_url", server.url.replace("http://", "https://"))
    assert len(tried) == 1 and "--attempts" not in str(found.value)


def test_a_listed_model_that_does_not_chat(run, server):
    server.script.append(error(404, "Not Found"))
    said = f"lists the model '{MODEL}', but has no /chat/completions for it .*Not Found.*Check --base_url"
    with pytest.raises(UserError, match=said) as found:
        run("--api_model", MODEL)
    assert "Did you mean" not in str(found.value) and len(server.bodies) == 1


@pytest.mark.parametrize("status, content", [(201, chat("alarm_set")), (202, {"status": "queued"}), (204, None)])
def test_another_status_of_success_is_no_chat_completion(run, server, status, content):
    server.script.append(send(status, content, cut=0 if status == 204 else None))
    with pytest.raises(UserError, match="does not answer with HTTP 200 and a chat completion, but with HTTP ") as found:
        run()
    end = {201: "alarm_set", 202: "queued", 204: "HTTP 204. Check --base_url"}[status]
    assert end in str(found.value) and "max_tokens" not in str(found.value) and len(server.bodies) == 1


@pytest.mark.parametrize("status", [302, 304])
def test_a_redirect_to_nowhere_is_no_chat_completion(run, server, status):
    server.script.append(send(status, None, cut=0))
    with pytest.raises(UserError, match=f"does not answer with HTTP 200 .*, but with HTTP {status}. Check --base_url"):
        run()
    assert len(server.bodies) == 1
