"""A small hub: a server that answers the requests by which `datasets` finds and downloads a data set."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "someone/gated"
REVISIONS = ("main", COMMIT)


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", X_Error_Code=code, X_Error_Message=f"{code} here")

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match = re.match(r"(/api)?/datasets/([\w.-]+/[\w.-]+)(?:/(.*))?$", path)
        if match is None:
            return self._refuse(404, "EntryNotFound")
        is_api, name, rest = bool(match[1]), match[2], match[3] or ""
        if name == GATED and not is_api:
            return self._refuse(401, "GatedRepo")
        folder = self.root / name
        if not folder.is_dir():
            return self._refuse(401, "RepoNotFound")
        verb, _, rest = rest.partition("/")
        revision, _, inner = rest.partition("/")
        if revision and revision not in REVISIONS:
            return self._refuse(404, "RevisionNotFound")
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if not is_api:
            file = folder / inner
            if verb != "resolve" or not file.is_file():
                return self._refuse(404, "EntryNotFound")
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._send(200, content, X_Repo_Commit=COMMIT, ETag=etag, Accept_Ranges="bytes")
        described = [
            {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": COMMIT}
            for file in files
        ]
        if verb == "paths-info":
            asked = json.loads(body)["paths"]
            return self._send(200, json.dumps([one for one in described if one["path"] in asked]).encode())
        if verb == "tree":
            return self._send(200, json.dumps(described).encode())
        info = {"id": name, "sha": COMMIT, "private": False, "downloads": 0, "tags": []}
        info["siblings"] = [{"rfilename": one["path"]} for one in described]
        self._send(200, json.dumps(info).encode())

    do_GET = do_HEAD = do_POST = _answer


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve the data sets in ``root/OWNER/NAME``, and one that is gated; yields the server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
