"""An OpenAI-compatible server whose replies a test makes up."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@contextmanager
def serving(reply: Reply, models: Sequence[str] = ()) -> Iterator[str]:
    """The address of a server that answers a request's body by `reply`, and lists `models`; a key must be `right`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = {"data": [{"id": name} for name in models]}
            self.send(200 if self.headers["Authorization"] in (None, "Bearer right") else 401, listed)

        def do_POST(self) -> None:
            self.send(*reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def send(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def message(content: str, finish_reason: str = "stop", **more: str) -> tuple[int, dict[str, Any]]:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content, **more}}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
