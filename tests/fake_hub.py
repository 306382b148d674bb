"""As much of the hub's HTTP interface as asking for a model and sending one take, on a port of this machine."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Hub:
    """What the hub holds, and what it was asked."""

    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> private, gated
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # name -> what was sent, by path
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)  # token -> its owner, as whoami tells it
    granted: set[str] = field(default_factory=set)  # tokens that may read gated models
    asked: list[str] = field(default_factory=list)
    full: bool = False  # takes nothing

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any], str]:
        """Status, content, error code."""
        self.asked.append(f"{method} {path}")
        if token is not None and token not in self.tokens:
            return 401, {"error": "Invalid user token."}, ""
        if path == "/api/whoami-v2":
            return (200, self.tokens[token], "") if token else (401, {}, "")
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")[1]
            wrong = re.search(r"^base_model: (?!\w[\w-]*/\w[\w.-]*$)", front, re.M)
            return (400, {"errors": [{"message": '"base_model" is not valid'}]}, "") if wrong else (200, {}, "")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or self.tokens[str(token)]['name']}/{asked['name']}"
            there = name in self.models
            self.models.setdefault(name, {"private": asked.get("visibility") == "private", "gated": False})
            return 409 if there else 200, {"url": f"https://huggingface.co/{name}"}, ""
        found = re.match(r"/api/models/([^/]+/[^/]+)(?:/([\w-]+))?", path)
        assert found is not None, path
        name, what = found.groups()
        model = self.models.get(name)
        if model is None or (model["private"] and token is None):
            return (401 if token is None else 404), {}, "RepoNotFound"
        if what == "auth-check" and model["gated"] and token not in self.granted:
            return (401 if token is None else 403), {}, "GatedRepo"
        if what == "preupload":
            paths = [one["path"] for one in json.loads(body)["files"]]
            return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}, ""
        if what == "commit":
            if self.full:
                return 403, {"error": "Private repository storage limit reached"}, ""
            sent = [json.loads(line) for line in body.splitlines() if line]
            self.files[name] = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in sent if one["key"] == "file"
            }
            return 200, {"commitUrl": f"https://huggingface.co/{name}/commit/1", "commitOid": "1"}, ""
        return 200, {"id": name, "sha": "1", **model, "tags": [], "siblings": []}, ""


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            status, content, code = hub.answer(self.command, self.path.partition("?")[0], token, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code:
                self.send_header("X-Error-Code", code)
            if "error" in content:
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
