"""A Hub on the loopback: as much of its HTTP interface as publishing, downloading and `load_dataset` take.

Real HTTP for the real client (HF_ENDPOINT), with faults on demand: `server.faults` holds what goes wrong, and when.
"""

import contextlib
import dataclasses
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_pages import Pages, Refused, Repo


@dataclasses.dataclass
class Fault:
    """Something that goes wrong with the next `times` requests that match."""

    method: str
    path: str
    action: str  # "status", "cut" (the request's body is not read to its end), "lose" (done, not answered), "wait"
    times: int = 1
    status: int = 503
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    until: Callable[[], Any] = lambda: None


class Hub(ThreadingHTTPServer):
    """The server and all that it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commits(self, kind: str, repo_id: str) -> int:
        """How often somebody has published; the Hub's own first commit is not counted."""
        return len(self.repos[kind, repo_id].commits) - 1

    def counted(self, method: str, path: str) -> list[int]:
        """The answers to all requests that match; 0 stands for none."""
        return [status for verb, where, status in self.requests if verb == method and re.search(path, where)]


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A running server."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(Pages, BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        where = urlsplit(self.path)
        path, query = unquote(where.path), parse_qs(where.query)
        fault = self._fault(path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.action == "cut":
            self.rfile.read(length // 2)
            self._hang_up(path)
            return
        body = self._body(length)
        if fault is not None and fault.action == "wait":
            fault.until()
        if fault is not None and fault.action == "status":
            self._answer(path, fault.status, b"not JSON", fault.headers)
            return
        status, headers = 200, {}
        try:
            with self.server.lock:
                content = self._route(path, query, body, headers)
            status = 206 if "Content-Range" in headers else 200
        except Refused as refused:
            status = refused.status
            headers = {"X-Error-Message": refused.message, **({"X-Error-Code": refused.code} if refused.code else {})}
            content = json.dumps({"error": refused.message, **refused.more}).encode()
        if fault is not None and fault.action == "lose":
            self._hang_up(path)
            return
        self._answer(path, status, content, headers)

    def _fault(self, path: str) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self, path: str) -> None:
        self.server.requests.append((self.command, path, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, path: str, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.server.requests.append((self.command, path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def client_environment(hub: Hub, home: Path) -> dict[str, str]:
    """What a process needs to take `hub` for the Hub: huggingface_hub reads it when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
