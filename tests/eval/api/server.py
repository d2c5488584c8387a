"""A server of the OpenAI chat API in a thread of the test, which misbehaves as the test says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler", dict], None]
MODEL = "fake-2024-01-01"  # what it says that it is
USAGE = {"prompt_tokens": 500, "completion_tokens": 7}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.fake.handle(self, body)

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": ""} for name in (7, MODEL, None)]
        send(200, {"object": "list", "data": models})(self, {})

    def log_message(self, *_: object) -> None:
        pass


class FakeServer:
    """Answers with ``answer(body)``, unless ``script`` has a reply for the next request.

    Attributes:
        script: replies to the next requests.
        before: called with each request's body before the reply; may block.
        bodies: of all requests, and the times at which they came.
        answered: how often each document was answered.
        keys: the Authorization headers.
        headers: all headers.
        most_at_once: the largest number of requests that were in flight.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict], str] = lambda body: "alarm_set"
        self.script: deque[Reply] = deque()
        self.before: Callable[[dict], None] = lambda body: None
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.answered: Counter[str] = Counter()
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.httpd.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    @property
    def asked(self) -> Counter[str]:
        """How often each document was asked."""
        return Counter(map(document, self.bodies))

    def handle(self, handler: Handler, body: dict) -> None:
        with self.lock:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.keys.append(handler.headers.get("authorization"))
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            reply = self.script.popleft() if self.script else None
        try:
            self.before(body)
            if reply is None:
                completion(self.answer(body))(handler, body)
                with self.lock:
                    self.answered[document(body)] += 1
            else:
                reply(handler, body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.at_once -= 1


def document(body: dict) -> str:
    """The document in a request of the paper's tasks."""
    text = body["messages"][-1]["content"]
    return text.rpartition("Beginning of <<")[2].partition(">>\n")[2].partition("\nEnd of <<")[0]


# --- replies ----------------------------------------------------------------------------------------------------------


def send(status: int, content: object, headers: dict[str, str] | None = None, cut: int | None = None) -> Reply:
    """Send JSON, or HTML if ``content`` is a string; ``cut``: only so many bytes of it, as if that were all."""
    is_html = isinstance(content, str)
    data = (content if is_html else json.dumps(content)).encode()[:cut]

    def reply(handler: Handler, body: dict) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html; charset=utf-8" if is_html else "application/json")
        handler.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def chat(text: str | None, finish_reason: str = "stop", usage: bool = True, **message: object) -> dict:
    message = {"role": "assistant", "content": text, **message}
    record = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL}
    record |= {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
    return record | ({"usage": USAGE | {"total_tokens": 507}} if usage else {})


def completion(text: str | None, finish_reason: str = "stop", usage: bool = True, **message: object) -> Reply:
    return send(200, chat(text, finish_reason, usage, **message))


def cut_off(text: str) -> Reply:
    """Half of the JSON, as a complete response."""
    return send(200, chat(text), cut=60)


def error(status: int, message: str, headers: dict[str, str] | None = None, **details: object) -> Reply:
    return send(status, {"error": {"message": message, **details}}, headers)


def drop(after: int = 60) -> Reply:
    """The connection ends in the middle of the response."""

    def reply(handler: Handler, body: dict) -> None:
        data = json.dumps(chat("alarm_set")).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:after])
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    return reply


def hang(seconds: float) -> Reply:
    """No response in time."""

    def reply(handler: Handler, body: dict) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return reply
