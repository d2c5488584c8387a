"""What stands between the program and a server: names of hosts, proxies, certificates. None of it ends in a traceback,
and no attempt that did not reach the server counts as paid."""

from __future__ import annotations

import pytest

from data.errors import UserError
from tests.eval.api.server import completion, send


@pytest.mark.parametrize("url", ["http://1.2.3.400/v1", "http://☃.net/v1", "http://h/" + "a" * 70_000])
def test_a_url_that_only_the_client_refuses(run, url):
    with pytest.raises(UserError, match="--base_url .* is not a URL for the package openai: "):
        run("--base_url", url)


def test_a_redirect_to_what_is_no_host(run, server):
    server.script.extend([completion("alarm_set"), send(307, {}, {"Location": "http://.invalid/v1"})])
    with pytest.raises(UserError, match=r"an address to which the server redirects, is no host name .*1 of 6 answers"):
        run("--concurrency", 1)
    assert len(server.bodies) == 2
