"""A Hugging Face Hub of one's own, on this machine: repositories are made, files and commits are taken, tokens checked.

As huggingface_hub speaks to it: small files come inside the commit, large ones before it by git-lfs's basic transfer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITER, READER = "hf_may_write", "hf_may_read"
LARGE_BYTES = 20_000
"""From when on a file comes by git-lfs."""


@dataclass
class FakeHub:
    """What it holds, and where it listens."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Their messages."""
    large: dict[str, bytes] = field(default_factory=dict)
    """By sha256."""
    broken: bool = False
    """It takes no commit."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running one."""
    hub = FakeHub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":  # of the card, before anything is sent
            self._answer(200, {"errors": [], "warnings": []})
        elif token not in (WRITER, READER):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif token == READER:
            self._answer(403, {"error": "Forbidden: this token may not write"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": self._mode(file["size"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self._lfs(wanted) for wanted in json.loads(body)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._answer(404, {"error": f"no {path}"})

    def do_PUT(self) -> None:
        body = self._body()
        assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/lfs/")
        self.held.large[self.path.removeprefix("/lfs/")] = body
        self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {"error": f"no {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
        status = 409 if name in self.held.repos else 200
        self.held.repos.setdefault(name, {})
        self.held.private.setdefault(name, bool(asked.get("private") or asked.get("visibility") == "private"))
        self._answer(status, {"url": f"{self.held.url}/{name}", "name": name})

    def _commit(self, repo: str, body: bytes) -> None:
        if self.held.broken:
            self._answer(400, {"error": "a card with broken metadata"})
            return
        files = self.held.repos[repo]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.held.commits.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.held.large[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        answer = {"commitUrl": f"{self.held.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}
        self._answer(200, answer)

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.held.large:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.held.url}/lfs/{wanted['oid']}"}}}

    def _mode(self, size: int) -> str:
        return "lfs" if size >= LARGE_BYTES else "regular"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
