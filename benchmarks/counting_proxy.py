"""A server that passes requests on to another, and counts them."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        proxy, body = self.server.proxy, self.rfile.read(int(self.headers["Content-Length"]))
        with proxy.lock:
            proxy.bodies[body] += 1
        url = proxy.url_of_target + self.path.removeprefix("/v1")
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                status, answer = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read()
        with proxy.lock:
            proxy.n_answered += 1  # before the client can have read it
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:  # the client has gone
            self.close_connection = True
            with proxy.lock:
                proxy.n_answered -= 1

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed leaves its connection: no traceback for that."""


class CountingProxy:
    """Use as a context.

    Attributes:
        url: its base URL.
        n_answered: responses that were sent.
    """

    def __init__(self, target: str) -> None:
        self.url_of_target, self.n_answered, self.lock = target, 0, threading.Lock()
        self.bodies: Counter[bytes] = Counter()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def n_requests(self) -> int:
        return sum(self.bodies.values())

    @property
    def n_repeated(self) -> int:
        """Requests that came more than once."""
        return sum(n > 1 for n in self.bodies.values())

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
